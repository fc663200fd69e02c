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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from conviction.answers import AnswerKind, kind
from conviction.core import Answer, FinishReason, Sampling, Trace
from conviction.engines.base import Engine
from conviction.engines.local import LocalEngine
from conviction.evaluation import is_correct
from conviction.evaluation.datasets import DatasetQuestion, load
from conviction.lab.statistics import Bootstrap, auroc
from conviction.live import beginning
from conviction.models import resolve
from conviction.policies import Majority, Policy
from conviction.policies.base import Action, Conditions, Continue
from conviction.policies.settle import SettleRegenerate
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
    """One question by several rules: right or not, and tokens."""

    contested: bool
    right: dict[str, bool]
    tokens: dict[str, int]


def compared(result: dict[str, Any], options: argparse.Namespace) -> Compared:
    own = sorted((one for one in result["traces"] if one["continues"] is None), key=ended)
    further = result["further"]
    is_right = {one["answer"]: one["right"] for one in [*result["traces"], *further]}
    spent = spent_on(own)
    chosen = {"settle": plurality(own)}
    tokens = {"settle": spent}
    for keep in KEEPS:
        ends = [one for one in result["traces"] if one.get("keep") == keep]
        # Those that began first: those that ended first would be the shortest.
        worth = further[: traces_worth(spent_on(ends), own)] if ends else []
        worth = sorted(worth, key=ended)
        name = f"after {keep:.0%}"
        chosen |= {name: weighed(own, ends, options), f"as many, {name}": plurality(own + worth)}
        tokens |= {name: spent + spent_on(ends), f"as many, {name}": spent + spent_on(worth)}
    right = {name: is_right[key] if key else False for name, key in chosen.items()}
    return Compared(bool(further), right, tokens)


def ended(one: dict[str, Any]) -> float:
    return one["ended"]


def spent_on(rows: Sequence[dict[str, Any]]) -> int:
    return sum(one["tokens"] for one in rows)


def plurality(rows: Sequence[dict[str, Any]]) -> str | None:
    """The most frequent answer; of equals, the one seen first."""
    keys = [one["answer"] for one in rows if one["finish"] == "stop" and one["answer"]]
    return max(dict.fromkeys(keys), key=keys.count, default=None)


def weighed(
    own: Sequence[dict[str, Any]], ends: Sequence[dict[str, Any]], options: argparse.Namespace
) -> str | None:
    """What the policy says when it hears of these traces."""
    regenerate = options.regenerate
    policy = SettleRegenerate(budget=options.traces + regenerate, regenerate=regenerate)
    policy.begin(Conditions(options.slots, options.max_tokens, top_k=0))
    for one in [*own, *ends]:
        policy.on_finished(
            Trace(
                id=one["id"],
                finish=FinishReason(one["finish"]),
                tokens=one["tokens"],
                answer=Answer(one["answer"], one["answer"]) if one["answer"] else None,
                continues=one["continues"],
            )
        )
    leader = policy.standing().tally.leader
    return leader.key if leader else None


def came_again(result: dict[str, Any], keep: float) -> list[tuple[bool, float]]:
    """For each trace that was continued: whether it is right, how often its answer came again."""
    traces = {one["id"]: one for one in result["traces"]}
    tries: dict[int, list[bool]] = {}
    for one in result["traces"]:
        if one.get("keep") == keep and one["finish"] in COMPLETE:
            source = traces[one["continues"]]
            same = one["finish"] == "stop" and one["answer"] == source["answer"]
            tries.setdefault(source["id"], []).append(same)
    return [(traces[source]["right"], float(np.mean(again))) for source, again in tries.items()]


def already_said(result: dict[str, Any], keep: float) -> list[tuple[bool, bool]]:
    """For each regenerated end: whether its beginning had the answer, and whether it came again."""
    answers = kind(ANSWERS)
    traces = {one["id"]: one for one in result["traces"]}
    found: list[tuple[bool, bool]] = []
    for one in result["traces"]:
        if one.get("keep") == keep and one["finish"] in COMPLETE:
            source = traces[one["continues"]]
            said = answers.extract(beginning(source["text"], keep))
            has = said is not None and answers.canonical(said) == source["answer"]
            found.append((has, one["finish"] == "stop" and one["answer"] == source["answer"]))
    return found


def report(results: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    found = [compared(result, options) for result in results]
    contested = [one for one in found if one.contested]
    print(f"\n{len(found)} questions, {len(contested)} contested")
    for title, some in (("all", found), ("contested", contested)):
        if some:
            print_table(title, some)
    for keep in KEEPS:
        print_separation(keep, [came_again(result, keep) for result in results])
        print_already_said([pair for result in results for pair in already_said(result, keep)])


def print_table(title: str, some: Sequence[Compared]) -> None:
    bootstrap = Bootstrap(len(some))
    names = list(some[0].right)
    right = {name: np.array([[one.right[name]] for one in some], float) for name in names}
    print(f"\n| {title} | right | against settle, points | better, worse | tokens |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        [share] = bootstrap.shares([right[name]])
        tokens = np.mean([one.tokens[name] for one in some])
        print(
            f"| {name} | {share.value:.1%} ({share.low:.0%} to {share.high:.0%}) "
            f"| {difference(bootstrap, right[name] - right['settle'])} | {tokens:,.0f} |"
        )
    for keep in KEEPS:
        name = f"after {keep:.0%}"
        print(
            f"\nends {name} against as many tokens of further traces, points, better, worse: "
            f"{difference(bootstrap, right[name] - right[f'as many, {name}'])}"
        )


def difference(bootstrap: Bootstrap, gain: np.ndarray) -> str:
    [found] = bootstrap.differences([gain])
    span = f" ({100 * found.low:+.1f} to {100 * found.high:+.1f})" if gain.any() else ""
    return f"{100 * found.value:+.1f}{span} | {int((gain > 0).sum())}, {int((gain < 0).sum())}"


def print_separation(keep: float, questions: Sequence[Sequence[tuple[bool, float]]]) -> None:
    """How well coming again ranks right traces above wrong ones of the same question."""
    print(f"\nafter {keep:.0%} of the text:")
    for name, is_right in (("right", True), ("wrong", False)):
        some = [rate for traces in questions for right, rate in traces if right is is_right]
        again = f"their answers came again in {np.mean(some):.0%}" if some else "no figure"
        print(f"  {len(some)} {name} traces were continued: {again}")
    ranked: list[float] = []
    for traces in questions:
        right = np.array([is_right for is_right, _ in traces], bool)
        if right.any() and not right.all():
            ranked.append(auroc(np.array([rate for _, rate in traces]), right))
    if ranked:
        [found] = Bootstrap(len(ranked)).shares([np.array(ranked)[:, np.newaxis]])
        print(
            f"  AUROC within a question, {len(ranked)} questions with both kinds: "
            f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
        )


def print_already_said(ends: Sequence[tuple[bool, bool]]) -> None:
    """How often answers came again that the beginning had already, and others."""
    for name, has in (("had the answer already", True), ("had not", False)):
        again = [came for said, came in ends if said is has]
        if again:
            print(f"  {len(again)} beginnings {name}: it came again in {np.mean(again):.0%}")


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
        report(results, options)


if __name__ == "__main__":
    main()
