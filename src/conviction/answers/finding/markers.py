# ruff: noqa: RUF001  # words and signs of many scripts
"""Words that announce an answer: "The answer is", "정답:", "La respuesta es", and their like."""

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from conviction.answers.finding.dress import (
    MOST_SENTENCE_CHARACTERS,
    one_line,
    stated,
    tidy,
)

_MOST_MARKERS = 24
_MOST_PLACES = 200
_LINES_LOOKED_AT = 5
_MOST_LINES_BELOW = 20
_LONGEST_HEADER = 200

# What may stand between a noun and its verb or colon: "(in cm)", "to question 3", ", then,".
_MIDDLE = r"""(?:
    [ ](?:to|for|of|in|among|from|that|which|here|I|we|you|as|rounded|given|choice|option|letter|key
       |value|above|below|then|auf|auf[ ]die|zu|à|de|del|della|da|do|a|la|al|para|per|pour)\b
       (?:[^.:;!?=]|\.(?=\d)){0,80}?
  | ,[^.,:;=]{1,40},
  | [ ]?[(（][^()（）]{1,60}[)）]
  | [ ]?\#?\d{1,2}
)?"""
_DRESS = r"""[*_"'”’\]】」』)}>]{0,4}[ ]?"""
_COLON = r"(?: [:：] | =(?!=) | =?[-–—]>[ ]? | [-–—]{1,3}[ ] | [→⇒⟹] | \|[ ] )"
_ADVERBS = (
    r"(?:[ ](?:only|then|therefore|thus|have|now|to|likely|probably|clearly|simply"
    r"|indeed|also)){0,3}"
)
_IS = rf"""(?: is(?=n['’]t\b) | (?: is | was | are | were | equals | becomes | remains
  | (?:must|should|would|will|can|has|have|ought|could|might|may|seems?|appears?|turns[ ]out
      |comes[ ]out|works[ ]out) {_ADVERBS} [ ] be
  | (?:comes|works|turns)[ ]out[ ](?:to|as) | reduces[ ]to | simplifies[ ]to ) \b )"""

_ENGLISH = rf"""
    (?<![A-Za-z]) (?: answers? {_MIDDLE} (?: {_DRESS} {_COLON}
    | (?P<sentence_1>(?: [*_"']{{0,2}} [ ] {_IS} | ['’]s\b)) )
      | answer (?=[ ]?\([A-Za-z0-9]\))
      | final[ ] (?:result|solution|choice|decision|conclusion|output|response
      |prediction) {_MIDDLE} {_DRESS}
        (?: {_COLON} | (?P<sentence_2> [ ]? {_IS}) ) )"""
_EUROPEAN = rf"""
    (?<![^\W\d_]) (?: (?:end)?antwort(?:en)? | endergebnis | réponses? | reponses? | respuestas?
        | respostas? | risposta | ответ | antwoord | odpowiedź | cevap | jawaban | svar | đáp[ ]án )
      (?:[ ](?:finale?|correct[ae]?s?|exacte?|bonne|juste|richtige|correta|corretta|giusta|esatta
        |definitiva|certa|est|es)){{0,2}}? {_MIDDLE}
      (?: {_DRESS} {_COLON} | (?=[ ]?\([A-Za-z0-9]\))
        | (?P<sentence_7> [ ]n['’]est(?=[ ]pas) | (?=[ ](?:no[ ]es|não[ ]é|non[ ]è)[ ]) )
        | (?P<sentence_3> [ ] (?: ist | lautet | wäre | sind | heißt | beträgt | muss | est
        | sont | serait
            | doit[ ]être | devrait[ ]être | es | son | sería | será | debe[ ]ser
            | debería[ ]ser | é | são
            | seria | deve[ ]ser | è | e' | sono | sarebbe | deve[ ]essere | is | adalah | là
            | to | jest ) \b ) )
  | (?: उत्तर | الإجابة | الجواب | תשובה ) {_DRESS} [:：]"""
_ASIAN = rf"""
    (?<![가-힣]) (?:최종[ ]?|정)? (?:정답|해답|답변|답안|답) (?:[ ]?번호)? {_DRESS}
      (?: {_COLON} | (?P<sentence_4> [은이](?![가-힣]) {_DRESS} [:：]? )
        | (?=[ ]?(?:[①-⑳❶-❿]|[(（][A-Za-z0-9][)）]|\d{{1,2}}번))
        | (?P<sentence_5> [을를][ ]구하면 ) )
  | (?: 答案 | 答え | 答 | 正解 | 解答 | 回答 ) {_DRESS}
      (?: {_COLON} | (?P<sentence_6> (?=不是) | [应應]?[该該]?(?:[是为為]|就是) {_DRESS} [:：]?
        | [は]、? ) )"""
MARKER = re.compile(rf"{_ENGLISH} | {_EUROPEAN} | {_ASIAN}", re.IGNORECASE | re.VERBOSE)
"""An announcement of the answer; a group whose name starts with "sentence" where it has a verb."""
_KEYS = (
    "answer", "final", "antwort", "ergebnis", "réponse", "reponse", "respuesta", "respost",
    "rispost", "ответ", "antwoord", "odpowied", "cevap", "jawaban", "svar", "đáp án", "उत्तर",
    "الإ", "الج", "תש",
    "정답", "최종답", "해답", "답변", "답안", "답", "答", "正解", "解答", "回答", "endantwort",
)  # fmt: skip
_HEADER = re.compile(
    r"""[^\w"]{0,40} (?:(?:the|my|la|die)[ ])? (?: (?:final|correct)[ ] )?
    (?: answers? | (?:최종[ ]?)?(?:정답|답) | antwort | réponse(?:[ ]finale)?
      | respuesta(?:[ ]final)?
      | (?:最终|最終)?答案 | 答え | 正解 | 最終的な答え )
    (?:[ ]?[(（][^()（）]{0,60}[)）])? [^\w"]*""",
    re.IGNORECASE | re.VERBOSE,
)
# "The wrong answer is B", "if the answer is 5", "to answer: …": these announce nothing.
_NOT_THIS_ONE = re.compile(
    r"""(?:\b(?: wrong | incorrect | false | previous | earlier | initial | original | no | partial
      | intermediate | tempting | common | (?:student|user|friend)['’]s | his | her | to
      | (?:if|whether|suppose|assume|assuming|unless)[ ]the(?:[ ](?:correct|final|right))? )
      | 틀린 | 잘못된 | falsche ) [ ]$""",
    re.IGNORECASE | re.VERBOSE,
)
# What follows a marker, but stands for the lines below it.
_BELOW = re.compile(
    r"(?:as follows|the following|below|given below|shown below|다음과 같\w*|아래와 같\w*|如下|以下"
    r"|次の通り\w*)\W*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s{0,40}[-*•·]\s\s{0,40}\S")

# Results that only count where a value follows: "Result: 5", "The total is $29".
_WEAK = re.compile(
    rf"""(?<![^\W\d_]) (?: results? | solutions? | totals? | (?:sum|product|value|ergebnis
      |lösung|résultat
        |resultado|risultato|solution)s? ) {_MIDDLE} (?: {_DRESS} {_COLON} | [ ] (?:{_IS} | ist
        | beträgt
        | est | es | é | è)\b )
  | (?:결과|값|합계|총합|합|结果|結果){_DRESS} (?: [:：=] | [는은이가](?![가-힣]) | [是为為は] )""",
    re.IGNORECASE | re.VERBOSE,
)
_VALUE = re.compile(r"[-+−]?[\s$€£₩¥₹\\({\[]{0,3}(?:\d|frac|sqrt|[a-zA-Z]\s?=|pi\b|boxed)")


class Announced(NamedTuple):
    """What follows one marker."""

    rest: str
    """The rest of its line, or what stands below it, on one line."""
    sentence: bool
    """Whether a verb stands before it, as in "the answer is", and not a colon."""
    line: int
    """The number of its line."""
    column: int


def announced(text: str) -> Iterator[Announced]:
    """What follows the markers of a text, the last one first."""
    low = text.lower()
    keys = [key for key in _KEYS if key in low]
    if not keys:
        return
    lines = text.split("\n")
    left = _MOST_MARKERS
    for number in range(len(lines) - 1, -1, -1):
        low = lines[number].lower()
        if not any(key in low for key in keys):
            continue
        line = one_line(lines[number])
        found = 0
        for match in _markers(line, keys):
            found += 1
            rest = line[match.end() : match.end() + MOST_SENTENCE_CHARACTERS]
            sentence = match.lastgroup is not None
            if _BELOW.fullmatch(rest.strip(" *_")) or not tidy(rest):
                rest, sentence = _below(lines, number), False
            yield Announced(rest, sentence, number, match.start())
        if not found and len(line) < _LONGEST_HEADER and _HEADER.fullmatch(line):
            found = 1
            yield Announced(_below(lines, number), sentence=False, line=number, column=0)
        left -= found
        if left <= 0:
            return


def _markers(line: str, keys: list[str]) -> Iterator[re.Match[str]]:
    """The last markers of a line, the last one first."""
    low = line.replace("İ", "i").lower()  # the only letter that grows
    places: set[int] = set()
    for key in keys:
        at = low.rfind(key)
        while at >= 0 and len(places) < _MOST_PLACES:
            places.add(at)
            at = low.rfind(key, 0, at)
    left = _MOST_MARKERS
    for place in sorted(places, reverse=True):
        match = MARKER.match(line, place)
        if match and not _NOT_THIS_ONE.search(line[max(0, place - 40) : place]):
            left -= 1
            yield match
        if left <= 0:
            return


def after_leading_marker(line: str) -> str | None:
    """The answer in a line that starts with a marker, on one line; None if it starts otherwise."""
    start = len(line) - len(line.lstrip("#*_>-[(【 "))
    match = MARKER.match(line, start)
    return stated(line[match.end() :], sentence=match.lastgroup is not None) if match else None


def _below(lines: list[str], number: int) -> str:
    """The first line below that holds anything, or all of the list or formula that starts there."""
    for at in range(number + 1, min(number + 1 + _LINES_LOOKED_AT, len(lines))):
        first = tidy(lines[at][:MOST_SENTENCE_CHARACTERS])
        if not first:
            continue
        following = lines[at : at + _MOST_LINES_BELOW]
        if "\\begin{" in first and "\\end{" not in first:
            ends = [i for i, line in enumerate(following) if "\\end{" in line]
            return one_line(" ".join(following[: ends[0] + 1]) if ends else first)
        listed = list(takewhile(_BULLET.match, following))
        whole = ", ".join(tidy(line) for line in listed) if len(listed) > 1 else first
        return one_line(whole)[:MOST_SENTENCE_CHARACTERS]
    return ""


def after_marker(text: str) -> Iterator[str]:
    """What follows each marker up to the end of its sentence, the last one first.

    Where no "answer" is announced, a "result" or a "total" counts if a value follows.
    """
    for found in announced(text):
        if answer := stated(found.rest, sentence=found.sentence):
            yield answer
    for line in reversed(text[-MOST_SENTENCE_CHARACTERS:].split("\n")[-_LINES_LOOKED_AT:]):
        plain = one_line(line)
        for match in reversed(list(_WEAK.finditer(plain))[-_LINES_LOOKED_AT:]):
            rest = plain[match.end() :].strip()
            if _VALUE.match(rest) and (answer := stated(rest, sentence=True)):
                yield answer
