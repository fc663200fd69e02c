"""What a sweep tries."""

from collections.abc import Mapping, Sequence
from typing import Any

from conviction.confidence import Metric
from conviction.lab.candidates import fitting_windows

WITHOUT_CONFIDENCE = ("majority", "single", "adaptive-consistency", "esc", "settle")
WITH_CONFIDENCE = ("deepconf-low", "deepconf-high", "deepconf-offline", "best-of-n", "borda")

_KEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
_PAPER_WARMUP = 16


def usual_policies(*, confidences: bool, sweep: bool = False) -> tuple[str, ...]:
    """What is compared if nobody says; majority first, as the baseline.

    Args:
        confidences: Whether the traces have confidences.
        sweep: Whether settings are varied: then low and high are the same policy.
    """
    if not confidences:
        return WITHOUT_CONFIDENCE
    with_confidence = [name for name in WITH_CONFIDENCE if not (sweep and name == "deepconf-high")]
    return (*WITHOUT_CONFIDENCE, *with_confidence)


def usual_grid(budget: int, tokens: float) -> Mapping[str, Mapping[str, Sequence[Any]]]:
    """Values to try for the settings of the policies of this package.

    Args:
        budget: The largest budget.
        tokens: Length of a typical trace.
    """
    windows = (None, *fitting_windows(tokens))
    # The published warm-up, and smaller and larger ones; a warm-up that is the budget stops none.
    warmups = sorted({max(2, budget // 8), max(2, budget // 4), max(2, budget // 2)})
    warmups = [warmup for warmup in {*warmups, _PAPER_WARMUP} if warmup < budget] or [budget]
    online = {
        "keep": _KEEP,
        "window": windows,
        "consensus": (0.8, 0.9, 0.95, 1.0),
        "warmup": sorted(warmups),
    }
    ranked = {"metric": tuple(Metric), "window": windows}
    return {
        "majority": {"budget": _powers(budget)},
        "adaptive-consistency": {"bar": (0.8, 0.9, 0.95, 0.99), "wave": (1, 4, 16)},
        "esc": {"window": (3, 4, 5, 8)},
        "settle": {
            "slope": (0.004, 0.006, 0.008, 0.012),
            "first": (3, 6),
            "ahead": (1.0, 2.0, 3.0),
        },
        "deepconf-low": online,
        "deepconf-high": online,
        "deepconf-offline": {"keep": _KEEP, **ranked},
        "best-of-n": ranked,
        "borda": {"power": (0.5, 1.0, 2.0), **ranked},
    }


def _powers(budget: int) -> tuple[int, ...]:
    """1, 2, 4, … and the budget itself, the largest first."""
    return tuple(sorted({budget, *(2**n for n in range(budget.bit_length()))}, reverse=True))
