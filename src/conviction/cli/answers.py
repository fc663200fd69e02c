"""`conviction answers`: what is found in texts, and which of them are one vote."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from conviction.answers import AnswerKind, broken_rules, kind, kinds, kinds_help
from conviction.answers.finding.refusals import cannot_answer
from conviction.answers.grouping import related
from conviction.answers.kinds import kind_help
from conviction.cli.inputs import read_question
from conviction.cli.progress import messages
from conviction.cli.terminal import print_json, print_notes, shown
from conviction.display import one_line, shortened

_MOST_SHOWN = 200
_MOST_CHECKED = 12
"""Texts up to which every pair is compared, both ways, to check the kind itself."""


@dataclass(frozen=True, slots=True)
class ReadText:
    """One text, and what the kind makes of it.

    Attributes:
        source: "found" in the text; the text "itself", where nothing marks an answer in it; or
            "none": it has no answer and no vote.
        answer: The answer as a verdict shows it; None without one.
        canonical: Its canonical form; None without an answer.
        group: Number of its class of equal answers, from 1; None without an answer.
        joins: Number of the text that it equals, the first of the class; None for that one.
        why: Why it joins that text; empty for the first.
    """

    text: str
    source: str
    answer: str | None = None
    canonical: str | None = None
    group: int | None = None
    joins: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """Two texts, by number, that are not one vote, and why."""

    first: int
    second: int
    why: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All texts, why the first ones of the classes differ, and what to note."""

    texts: tuple[ReadText, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def answers(
    *texts: str,
    answer: Annotated[str, Parameter(help=kinds_help())] = "math",
    file: Annotated[list[Path] | None, Parameter(alias="-f", negative="")] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Say what answers are found in texts, and which of them are one vote.

    Without a text, list the kinds of answers.

    Args:
        texts: Answers, or whole texts that end with one; "-" reads one from standard input.
        answer: Kind of answer.
        file: Read one text from this file.
        json: Print the findings as JSON on stdout.
    """
    given = [*texts, *(read_question(None, path) for path in file or ())]
    if not given:
        _list(json=json)
        return
    with closing(kind(answer)) as chosen:
        found = findings(chosen, given)
    if json:
        print_json(asdict(found))
    else:
        _print(found, chosen.name)
    print_notes(found.notes, messages(quiet=False))


def findings(chosen: AnswerKind, texts: Sequence[str]) -> Findings:
    """What a kind finds in texts and makes of it."""
    read: list[ReadText] = []
    first_of: list[int] = []
    differences: list[Difference] = []
    for text in texts:
        found, source = _answer(chosen, text)
        if found is None:
            read.append(ReadText(text, source))
            continue
        canonical = chosen.canonical(found)
        joins, why, apart = None, "", list[Difference]()
        for number in first_of:
            equal, why = related(chosen, read[number - 1].canonical or "", canonical)
            if equal:
                joins = number
                break
            apart.append(Difference(number, len(read) + 1, why))
        if joins is None:
            first_of.append(len(read) + 1)
            differences += apart
        group = first_of.index(joins or len(read) + 1) + 1
        displayed = chosen.shown(found)
        read.append(
            ReadText(text, source, displayed, canonical, group, joins, why if joins else "")
        )
    return Findings(tuple(read), tuple(differences), tuple(_notes(chosen, read)))


def _answer(chosen: AnswerKind, text: str) -> tuple[str | None, str]:
    """The answer in a text and where it comes from; a bare answer counts as itself."""
    if (found := chosen.extract(text)) is not None:
        return found, "itself" if found == text.strip() else "found"
    bare = text.strip()
    single = len(bare.splitlines()) == 1 and not cannot_answer(bare)
    if single and chosen.accepts(bare):
        return bare, "itself"
    return None, "none"


def _notes(chosen: AnswerKind, read: Sequence[ReadText]) -> Iterator[str]:
    yield from chosen.limits
    distinct = list(dict.fromkeys(one.answer for one in read if one.answer is not None))
    if len(distinct) <= _MOST_CHECKED:
        yield from broken_rules(chosen, distinct)


def _list(*, json: bool) -> None:
    found = {name: kind_help(name) for name in kinds()}
    if json:
        print_json([{"name": name, "help": words} for name, words in found.items()])
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("Kind")
    table.add_column("Its answers")
    for name, words in found.items():
        table.add_row(shown(name), shown(words))
    Console(highlight=False).print(table)


def _print(found: Findings, name: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for number, one in enumerate(found.texts, start=1):
        console.print(f"{number}  {_short(one.text)}", style="bold")
        if one.source == "none":
            console.print(f"   no answer of kind {shown(name)}: it has no vote")
            continue
        itself = "" if one.source == "found" else "  (nothing else in the text: it is the answer)"
        console.print(f"   answer     {_short(one.answer or '')}{itself}")
        console.print(f"   canonical  {_short(one.canonical or '')}")
    voting = [number for number, one in enumerate(found.texts, start=1) if one.group]
    if len(found.texts) < 2 or not voting:
        return
    classes: dict[int, list[int]] = {}
    for number in voting:
        classes.setdefault(found.texts[number - 1].group or 0, []).append(number)
    votes = "One vote" if len(classes) == 1 else f"{len(classes)} different votes"
    console.print(f"{votes}: {'; '.join(_listed(numbers) for numbers in classes.values())}.")
    for number, one in enumerate(found.texts, start=1):
        if one.joins:
            console.print(f"   {one.joins} and {number} are equal: {one.why}")
    for apart in found.differences:
        console.print(f"   {apart.first} and {apart.second} are different: {apart.why}")


def _listed(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


def _short(text: str) -> str:
    return shown(shortened(one_line(text), _MOST_SHOWN))
