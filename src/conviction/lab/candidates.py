"""Candidates of a comparison: policies with alternatives, budgets and machines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import product
from math import inf
from typing import Any

from conviction.confidence import Metric
from conviction.core import require, require_whole
from conviction.errors import InvalidSettingError
from conviction.lab.replay import Outcome, PlayedTrace, replay
from conviction.lab.sources import TraceSource
from conviction.policies import Policy
from conviction.policies.deepconf_online import PAPER_WARMUP
from conviction.policies.measures import PAPER_WINDOW
from conviction.policies.named import build, read_spec, setting_types, written
from conviction.policies.offline import Offline

WITHOUT_WINDOW = (Metric.MEAN, Metric.HEAD)
"""Metrics of whole traces."""

WITHOUT_CONFIDENCE = ("majority", "single", "adaptive-consistency", "esc", "settle")
WITH_CONFIDENCE = ("deepconf-low", "deepconf-high", "deepconf-offline", "best-of-n", "borda")

_KEEP = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy on a machine of a certain size.

    Attributes:
        policy: A prototype.
        budget: Its savings are measured against majority voting with so many traces.
        concurrency: Traces that run at once, at least 1; infinity for all.
    """

    policy: Policy
    budget: int
    concurrency: float = inf

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that differ from the policy's defaults, its budget left out."""
        return {
            item.name: getattr(self.policy, item.name)
            for item in fields(self.policy)  # type: ignore[arg-type]
            if item.init
            and item.name != "budget"
            and getattr(self.policy, item.name) != _default(item)
        }

    @property
    def spec(self) -> str:
        """What to write on the command line to get it."""
        settings = ",".join(f"{name}={written(value)}" for name, value in self.settings.items())
        return f"{self.policy.name}:{settings}" if settings else self.policy.name

    @property
    def label(self) -> str:
        """A name for tables: the policy, its budget, and what differs from its defaults."""
        own = any(item.name == "budget" and item.init for item in fields(self.policy))  # type: ignore[arg-type]
        budget = f"@{self.policy.budget}" if own else ""
        settings = "".join(f" {name}={written(value)}" for name, value in self.settings.items())
        return f"{self.policy.name}{budget}{settings}"

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for candidates that do the same."""
        settings = self.settings
        if isinstance(self.policy, Offline) and self.policy.metric in WITHOUT_WINDOW:
            settings.pop("window", None)
        return self.policy.name, self.policy.budget, tuple(settings.items()), self.concurrency

    def replayed(self, traces: Sequence[PlayedTrace], source: TraceSource) -> Outcome:
        """A replay on traces of one question of a source, in the order given."""
        return replay(
            self.policy,
            traces,
            concurrency=self.concurrency,
            top_k=source.top_k,
            max_tokens=source.max_tokens,
        )


def parse(
    specs: Iterable[str],
    *,
    budgets: Sequence[int],
    concurrencies: Sequence[float] = (inf,),
    grid: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
) -> list[Candidate]:
    """The candidates that specifications name, each once, in order.

    They are "name" or "name:setting=value,…", with alternatives as "value/value". The budgets are
    for those that name none. The grid has further values to try, by policy and setting, where the
    specification gives none.

    Raises:
        UnknownNameError: there is no such policy, or no such value.
        InvalidSettingError: a policy has no such setting, or refuses its value.
    """
    for budget in budgets:
        require_whole("budget", budget, low=1)
    for concurrency in concurrencies:
        _check_concurrency(concurrency)
    found: dict[tuple[object, ...], Candidate] = {}
    for spec in specs:
        name, given = read_spec(spec)
        choices = {**(grid or {}).get(name, {}), **given}
        # What only the grid brought in is still an alternative to the budget that was asked for.
        own = "budget" in given
        if "budget" in setting_types(name):
            own = own or "budget" not in choices
            choices.setdefault("budget", budgets)
        refused: list[InvalidSettingError] = []
        combinations = list(product(*choices.values()))
        for values in combinations:
            try:
                built = build(name, dict(zip(choices, values, strict=True)))
            except InvalidSettingError as error:
                refused.append(error)
                continue
            for concurrency in concurrencies:
                candidate = Candidate(built, built.budget if own else max(budgets), concurrency)
                found.setdefault(candidate.identity, candidate)
        # In a grid some values may not go together, such as a warm-up and a smaller budget.
        if refused and (not grid or len(refused) == len(combinations)):
            raise refused[0]
    return list(found.values())


def _default(item: Any) -> object:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _check_concurrency(concurrency: float) -> None:
    if concurrency != inf:
        require("concurrency", concurrency, low=1)
        if not float(concurrency).is_integer():
            require_whole("concurrency", concurrency, low=1)


def fitting_windows(tokens: float, most: int = 4) -> tuple[int, ...]:
    """At most `most` windows worth trying on traces of `tokens` tokens.

    They are powers of two from 16 to half a trace or the paper's 2048.
    """
    longest = min(max(tokens / 2, 16), PAPER_WINDOW)
    powers = [2**exponent for exponent in range(4, 12) if 2**exponent <= longest]
    last = len(powers) - 1
    picked = {round(step * last / max(most - 1, 1)) for step in range(most)}
    return tuple(powers[i] for i in sorted(picked))


def usual_policies(*, confidences: bool, sweep: bool = False) -> tuple[str, ...]:
    """Policies that are compared by default; majority first, as the baseline."""
    if not confidences:
        return WITHOUT_CONFIDENCE
    # A sweep varies the setting in which low and high differ.
    with_confidence = [name for name in WITH_CONFIDENCE if not (sweep and name == "deepconf-high")]
    return (*WITHOUT_CONFIDENCE, *with_confidence)


def usual_grid(budget: int, tokens: float) -> Mapping[str, Mapping[str, Sequence[Any]]]:
    """Values to try, by policy and setting, for a largest budget and traces of a typical length."""
    windows = (None, *fitting_windows(tokens))
    # The published warm-up, and smaller and larger ones; a warm-up that is the budget stops none.
    warmups = sorted({max(2, budget // 8), max(2, budget // 4), max(2, budget // 2)})
    warmups = [warmup for warmup in {*warmups, PAPER_WARMUP} if warmup < budget] or [budget]
    online = {
        "keep": _KEEP,
        "window": windows,
        "consensus": (0.8, 0.9, 0.95, 1.0),
        "warmup": sorted(warmups),
    }
    powers = sorted({budget, *(2**n for n in range(budget.bit_length()))}, reverse=True)
    ranked = {"metric": tuple(Metric), "window": windows}
    return {
        "majority": {"budget": powers},
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
