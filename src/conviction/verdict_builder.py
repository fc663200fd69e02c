"""From traces that ended to the verdict: answers are found and classified, warnings collected."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf

import anyio
import numpy as np

from conviction.answers import AnswerKind, Grouping
from conviction.answers.reading import read_answer
from conviction.confidence import Floats, Metric, measure
from conviction.core import Answer, FinishReason, Question, Sampling, Trace
from conviction.display import listed
from conviction.engines.base import Capabilities, Engine
from conviction.errors import (
    AllTracesFailedError,
    CannotContinueError,
    EngineError,
    InvalidSettingError,
    MissingLogprobsError,
    NothingGeneratedError,
)
from conviction.live import LiveTrace, beginning
from conviction.policies.base import Continue, Policy
from conviction.verdict import OUT_OF_TOKENS, Usage, Verdict, caveats

_LAST_SECONDS = 0.5
"""How long a run that was ended from outside still reads answers, in all."""

_WRONG_SIGN = (
    "its confidences are below 0: they are minus a mean log-probability, so the sign is wrong"
)
_WHOLE = (FinishReason.STOP, FinishReason.LENGTH)
_MEND = "Mend the cause and ask again; nothing was answered."
_MOST_NOTES = 8
_EMPTY = "traces ended without a single token"


def no_logprobs(engine: Engine, policy: Policy, found: str) -> MissingLogprobsError:
    """The error of a policy that cannot do without confidence on an engine that gives none."""
    return MissingLogprobsError(
        tried=f"read token confidence from {engine.name} for the policy {policy.name!r}",
        found=f"no log-probabilities came back: {found}",
        remedy="Switch them on in the engine, or use --policy majority, which needs none.",
    )


def cannot_continue(engine: Engine, policy: Policy) -> CannotContinueError:
    """The error of a policy that continues traces on an engine that cannot."""
    return CannotContinueError(
        tried=f"continue traces on {engine.name} for the policy {policy.name!r}",
        found="it does not go on with a beginning that it is given",
        remedy="Use another policy, such as settle; or a server's plain completions, where the "
        "question has the model's template already.",
    )


@dataclass(frozen=True)
class RunSetup:
    """What a run is given, as it stands when the run begins.

    Attributes:
        seed: Seeds of all traces derive from it and the question's id.
        top_k: Log-probabilities behind each token confidence.
        counted: Whether every token has to be counted, because there is a total.
    """

    question: Question
    engine: Engine
    capabilities: Capabilities
    policy: Policy
    answers: AnswerKind
    sampling: Sampling
    seed: int
    top_k: int
    counted: bool


class VerdictBuilder:
    """The traces of one run that have ended, by id, and the warnings for its verdict."""

    def __init__(self, setup: RunSetup) -> None:
        self._setup = setup
        self._engine = setup.engine
        self._policy = setup.policy
        self._answers = setup.answers
        self._grouping = Grouping(setup.answers)
        self.traces: dict[int, Trace] = {}
        self._informed = False
        self._notes: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._reading = anyio.CancelScope()
        self._read_until = inf
        self._unread: set[int] = set()

    def hurry(self) -> None:
        """Read answers for at most `_LAST_SECONDS` more, in all: the run was ended from outside."""
        self._read_until = min(self._read_until, anyio.current_time() + _LAST_SECONDS)
        self._reading.deadline = self._read_until

    def lose(self, error: str, tokens: int) -> None:
        """Count the tokens of an attempt that broke off."""
        self._lost[error] += tokens

    def beginning_of(self, action: Continue) -> tuple[str, int]:
        """What a continued trace begins with, and about how many tokens that is.

        Raises:
            InvalidSettingError: there is no such complete trace, or it continues another itself.
        """
        trace = self.traces.get(action.trace)
        if trace is None or not trace.complete or trace.continues is not None:
            raise InvalidSettingError(
                tried=f"continue trace {action.trace} for the policy {self._policy.name!r}",
                found="it is not a complete trace of its own",
                remedy="Correct the policy.",
            )
        prefix = beginning(trace.text, action.keep)
        return prefix, trace.tokens * len(prefix) // max(len(trace.text), 1)

    async def finish(self, live: LiveTrace, running: Iterable[LiveTrace], now: float) -> Trace:
        """The finished trace, with its answer classified, of one that ended `now` seconds in.

        Raises:
            MissingLogprobsError: the policy needs confidence, and neither this trace nor one of
                those still `running` has any.
            EngineError: tokens must be counted, and the engine does not report them.
        """
        text = live.text
        finish = live.finish or FinishReason.ERROR
        confidences = live.confidences()
        if measure(Metric.MEAN, confidences, window=1) < 0:
            finish, live.error = FinishReason.ERROR, _WRONG_SIGN
        answer = None
        if finish in _WHOLE:
            if self._setup.counted and len(text) > len(live.prefix) and not confidences.size:
                raise EngineError(
                    tried=f"hold a total of tokens on {self._engine.name}",
                    found="a trace came with a text but not one token, so nothing can be counted",
                    remedy="Mend the engine: the confidences of a chunk have an entry per token; "
                    "or give no total.",
                )
            answer = await self._find_answer(live.id, text)
            if self._policy.needs_confidence and confidences.size:
                self._check_confidence(confidences, running)
        trace = Trace(
            id=live.id,
            finish=finish,
            tokens=confidences.size,
            text=text,
            confidences=confidences,
            answer=answer,
            seed=live.seed,
            prompt_tokens=live.prompt_tokens,
            cached_tokens=live.cached_tokens,
            started=live.started,
            ended=now,
            error=live.error,
            restarts=live.restarts,
            lost_tokens=live.lost_tokens,
            logprobs=live.logprobs(),
            continues=live.continues,
        )
        self._notes.update(dict.fromkeys(live.notes, 1))
        self.traces[trace.id] = trace
        return trace

    def verdict(self, ended: str, *, seconds: float, warnings: Iterable[str] = ()) -> Verdict:
        """The verdict of all finished traces, with further warnings.

        Raises:
            AllTracesFailedError: no trace came to an end; the causes are named.
            NothingGeneratedError: the run was ended before its first token.
        """
        traces = tuple(trace for _, trace in sorted(self.traces.items()))
        failed = [trace for trace in traces if trace.finish is FinishReason.ERROR]
        if traces and len(failed) == len(traces):
            raise AllTracesFailedError(
                tried=f"think with {len(traces)} traces on {self._engine.name}",
                causes=[trace.error for trace in failed],
                remedy=_MEND,
                engine=self._engine.failure,
            )
        if self._is_nothing(ended):
            raise self.nothing_generated(ended, seconds)
        standing = self._policy.standing()
        tally, budget = standing.tally, self._policy.budget
        return Verdict(
            question=self._setup.question,
            answer=tally.leader.text if tally.leader else None,
            tally=tally,
            ended=ended,
            policy=self._policy.settings(),
            traces=traces,
            usage=Usage.of(traces, voters=tally.voters, budget=budget),
            budget=budget,
            threshold=standing.threshold,
            window=standing.window,
            top_k=self._setup.top_k,
            seconds=seconds,
            engine=self._engine.name,
            seed=self._setup.seed,
            warnings=(*standing.notes, *caveats(traces, tally), *self._warnings(ended), *warnings),
        )

    def nothing_generated(self, ended: str, seconds: float) -> NothingGeneratedError:
        """The error of a run that ended before its first token, or lost all that had come."""
        engine = self._engine.failure
        errors = [trace.error for trace in self.traces.values() if trace.error]
        empty = any(trace.finish in _WHOLE for trace in self.traces.values())
        causes = [engine.problem] if engine else [*errors, *self._lost, *[_EMPTY] * empty][-1:]
        if ended == "time":
            when, remedy = f"the time limit, {seconds:.1f} s", "Allow more time, and ask again"
        else:
            when, remedy = f"the end of the run ({ended})", "Ask again"
        return NothingGeneratedError(
            tried=f"think with {len(self.traces)} traces on {self._engine.name}",
            causes=[f"not one token had come by {when}", *causes],
            remedy=_MEND if causes else f"{remedy}; nothing was answered.",
            ended=ended,
            engine=engine,
        )

    def _is_nothing(self, ended: str) -> bool:
        """Whether no trace but failed ones has a token, so that there is no result.

        A total of tokens that was spent on other questions is a result, and so is a policy's
        decision to start no trace.
        """
        traces = self.traces.values()
        lasting = [trace for trace in traces if trace.finish is not FinishReason.ERROR]
        if any(trace.tokens or trace.text for trace in lasting):
            return False
        if len(lasting) < len(traces) or ended in ("time", "interrupted"):
            return True
        return bool(traces) and ended != OUT_OF_TOKENS

    async def _find_answer(self, trace: int, text: str) -> Answer | None:
        # A reading that was given up may still use the grouping.
        if not self._unread:
            with anyio.CancelScope(deadline=self._read_until) as self._reading:
                return await read_answer(self._answers, self._grouping, text)
        self._unread.add(trace)
        return None

    def _check_confidence(self, confidences: Floats, running: Iterable[LiveTrace]) -> None:
        """Refuse to go on with an engine that silently drops log-probabilities.

        A single trace without any may be chance; one before any other had some is not.
        """
        self._informed = self._informed or _any_known(confidences)
        if not self._informed and not any(_any_known(live.confidences()) for live in running):
            raise no_logprobs(self._engine, self._policy, "a trace ended without a single one")

    def _warnings(self, ended: str) -> Iterator[str]:
        traces = self.traces.values()
        started = len(traces)
        if ended == OUT_OF_TOKENS:
            before = "the verdict was settled" if started else "this question had its turn"
            yield f"The total of tokens was spent before {before}."
        silent = sum(
            trace.finish is FinishReason.STOP
            and trace.answer is None
            and trace.id not in self._unread
            for trace in traces
        )
        if silent:
            kind = self._answers.name
            yield f"{silent} of {started} traces ended without an answer of kind {kind!r}."
        if unread := len(self._unread):
            yield f"The answers of {unread} of {started} traces were not read before the run ended."
        cut = sum(trace.finish is FinishReason.LENGTH for trace in traces)
        if cut:
            most = self._setup.sampling.max_tokens
            yield f"{cut} of {started} traces reached {most} tokens and did not vote."
        begun_again = [trace for trace in traces if trace.restarts]
        if begun_again:
            lost = sum(trace.lost_tokens for trace in begun_again)
            yield (
                f"{len(begun_again)} of {started} traces broke off and were begun again; the "
                f"{lost:,} tokens lost count as failed: {listed(self._lost)}"
            )
        for note, count in list(self._notes.items())[:_MOST_NOTES]:
            yield f"{note} ({count} of {started} traces)"
        if (more := len(self._notes) - _MOST_NOTES) > 0:
            yield f"There are {more:,} more notes of this kind."
        yield from self._setup.capabilities.notes
        yield from self._grouping.limits


def _any_known(confidences: Floats) -> bool:
    return bool(np.isfinite(confidences).any())
