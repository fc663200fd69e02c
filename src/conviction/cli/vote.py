"""`conviction vote`: answers and votes among texts that another program generated."""

import json as jsonlib
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from cyclopts import Parameter

from conviction.answers import AnswerKind, Grouping, compared, kind, kinds_help
from conviction.cli import ExitCode
from conviction.cli.progress import messages, question_bar
from conviction.cli.terminal import print_notes
from conviction.core import FinishReason, InvalidSettingError, Trace
from conviction.display import escaped, one_line, shortened
from conviction.evaluation import counted
from conviction.evaluation.samples import SampledQuestion, opened, read_samples
from conviction.policies.base import Policy, Standing
from conviction.policies.majority import Majority
from conviction.policies.named import policy as named_policy
from conviction.policies.offline import Offline

_MOST_ANSWERS = 4
"""Answers of a question that its line shows."""
_MOST_SHOWN = 60
"""Characters of an answer or of a question's id."""


@dataclass(frozen=True, slots=True)
class Voted:
    """One question's vote.

    Attributes:
        standing: The votes, and what the policy notes.
        silent: Texts that ended by themselves without an answer.
        cut: Texts that reached their limit; they do not vote.
        correct: Whether the answer is the right one; None without either, or where they could not
            be compared.
        notes: What the reader should know.
    """

    question: SampledQuestion
    standing: Standing
    silent: int
    cut: int
    correct: bool | None
    notes: tuple[str, ...]

    @property
    def answer(self) -> str | None:
        """The leading answer."""
        leader = self.standing.tally.leader
        return leader.text if leader else None


@dataclass
class Totals:
    """What was counted over all questions."""

    questions: int = 0
    texts: int = 0
    silent: int = 0
    cut: int = 0
    answered: int = 0
    graded: int = 0
    right: int = 0
    notes: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, one: Voted) -> None:
        """Count a question."""
        self.questions += 1
        self.texts += len(one.question.samples)
        self.silent += one.silent
        self.cut += one.cut
        self.answered += one.answer is not None
        self.graded += one.question.gold is not None
        self.right += bool(one.correct)
        for note in one.notes:
            self.notes[note] = self.notes.get(note, 0) + 1


def vote(
    *files: Path,
    answer: Annotated[str, Parameter(help=kinds_help())] = "math",
    policy: str = "majority",
    file: Annotated[list[Path] | None, Parameter(alias="-f", negative="")] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(alias="-q", negative="")] = False,
) -> int:
    """Find the answers in texts that another program generated, and vote.

    A file holds JSON lines: a question's texts a line, or one text a line; or one JSON list. The
    outputs of OpenAI-compatible servers, vLLM and lm-evaluation-harness are understood.

    Exit codes: 0 some question has an answer, 1 none has, 2 wrong use, 130 interrupted.

    Args:
        files: Files of texts; "-" reads standard input.
        answer: Kind of answer.
        policy: How votes are weighed: majority; or deepconf-offline, best-of-n or borda, where the
            texts come with confidences.
        file: Another file of texts.
        json: Print one JSON object a question on stdout.
        quiet: Nothing on stderr but errors.
    """
    paths = [*files, *(file or ())]
    if not paths:
        raise InvalidSettingError(
            tried="vote", found="no file is named", remedy="Name one: conviction vote FILE.jsonl."
        )
    steering = _policy(policy)
    console, totals = messages(quiet=quiet), Totals()
    with closing(kind(answer)) as chosen, question_bar(console, "voting") as progress:
        for voted in _all(paths, chosen, steering):
            totals.add(voted)
            progress(totals.questions, None)
            print(_as_json(voted) if json else _line(voted), flush=sys.stdout.isatty())
    many = totals.questions > 1
    print_notes(
        (
            f"{note} ({counted(count, 'question')})" if many else note
            for note, count in totals.notes.items()
        ),
        console,
    )
    console.print(_summary(totals), style="dim")
    return 0 if totals.answered else ExitCode.FAILED


def _policy(name: str) -> Policy:
    chosen = named_policy(name)
    if isinstance(chosen, Majority | Offline):
        return chosen
    raise InvalidSettingError(
        tried=f"vote with the policy {name!r}",
        found="it decides which traces to start, and all texts are there already",
        remedy="Use majority, deepconf-offline, best-of-n or borda; or import the file with "
        "conviction record --import and replay the policy in the lab.",
    )


def _all(paths: list[Path], chosen: AnswerKind, steering: Policy) -> Iterator[Voted]:
    for path in paths:
        standard_input = str(path) == "-"
        name = Path("standard input") if standard_input else path
        source = nullcontext[BinaryIO](sys.stdin.buffer) if standard_input else opened(path)
        with source as stream:
            for question in read_samples(name, stream):
                yield voted(question, chosen, steering)


def voted(question: SampledQuestion, chosen: AnswerKind, steering: Policy) -> Voted:
    """The vote among a question's texts, by a policy that lets all traces finish."""
    policy, grouping = steering.fresh(), Grouping(chosen)
    traces: list[Trace] = []
    for number, sample in enumerate(question.samples):
        found = chosen.extract(sample.text)
        trace = Trace(
            id=number,
            finish=sample.finish,
            tokens=sample.confidences.size,
            text=sample.text,
            confidences=sample.confidences,
            answer=None if found is None else grouping.classify(found),
        )
        policy.on_finished(trace)
        traces.append(trace)
    standing = policy.standing()
    leader, gold = standing.tally.leader, question.gold
    correct = compared(chosen, leader.text, gold) if leader and gold is not None else None
    unclear = leader and gold is not None and correct is None
    finishes = [trace.finish for trace in traces if trace.answer is None]
    return Voted(
        question,
        standing,
        silent=finishes.count(FinishReason.STOP),
        cut=sum(trace.finish is FinishReason.LENGTH for trace in traces),
        correct=correct,
        notes=(
            *standing.notes,
            *grouping.limits,
            *(["The answer could not be compared with the right one."] if unclear else []),
        ),
    )


def _line(one: Voted) -> str:
    """A question's answer, its votes and whether it is right, on one line."""
    tally, total = one.standing.tally, len(one.question.samples)
    parts = [f"{_short(entry.text)}: {entry.count}" for entry in tally.entries[1:_MOST_ANSWERS]]
    if more := len(tally.entries) - _MOST_ANSWERS:
        parts += [f"{more} more answers"] if more > 0 else []
    parts += [f"without an answer: {one.silent}"] if one.silent else []
    parts += [f"cut: {one.cut}"] if one.cut else []
    others = f"; {', '.join(parts)}" if parts else ""
    if tally.leader is None:
        found = f"no answer in {counted(total, 'text')}{others}"
    else:
        share = f"{tally.leader.count} of {len(tally.voters)} votes, {tally.share:.0%}"
        share += ", tied" if tally.tied else ""
        found = f"{_short(tally.leader.text)}  ({share}{others})"
    if one.question.gold is not None:
        right = "right" if one.correct else f"wrong, not {_short(one.question.gold)}"
        found += f"  {right}"
    return f"{_short(one.question.id)}  {found}"


def _as_json(one: Voted) -> str:
    tally = one.standing.tally
    value: dict[str, Any] = {
        "id": one.question.id,
        "answer": one.answer,
        "share": tally.share,
        "votes": [
            {
                "answer": entry.text,
                "count": entry.count,
                "weight": entry.weight,
                "share": entry.weight / tally.total if tally.total else 0.0,
                "texts": list(entry.votes),
            }
            for entry in tally.entries
        ],
        "tied": list(tally.tied),
        "texts": len(one.question.samples),
        "without_answer": one.silent,
        "cut": one.cut,
        "gold": one.question.gold,
        "correct": one.correct,
        "notes": list(one.notes),
    }
    return escaped(jsonlib.dumps(value, ensure_ascii=False))


def _summary(totals: Totals) -> str:
    parts = [
        counted(totals.questions, "question"),
        counted(totals.texts, "text"),
        f"{totals.silent:,} without an answer",
    ]
    parts += [f"{totals.cut:,} cut"] if totals.cut else []
    parts += [f"{totals.answered:,} of {counted(totals.questions, 'question')} answered"]
    if totals.graded:
        share = totals.right / totals.graded
        parts += [f"{totals.right:,} of {totals.graded:,} right ({share:.1%})"]
    return "; ".join(parts) + "."


def _short(text: str) -> str:
    return shortened(one_line(text), _MOST_SHOWN)
