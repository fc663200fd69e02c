"""Policies to be compared, as they are written on the command line.

majority
deepconf-low:window=32,keep=0.2
deepconf-low:keep=0.1/0.3/0.9       one candidate for each value
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from itertools import product
from math import inf
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from conviction.confidence import Metric
from conviction.core import require, require_whole
from conviction.errors import InvalidSettingError
from conviction.policies import GROUP, Policy, policy
from conviction.policies.windows import PAPER_WINDOW
from conviction.registry import load, unknown_name

WITHOUT_WINDOW = (Metric.MEAN, Metric.HEAD)
"""Metrics of whole traces."""


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
        settings = ",".join(f"{name}={_written(value)}" for name, value in self.settings.items())
        return f"{self.policy.name}:{settings}" if settings else self.policy.name

    @property
    def label(self) -> str:
        """A name for tables: the policy, its budget, and what differs from its defaults."""
        budget = f"@{self.policy.budget}" if "budget" in setting_types(self.policy.name) else ""
        settings = "".join(f" {name}={_written(value)}" for name, value in self.settings.items())
        return f"{self.policy.name}{budget}{settings}"

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for candidates that do the same."""
        settings = self.settings
        if settings.get("metric", getattr(self.policy, "metric", None)) in WITHOUT_WINDOW:
            settings.pop("window", None)
        return self.policy.name, self.policy.budget, tuple(settings.items()), self.concurrency


def parse(
    specs: Iterable[str],
    *,
    budgets: Sequence[int],
    concurrencies: Sequence[float] = (inf,),
    grid: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
) -> list[Candidate]:
    """The candidates that specifications name, each once, in order.

    Args:
        specs: "name" or "name:setting=value,…", with alternatives as "value/value".
        budgets: Traces to start, for policies whose specification does not say.
        concurrencies: Machines to run them on.
        grid: Further values to try, by policy and setting, for settings that are not specified.

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
        name, given = _split(spec)
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
                built = policy(name, **dict(zip(choices, values, strict=True)))
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


def setting_types(name: str) -> dict[str, Any]:
    """Settings of the policy registered as `name`, and their types.

    Raises:
        UnknownNameError: there is no policy of that name.
    """
    kind = load(GROUP, name)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        kind = type(policy(name))  # It says what is wrong with it.
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind) if item.init}  # type: ignore[arg-type]


def _split(spec: str) -> tuple[str, dict[str, list[Any]]]:
    name, colon, rest = spec.strip().partition(":")
    types = setting_types(name)
    given: dict[str, list[Any]] = {}
    for part in rest.split(",") if colon else ():
        setting, equals, values = (piece.strip() for piece in part.partition("="))
        if not (setting and equals and values):
            raise InvalidSettingError(
                tried=f"read the policy {spec!r}",
                found=f"{part!r} is no setting",
                remedy="Write it as name:setting=value,setting=value.",
            )
        given[setting] = [
            _converted(value.strip(), types.get(setting, str), setting, name)
            for value in values.split("/")
        ]
    return name, given


def _converted(text: str, kind: Any, setting: str, name: str) -> Any:
    kinds = get_args(kind) if get_origin(kind) is UnionType else (kind,)
    if text.lower() == "none" and type(None) in kinds:
        return None
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        pass
    for one in kinds:
        if isinstance(one, type) and issubclass(one, Enum):
            raise unknown_name(f"{setting}s", text, [str(member.value) for member in one])
    wanted = " or ".join(_PLAIN.get(one, getattr(one, "__name__", str(one))) for one in kinds)
    raise InvalidSettingError(
        tried=f"set {setting} of the policy {name!r} to {text!r}",
        found=f"it takes {wanted}",
        remedy="Change it and retry.",
    )


_PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "none",
}


def _written(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(item: Any) -> object:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _check_concurrency(concurrency: float) -> None:
    if concurrency == inf:
        return
    require("concurrency", concurrency, low=1)
    if not float(concurrency).is_integer():
        require_whole("concurrency", concurrency, low=1)


def fitting_windows(tokens: float, most: int = 4) -> tuple[int, ...]:
    """Windows worth trying: powers of two from 16 to half a trace or the paper's 2048.

    Args:
        tokens: Length of a typical trace.
        most: How many at most.
    """
    longest = min(max(tokens / 2, 16), PAPER_WINDOW)
    powers = [2**exponent for exponent in range(4, 12) if 2**exponent <= longest]
    last = len(powers) - 1
    picked = {round(step * last / max(most - 1, 1)) for step in range(most)}
    return tuple(powers[i] for i in sorted(picked))
