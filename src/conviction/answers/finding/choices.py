# ruff: noqa: RUF001  # words and signs of many scripts
"""Sentences that name a choice: "The correct option is (C)", "I choose C", "C가 정답입니다"."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from conviction.answers.finding.dress import first_sentence, one_line, tidy, unhedged
from conviction.answers.finding.labels import labels
from conviction.answers.finding.markers import announced
from conviction.answers.finding.values import last_lines

_PLAIN_LABEL = (
    r"(?:[(\[（][ ]?(?:[A-Za-z]|\d{1,2}|[ㄱ-ㅎ])[ ]?[)\]）]"
    r"|(?<![A-Za-z0-9_'’])[A-Z](?![A-Za-z0-9_'’])|[①-⑳]|\d{1,2}(?=[ ]?[번番])|[ㄱ-ㅎ])"
)
_ANY_LABEL = re.compile(
    rf"{_PLAIN_LABEL}|\b(?:[a-z]|\d{{1,2}})\W{{0,6}}$|[IVX]{{2}}|[A-H]{{2}}|[가나다라마](?![가-힣])"
)
_STANDING = re.compile(rf"{_PLAIN_LABEL}(?![ ][a-z])")
_ITS_NUMBER = r"(?:[ ]?(?:번|番))?"
_ITS_TEXT = r"(?:[).:][ ][^.;!?]{1,80}?|[ ]?\([^()]{1,80}\))?"
_LIST = (
    rf"{_PLAIN_LABEL}{_ITS_NUMBER}(?:[ ]?(?:,[ ]?and|,|and|&|및|와|과|、|和"
    rf"|と)[ ]?{_PLAIN_LABEL}{_ITS_NUMBER}){{0,9}}"
)

# What stands before a label.
_BEFORE = re.compile(
    r"""
    (?<![a-z]) (?: correct | right | best | true | final | most[ ]\w{1,24} | [a-z]{2,16}est
    | selected
    | chosen | my | our
        | proper | incorrect | false | wrong | untrue | odd[ ]one
        | only ) [ ] (?:[\w'’-]{1,24}[ ]){0,6}?
      (?: is | are | was | were | would[ ]be | must[ ]be | should[ ]be | will[ ]be
      | has[ ]to[ ]be ) \b [ ]?:?
  | (?<![a-z]) (?: (?:correct|right|best|selected|chosen|final|my|the)[ ] )?
      (?: option | choice | selection | pick | alternative | response | letter ) s? [ ]?
      (?: [:：=] | (?:is|are|would[ ]be|must[ ]be|should[ ]be)\b[ ]?:? )
  | (?<![a-z]) (?: option | choice | statement | answer | one | letter ) s? [ ](?:that|which)[ ]
      (?:[\w'’-]{1,24}[ ]){1,7}? (?: is | are | would[ ]be | must[ ]be ) \b
  | (?<![a-z]) (?: correct | selected | chosen ) [ ]?[:：]
  | [;.,][ ] (?: so | thus | hence | therefore ),? [ ] (?= \(?(?-i:[A-H])\)?\W{0,9}$ )
  | (?<![a-z]) (?: which | that | this | only | we['’]re | us ) [ ]
      (?: leaves | left ) (?:[ ](?:us|only|with|just)){0,3} [ ]
  | (?<![a-z]) (?: I | we ) (?:['’](?:d|ll|m))? (?:[ ](?:would|will|should|must|can|therefore
  |thus|so|then|am
        |are|would[ ]therefore|have[ ]to|need[ ]to|go|going|ended[ ]up|ultimately|confidently)){0,3}
      [ ] (?: choose | pick | select | chose | picked | selected | choosing | picking
      | selecting | answer
        | (?:go|going|went|settle|stick)[ ](?:with|for|on) | opt[ ]for | vote[ ]for
        | conclude[ ]with ) \b
  | (?<![a-z]) let['’]?s[ ] (?:go[ ]with|choose|pick|select) \b
  | (?:^|[.,;:][ ]|so[ ]|thus[ ]|hence[ ]|therefore,?[ ]) (?:choose|select|pick|mark) \b
  | (?: richtige? | korrekte? | zutreffende? | beste
  | passende ) [rsn]? [ ] (?:\w{1,24}[ ]){0,4}? (?:ist|lautet|wäre|sind) \b
  | \bich[ ](?:wähle|entscheide[ ]mich[ ]für|nehme) \b
  | (?: bonne | correcte | exacte | juste | vraie | meilleure ) s? [ ] (?:\w{1,24}[ ]){0,4}? (?:est
  |sont) \b | \bje[ ]choisis\b | \bc['’]est[ ](?:donc[ ])?(?:la[ ])?(?:réponse|option|proposition)\b
  | (?: opción | alternativa | opção | opzione | correcta | verdadera | adecuada | correta
  | certa | corretta
      | giusta | esatta ) s? [ ] (?:\w{1,24}[ ]){0,4}? (?:es|son|sería|é|são|seria|è|sono
      |sarebbe) \b
  | \b(?:elijo|escojo|selecciono|escolho|scelgo)\b
  | (?:应该?|應該?|故|本题|本題|所以|因此|答案|我)?[选選](?:择|擇|项|項)?(?:为|為|是)?[ ]?[:：]?
  | 正确的?[^，。；\s]{0,12}[是为為][ ]?[:：]?
  | (?:正しい|適切な|正解|該当する|誤っている|間違っている|選択肢)[^。、\s]{0,14}は[ ]?、?
  | (?:선택|고른[ ]?답)[ ]?[:：] | (?:고르면|찾으면)[ ] | [가-힣][은는][ ]?:?
    """,
    re.IGNORECASE | re.VERBOSE,
)
# What stands behind a label.
_AFTER = re.compile(
    rf"""
    (?P<labels>{_LIST}) (?:
      (?:{_ITS_TEXT}) [ ](?:is|are|must[ ]be|would[ ]be|should[ ]be
      |seems[ ]to[ ]be)[ ](?:\w{{1,20}}ly[ ]|indeed[ ]|thus[ ]){{0,2}}
        (?:the|my|our)[ ](?:[\w-]{{1,24}}[ ]){{0,4}}?(?P<strong_en>answer|option|choice|one
        |selection
        |response|alternative|statement)s?\b
    | [ ]?(?:이|가|을|를|은|는|이[ ]바로|가[ ]바로)?[ ]?
      (?P<strong_ko>정답|답(?:이[다며므]|입니|$|[ .])|선택[하합]|고르|골라|고릅|고른|택하)
    | [ ]?(?:が|を|は)?[ ]?(?P<strong_ja>正解|答え|選び|選択し)
    | [ ]?(?:项|項)?[ ]?(?:是|为|為)?[ ]?(?P<strong_zh>正确(?:答案|选项|的)|正確)
    | [ ](?P<strong_de>(?:ist[ ](?:die[ ]|daher[ ]|also[ ]){{0,2}}|die[ ])(?:richtig|korrekt)e?)
    | [ ](?P<strong_fr>est[ ](?:donc[ ])?(?:la[ ])?(?:bonne|correcte?|exacte?|juste))
    | [ ](?P<strong_es>es[ ](?:la[ ])?(?:respuesta[ ]|opción[ ])?(?:correcta|verdadera)|(?:é
    |está)[ ](?:a[ ])?(?:resposta[ ]|opção[ ]|alternativa[ ])?(?:corret[ao]|certa)
    |è[ ](?:la[ ])?(?:risposta[ ])?(?:corretta|giusta|esatta))
    | (?:{_ITS_TEXT}) [ ](?:is|are)[ ](?:\w{{1,20}}ly[ ]|thus[ ]|indeed[ ])?(?:correct|right|true
    |the[ ]best|best|(?:the[ ])?closest)\b
    | (?<=\b[Oo]nly[ ][A-Z])[ ](?:fits|works|remains|matches|holds|satisfies|is[ ]left)\b
    | [ ]?(?:이|가|은|는)[ ]?(?:가장[ ])?(?:맞|옳|적절|올바|알맞|타당)
    | [ ]?(?:が|は)[ ]?(?:正しい|適切) | [ ]?(?:项|項)?(?:是)?正确 )""",
    re.VERBOSE,
)
_HEDGED = re.compile(
    r"(?:\b(?:if|whether|why|suppose|assume|assuming|unless|when|think|thought"
    r"|that)(?:[ ]option|[ ]choice|[ ]the)?|n['’]t[ ]\w+|\bnot|만약)[ ]$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r".{0,6}?(?:[이가은는]?[ ]?아니|아닙|아님|않|では?な|じゃな|不)"
    r"|[ ](?:only[ ])?(?:if|when|for[ ]which)\b"
)
_NEGATIVE = re.compile(
    r"\b(?:not|never|no|incorrect|wrong|false|eliminate[sd]?|ruled? out|cannot|neither|nor"
    r"|unlikely|except)\b|n['’]t\b"
    r"|아니|아닙|않|틀린|틀립|오답|nicht|kein|falsch|\bpas\b|incorrect|不|ない",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(
    r"""(?: (?:option|choice|answer|alternative|보기|선택지|选项|選項|選択肢|opción
          |alternativa|opção
      |opzione|antwort)[ ]?
          (?P<named>\(?(?:(?-i:[A-Z])|\d{1,2})\)?(?![A-Za-z0-9_'’]))
      | (?P<bracketed>\([A-Z]\)) | (?P<circled>[①-⑳]) | (?P<numbered>\d{1,2})[ ]?[번番](?!째)
      | (?<![a-z]) (?:so|thus|hence|therefore|is|be|it['’]s|that['’]s|to|with|as|choose|∴|⇒|→|=>
      |->|따라서|그러므로|所以|因此|故|よって|したがって|also|daher|somit|donc|tanto)
          [,:]? [ ]? (?P<bare>(?-i:[A-HJ-Z]))(?=[\s.,;!)]*$) )""",
    re.IGNORECASE | re.VERBOSE,
)
_OPTION_LINE = re.compile(
    r"[\s*_>-]{0,20}[(\[]?([A-Za-z]|\d{1,2}|[①-⑳ㄱ-ㅎ])(?:[).:\]]|(?<=[①-⑳]))\s*\S"
)
_TOPIC = re.compile(r"[은는は][ ]?[:、]?[ ]?$")
_CONCLUDING_LINES = 2
_LINES_BEFORE = 12
_CHARACTERS_OF_SENTENCES = 1_200
_LONGEST_REST = 400
_LABEL_WITHIN = 80
_MOST_CLAIMS = 8


class _Claim(NamedTuple):
    text: str
    place: tuple[int, int]
    """Line, and column in it."""


def chosen(text: str) -> Iterator[str]:
    """What sentences choose, the likeliest first.

    After a colon ("Answer: C"), the last announcement counts; else the last sentence among "the
    answer is C", "the correct option is C", "I choose C", "C is the best answer". Next come weaker
    ones ("C is correct") and what the last lines name: "Therefore, option C.", "C) Paris", "C".
    """
    claims: list[_Claim] = []
    for found in announced(text):
        if said := _named(unhedged(found.rest, sentence=found.sentence)):
            if not found.sentence:
                yield said
            claims.append(_Claim(said, (found.line, found.column)))
            break
    strong, weak = _sentences(text, claims[0].place[0] if claims else 0)
    yield from (claim.text for claim in sorted(claims + strong, key=_place, reverse=True))
    yield from (claim.text for claim in weak)
    yield from _concluded(text)


def _place(claim: _Claim) -> tuple[int, int]:
    return claim.place


def _named(rest: str) -> str:
    """The choice that some text starts with, on short terms; empty if it names none."""
    found = labels(rest)
    if not found:
        return ""
    sentence = first_sentence(rest)
    return (
        sentence
        if len(sentence) < _LONGEST_REST and labels(sentence) == found
        else ", ".join(found)
    )


def _sentences(text: str, first_line: int) -> tuple[list[_Claim], list[_Claim]]:
    """What the last sentences claim from a line on, strongly and weakly, the last first."""
    strong: list[_Claim] = []
    weak: list[_Claim] = []
    lines = text.split("\n")
    left = _CHARACTERS_OF_SENTENCES
    for number in range(len(lines) - 1, first_line - 1, -1):
        if left <= 0:
            break
        line = one_line(lines[number][-_CHARACTERS_OF_SENTENCES:])
        left -= len(line) + 1
        if not _ANY_LABEL.search(line):
            continue
        for match in _last_matches(_BEFORE, line):
            rest = line[match.end() : match.end() + _LONGEST_REST]
            if not _ANY_LABEL.search(rest[:_LABEL_WITHIN]):
                continue
            said = _named(unhedged(rest, sentence=True))
            if said and not (said[0].isdecimal() and _TOPIC.search(match.group())):
                strong.append(_Claim(said, (number, match.start())))
        for match in _last_matches(_AFTER, line):
            hedged = _HEDGED.search(line[max(0, match.start() - 24) : match.start()])
            if hedged or _DENIED.match(line[match.end() : match.end() + 24]):
                continue
            kinds = strong if match.lastgroup != "labels" else weak
            kinds.append(_Claim(match["labels"], (number, match.start())))
        if strong:
            break
    return strong, weak[::-1]


def _last_matches(pattern: re.Pattern[str], line: str) -> list[re.Match[str]]:
    return list(pattern.finditer(line))[-_MOST_CLAIMS:]


def _concluded(text: str) -> Iterator[str]:
    """What the last lines name, where they name one choice."""
    lines = list(islice(last_lines(text), _LINES_BEFORE))
    if lines and labels(tidy(lines[0]), alone=True) and not _continues_a_list(lines):
        yield tidy(lines[0])
    for raw in lines[:_CONCLUDING_LINES]:
        line = one_line(raw)[-_CHARACTERS_OF_SENTENCES:]
        if _NEGATIVE.search(line) or _OPTION_LINE.match(line):
            continue
        found = {
            label.strip("()")
            for match in _CONCLUDED.finditer(line)
            for label in match.groups()
            if label
        }
        others = {label.strip("()[] ") for label in _STANDING.findall(line)}
        if len(found) == 1 and others <= found:
            yield found.pop()


def _continues_a_list(lines: list[str]) -> bool:
    """Whether the last line is one of several options or steps, as in "A) 1", "B) 2"."""
    last = _OPTION_LINE.match(lines[0])
    others = {match[1] for line in lines[1:] if (match := _OPTION_LINE.match(line))}
    return bool(last) and _before(last[1]) in others


def _before(label: str) -> str:
    """The label that comes before one in a list."""
    return str(int(label) - 1) if label.isdigit() and label.isascii() else chr(ord(label) - 1)
