# ruff: noqa: RUF001  # words and signs of many scripts
r"""The labels of choices: "C", "(c)", "C) Paris", "\text{(C)}", "③번", "ㄱ, ㄷ", "A, B, and C"."""

import re
import unicodedata
from typing import NamedTuple

from conviction.answers.finding.dress import EMPHASIS
from conviction.answers.formulas.markup import fold

_MOST_CHARACTERS = 4_000
_DRESSES = ("bracketed", "numbered", "suffixed", "bare")

# Circles and squares around a label count as brackets: a text may follow without a mark between.
_ENCIRCLED = re.compile("[①-⑳⓪Ⓐ-ⓩ㉠-㉭㉮-㉻❶-❿➀-➓🄰-🅉🅐-🅩🅰-🆉⒈-⒛⑴-⒇⒜-⒵]\ufe0f?|[0-9]\ufe0f?\u20e3")
_WITHOUT_COMPATIBILITY = {
    **{chr(0x2776 + i): str(i + 1) for i in range(10)},
    **{chr(0x2780 + i): str(i + 1) for i in range(10)},
    **{chr(0x278A + i): str(i + 1) for i in range(10)},
    **{chr(0x1F150 + i): chr(65 + i) for i in range(26)},
    **{chr(0x1F170 + i): chr(65 + i) for i in range(26)},
}
# NFKC takes the letters of Hangul apart: "ㄱ" becomes another character that looks the same.
_HANGUL_LETTERS = str.maketrans("ᄀᄂᄃᄅᄆᄇᄉᄋᄌᄎᄏᄐᄑᄒ", "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎ")

_LATEX = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|normal)?|math(?:rm|bf|it|sf|tt|bb|cal)|mbox|boldsymbol|bm"
    r"|emph|boxed"
    r"|fbox|operatorname|underline|textcircled)\*?\s?(?=\{)|\\(?:left|right|quad|qquad|bf|rm"
    r"|displaystyle)(?![a-z])"
    r"|\\[()\[\]]|\\?[{}]"
)
_LATEX_SPACE = re.compile(r"\\[ ,;:!]|~|\\\\")

_ROMAN = r"(?:VIII|VII|III|II|IV|VI|IX)"
_LETTER = r"[A-Z]"
_HANGUL = r"[ㄱ-ㅎ]"
_SYLLABLE = r"[가나다라마바사아자차]"
_ANY = rf"(?:{_ROMAN}|[A-Za-z]|[ivx]{{2,4}}|\d{{1,2}}|{_HANGUL}|{_SYLLABLE})"
_NOUN = (
    r"(?:options?|choices?|answers?|letters?|alternatives?|items?|statements?|numbers?|opción"
    r"|opciones|la|el"
    r"|l['’](?:option|opzione|alternative)|option|antwort(?:en)?|lösung|die|réponses?"
    r"|respuestas?|risposta"
    r"|alternativas?|opção|letra|lettre|buchstabe|the|both|only"
    r"|(?-i:a)(?=[ ](?:letra\b|\(?(?-i:[A-Z])\b))"
    r"|number|no\.|선택지|보기|선지|정답은?|답은?|번호"
    r"|选项|選項|選択肢|答案)"
)
_LEAD = re.compile(
    rf"(?:(?:{_NOUN}|(?:the[ ])?(?:correct|right|best)(?:[ ](?:answer|option|choice|one))?"
    rf"|is|are|는|은|definitely|clearly|therefore|thus|indeed|probably|likely|all[ ]of|namely"
    rf"|simply)"
    rf"(?:[ :]+|(?<=[\u3000-\ud7ff])[ :]?|(?=[(\[])))+",
    re.IGNORECASE,
)
_LABEL = re.compile(
    rf"""
    [(\[{{<「『【〈"'“‘] [ ]? (?P<bracketed>{_ANY}) [ ]? [)\]}}>」』】〉"'”’] [ ]?
      (?:번(?:째)?|番|项|項)? [.:]?
  | (?P<numbered>\d{{1,2}}|{_LETTER}|{_HANGUL}) [ ]? (?:번(?:째)?|番)
  | (?P<suffixed>{_ANY}) (?: [ ]?[)\]] [.:]? | [ ]?:(?!\d) | \.(?!\d)(?![ ]?[A-Za-z]\.) )
  | (?P<bare> {_ROMAN} | (?:viii|vii|iii|ii|iv|vi|ix)(?=\W*$) | {_LETTER} | {_HANGUL}
      | \d{{1,2}}(?![\d°%]|[./:]\d|,\d{{3}})
      | [a-z](?=\W*$|[ ](?:because|since)\b|[ ]?[,;&/][ ]?(?:and[ ])?[a-z]\b|[ ](?:and
      |or)[ ][a-z]\b)
      | {_SYLLABLE}(?=(?:입니다|이다|이에요|예요|임)?\W*$|[ ]?[,、]) )
      (?![A-Za-z0-9_ㄱ-ㅎ]|['’][A-Za-z]|[-*^=#+][A-Za-z0-9])
    """,
    re.VERBOSE,
)
_SEPARATOR = re.compile(
    r"""[ ]?(?: [,;&、，·ㆍ・/+] [ ]? (?:(?:and|or|und|et|y|e|그리고|및)[ ])?
      | (?:and|or|und|oder|et|ou|y|e|o|그리고|및|또는|plus|as[ ]well[ ]as)(?=[ (\[])[ ]?
      | (?:와|과|하고|랑|이랑|와[ ]함께|和|与|與|及|以及|と|跟)[ ]? )""",
    re.VERBOSE,
)
_MARKS = frozenset(",;/·、，ㆍ・+")
_RUN = re.compile(r"[A-H](?:[ ]?[A-H]){1,7}(?![A-Za-z])|[ㄱ-ㅎ]{2,8}")
# After a bare letter or number, a sentence may go on with these.
_TAIL = re.compile(
    r"""
    \W{0,40}$ | [ ]?[,;:!?…—–.。，；：！？→⇒] | [ ][-=][ ] | [ ]?[(（\[]
  | [ ](?: because|since|as|is|are|was|were|due|which|where|with|and|or|but|not|rather|instead|over
      |for|by|given|seems|would|must|only|based|from|so|matches|best|correctly|weil|denn|ist
      |sind|car
      |parce|est|sont|porque|es|son|é|è|pois|perché )\b
  | [ ]?(?: 이|가|을|를|은|는|와|과|임|으?로|입니다|이다|다|이에요|예요|이며|이고|이므로
      |이?라고|이?라는
      |입니다만|이었다|이지만|인데|이어야|일|인|뿐이다|뿐입니다 )(?=\W|$)
  | [ ]?(?: です|である|だ|と|が|は|を|に|で|となり|になり|是|项|項|选|正确|對|对 )
    """,
    re.VERBOSE,
)
_ENDING = re.compile(r"[ ]?(?:입니다|이다|이에요|예요|です|である)?\W{0,40}$")
_AFTER_I = re.compile(r"\W{0,40}$|[.,;)]|[ ](?:and|or|only)\b")
_NUMBER_TAIL = re.compile(r"[ ][-=][ ][(\\]?\d|[ ]?=")
_NEGATED_TAIL = re.compile(
    r"""[ ]?(?: (?:is|are|was|were|seems?|looks?|sounds?|may|might|could|would|does|can|did|has)
        (?: n['’]t | [ ]not(?![ ]only) | [ ](?:\w{1,24}[ ]){0,3}?(?:wrong|incorrect|false|trap
        |distractor
          |eliminated|ruled[ ]out|unlikely|invalid|impossible|misleading|unsure) )\b
      | cannot\b | [이가은는]?[ ]?(?:아니|아닙|아님|틀[린립려])
      | 不(?:是|对|對|正确) | (?:では|じゃ)な
      | (?:ist|est|es|é|è)[ ](?:nicht|pas|incorrecta?|falsch|fausse|errada?|sbagliata)
      | no[ ]es | n['’]est )""",
    re.VERBOSE | re.IGNORECASE,
)
_SINGULAR = re.compile(r"[ ](?:is|was|does|has|would|seems|can|may|might)\b")
_CAPITALISED_TEXT = re.compile(r"[ ](?:[A-Z0-9\"“$\\]|[가-힣]|[\u3040-\u9fff])")
_MORE = re.compile(
    r"(?P<joined>(?:[,;&、，/]|\b(?:and|or|und|et|y)\b|및|그리고)[ ]?(?:(?:and|or)[ ])?)?"
    r"(?:\((?P<bracketed>[A-Z])\)|(?<![\w(])(?P<suffixed>[A-Z])[).](?=[ ]|$))"
)


class _Item(NamedTuple):
    label: str
    dress: str
    end: int
    joined: bool
    """Whether "and" stands before it."""


def labels(answer: str, *, alone: bool = False) -> list[str]:
    """The labels that an answer names, in upper case and sorted; empty if it names none.

    The answer has to start with them. What may follow is the text of the choice, or a reason; with
    `alone`, no reason, as "B is the field" says nothing where no answer is announced.
    """
    if len(answer) > _MOST_CHARACTERS:
        return []
    plain = _plain(answer)
    if lead := _LEAD.match(plain):
        plain = plain[lead.end() :].strip() if lead.end() < len(plain) else plain
    if run := _run(plain):
        return run
    found = _listed(plain)
    if not found:
        return []
    dress = found[0].dress
    if len(found) == 1 and dress != "bare":
        tail = plain[found[0].end :]
        more = None if _NEGATED_TAIL.match(tail) else _more(dress, tail)
        return [] if more is None else _sorted([found[0].label, *more])
    while found and not (kept := _named(plain, found, alone=alone)):
        if kept is None:
            return []
    return _sorted([item.label for item in found])


def _named(plain: str, found: list[_Item], *, alone: bool) -> bool | None:
    """Whether a sentence may go on after the last of the labels; None if it names none of them.

    If not, the last ones are taken away, as in "B and C is a distractor", "B, C is wrong", "B; C
    and D contradict it".
    """
    last, bare = found[-1], found[0].dress == "bare"
    tail = plain[last.end :]
    pronoun = last.label == "I" and not _AFTER_I.match(tail)
    if len(found) > 1 and (pronoun or _SINGULAR.match(tail)):
        found.pop()
        return False
    number = bare and last.label.isdecimal() and _NUMBER_TAIL.match(tail)
    if number or pronoun or _NEGATED_TAIL.match(tail):
        return None
    follows = (_ENDING if alone else _TAIL).match(tail)
    if bare and not follows and (alone or not _text_follows(last.label, tail)):
        while found and found.pop().joined:
            pass
        return False
    return True


def _sorted(found: list[str]) -> list[str]:
    return sorted({label.upper() for label in found})


def _run(plain: str) -> list[str]:
    """The letters of "ABD", which stand in their order."""
    run = _RUN.match(plain)
    letters = sorted(set(run.group()) - {" "}) if run else []
    whole = (
        run and "".join(letters) == run.group().replace(" ", "") and _TAIL.match(plain, run.end())
    )
    return letters if whole else []


def _plain(answer: str) -> str:
    """One line without emphasis, LaTeX and quotation marks around it, circles as brackets."""
    text = _ENCIRCLED.sub(_bracketed, answer)
    if "\\" in text or "$" in text or "{" in text:
        text = without_latex(text).replace("\\$", "").replace("$", "")
    text = EMPHASIS.sub("", text)
    if not text.isascii():
        text = fold(text).translate(_HANGUL_LETTERS)
    text = " ".join(text.split()).strip("*_`#, ")
    return text if ")" in text else text.removeprefix("(")


def without_latex(text: str) -> str:
    """The text without commands that only style it, formula delimiters and braces."""
    return _LATEX.sub("", _LATEX_SPACE.sub(" ", text))


def _bracketed(match: re.Match[str]) -> str:
    sign = match.group()[0]
    label = _WITHOUT_COMPATIBILITY.get(sign) or unicodedata.normalize("NFKC", sign)
    return f"({label.strip('().')})"


def _listed(plain: str) -> list[_Item]:
    """The labels that a text starts with."""
    found: list[_Item] = []
    position, joined = 0, False
    while match := _LABEL.match(plain, position):
        dress = next(name for name in _DRESSES if match.group(name))
        label = match.group(dress)
        if found and dress == "bare" and label.isdigit() != found[0].label.isdigit():
            break
        found.append(_Item(label, dress, match.end(), joined))
        separator = _SEPARATOR.match(plain, match.end())
        if separator:
            position = separator.end()
            joined = separator.group().strip() not in _MARKS
        elif dress == "bracketed" and plain.startswith("(", match.end()):
            position = match.end()
        else:
            break
        if noun := _LEAD.match(plain, position):
            position = noun.end()
    return found


def _text_follows(label: str, tail: str) -> bool:
    """Whether the text of a choice may follow its bare letter, as in "C Paris"."""
    return "B" <= label <= "H" and bool(_CAPITALISED_TEXT.match(tail))


def _more(dress: str, tail: str) -> list[str] | None:
    """Labels of further choices after the text of the first; None if all choices are repeated.

    In "C) both (A) and (B)" they belong to the text.
    """
    found = list(_MORE.finditer(tail))
    alike = [match for match in found if match.group(dress if dress == "suffixed" else "bracketed")]
    if not alike:
        return []
    if all(match["joined"] for match in alike):
        return [match.group("bracketed") or match.group("suffixed") for match in alike]
    return None if dress == "suffixed" and not any(match["joined"] for match in alike) else []
