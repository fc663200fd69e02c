# ruff: noqa: RUF001  # words and signs of many scripts
"""Answers that stand alone: last lines, last numbers, answer tags, code fences, JSON."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, NoReturn

from conviction.answers.finding.dress import MOST_SENTENCE_CHARACTERS, one_line, stated, tidy
from conviction.answers.finding.markers import after_leading_marker, after_marker
from conviction.answers.formulas.markup import fold

NUMBER = re.compile(
    r"(?<![A-Za-z_\d.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+"
    r"|(?<=\d))(?:[eE][-+]?\d+)?(?:/\d+)?%?"
)
"""A number as it stands in prose: sign, thousands, decimals, exponent, fraction, percent."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_POWER = r"\^\s?[{(]?[-+]?\d+[)}]?"
# Fractions and powers of ten are one number; what is raised or lowered is none.
_LAST_NUMBER = re.compile(
    rf"""-?\d{{0,9}}\\[dtc]?frac\s?\{{?\d+\}}?\s?\{{?\d+\}}?
    | (?<![A-Za-z_\d.,/^])(?<![\^_][{{(])(?<!\^[-+])[-+]?\d{{1,9}}[ ]\d{{1,9}}/\d{{1,9}}(?![\d/])
    | (?<![\d:])\d{{1,2}}:\d{{2}}(?![\d:])
    | (?<![\^_])(?<![\^_][{{(])(?<!\^[-+]){NUMBER.pattern}
      (?: \s?(?:×|\*|x|·|\\times|\\cdot)\s?10\s?{_POWER} | {_POWER}
        | \s?[천백십만억조]+(?:\s?\d[\d,]*\s?[천백십만억조]+){{0,6}}(?:\s?\d+)? )?""",
    re.VERBOSE,
)
_ALTERNATIVES = re.compile(r"[$€£]?\d[\d.,]{0,20} (?:or|to) [$€£]?\d[\d.,]{0,20}")
_ITS_SUM = re.compile(r"\([^()=]*=[^()]*\)[\s.]*$")
_PLEASANTRY = re.compile(
    r"""\W{0,20}(?:I[ ](?:really[ ])?hope|hope[ ](?:this|that|it)|let[ ]me[ ]know|please[ ]let
      |feel[ ]free
      |if[ ]you[ ](?:have|need|would|want|like)|is[ ]there[ ]anything|thanks?\b|thank[ ]you
      |good[ ]luck
      |have[ ]a[ ](?:nice|great|good)|도움이[ ]되|궁금한|더[ ]궁금|감사합니다|希望|お役に立)""",
    re.IGNORECASE | re.VERBOSE,
)
_HEADING_NUMBER = re.compile(r"\d{1,3}[.):]\s+\D|(?:step|part|case)\b", re.IGNORECASE)
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_LONGEST_VALUE = 400
_QUANTITY = re.compile(
    r"[$€£¥₩₹]?\s?[-+]?\d[\d,.]*(?:/\d+)?%?(?:\s?[^\W\d_]{1,15}){0,3}"
    r"(?:(?:,|\sand)?\s\d[\d,.]*(?:\s?[^\W\d_]{1,15}){1,2}){0,3}"
)
_FORMULA_WORD = re.compile(
    r"\\(?:text|mathrm|operatorname)\s?\{[^{}]*\}|\\[A-Za-z]+|\b(?:sin|cos|tan|log|exp|and|or"
    r"|mod)\b"
)
_INLINE_FORMULA = re.compile(r"\$[^$]{1,200}\$|\\\((?:[^\\]|\\[^()]){1,200}\\\)")
_PROSE = re.compile(r"[^\W\d_]{2,}")
_FORMULA_SIGN = re.compile(r"[\d\\=]")
_VERB_BEFORE = re.compile(
    r"""(?: [=≈:] | \b(?:is|are|was|were|equals?|has|have|had|costs?|pays?|paid|totals?|of
      |makes?|made|earns?
      |earned|needs?|takes?|took|spends?|spent|gets?|got|with|receives?|gives?|for|sells?|sold
      |be|in) )
      \s? (?:(?:a[ ]total[ ]of|about|approximately|only|exactly|still|just|now
      |up[ ]to)\s)? [\s$€£¥₩₹\\({*]{0,12}$""",
    re.VERBOSE,
)
_UNITS_AFTER = re.compile(
    r"[\s)}\\$*]{0,20}(?:(?:^|\s)[^\W\d_]{1,40}[²³]?[,;]?){0,5}[\s.!)}\\$*]{0,20}"
)
_ENDS_IN_KOREAN = re.compile(r"[\s가-힣A-Za-z/²³]{0,30}?(?:다|요)\W*")

_TAG = re.compile(
    r"<(?:\s?(/?)\s?(?:final[_ -]?)?(?:answer|ans)\s?>|\|(begin|end)_of_box\|>)", re.IGNORECASE
)

_JSON_START = re.compile(r"""\{(?=\s*["}])|\[(?=\s*["\[{\]\d\-tfn])""")
_MOST_FAILED_READINGS = 300
_MOST_READ_AGAIN = 8
_JSON_TAIL = 4_096
_MOST_JSON_VALUES = 8
_MOST_FENCES = 9


def last_line(text: str) -> Iterator[str]:
    """The last line that holds anything but markup and pleasantries.

    Where one part of a sentence there is bold, that part first.
    """
    for raw in last_lines(text):
        bold = _BOLD.findall(raw)
        if len(bold) == 1 and len(raw) > len(bold[0]) + 12 and (found := tidy(bold[0])):
            yield found
        line = tidy(raw)
        announced = after_leading_marker(one_line(line))
        yield line if announced is None else announced
        return


def last_lines(text: str) -> Iterator[str]:
    """Lines that hold something, the last first; a line beyond all bounds ends the search."""
    end = len(text)
    while end > 0:
        start = text.rfind("\n", 0, end) + 1
        if end - start > MOST_SENTENCE_CHARACTERS and not text[start:end].isspace():
            return
        line = text[start:end]
        if line and not line.isspace() and tidy(line) and not _PLEASANTRY.match(line):
            yield line
        end = start - 1


def last_number(text: str) -> Iterator[str]:
    """The last number on the last line that holds anything but markup and pleasantries."""
    for line in last_line(text):
        raised = _RAISED.sub(lambda run: "^" + run.group().translate(_SUPERSCRIPTS), line)
        plain = fold(raised)
        if _ALTERNATIVES.fullmatch(plain):
            yield plain
            return
        numbers = [found.group() for found in _LAST_NUMBER.finditer(_ITS_SUM.sub("", plain))]
        numbers = numbers or [found.group() for found in _LAST_NUMBER.finditer(plain)]
        if numbers:
            yield numbers[-1].strip()


def last_value(text: str) -> Iterator[str]:
    """The last line, if it holds nothing but a value; else the number that its sentence ends with.

    "x = 5", "12 apples" and "(1, 2)" are values. "So she has 12 apples left." ends with 12.
    """
    for line in islice(last_lines(text), 1):
        plain = tidy(one_line(line))
        if len(plain) > _LONGEST_VALUE:
            return
        if _is_value(plain):
            yield plain
        for found in (_INLINE_FORMULA, _LAST_NUMBER):
            if values := list(found.finditer(plain)):
                before, after = plain[: values[-1].start()], plain[values[-1].end() :]
                if _ENDS_IN_KOREAN.fullmatch(after) or (
                    _VERB_BEFORE.search(before[-_LONGEST_VALUE:]) and _UNITS_AFTER.fullmatch(after)
                ):
                    yield tidy(values[-1].group().strip())


def _is_value(line: str) -> bool:
    if _QUANTITY.fullmatch(line):
        return True
    if "boxed" in line:
        return False  # it was never closed
    formula = _FORMULA_WORD.sub(" ", line)
    return not _PROSE.search(formula) and (len(line) == 1 or bool(_FORMULA_SIGN.search(line)))


def after_hashes(text: str) -> Iterator[str]:
    """What follows the last "####" at the start of a line, if it is a number or ends the text."""
    last = True
    for line in reversed(text.split("\n")):
        if line.startswith("####"):
            rest = line.strip("# \t")
            number = any(character.isdigit() for character in rest)
            if number and (last or not _HEADING_NUMBER.match(rest)):
                yield tidy(rest[:MOST_SENTENCE_CHARACTERS])
        last = last and not line.strip()


def in_tag(text: str) -> Iterator[str]:
    """What the last `<answer>` that is not empty holds; where that is a sentence, its answer."""
    opened: int | None = None
    content = ""
    for tag in _TAG.finditer(text):
        closes = tag[1] == "/" or (tag[2] or "").lower() == "end"
        if opened is not None:
            inside = text[opened : tag.start()]
            content = content if inside.isspace() or not inside else inside
        opened = None if closes else tag.end()
    if opened is not None and not text[opened:].isspace():
        content = text[opened:] or content
    if content:
        yield from after_marker(content)
        lines = [
            line for raw in content.split("\n") if (line := tidy(raw[:MOST_SENTENCE_CHARACTERS]))
        ]
        if lines:
            yield stated(one_line(lines[0] if len(lines) == 1 else lines[-1]), sentence=False)


def in_fence(text: str) -> Iterator[str]:
    """What the fenced blocks hold, the last one first; the last may be left open."""
    blocks: list[str] = []
    block: list[str] | None = None
    for line in text.split("\n"):
        fence = line.lstrip(" \t").startswith("```")
        if not fence:
            if block is not None:
                block.append(line)
        elif block is None:
            block = []
        else:
            blocks.append("\n".join(block))
            block = None
    if block is not None:
        blocks.append("\n".join(block))
    yield from (found for raw in blocks[:-_MOST_FENCES:-1] if (found := raw.strip()))


def last_json(text: str) -> Iterator[str]:
    """The last JSON value with lines of its own, or else the last object, or the last array.

    All of the text, if that is one JSON value.
    """
    stripped = text.strip()
    if _reading_end(stripped, None)[0] is not None:
        yield stripped
        return
    found = _json_values(text) or _json_values(text[-_JSON_TAIL:])
    ranked = sorted(
        enumerate(found), key=lambda item: (item[1].alone, item[1].text[0] == "{", item[0])
    )
    yield from (value.text for _, value in reversed(ranked[-_MOST_JSON_VALUES:]))


class _Value(NamedTuple):
    text: str
    alone: bool


def _json_values(text: str) -> list[_Value]:
    """All outermost objects and arrays, as long as failed readings cost no more than the text."""
    values: list[_Value] = []
    position, failed, budget = 0, 0, _MOST_READ_AGAIN * len(text)
    while failed < _MOST_FAILED_READINGS and budget > 0:
        opening = _JSON_START.search(text, position)
        if not opening:
            break
        start = opening.start()
        end, reached = _reading_end(text, start)
        if end is None:
            failed += 1
            budget -= reached - start
            position = opening.end()
        else:
            before = text[text.rfind("\n", 0, start) + 1 : start]
            after = text[end : (text.find("\n", end) + 1 or len(text) + 1) - 1]
            alone = not before.strip(" \t>-*`") and not after.strip(" \t.;`,")
            values.append(_Value(text[start:end], alone))
            position = end
    return values


def _reading_end(text: str, start: int | None) -> tuple[int | None, int]:
    """Where the JSON value at `start` ends, or None, and how far it was read.

    Without `start`, all of `text` has to be one value.
    """
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=refuse)
    try:
        _, end = decoder.raw_decode(text, start or 0)
    except json.JSONDecodeError as error:
        return None, error.pos
    except (ValueError, RecursionError):
        return None, len(text)
    return (end if start is not None or end == len(text) else None), end


def refuse(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(constant)
