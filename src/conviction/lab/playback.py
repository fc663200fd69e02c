"""A replay as the events of a live run, so that displays of runs can show recordings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

import numpy as np

from conviction.core import Message, Question, Trace
from conviction.engines.base import Capabilities, Chunk
from conviction.errors import InvalidSettingError
from conviction.events import (
    Event,
    RunFinished,
    RunStarted,
    TraceAdvanced,
    TraceFinished,
    TraceStarted,
)
from conviction.gate import Gate
from conviction.lab.replay import PlayedTrace, replay
from conviction.lab.sources import PoolTraces
from conviction.policies.base import Policy, Standing
from conviction.recordings import Pool, RecordedQuestion
from conviction.recordings.schema import COMPLETE
from conviction.verdict import Usage, Verdict, caveats

TOKENS_PER_SECOND = 40.0
"""Pace of each trace where the recording holds no times."""

_PIECES = 400
"""Chunks that a trace comes in, at most: finer ones would not be seen."""

Timed = tuple[float, Event]
"""Seconds after the run began, and what happened."""


@dataclass(frozen=True)
class Playback:
    """One question of a recording, to be played by a policy.

    Attributes:
        traces: Its complete traces, with the seconds that a token takes as their pace.
        texts: What each wrote; None where that was not recorded.
        top_k: Log-probabilities behind each confidence; 0 in a pool of answers.
        max_tokens: The most tokens that a trace was allowed.
        pool: Name of the recording.
        timed: Whether the pace is the recorded one.
    """

    question: RecordedQuestion
    traces: Sequence[PlayedTrace]
    texts: Sequence[str | None]
    top_k: int
    max_tokens: int
    model: str
    pool: str
    timed: bool

    @classmethod
    def of(
        cls, pool: Pool, question_id: str, *, tokens_per_second: float | None = None
    ) -> "Playback":
        """One question of a pool, by default at the recorded pace, where there is any.

        Raises:
            RecordingError: there is no such question, it has no complete trace, or its traces
                cannot be read.
        """
        question = pool.question(question_id)
        source = PoolTraces(pool.path, pool, (question_id,))
        traces = source.traces(question_id)
        columns = pool.outline(question_id)
        whole = [finish in COMPLETE for finish in columns.finish]
        seconds = (columns.ended - columns.started)[np.array(whole, np.bool_)]
        timed = tokens_per_second is None and bool((seconds > 0).all())
        pace = 1.0 / (tokens_per_second or TOKENS_PER_SECOND)
        for trace, taken in zip(traces, seconds.tolist(), strict=True):
            trace.pace = taken / trace.tokens if timed and trace.tokens else pace
        texts = [text for text, keep in zip(pool.texts(question_id), whole, strict=True) if keep]
        return cls(
            question=question,
            traces=traces,
            texts=texts,
            top_k=source.top_k,
            max_tokens=source.max_tokens,
            model=pool.model,
            pool=pool.path.name,
            timed=timed,
        )

    @property
    def has_texts(self) -> bool:
        """Whether it is known what the traces wrote."""
        return any(text is not None for text in self.texts)

    def events(self, policy: Policy, *, slots: int) -> Iterator[Timed]:
        """The events of a live run with `slots` traces at once, in order of time.

        Raises:
            InvalidSettingError: the policy needs confidence and the recording has none, or it
                starts more traces than there are.
        """
        if policy.needs_confidence and not self.top_k:
            raise InvalidSettingError(
                tried=f"play {self.pool} with the policy {policy.name!r}",
                found="the recording holds answers without confidences",
                remedy="Take a policy that needs none, such as settle or majority.",
            )
        seen = _Seen()
        outcome = replay(
            policy,
            self.traces,
            concurrency=slots,
            top_k=self.top_k,
            max_tokens=self.max_tokens,
            watcher=seen,
        )
        question = Question((Message("user", self.question.text),), self.question.id)
        capabilities = Capabilities(self.model, self.top_k, slots)
        engine = f"recording {self.pool}"
        yield 0.0, RunStarted(question, policy.settings(), policy.budget, engine, capabilities)
        yield from self._merged(seen)
        ended = [trace for _, trace in sorted(seen.ended_by.items())]
        traces = tuple(replace(one, text=self._text(one)) for one in ended)
        yield (
            outcome.path,
            RunFinished(
                Verdict(
                    question=question,
                    answer=outcome.tally.leader.text if outcome.tally.leader else None,
                    tally=outcome.tally,
                    ended=outcome.ended,
                    policy=policy.settings(),
                    traces=traces,
                    usage=Usage.of(traces, voters=outcome.tally.voters, budget=policy.budget),
                    budget=policy.budget,
                    threshold=seen.standing.threshold,
                    window=seen.standing.window,
                    top_k=self.top_k,
                    seconds=outcome.path,
                    engine=engine,
                    warnings=(*seen.standing.notes, *caveats(traces, outcome.tally)),
                )
            ),
        )

    def _merged(self, seen: "_Seen") -> Iterator[Timed]:
        """What was seen, with the pieces of every trace between its beginning and its end."""
        pieces: dict[int, Iterator[Timed]] = {}
        due: list[tuple[float, int, Event]] = []

        def advance(trace: int) -> None:
            if (piece := next(pieces[trace], None)) is not None:
                heappush(due, (piece[0], trace, piece[1]))

        for at, event in seen.happened:
            # Times are unequal within a trace, so events are never compared.
            while due and due[0][0] <= at:
                when, trace, piece = heappop(due)
                yield when, piece
                advance(trace)
            yield at, event
            if isinstance(event, TraceStarted):
                pieces[event.trace] = self._pieces(event.trace, at, seen.ended_by[event.trace])
                advance(event.trace)

    def _pieces(self, number: int, began: float, ended: Trace) -> Iterator[Timed]:
        trace, text = self.traces[number], self.texts[number] or ""
        step = max(1, -(-ended.tokens // _PIECES))
        confidences = trace.confidences
        for begin in range(0, ended.tokens, step):
            end = min(begin + step, ended.tokens)
            known = None if confidences is None else confidences[begin:end]
            values = np.full(end - begin, np.nan, np.float32) if known is None else known
            # A pace of 0 has no order in time; and no sum of floats may come after the end.
            at = min(began + end * trace.pace, ended.ended)
            written = text[_letters(text, begin, trace) : _letters(text, end, trace)]
            yield at, TraceAdvanced(number, Chunk(written, values))

    def _text(self, ended: Trace) -> str:
        text = self.texts[ended.id] or ""
        return text[: _letters(text, ended.tokens, self.traces[ended.id])]


def _letters(text: str, tokens: int, trace: PlayedTrace) -> int:
    """Letters of the first tokens; recordings do not say, so the text is spread evenly."""
    return tokens * len(text) // trace.tokens if trace.tokens else 0


@dataclass
class _Seen:
    """Takes down what happens in a replay."""

    happened: list[Timed] = field(default_factory=list[Timed])
    ended_by: dict[int, Trace] = field(default_factory=dict[int, Trace])
    standing: Standing = field(default=None)  # type: ignore[assignment]  # a trace always ends

    def began(self, trace: int, at: float, gate: Gate | None) -> None:
        """A trace was started."""
        self.happened.append((at, TraceStarted(trace, gate)))

    def ended(self, trace: Trace, standing: Standing) -> None:
        """A trace ended."""
        self.happened.append((trace.ended, TraceFinished(trace, standing)))
        self.ended_by[trace.id] = trace
        self.standing = standing
