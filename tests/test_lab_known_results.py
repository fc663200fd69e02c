"""What is known of recorded answers of reasoning models, found again by the lab."""

from pathlib import Path

import pytest

from conviction.answers import kind
from conviction.evaluation import is_correct
from conviction.lab.candidates import parse
from conviction.lab.comparison import Row, compare
from conviction.lab.sources import PoolTraces
from conviction.lab.trials import run_trials
from conviction.recordings.importing import import_files

POOLS = Path(__file__).parents[2] / "shared" / "data" / "pools"

BY_NEED = "settle:bar=0.95,slope=0,first=4,ahead=1"

pytestmark = pytest.mark.skipif(
    not POOLS.exists(), reason="the recorded answers (shared/data/pools) do not lie beside this"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Row]]:
    """Policies at budget 64 with 64 slots on two pools, twenty draws; by pool and policy."""
    folder = tmp_path_factory.mktemp("pools")
    specs = ["majority", "adaptive-consistency", "settle", "settle-lean", BY_NEED]
    candidates = parse(specs, budgets=[64], concurrencies=[64])
    found: dict[str, dict[str, Row]] = {}
    for pool in ("aime2025_gpt-oss-20b", "aime2024_Qwen3-4B"):
        path = folder / pool
        import_files([POOLS / f"{pool}.jsonl"], path, answers=kind("math"), grade=is_correct)
        trials = run_trials(PoolTraces.open(path), candidates, repeats=20)
        found[pool] = dict(zip(specs, compare(trials), strict=True))
    return found


@pytest.mark.parametrize(
    ("pool", "accuracy", "saving", "traces"),
    # METHOD, section 7: measured elsewhere, with other draws.
    [("aime2025_gpt-oss-20b", 0.890, 0.66, 13.3), ("aime2024_Qwen3-4B", 0.800, 0.77, 10.6)],
)
def test_the_beta_rule_saves_what_is_known_and_loses_nothing(
    pool: str, accuracy: float, saving: float, traces: float, rows: dict[str, dict[str, Row]]
) -> None:
    majority, rule = rows[pool]["majority"], rows[pool]["adaptive-consistency"]
    assert majority.accuracy.value == pytest.approx(accuracy, abs=0.01)
    assert abs(rule.difference.value) < 0.01
    assert rule.saving.value == pytest.approx(saving, abs=0.06)
    assert rule.started == pytest.approx(traces, abs=0.7)


@pytest.mark.parametrize("pool", ["aime2025_gpt-oss-20b", "aime2024_Qwen3-4B"])
def test_the_beta_rule_by_need_takes_its_tokens_and_a_third_of_its_time(
    pool: str, rows: dict[str, dict[str, Row]]
) -> None:
    # METHOD, section 8: the same tokens, 2.6 instead of 9.2 times majority's path.
    rule, by_need = rows[pool]["adaptive-consistency"], rows[pool][BY_NEED]
    assert by_need.tokens.value == pytest.approx(rule.tokens.value, rel=0.01)
    assert by_need.path.value / rule.path.value == pytest.approx(2.6 / 9.2, abs=0.03)
    assert by_need.cancelled == 0
    assert abs(by_need.difference.value - rule.difference.value) < 0.005


@pytest.mark.parametrize(
    ("pool", "policy", "tokens", "path"),
    # docs/results/recorded-answers-by-pool.md: 67 draws.
    [
        ("aime2025_gpt-oss-20b", "settle", 0.223, 0.59),
        ("aime2025_gpt-oss-20b", "settle-lean", 0.179, 0.52),
        ("aime2024_Qwen3-4B", "settle", 0.170, 0.82),
        ("aime2024_Qwen3-4B", "settle-lean", 0.135, 0.70),
    ],
)
def test_settling_costs_a_fifth_of_majority_and_is_no_slower(
    pool: str, policy: str, tokens: float, path: float, rows: dict[str, dict[str, Row]]
) -> None:
    majority, settled = rows[pool]["majority"], rows[pool][policy]
    assert settled.tokens.value / majority.tokens.value == pytest.approx(tokens, rel=0.03)
    assert settled.path.value / majority.path.value == pytest.approx(path, rel=0.05)
    assert settled.difference.value > -0.025
