"""The lab on made-up recordings finds what a plain simulation of the rule finds.

The same on answers of real models, which are not in this repository, is measured by
`benchmarks/known_results.py`.
"""

from collections import Counter
from math import comb
from random import Random

import pytest
from recorded_answers import STRONG, WEAKER, Model, lines, write

from conviction.answers import kind
from conviction.evaluation import is_correct
from conviction.lab.candidates import parse
from conviction.lab.comparison import Row, compare
from conviction.lab.sources import PoolTraces
from conviction.lab.trials import run_trials
from conviction.recordings.importing import import_files

BUDGET = 64
BY_NEED = "settle:bar=0.95,slope=0,first=4,ahead=1"
MODELS = {"strong": STRONG, "weaker": WEAKER}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Row]]:
    """Policies at budget 64 with 64 slots on two pools, twenty draws; by pool and policy."""
    folder = tmp_path_factory.mktemp("pools")
    specs = ["majority", "adaptive-consistency", "settle", "settle-lean", BY_NEED]
    candidates = parse(specs, budgets=[BUDGET], concurrencies=[BUDGET])
    found: dict[str, dict[str, Row]] = {}
    for name, model in MODELS.items():
        recorded, pool = folder / f"{name}.jsonl", folder / name
        write(recorded, model)
        import_files([recorded], pool, answers=kind("math"), grade=is_correct)
        trials = run_trials(PoolTraces.open(pool), candidates, repeats=20)
        found[name] = dict(zip(specs, compare(trials), strict=True))
    return found


def beta_rule(model: Model, draws: int = 100) -> tuple[float, float, float]:
    """The Beta rule by itself: accuracy, part of the tokens saved, and traces started."""

    def surely_ahead(first: int, second: int) -> bool:
        tosses = first + second + 1
        return sum(comb(tosses, k) for k in range(first + 1)) >= 0.95 * 2**tosses

    random = Random(0)  # noqa: S311 - the same every time is what is wanted
    right = started = taken = whole = 0
    for line in lines(model):
        for _ in range(draws):
            sample = random.sample(line["all_answers"], BUDGET)
            votes: Counter[str] = Counter()
            for n, (answer, tokens) in enumerate(sample, 1):
                votes.update([answer] if answer else [])
                taken += tokens
                first, second = [*sorted(votes.values(), reverse=True), 0, 0][:2]
                if surely_ahead(first, second) or n == BUDGET:
                    break
            started += n
            whole += sum(tokens for _, tokens in sample)
            right += bool(votes) and votes.most_common(1)[0][0] == line["gold_answer"]
    runs = draws * len(model.percent_right)
    return right / runs, 1 - taken / whole, started / runs


@pytest.mark.parametrize("name", MODELS)
def test_the_beta_rule_saves_what_a_simulation_saves_and_loses_nothing(
    name: str, rows: dict[str, dict[str, Row]]
) -> None:
    accuracy, saving, traces = beta_rule(MODELS[name])
    majority, rule = rows[name]["majority"], rows[name]["adaptive-consistency"]
    assert majority.accuracy.value == pytest.approx(accuracy, abs=0.01)
    assert abs(rule.difference.value) < 0.01
    assert rule.saving.value == pytest.approx(saving, abs=0.03)
    assert rule.started == pytest.approx(traces, abs=0.7)


@pytest.mark.parametrize("name", MODELS)
def test_the_beta_rule_by_need_takes_its_tokens_and_a_third_of_its_time(
    name: str, rows: dict[str, dict[str, Row]]
) -> None:
    # Of real models' answers: the same tokens, 2.6 instead of 9.2 times majority's path.
    rule, by_need = rows[name]["adaptive-consistency"], rows[name][BY_NEED]
    assert by_need.tokens.value == pytest.approx(rule.tokens.value, rel=0.01)
    assert by_need.path.value / rule.path.value == pytest.approx(2.6 / 9.2, abs=0.03)
    assert by_need.cancelled == 0
    assert abs(by_need.difference.value - rule.difference.value) < 0.005


@pytest.mark.parametrize(
    ("name", "policy", "tokens", "path"),
    # As 67 draws have it.
    [
        ("strong", "settle", 0.196, 0.752),
        ("strong", "settle-lean", 0.158, 0.668),
        ("weaker", "settle", 0.229, 0.870),
        ("weaker", "settle-lean", 0.188, 0.789),
    ],
)
def test_settling_costs_a_fifth_of_majority_and_is_not_slower(
    name: str, policy: str, tokens: float, path: float, rows: dict[str, dict[str, Row]]
) -> None:
    majority, settled = rows[name]["majority"], rows[name][policy]
    assert settled.tokens.value / majority.tokens.value == pytest.approx(tokens, rel=0.05)
    assert settled.path.value / majority.path.value == pytest.approx(path, rel=0.06)
    assert settled.difference.value > -0.025
