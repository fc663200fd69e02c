"""What the benchmarks of settling compute, on recordings small enough to check by hand."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from conviction.core import Answer, FinishReason
from conviction.lab.candidates import parse
from conviction.lab.replay import PlayedTrace, replay
from conviction.lab.sources import TracesInMemory
from conviction.lab.trials import Trials, run_trials

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("many_pools", "known_results", "settle_confidence", "held_out")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; they find one another as they do when they are run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield {name: import_module(name) for name in NAMES}
        for name in NAMES:
            del sys.modules[name]


def trace(answer: str, tokens: int, gold: str = "a") -> PlayedTrace:
    return PlayedTrace(tokens, FinishReason.STOP, Answer(answer, answer), correct=answer == gold)


def trials(specs: list[str], *, slots: list[float]) -> Trials:
    """Of two questions, both answered "a" by three traces of four; 10 tokens each."""
    traces = [trace(answer, 10) for answer in "aaab"]
    source = TracesInMemory({"one": traces, "two": traces})
    return run_trials(source, parse(specs, budgets=[4, 2], concurrencies=slots), repeats=3)


class TestTables:
    def test_every_budget_is_held_against_majority_of_the_largest_with_as_many_slots(
        self, benchmarks: dict[str, ModuleType]
    ) -> None:
        found = benchmarks["many_pools"].results(trials(["majority"], slots=[1, 4]), seed=0)
        whole, half = found["majority", 4], found["majority", 2]
        assert (whole.tokens, dict(whole.path)) == (1, {1: 1, 4: 1})
        # One after another two traces take half the time of four; all at once the same.
        assert (half.tokens, dict(half.path)) == (0.5, {1: 0.5, 4: 1})

    def test_the_names_of_the_tables_are_those_of_policies_as_they_are_written(
        self, benchmarks: dict[str, ModuleType]
    ) -> None:
        for spec in benchmarks["many_pools"].NAMES:
            (candidate,) = parse([spec], budgets=[64])
            assert candidate.spec == spec

    def test_a_mean_counts_every_pool_the_same(self, benchmarks: dict[str, ModuleType]) -> None:
        module = benchmarks["many_pools"]

        def result(difference: float, tokens: float) -> object:
            return module.Result(0.5, difference, np.array([difference]), tokens, {4: tokens})

        pools = [{("settle", 64): result(-1.0, 0.2)}, {("settle", 64): result(0.5, 0.4)}]
        mean = module.mean_results(pools)["settle", 64]
        assert (mean.difference, mean.path[4]) == (-0.25, pytest.approx(0.3))
        assert mean.resampled.tolist() == [-0.25]

    def test_a_table_has_the_rows_of_its_budgets(self, benchmarks: dict[str, ModuleType]) -> None:
        module = benchmarks["many_pools"]
        found = module.results(trials(["majority", "settle"], slots=[2, 4]), seed=0)
        head, _, first, second = module.table(found, [2])
        assert head.endswith("| tokens | path, 2 slots | path, 4 or more |")
        assert first.startswith("| majority | ")
        assert second.startswith("| settle | ")

    def test_pools_of_one_data_set_resample_the_same_questions(
        self, benchmarks: dict[str, ModuleType]
    ) -> None:
        traces = [trace("a", 10)] * 4
        source = TracesInMemory({"one": traces})
        pools = [(name, source) for name in ("x_first", "x_second", "y_first")]
        candidates = parse(["majority"], budgets=[4])
        told = benchmarks["many_pools"].each_trials(pools, candidates, runs=1, processes=1)
        assert [seed for _, _, seed in told] == [0, 0, 1]


class TestKnownResults:
    @pytest.mark.parametrize(
        ("answers", "alone", "shared"),
        [
            ("a", 1, 1),
            ("baa", 3, 2),
            ("abba", 4, 4),
            ("aab", 1, 1),
            ("-a-a", 2, 2),
            ("--", 1, 1),
        ],
    )
    def test_an_oracle_ends_when_the_final_leader_leads_for_good(
        self, answers: str, alone: int, shared: int, benchmarks: dict[str, ModuleType]
    ) -> None:
        given = [None if one == "-" else one for one in answers]
        assert benchmarks["known_results"].settled_after(given) == (alone, shared)

    @pytest.mark.parametrize(
        ("difference", "tokens", "agrees"),
        [(-0.1, 0.206, True), (-0.19, 0.21, False), (-0.35, 0.2, False)],
    )
    def test_figures_agree_within_points_and_a_part_of_the_tokens(
        self,
        difference: float,
        tokens: float,
        *,
        agrees: bool,
        benchmarks: dict[str, ModuleType],
    ) -> None:
        known = benchmarks["known_results"].Known("settle", "settle", -0.19, 0.201, 0.89)
        assert known.agrees(difference, tokens) is agrees

    def test_waves_that_are_asked_after_every_trace_end_within_one(
        self, benchmarks: dict[str, ModuleType]
    ) -> None:
        waves = benchmarks["known_results"].AskedWithinWaves(budget=8, wave=8)
        outcome = replay(waves, [trace("a", 10 + n) for n in range(8)])
        assert (outcome.started, outcome.cancelled, outcome.path) == (8, 4, 13)


class TestHeldOut:
    def results(self, module: ModuleType, **figures: tuple[float, float]) -> dict[object, object]:
        return {
            (name, 64): module.Result(0.5, points, np.array([points]), tokens, {64: 1.0})
            for name, (points, tokens) in figures.items()
        }

    def test_the_fewest_tokens_win_among_those_that_lose_little(
        self, benchmarks: dict[str, ModuleType]
    ) -> None:
        module = benchmarks["held_out"]
        found = self.results(module, careful=(0.0, 0.3), bold=(-0.29, 0.2), rash=(-0.31, 0.1))
        assert module.choose(found, list(found)) == ("bold", 64)
        rash = self.results(module, rash=(-0.5, 0.1), worse=(-0.6, 0.05))
        assert module.choose(rash, list(rash)) == ("rash", 64)

    def test_no_pool_of_the_part_that_is_told_has_a_say(
        self, benchmarks: dict[str, ModuleType]
    ) -> None:
        module = benchmarks["held_out"]
        # On the own data set `bold` would be fine; the other says that it is not.
        fine = self.results(module, careful=(0.0, 0.3), bold=(0.0, 0.2))
        bad = self.results(module, careful=(0.0, 0.3), bold=(-5.0, 0.2))
        pools = {"x_one": fine, "x_two": fine, "y_one": bad}
        chosen = module.leave_out(pools, module.data_set, list(fine))
        assert {pool: name for pool, (name, _) in chosen.items()} == {
            "x_one": "careful",
            "x_two": "careful",
            "y_one": "bold",
        }
