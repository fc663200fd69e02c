"""Calibrated probabilities on questions that taught nothing: Brier score and calibration error.

    python benchmarks/calibration.py POOL --policy majority --policy settle --budget 16 --slots 8
    python benchmarks/calibration.py POOL --other POOL2

Half of the questions teaches, the other half is told, both ways, twenty times over; with --other,
all of POOL teaches and POOL2 is told. What is learned from: the share of the vote (as
`--calibration` does), the lead, and the margin (share of the leader less that of the runner-up).
Beside them the share as it is, and the accuracy of all questions that taught.

Prints a Markdown table per policy. The Brier score is the mean squared distance of a probability to
what came (1 right, 0 wrong); differences are paired, with 95% intervals of a bootstrap over
questions. The calibration error is the mean distance of probability and accuracy over tenths of
the probability, the mean of a verdict's probabilities over the twenty times; with few questions it
is not 0 for the best of forecasts.
"""

import argparse
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import numpy as np

from conviction.core import Tally
from conviction.lab.candidates import Candidate, parse
from conviction.lab.isotonic import Steps
from conviction.lab.replay import replay
from conviction.lab.sources import PoolTraces
from conviction.lab.statistics import Bootstrap
from conviction.lab.trials import draw
from conviction.voting import lead_of

REPEATS, SPLITS, TENTHS = 32, 20, 10

Numbers = np.ndarray


def margin(tally: Tally) -> float:
    """Share of the leader less that of the runner-up."""
    weights = [entry.weight for entry in tally.entries[:2]]
    return (weights[0] - sum(weights[1:])) / tally.total if tally.total else 0.0


SHOWN: dict[str, Callable[[Tally], float]] = {
    "share": lambda tally: tally.share,
    "lead": lambda tally: lead_of(tally) or 0.0,
    "margin": margin,
}


def verdicts(candidate: Candidate, source: PoolTraces) -> dict[str, Numbers]:
    """What the verdicts show and whether they are right, each of shape (questions, repeats)."""
    shape = (len(source.question_ids), REPEATS)
    found = {name: np.zeros(shape) for name in (*SHOWN, "right", "voted")}
    for number, question_id in enumerate(source.question_ids):
        traces = source.traces(question_id)
        for repeat in range(REPEATS):
            size = candidate.policy.budget
            order = draw(len(traces), size, seed=0, question_id=question_id, repeat=repeat)
            outcome = replay(
                candidate.policy,
                [traces[position] for position in order.tolist()],
                concurrency=candidate.concurrency,
                top_k=source.top_k,
                max_tokens=source.max_tokens,
            )
            for name, show in SHOWN.items():
                found[name][number, repeat] = round(show(outcome.tally), 9)
            found["right"][number, repeat] = outcome.correct
            found["voted"][number, repeat] = outcome.tally.leader is not None
    return found


def splits(questions: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Questions that teach, and questions that are told."""
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(questions)
        half = questions // 2
        yield order[:half], order[half:]
        yield order[half:], order[:half]


def forecasts(teaching: dict[str, Numbers], told: dict[str, Numbers]) -> dict[str, Numbers]:
    """Probability of each verdict to be right by method, shape (questions, repeats)."""
    right, voted = teaching["right"] > 0, teaching["voted"] > 0
    share = told["share"]
    usual = np.full(share.shape, right[voted].mean())
    found = {"share as it is": share, "constant": usual}
    for name in SHOWN:
        steps = Steps.fit(teaching[name], right, voted)
        values, places = np.unique(told[name], return_inverse=True)
        # What is below all that taught counts as the least that did, so that all tell of the same.
        at = [steps.at(max(float(value), steps.steps[0].low)) for value in values]
        found[name] = np.array([one.value for one in at if one])[places.reshape(share.shape)]
    return found


def calibration_error(forecast: Numbers, right: Numbers) -> float:
    """Mean distance of probability and accuracy, over tenths of the probability."""
    place = np.minimum((forecast * TENTHS).astype(int), TENTHS - 1)
    inside = [place == number for number in range(TENTHS)]
    return sum(
        mask.mean() * abs(forecast[mask].mean() - right[mask].mean())
        for mask in inside
        if mask.any()
    )


def report(candidate: Candidate, source: PoolTraces, other: PoolTraces | None) -> None:
    """Print the table of one policy."""
    known = verdicts(candidate, source)
    pairs = []
    if other is None:
        for teaches, told in splits(len(source.question_ids)):
            pairs.append((at(known, teaches), at(known, told), told))
        questions = len(source.question_ids)
    else:
        asked = verdicts(candidate, other)
        questions = len(other.question_ids)
        pairs.append((known, asked, np.arange(questions)))
        known = asked
    loss: dict[str, Numbers] = {}
    mean: dict[str, Numbers] = {}
    for teaching, told, places in pairs:
        for name, value in forecasts(teaching, told).items():
            squares = np.where(told["voted"] > 0, (value - told["right"]) ** 2, np.nan)
            for sums, figures in ((loss, squares), (mean, value)):
                sums.setdefault(name, np.zeros((questions, REPEATS)))[places] += figures
    times = len(pairs) / 2 if other is None else 1
    voted = known["voted"] > 0
    accuracy = known["right"][voted].mean()
    print(f"\n{candidate.label}: {questions} questions, {100 * accuracy:.1f}% right\n")
    print("| probability | Brier | against the share as it is | calibration error |")
    print("| --- | --- | --- | --- |")
    bootstrap = Bootstrap(questions, REPEATS)
    for name, lost in loss.items():
        (difference,) = bootstrap.estimates([(lost - loss["share as it is"]) / times])
        error = calibration_error(mean[name][voted] / times, known["right"][voted])
        print(
            f"| {name} | {np.nanmean(lost) / times:.4f} | {difference.value:+.4f} "
            f"[{difference.low:+.4f}, {difference.high:+.4f}] | {error:.3f} |"
        )


def at(verdicts: dict[str, Numbers], questions: Numbers) -> dict[str, Numbers]:
    """Those of some questions."""
    return {name: values[questions] for name, values in verdicts.items()}


def main() -> None:
    """Read the command line, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--slots", type=float, default=inf)
    options = parser.parse_args()
    source = PoolTraces.open(options.pool, only_graded=True)
    other = PoolTraces.open(options.other, only_graded=True) if options.other else None
    specs = options.policy or ["majority", "settle", "adaptive-consistency", "deepconf-high"]
    for one in parse(specs, budgets=[options.budget], concurrencies=[options.slots]):
        report(one, source, other)


if __name__ == "__main__":
    main()
