"""What is known of recorded answers of reasoning models, found again by the lab."""

from pathlib import Path

import pytest

from conviction.answers import kind
from conviction.evaluation.grading import is_correct
from conviction.lab.candidates import parse
from conviction.lab.comparison import Row, compare
from conviction.lab.sources import PoolTraces
from conviction.lab.trials import run_trials
from conviction.recordings.importing import import_files

POOLS = Path(__file__).parents[2] / "shared" / "data" / "pools"

pytestmark = pytest.mark.skipif(
    not POOLS.exists(), reason="the recorded answers (shared/data/pools) do not lie beside this"
)


def beta(pool: str, folder: Path) -> tuple[Row, Row]:
    """Majority of 64 and the Beta rule at 0.95, twenty draws."""
    import_files([POOLS / f"{pool}.jsonl"], folder, answers=kind("math"), grade=is_correct)
    candidates = parse(["majority", "adaptive-consistency"], budgets=[64])
    majority, rule = compare(run_trials(PoolTraces.open(folder), candidates, repeats=20))
    return majority, rule


@pytest.mark.parametrize(
    ("pool", "accuracy", "saving", "traces"),
    # METHOD, section 7: measured elsewhere, with other draws.
    [("aime2025_gpt-oss-20b", 0.890, 0.66, 13.3), ("aime2024_Qwen3-4B", 0.800, 0.77, 10.6)],
)
def test_the_beta_rule_saves_what_is_known_and_loses_nothing(
    pool: str, accuracy: float, saving: float, traces: float, tmp_path: Path
) -> None:
    majority, rule = beta(pool, tmp_path / "pool")
    assert majority.accuracy.value == pytest.approx(accuracy, abs=0.01)
    assert abs(rule.difference.value) < 0.01
    assert rule.saving.value == pytest.approx(saving, abs=0.06)
    assert rule.started == pytest.approx(traces, abs=0.7)
