"""How probable it is that a verdict is right, learned from recorded questions with known answers.

The policy is replayed on a recording, and the share of the vote of its verdicts is set against how
often they were right. Why the share: docs/results/calibration.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.core import Question, Sampling
from conviction.errors import InvalidSettingError
from conviction.lab.candidates import Candidate
from conviction.lab.comparison import runnable
from conviction.lab.isotonic import Steps
from conviction.lab.replay import PlayedTrace
from conviction.lab.sources import TraceSource, dropping
from conviction.lab.statistics import any_seed
from conviction.lab.trials import OnProgress, check_confidences, draw
from conviction.lab.workers import each_question
from conviction.policies.base import Policy
from conviction.recordings import Pool, PoolMeta, prompt_hash
from conviction.verdict import Right, Verdict

REPEATS = 32
"""Draws per question."""

FEWEST = 20
"""Questions below which nothing is learned."""

_UNCALIBRATED = (
    "Leave the calibration out, or use a policy that continues no traces, such as settle."
)

_RESOLVING = 60
"""Fewer questions than this come with a note."""

_CUT_SHORT = ("interrupted", "time", "tokens")
"""Endings that no replay has."""

_NEARLY = 0.75
"""Part of the fewest votes of any replay that a verdict needs to be calibrated."""

_RUN = np.dtype([("share", "f8"), ("right", "?"), ("votes", "i4")])


@dataclass(frozen=True, eq=False)
class Calibration:
    """How probable verdicts of one policy are to be right, as one recording tells.

    Attributes:
        policy: The policy, with its settings.
        pool: Name of the recording.
        questions: Its questions that were learned from.
        steps: How often verdicts were right by their share of the vote.
        fewest: The fewest votes of any of them.
        notes: What a reader should know before trusting it; whole sentences.
    """

    policy: Policy
    pool: str
    questions: int
    steps: Steps
    fewest: int
    notes: tuple[str, ...] = ()

    def right(self, share: float, votes: int | None, ended: str) -> Right | str:
        """How probable a verdict is to be right, or why that cannot be told.

        `votes` is None where the number of traces that voted is not known.
        """
        if votes == 0:
            return "no trace voted"
        if ended in _CUT_SHORT:
            return "the run was cut short, which no replay was"
        if votes is not None and votes < _NEARLY * self.fewest:
            return f"{votes} votes are too few beside the {self.fewest} or more of every replay"
        found = self.steps.at(_comparable(share))
        if found is None:
            return "no replay of the recording ended with so small a share of the vote"
        return Right(found.value, found.low, found.high, self.pool, self.questions)

    def applied(self, verdict: Verdict) -> Verdict:
        """The verdict with its probability of being right, or with a warning why there is none.

        Raises:
            InvalidSettingError: another policy gave it.
        """
        different = [
            f"{name} {verdict.policy.get(name)!r}, not {value!r}"
            for name, value in self.policy.settings().items()
            # What the policy was left to choose itself may be anything.
            if value is not None and verdict.policy.get(name) != value
        ]
        if different:
            raise InvalidSettingError(
                tried=f"calibrate a verdict by replays of {self.policy.name}",
                found=f"another policy gave it: {'; '.join(different)}",
                remedy="Calibrate with the policy and the settings that gave the verdict.",
            )
        found = self.right(verdict.share, len(verdict.tally.voters), verdict.ended)
        warnings = (*verdict.warnings, *self.notes)
        if isinstance(found, str):
            note = f"No calibrated probability of being right: {found}."
            return replace(verdict, warnings=(*warnings, note))
        return replace(verdict, right=found, warnings=warnings)


def calibrate(
    source: TraceSource,
    policy: Policy,
    *,
    pool: str = "the recording",
    concurrency: float = inf,
    seed: int = 0,
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> Calibration:
    """Learn how probable verdicts of a policy, with these settings, are to be right.

    The source holds traces of similar questions with right answers, made with the model, the prompt
    and the sampling of the verdicts; `pool` is its name, for people. As many traces run at once as
    where the verdicts come from; infinity for all.

    It takes seconds, so call it outside of an event loop, or in a thread. At most `processes`
    processes are started, where that pays.

    Raises:
        InvalidSettingError: as `check_source` raises.
        RecordingError: the traces cannot be read.
    """
    ids = check_source(source, policy)
    work = _Verdicts(Candidate(policy, policy.budget, concurrency), any_seed(seed))
    runs = np.zeros((len(ids), REPEATS), _RUN)
    chosen = source.only(ids)
    results = each_question(work, chosen, processes=processes)
    for done, (number, result) in enumerate(results, start=1):
        runs[number] = result
        if on_progress:
            on_progress(done, len(ids))
    voted = runs["votes"] > 0
    return Calibration(
        policy=policy,
        pool=pool,
        questions=len(ids),
        steps=Steps.fit(runs["share"], runs["right"], voted),
        fewest=int(runs["votes"][voted].min(initial=policy.budget)),
        notes=(*_remarks(source, ids, policy), *dropping(chosen)),
    )


@dataclass(frozen=True)
class _Verdicts:
    """Replays one question: share of the vote, whether the verdict is right, number of votes."""

    candidate: Candidate
    seed: int

    def __call__(self, source: TraceSource, question_id: str) -> NDArray[Any]:
        traces = source.traces(question_id)
        if source.top_k:
            check_confidences([self.candidate], question_id, traces)
        runs = np.zeros(REPEATS, _RUN)
        size = self.candidate.policy.budget
        for repeat in range(REPEATS):
            order = draw(len(traces), size, seed=self.seed, question_id=question_id, repeat=repeat)
            drawn: list[PlayedTrace] = [traces[position] for position in order.tolist()]
            outcome = self.candidate.replayed(drawn, source)
            votes = len(outcome.tally.voters)
            runs[repeat] = (_comparable(outcome.tally.share), outcome.correct, votes)
        return runs


def _comparable(share: float) -> float:
    """A share without the rounding errors by which equal ones differ."""
    return round(share, 9)


def check_source(source: TraceSource, policy: Policy) -> tuple[str, ...]:
    """The questions of which enough traces were recorded to replay a policy.

    Raises:
        InvalidSettingError: they are too few, or the policy needs confidences that were not
            recorded.
    """
    tried = f"calibrate {policy.name} with a budget of {policy.budget}"
    _, refused = runnable([Candidate(policy, policy.budget)], source)
    if refused:
        remedy = _UNCALIBRATED if policy.needs_continuation else refused[0].remedy
        raise InvalidSettingError(tried=tried, found=refused[0].reason, remedy=remedy)
    counts = sorted((source.count(one) for one in source.question_ids), reverse=True)
    if len(counts) < FEWEST:
        raise InvalidSettingError(
            tried=tried,
            found=f"the recording has {len(counts)} questions with right answers, and fewer than "
            f"{FEWEST} tell nothing",
            remedy="Record more questions with `conviction record`.",
        )
    ids = tuple(one for one in source.question_ids if source.count(one) >= policy.budget)
    if len(ids) < FEWEST:
        most = counts[FEWEST - 1]
        raise InvalidSettingError(
            tried=tried,
            found=f"only {len(ids)} of {len(counts)} questions of the recording have so many "
            f"complete traces; {FEWEST} of them have {most}",
            remedy=f"Use a budget of {most} at most (--budget {most}), or record more traces."
            if most
            else "Record it with `conviction record`, which lets every trace end.",
        )
    return ids


def _remarks(source: TraceSource, ids: tuple[str, ...], policy: Policy) -> tuple[str, ...]:
    notes: list[str] = []
    if len(ids) < len(source.question_ids):
        notes.append(
            f"{len(source.question_ids) - len(ids)} of {len(source.question_ids)} questions of the "
            f"calibration were left out: they have fewer than {policy.budget} complete traces."
        )
    if len(ids) < _RESOLVING:
        notes.append(f"The calibration rests on {len(ids)} questions alone: look at the interval.")
    return tuple(notes)


def mismatches(
    pool: Pool,
    run: PoolMeta,
    asked: Sequence[Question],
    *,
    prompt: Callable[[str], Question],
    needs_confidence: bool,
) -> tuple[str, ...]:
    """In what a recording differs from the run that it calibrates; whole sentences.

    `run` is what would stand in a recording of the run, `asked` its questions as the model gets
    them; `prompt` puts its prompt around any question.
    """
    notes: list[str] = []
    different = list(_differences(pool.meta, run, needs_confidence=needs_confidence))
    same_prompt = _same_prompt(pool, prompt)
    if same_prompt is False:
        different.append("another prompt")
    if different:
        notes.append(
            f"The calibration was recorded with {', '.join(different)}: its probabilities may not "
            "hold here."
        )
    if same_prompt is None:
        notes.append(
            "The calibration keeps no words of its questions, so whether they had the prompt of "
            "this run cannot be told."
        )
    hashes = {one.prompt_hash for one in pool.questions if one.gold is not None}
    known = sum(prompt_hash(question) in hashes for question in asked)
    if known:
        which = "This question is" if len(asked) == 1 else f"{known} of {len(asked)} questions are"
        notes.append(
            f"{which} among those of the calibration, which so has seen the right answer: the "
            "probability is better than it would be for others."
        )
    return tuple(notes)


def _differences(meta: PoolMeta, run: PoolMeta, *, needs_confidence: bool) -> Iterator[str]:
    if meta.model != run.model:
        yield f"the model {meta.model} (here {run.model})"
    if meta.answers != run.answers:
        yield f"answers of the kind {meta.answers} (here {run.answers})"
    if needs_confidence and meta.top_k != run.top_k:
        yield f"k = {meta.top_k} (here {run.top_k})"
    if meta.sampling is None:
        yield "sampling that it does not tell"
    else:
        here = asdict(run.sampling or Sampling())
        for name, value in asdict(meta.sampling).items():
            if value != here[name]:
                yield f"{name} {_plain(value)} (here {_plain(here[name])})"


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _same_prompt(pool: Pool, prompt: Callable[[str], Question]) -> bool | None:
    """Whether its questions were asked with this prompt; None if it keeps none of their words."""
    told = [one for one in pool.questions if one.text]
    same = all(prompt_hash(prompt(one.text)) == one.prompt_hash for one in told)
    return same if told else None
