"""Policies side by side on one-step word problems, answered by the default embedded model.

    python benchmarks/singleop.py record pool.jsonl     complete traces of 60 questions, once
    python benchmarks/singleop.py replay pool.jsonl     every policy on draws from them

The protocol is the paper's: record complete traces once, then let each policy run many times on
random draws from them. The policies and the driver are those that run live; only the engine
plays recordings, at one token a trace and turn. Intervals are 95%, by bootstrap over questions.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np

from conviction import (
    DeepConfHigh,
    DeepConfLow,
    DeepConfOffline,
    Majority,
    Policy,
    Sampling,
    Single,
)
from conviction.answers import kind
from conviction.answers.base import AnswerKind
from conviction.confidence import Metric, measure
from conviction.core import FinishReason, Question
from conviction.engines.local import LocalEngine
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.models import catalogue, resolve
from conviction.prompts import PromptStyle, compose
from conviction.thinking import deliberate

QUESTIONS = Path(__file__).parents[2] / "shared/data/questions/singleop.jsonl"
BUDGET = 16
SLOTS = 8

Pool = list[tuple[float, list[Script]]]
Results = dict[str, tuple[np.ndarray, np.ndarray]]


def questions(path: Path, count: int) -> list[tuple[int, str, float]]:
    """Evenly spread over the file, so that easy beginnings do not decide."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    step = max(len(rows) // count, 1)
    return [(i, rows[i]["input"], rows[i]["target"]) for i in range(0, len(rows), step)][:count]


async def record(arguments: argparse.Namespace) -> None:
    done = set()
    if arguments.pool.exists():
        done = {json.loads(line)["question"] for line in arguments.pool.read_text().splitlines()}
    model = resolve(arguments.model or catalogue().default)
    numbers = kind("number")
    asked = questions(arguments.questions, arguments.count)
    began = time.perf_counter()
    async with LocalEngine(model.path, slots=SLOTS) as engine:
        with arguments.pool.open("a") as pool:
            for position, (index, text, gold) in enumerate(asked):
                if index in done:
                    continue
                verdict = await deliberate(
                    compose(
                        text,
                        kind="number",
                        style=PromptStyle(arguments.style or model.prompt_style),
                        id=str(index),
                    ),
                    engine=engine,
                    policy=Majority(arguments.traces),
                    answers=numbers,
                    sampling=Sampling(temperature=arguments.temperature, max_tokens=400),
                )
                row = {
                    "question": index,
                    "gold": gold,
                    "model": model.name,
                    "traces": [
                        {
                            "text": trace.text,
                            "finish": trace.finish,
                            "confidences": [round(float(c), 4) for c in trace.confidences],
                        }
                        for trace in verdict.traces
                    ],
                }
                pool.write(json.dumps(row).replace("NaN", "null") + "\n")
                pool.flush()
                spent = time.perf_counter() - began
                print(
                    f"{position + 1}/{len(asked)} {spent:.0f} s {verdict.answer} ({gold:g})",
                    file=sys.stderr,
                )


def load(path: Path) -> Pool:
    pool = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        scripts = [
            Script(
                trace["text"],
                np.array([np.nan if c is None else c for c in trace["confidences"]], np.float32),
                FinishReason(trace["finish"]),
            )
            for trace in row["traces"]
        ]
        pool.append((row["gold"], scripts))
    return pool


def rows() -> dict[str, Callable[[], Policy]]:
    return {
        "single": Single,
        "majority@16": lambda: Majority(BUDGET),
        "deepconf-offline tail, keep 10%": lambda: DeepConfOffline(BUDGET, Metric.TAIL, 0.1),
        "deepconf-offline tail, keep 50%": lambda: DeepConfOffline(BUDGET, Metric.TAIL, 0.5),
        "deepconf-offline tail, keep 90%": lambda: DeepConfOffline(BUDGET, Metric.TAIL, 0.9),
        "deepconf-offline mean, keep 10%": lambda: DeepConfOffline(BUDGET, Metric.MEAN, 0.1),
        "deepconf-offline mean, keep 50%": lambda: DeepConfOffline(BUDGET, Metric.MEAN, 0.5),
        "deepconf-low": lambda: DeepConfLow(budget=BUDGET),
        "deepconf-high": lambda: DeepConfHigh(budget=BUDGET),
    }


async def replay(arguments: argparse.Namespace) -> None:
    pool = load(arguments.pool)
    numbers = kind("number")
    results: Results = {}
    for name, make in rows().items():
        right = np.zeros((len(pool), arguments.repeats))
        tokens = np.zeros_like(right)
        for question, (gold, scripts) in enumerate(pool):
            for repeat in range(arguments.repeats):
                # Every policy sees the same draw, so differences are paired.
                draw = np.random.default_rng([question, repeat]).permutation(len(scripts))
                verdict = await deliberate(
                    Question.ask("recorded"),
                    engine=ScriptedEngine([scripts[i] for i in draw], concurrency=SLOTS),
                    policy=make(),
                    answers=numbers,
                )
                answered = verdict.answer is not None
                right[question, repeat] = answered and same(numbers, verdict.answer, gold)
                tokens[question, repeat] = verdict.usage.generated
        results[name] = right.mean(axis=1), tokens.mean(axis=1)
    report(results, pool, arguments.repeats)


def same(numbers: AnswerKind, answer: str, gold: float) -> bool:
    return numbers.canonical(answer) == numbers.canonical(f"{gold:g}")


def interval(values: np.ndarray) -> tuple[float, float]:
    random = np.random.default_rng(0)
    means = values[random.integers(0, values.size, (10_000, values.size))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def report(results: Results, pool: Pool, repeats: int) -> None:
    base_right, base_tokens = results["majority@16"]
    traces = [script for _, scripts in pool for script in scripts]
    print(
        f"{len(pool)} questions, {len(traces) // len(pool)} recorded traces each, "
        f"{repeats} draws per question and policy, "
        f"median trace {np.median([t.confidences.size for t in traces]):.0f} tokens\n"
    )
    print("| policy | accuracy | 95% | against majority | 95% | tokens a question | of majority |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (right, tokens) in results.items():
        low, high = interval(right)
        less, more = interval(right - base_right)
        print(
            f"| {name} | {right.mean():.1%} | {low:.1%} to {high:.1%} "
            f"| {100 * (right - base_right).mean():+.1f} | {100 * less:+.1f} to {100 * more:+.1f} "
            f"| {tokens.mean():.0f} | {tokens.mean() / base_tokens.mean():.0%} |"
        )
    print("\nDoes confidence rank right traces above wrong ones of the same question? (AUROC)\n")
    print("| metric | AUROC |\n| --- | --- |")
    for metric in Metric:
        print(f"| {metric} | {auroc(pool, metric):.3f} |")


def auroc(pool: Pool, metric: Metric) -> float:
    numbers = kind("number")
    wins = pairs = 0.0
    for gold, scripts in pool:
        window = max(round(float(np.median([s.confidences.size for s in scripts])) / 3), 16)
        scored: dict[bool, list[float]] = {True: [], False: []}
        for script in scripts:
            answer = numbers.extract(script.text)
            right = answer is not None and same(numbers, answer, gold)
            scored[right].append(measure(metric, script.confidences, window))
        for good in scored[True]:
            for bad in scored[False]:
                wins += (good > bad) + 0.5 * (good == bad)
                pairs += 1
    return wins / pairs if pairs else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record")
    recording.add_argument("pool", type=Path)
    recording.add_argument("--questions", type=Path, default=QUESTIONS)
    recording.add_argument("--count", type=int, default=60)
    recording.add_argument("--traces", type=int, default=16)
    recording.add_argument("--temperature", type=float, default=0.7)
    recording.add_argument("--style", help="prompt style, if not the model's own")
    recording.add_argument("--model")
    recording.set_defaults(work=record)
    replaying = commands.add_parser("replay")
    replaying.add_argument("pool", type=Path)
    replaying.add_argument("--repeats", type=int, default=20)
    replaying.set_defaults(work=replay)
    arguments = parser.parse_args()
    anyio.run(arguments.work, arguments)


if __name__ == "__main__":
    main()
