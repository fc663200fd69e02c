"""Does regenerating ends of traces help where the vote stays contested?

    python benchmarks/prefix_regeneration.py FILE RESULTS --first 61 --limit 40
    python benchmarks/prefix_regeneration.py FILE RESULTS --limit 0         # only the table

Every question of a data set is put to `settle-regenerate` on the embedded default model: its own
votes are those of `settle` with so many traces, the continuations come on top. Where the vote was
contested, the same traces are continued after less of their text, too (`KEEPS`), and further
ordinary traces are generated, as many as the most of these tokens pay for. So all verdicts come of
the same votes: settle's; those of votes weighed by how often their answers came again; and those
with so many further votes as the same tokens pay for.

A line per question goes to RESULTS; questions that have one are not asked again. Prints accuracy
and tokens, with 95% intervals of a paired bootstrap over questions, and whether traces whose end
came to the same answer again are right more often than others on the same question.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from conviction.answers import kind
from conviction.answers.base import AnswerKind
from conviction.core import Sampling, Trace
from conviction.engines.base import Engine
from conviction.engines.local import LocalEngine
from conviction.evaluation.datasets import DatasetQuestion, load
from conviction.evaluation.grading import is_correct
from conviction.lab.statistics import Bootstrap, auroc
from conviction.models import resolve
from conviction.policies import Majority, Policy
from conviction.policies.base import Action, Continue
from conviction.policies.settle_regenerate import SettleRegenerate
from conviction.prompts import PromptStyle, compose
from conviction.thinking import deliberate

ANSWERS = "number"
KEEPS = (0.75, 0.5)
COMPLETE = ("stop", "length")
FURTHER_SEED = 1
"""Further traces are other ones than those that were continued."""


def row(trace: Trace, item: DatasetQuestion, answers: AnswerKind) -> dict[str, Any]:
    return {
        "id": trace.id,
        "continues": trace.continues,
        "finish": str(trace.finish),
        "tokens": trace.tokens,
        "ended": trace.ended,
        "answer": trace.answer.key if trace.answer else None,
        "right": is_correct(answers, trace.answer, item.gold),
        "text": trace.text,
    }


@dataclass
class Probing(SettleRegenerate):
    """The policy, and after its continuations the same ones after less of the text."""

    name = "probing"

    @property
    def _most(self) -> int:
        return self.budget - self.regenerate * len(KEEPS)

    def _contest(self) -> Sequence[Action]:
        actions = super()._contest()
        continuations = [action for action in actions if isinstance(action, Continue)]
        less = [replace(one, keep=keep) for keep in KEEPS[1:] for one in continuations]
        self._awaited += len(less)
        return [*actions, *less]


async def ask(item: DatasetQuestion, engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """All traces of one question."""
    question = compose(item.text, kind=ANSWERS, style=options.prompt_style, id=item.id)
    answers = kind(ANSWERS)

    async def think(policy: Policy, seed: int) -> tuple[Trace, ...]:
        verdict = await deliberate(
            question,
            engine=engine,
            policy=policy,
            answers=answers,
            sampling=Sampling(max_tokens=options.max_tokens),
            seed=seed,
        )
        return verdict.traces

    budget = options.traces + options.regenerate * len(KEEPS)
    traces = await think(Probing(budget=budget, regenerate=options.regenerate), 0)
    rows = [row(trace, item, answers) for trace in traces]
    continued = [one for one in rows if one["continues"] is not None]
    for number, one in enumerate(continued):
        one["keep"] = KEEPS[number // options.regenerate]
    further: tuple[Trace, ...] = ()
    if continued:
        most = max(sum(one["tokens"] for one in continued if one["keep"] == k) for k in KEEPS)
        further = await think(Majority(traces_worth(most, rows)), FURTHER_SEED)
    return {
        "question": item.id,
        "traces": rows,
        "further": [row(trace, item, answers) for trace in further],
    }


def traces_worth(tokens: int, rows: Sequence[dict[str, Any]]) -> int:
    """How many ordinary traces so many tokens pay for, at the mean of the question's own ones."""
    own = [one["tokens"] for one in rows if one["continues"] is None and one["finish"] in COMPLETE]
    return max(1, round(tokens / np.mean(own)))


async def measure(items: Sequence[DatasetQuestion], options: argparse.Namespace) -> None:
    model = await anyio.to_thread.run_sync(resolve, options.model)
    async with LocalEngine(model.path, slots=options.slots) as engine:
        for item in items:
            began = time.perf_counter()
            result = await ask(item, engine, options)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            count = len(result["traces"]) + len(result["further"])
            print(f"{item.id}: {count} traces, {time.perf_counter() - began:.0f} s", flush=True)


# --- What came of it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One question by three rules: right or not, and tokens."""

    contested: bool
    right: dict[str, bool]
    tokens: dict[str, int]


def plurality(votes: Sequence[dict[str, Any]]) -> str | None:
    """The most frequent answer; of equals, the one seen first."""
    keys = [vote["answer"] for vote in votes if vote["finish"] == "stop" and vote["answer"]]
    return max(dict.fromkeys(keys), key=keys.count, default=None)


def compared(result: dict[str, Any]) -> Compared:
    own = sorted(
        (trace for trace in result["traces"] if trace["continues"] is None),
        key=lambda trace: trace["ended"],
    )
    further = sorted(result["further"], key=lambda trace: trace["ended"])
    everything = [*result["traces"], *further]
    is_right = {trace["answer"]: trace["right"] for trace in everything if trace["answer"]}
    chosen = {
        "settle": plurality(own),
        "regenerated": result["verdict"],
        "further traces": plurality([*own, *further]),
    }
    spent = sum(trace["tokens"] for trace in own)
    return Compared(
        contested=bool(further),
        right={name: is_right.get(key, False) for name, key in chosen.items()},
        tokens={
            "settle": spent,
            "regenerated": sum(trace["tokens"] for trace in result["traces"]),
            "further traces": spent + sum(trace["tokens"] for trace in further),
        },
    )


def came_again(result: dict[str, Any]) -> Iterator[tuple[bool, float]]:
    """For each trace that was continued: whether it is right, how often its answer came again."""
    traces = {trace["id"]: trace for trace in result["traces"]}
    tries: dict[int, list[bool]] = {}
    for trace in result["traces"]:
        if trace["continues"] is not None and trace["finish"] in ("stop", "length"):
            same = trace["finish"] == "stop" and (
                trace["answer"] == traces[trace["continues"]]["answer"]
            )
            tries.setdefault(trace["continues"], []).append(same)
    for source, again in tries.items():
        yield traces[source]["right"], float(np.mean(again))


def report(results: Sequence[dict[str, Any]]) -> None:
    found = [compared(result) for result in results]
    contested = [one for one in found if one.contested]
    print(f"\n{len(found)} questions, {len(contested)} contested\n")
    for title, some in (("all", found), ("contested", contested)):
        if some:
            print_table(title, some)
    print_separation([list(came_again(result)) for result in results])


def print_table(title: str, some: Sequence[Compared]) -> None:
    bootstrap = Bootstrap(len(some))
    names = list(some[0].right)
    right = {name: np.array([[one.right[name]] for one in some], float) for name in names}
    print(f"| {title} | right | against settle, points | better, worse | tokens |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        gain = right[name] - right["settle"]
        [share] = bootstrap.shares([right[name]])
        [against] = bootstrap.differences([gain])
        tokens = np.mean([one.tokens[name] for one in some])
        print(
            f"| {name} | {share.value:.1%} ({share.low:.0%} to {share.high:.0%}) "
            f"| {100 * against.value:+.1f} ({100 * against.low:+.1f} to {100 * against.high:+.1f}) "
            f"| {int((gain > 0).sum())}, {int((gain < 0).sum())} | {tokens:,.0f} |"
        )
    gain = right["regenerated"] - right["further traces"]
    [against] = bootstrap.differences([gain])
    print(
        f"\nregenerated against further traces: {100 * against.value:+.1f} points "
        f"({100 * against.low:+.1f} to {100 * against.high:+.1f})\n"
    )


def print_separation(questions: Sequence[Sequence[tuple[bool, float]]]) -> None:
    """How well coming again ranks right traces above wrong ones of the same question."""
    ranked: list[float] = []
    rates: dict[bool, list[float]] = {True: [], False: []}
    for traces in questions:
        right = np.array([is_right for is_right, _ in traces], bool)
        again = np.array([rate for _, rate in traces])
        for is_right, rate in traces:
            rates[is_right].append(rate)
        if right.any() and not right.all():
            ranked.append(auroc(again, right))
    for name, is_right in (("right", True), ("wrong", False)):
        some = rates[is_right]
        mean = f"{np.mean(some):.0%}" if some else "none"
        print(f"{len(some)} {name} traces were continued: their answers came again in {mean}")
    if ranked:
        [estimate] = Bootstrap(len(ranked)).shares([np.array(ranked)[:, np.newaxis]])
        print(
            f"AUROC within a question, {len(ranked)} questions with both kinds: "
            f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
        )


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="questions with right answers")
    parser.add_argument("results", type=Path, help="a line per question, added to")
    parser.add_argument("--first", type=int, default=1, help="the first question to ask, from 1")
    parser.add_argument("--limit", type=int, default=20, help="how many questions to ask at most")
    parser.add_argument("--model", default="Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--prompt-style", type=PromptStyle, default=PromptStyle.WORKED_EXAMPLES)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--traces", type=int, default=16, help="settle's budget")
    parser.add_argument("--regenerate", type=int, default=8)
    parser.add_argument("--slots", type=int, default=8)
    options = parser.parse_args()
    done = {result["question"] for result in read(options.results)}
    items = load(options.file).questions[options.first - 1 :][: options.limit]
    anyio.run(measure, [item for item in items if item.id not in done], options)
    if results := read(options.results):
        report(results)


if __name__ == "__main__":
    main()
