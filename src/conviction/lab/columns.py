"""The columns of the lab: one table, which terminal, HTML report, JSON and Parquet files read.

To add a column, add an entry to `COLUMNS`: what is measured of every replayed run, the statistic
over all runs of a candidate, and how it is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from conviction.lab.replay import Outcome
from conviction.lab.statistics import Bootstrap, Estimate, Numbers, finite, mean_of

Figure = Estimate | float
"""What a column says of a candidate: a figure with its interval, or a plain number."""


def value_of(figure: Figure) -> float:
    """The figure without its interval."""
    return figure.value if isinstance(figure, Estimate) else figure


def with_interval(figure: Estimate, text: Callable[[float], str]) -> str:
    """A figure and its interval, both written by `text`; "[-]" where it has none."""
    if not isfinite(figure.value):
        return "-"
    value, low, high = map(text, (figure.value, figure.low, figure.high))
    return f"{value} [{low}, {high}]" if isfinite(figure.low) else f"{value} [-]"


def percentage(figure: Estimate, *, signed: bool = False) -> str:
    """A share in percent with its interval; "[-]" where the figure has none."""
    form = "+.1f" if signed else ".1f"
    # Adding zero drops the sign of a negative zero.
    return with_interval(figure, lambda one: format(round(100 * one, 1) + 0.0, form))


def share(figure: Figure) -> str:
    """A share in percent, without its interval."""
    value = value_of(figure)
    return f"{round(100 * value, 1) + 0.0:.1f}" if isfinite(value) else "-"


def count(figure: Figure) -> str:
    """A number of tokens."""
    value = value_of(figure)
    return f"{value:,.0f}" if isfinite(value) else "-"


def decimal(figure: Figure) -> str:
    """A mean number of traces."""
    return f"{value_of(figure):.1f}"


@dataclass(frozen=True, slots=True)
class Measure:
    """What is kept of every replayed run.

    Attributes:
        name: Its field in `Trials`.
        dtype: Its type there.
        of: Reads it from the outcome; must pickle where several processes replay.
    """

    name: str
    dtype: DTypeLike
    of: Callable[[Outcome], Any]


BASELINE = 0
"""Number of the candidate that the others are compared to."""

FULL_TOKENS = "full_tokens"
"""Field of the tokens of all traces of the budget, which is what majority voting takes."""

_CORRECT = Measure("correct", np.bool_, attrgetter("correct"))
_TOKENS = Measure("tokens", np.int64, attrgetter("tokens"))
_PATH = Measure("path", np.float64, attrgetter("path"))
_STARTED = Measure("started", np.int32, attrgetter("started"))
_STOPPED = Measure("stopped", np.int32, attrgetter("stopped"))
_CANCELLED = Measure("cancelled", np.int32, attrgetter("cancelled"))
_EMPTY = Measure("empty", np.bool_, attrgetter("empty"))
_SHARE = Measure("share", np.float32, attrgetter("tally.share"))


class Resampled:
    """Runs of several candidates on the same draws, with their means in each bootstrap resample.

    `runs` are records of `run_type`, shape (candidates, questions, repeats).
    """

    def __init__(self, runs: NDArray[Any], budgets: Sequence[int]) -> None:
        _, self.questions, repeats = runs.shape
        self._runs, self._budgets = runs, budgets
        self._bootstrap = Bootstrap(self.questions, repeats)
        self._means: dict[str, Numbers] = {}
        self._full: dict[int, Numbers] = {}

    def values(self, field: str, number: int) -> NDArray[Any]:
        """One field of a candidate's runs, shape (questions, repeats)."""
        return self._runs[field][number]

    def means(self, field: str, number: int) -> Numbers:
        """Its mean in each resample."""
        if field not in self._means:
            self._means[field] = self._bootstrap.means(self._runs[field])
        return self._means[field][number]

    def full_tokens(self, number: int) -> Numbers:
        """Mean tokens of majority voting with a candidate's budget in each resample."""
        if not self._full:
            # Candidates of the same budget have the same.
            places = {budget: place for place, budget in enumerate(self._budgets)}
            means = self._bootstrap.means(self._runs[FULL_TOKENS][list(places.values())])
            self._full = dict(zip(places, means, strict=True))
        return self._full[self._budgets[number]]


Statistic = Callable[[Resampled, str, int], Figure]
"""Computes a figure from all runs, the name of a measure and the number of a candidate."""


def proportion(runs: Resampled, field: str, number: int) -> Estimate:
    """The share of the runs in which it holds, with its interval."""
    return Estimate.of_share(runs.values(field, number), runs.means(field, number))


def difference(runs: Resampled, field: str, number: int) -> Estimate:
    """That share less the baseline's on the same draws, with its interval."""
    if number == BASELINE:
        return Estimate(0.0, 0.0, 0.0)
    values = runs.values(field, number).astype(np.float64) - runs.values(field, BASELINE)
    resampled = runs.means(field, number) - runs.means(field, BASELINE)
    return Estimate.of_difference(values, resampled)


def amount(runs: Resampled, field: str, number: int) -> Estimate:
    """The mean with its interval."""
    value = mean_of(runs.values(field, number))
    return Estimate.of_amount(value, runs.means(field, number), runs.questions)


def mean(runs: Resampled, field: str, number: int) -> float:
    """The mean without an interval."""
    return mean_of(runs.values(field, number))


def total(runs: Resampled, field: str, number: int) -> float:
    """The mean times the number of questions: what answering each of them once takes."""
    return mean_of(runs.values(field, number)) * runs.questions


def saving(runs: Resampled, field: str, number: int) -> Estimate:
    """The share of it that majority voting with the same budget takes in addition."""
    spent, full = (mean_of(runs.values(one, number)) for one in (field, FULL_TOKENS))
    with np.errstate(invalid="ignore", divide="ignore"):
        return Estimate.of_amount(
            1 - np.float64(spent) / full,
            1 - runs.means(field, number) / runs.full_tokens(number),
            runs.questions,
        )


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a comparison.

    Attributes:
        name: Its name in JSON, in Parquet files and as an attribute of a `Row`. A figure with an
            interval is followed there by its ends, `name_low` and `name_high`.
        measure: What is kept of every run.
        statistic: How the figure of a candidate is computed from that.
        heading: Above it in the terminal; "{baseline}" stands for the label of the baseline.
        help: What it is, for `conviction lab --help`.
        text: How it is written in the terminal.
        page_heading: Above it in the HTML report; empty for the same.
        page_text: How it is written there; None for the same.
        against: Whether it compares to the baseline, which the terminal then leaves out.
        front: Whether the table of a sweep's front shows it.
    """

    name: str
    measure: Measure
    statistic: Statistic
    heading: str
    help: str
    text: Callable[[Any], str]
    page_heading: str = ""
    page_text: Callable[[Any], str] | None = None
    against: bool = False
    front: bool = False

    def figure(self, runs: Resampled, number: int) -> Figure:
        """The figure of one candidate."""
        return self.statistic(runs, self.measure.name, number)

    def record(self, figure: Figure) -> dict[str, float | None]:
        """The figure as plain JSON types."""
        if not isinstance(figure, Estimate):
            return {self.name: finite(figure)}
        names = (self.name, f"{self.name}_low", f"{self.name}_high")
        return dict(zip(names, figure.to_dict().values(), strict=True))


_points = partial(percentage, signed=True)

# fmt: off
COLUMNS: list[Column] = [
    Column("accuracy", _CORRECT, proportion, "accuracy %", "share of the verdicts that are right",
           percentage, page_heading="accuracy, %", front=True),
    Column("difference", _CORRECT, difference, "against {baseline}",
           "accuracy less that of the baseline on the same draws, in points",
           _points, page_heading="against {baseline}, points", against=True, front=True),
    Column("tokens", _TOKENS, amount, "tokens", "generated per question", count, front=True),
    Column("saving", _TOKENS, saving, "saved %",
           "tokens saved against majority voting with the same budget",
           share, page_heading="saved, %", page_text=percentage, front=True),
    Column("path", _PATH, amount, "path",
           "tokens generated one after another before the verdict: time", count, front=True),
    Column("started", _STARTED, mean, "traces", "started per question",
           decimal, page_heading="started"),
    Column("stopped", _STOPPED, mean, "stopped", "of these, for low confidence", decimal),
    Column("cancelled", _CANCELLED, mean, "cancelled", "of these, at the verdict", decimal),
    Column("empty", _EMPTY, mean, "no vote", "percentage of the runs in which no trace voted",
           share, page_heading="no vote, %"),
    Column("tokens_in_total", _TOKENS, total, "tokens in total",
           "generated to answer every question once", count),
]
# fmt: on
"""In order of display; narrow terminals leave out the last ones."""

ELSEWHERE = ("accuracy", "accuracy_low", "accuracy_high", "tokens", "path")
"""What the records of a sweep tell of the questions that did not choose the front."""


def measures() -> tuple[Measure, ...]:
    """What is kept of every run: for the columns, and for the diagnosis."""
    needed = (_CORRECT, _EMPTY, _SHARE, *(column.measure for column in COLUMNS))
    return tuple({measure.name: measure for measure in needed}.values())


def run_type(of: Sequence[Measure] | None = None) -> np.dtype[np.void]:
    """Type of the records of all runs: the measures, and `FULL_TOKENS`."""
    fields = [(measure.name, measure.dtype) for measure in (measures() if of is None else of)]
    return np.dtype([*fields, (FULL_TOKENS, np.int64)])
