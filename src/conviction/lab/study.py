"""A whole comparison: which candidates, on which traces, with which results."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from conviction.core import require_whole
from conviction.errors import InvalidSettingError
from conviction.lab.candidates import Candidate, parse, usual_grid, usual_policies
from conviction.lab.columns import ELSEWHERE
from conviction.lab.comparison import (
    Front,
    Refusal,
    Row,
    compare,
    distinct,
    find_front,
    remarks,
    runnable,
)
from conviction.lab.sources import TraceSource, dropping, typical_tokens
from conviction.lab.statistics import any_seed
from conviction.lab.trials import REPEATS, OnProgress, Trials, run_trials
from conviction.policies.named import read_spec

SCHEMA_VERSION = 1
"""Raised whenever a field of the JSON changes its meaning."""

SWEEP_REPEATS = 16
"""Draws per question in a sweep, unless told otherwise: it has hundreds of candidates."""

SWEEP_CONCURRENCIES = (8, 1)
"""Machines that a sweep plays besides the unlimited one, unless told otherwise."""

MOST_BUDGET = 64
"""The default budget, where as many traces were recorded."""


@dataclass(frozen=True)
class Plan:
    """What to compare, and how.

    Attributes:
        specs: Policies, as in "deepconf-low:keep=0.2"; none for the usual ones.
        baseline: The policy that the others are compared to; None for the first.
        budgets: Traces to start; none for what the pool allows, at most 64.
        concurrencies: Traces that run at once, on the machines that are played; none for all at
            once, and in a sweep also for 8 and for 1 with the usual settings.
        sweep: Whether to try many settings, and to look for the Pareto front.
        repeats: Draws per question; None for 64, and for 16 in a sweep.
        seed: Makes the draws reproducible.
        with_replacement: Whether one trace may be drawn several times.
    """

    specs: Sequence[str] = ()
    baseline: str | None = None
    budgets: Sequence[int] = ()
    concurrencies: Sequence[float] = ()
    sweep: bool = False
    repeats: int | None = None
    seed: int = 0
    with_replacement: bool = False


@dataclass(frozen=True, eq=False)
class Study:
    """The results of a comparison.

    Attributes:
        rows: Every candidate, the baseline first.
        front: The Pareto front of a sweep; None without one.
        refused: Candidates that these traces do not allow.
        notes: What a reader should know before trusting the figures.
    """

    plan: Plan
    trials: Trials
    rows: tuple[Row, ...]
    front: Front | None
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> Candidate:
        """What the others are compared to."""
        return self.rows[0].candidate

    @property
    def concurrencies(self) -> tuple[float, ...]:
        """Traces at once on the machines that were played, in order."""
        return tuple(dict.fromkeys(row.candidate.concurrency for row in self.rows))

    @property
    def repeats(self) -> int:
        """Draws per question."""
        return self.trials.runs.shape[2]

    @property
    def traces(self) -> str:
        """Recorded traces of each question, as in "16" and "12 to 16"."""
        least, most = self.trials.least_traces, self.trials.most_traces
        return f"{least}" if least == most else f"{least} to {most}"

    def records(self) -> list[dict[str, Any]]:
        """One flat record per candidate; of a sweep with its place on the front."""
        records = [row.record() for row in self.rows]
        if self.front:
            front = self.front
            halves = front.where_chosen, front.elsewhere
            for record, chosen, *rows in zip(records, front.chosen.tolist(), *halves, strict=True):
                here, there = (row.record() for row in rows)
                record["on_front"] = chosen
                record["accuracy_where_chosen"] = here["accuracy"]
                record |= {f"{name}_elsewhere": there[name] for name in ELSEWHERE}
        return records

    def to_dict(self) -> dict[str, Any]:
        """Everything but the runs, as plain JSON types."""
        return {
            "schema_version": SCHEMA_VERSION,
            "questions": len(self.trials.question_ids),
            "traces": [self.trials.least_traces, self.trials.most_traces],
            "repeats": self.repeats,
            "seed": self.plan.seed,
            "with_replacement": self.plan.with_replacement,
            "baseline": self.baseline.label,
            "policies": self.records(),
            "refused": [
                {"policy": one.candidate.label, "reason": one.reason} for one in self.refused
            ],
            "notes": list(self.notes),
        }


def check_plan(plan: Plan) -> None:
    """Refuse a plan that is wrong for any recording.

    Raises:
        UnknownNameError: a policy or one of its values does not exist.
        InvalidSettingError: a setting is wrong.
    """
    for spec in (*plan.specs, *((plan.baseline,) if plan.baseline is not None else ())):
        read_spec(spec)
    parse((), budgets=plan.budgets, concurrencies=plan.concurrencies)
    require_whole("repeats", _repeats(plan), low=1)


def study(
    source: TraceSource, plan: Plan, *, processes: int = 1, on_progress: OnProgress | None = None
) -> Study:
    """Compare policies on recorded traces, in `processes` processes at most.

    Raises:
        UnknownNameError: a policy or one of its values does not exist.
        InvalidSettingError: a setting is wrong, or there are too few traces for a budget.
        RecordingError: the traces cannot be read.
    """
    candidates, refused = runnable(_candidates(source, plan), source)
    if not candidates:
        raise InvalidSettingError(
            tried=f"replay {refused[0].candidate.label}",
            found=refused[0].reason,
            remedy=refused[0].remedy,
        )
    trials = run_trials(
        source,
        candidates,
        repeats=_repeats(plan),
        seed=any_seed(plan.seed),
        with_replacement=plan.with_replacement,
        processes=processes,
        on_progress=on_progress,
    )
    notes = [*dropping(source), *remarks(trials, with_replacement=plan.with_replacement)]
    if plan.sweep:
        tried = len(trials.candidates)
        trials = distinct(trials)
        if len(trials.candidates) < tried:
            notes.append(
                f"{tried - len(trials.candidates)} of {tried} settings came to the same in every "
                "draw as one before them, and were left out."
            )
    return Study(
        plan,
        trials,
        compare(trials),
        find_front(trials, seed=plan.seed) if plan.sweep else None,
        tuple(refused),
        tuple(notes),
    )


def _repeats(plan: Plan) -> int:
    if plan.repeats is not None:
        return plan.repeats
    return SWEEP_REPEATS if plan.sweep else REPEATS


def _candidates(source: TraceSource, plan: Plan) -> list[Candidate]:
    specs = list(plan.specs) or list(usual_policies(confidences=source.top_k > 0, sweep=plan.sweep))
    if plan.baseline is not None:
        specs = [plan.baseline, *(spec for spec in specs if spec != plan.baseline)]
    budgets = sorted(set(plan.budgets or [usual_budget(source)]), reverse=True)
    concurrencies = plan.concurrencies or (inf,)
    if not plan.sweep:
        return parse(specs, budgets=budgets, concurrencies=concurrencies)
    grid = usual_grid(max(budgets), typical_tokens(source))
    found = parse(specs, budgets=budgets, concurrencies=concurrencies, grid=grid)
    if not plan.concurrencies:
        # Hundreds of settings on every machine would take several times as long.
        found += parse(specs, budgets=budgets, concurrencies=SWEEP_CONCURRENCIES)
    return found


def usual_budget(source: TraceSource) -> int:
    """As many traces as the question with fewest has, at most 64."""
    least = min((source.count(one) for one in source.question_ids), default=1)
    return max(min(least, MOST_BUDGET), 1)
