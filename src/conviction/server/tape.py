"""A run as a tape: the one description of it that page, stream and list of runs share.

The tape takes the driver's events and returns *frames*, JSON objects with what is new since the
frame before. All frames applied in order are the tape; `Tape.snapshot` is one frame of it all.
Every part has its time, so a page shows any moment of a run: live is the newest.

A frame (what is not new is left out):

    n, at      number of the frame; milliseconds since the run began
    whole      true: forget what came before
    run        question, policy, budget, engine, model, concurrency, confidences, window, gold
    gates      [{at, threshold, window}]: thresholds as they were set
    answers    [text]: further classes of equal answers, numbered in order of appearance
    votes      [{at, rows, more, lead, joined, left}]: rows are the leading answers as [class,
               weight, votes], more is the others as [classes, weight, votes], joined and left
               are the traces that began and ceased to vote
    traces     [trace], see `conviction.server.taped_trace`
    verdict    as `Verdict.to_dict`, without traces, and with the numbers of those that voted
    failed     the reason why there is no verdict
    over       true: the run has ended
"""

import json
from collections import Counter
from sys import getsizeof
from typing import Any, cast

import msgspec

from conviction.core import FinishReason, Tally, Trace
from conviction.display import shortened
from conviction.events import (
    Event,
    RunFinished,
    RunStarted,
    TraceAdvanced,
    TraceFinished,
    TraceRestarted,
    TraceStarted,
)
from conviction.gate import Gate
from conviction.policies.base import Standing
from conviction.server.taped_trace import Piece, Sureness, TapedTrace
from conviction.verdict import Verdict
from conviction.voting import lead_of

Frame = dict[str, Any]

DISPLAY_WINDOW = 16
"""Tokens in a group of the lines until the policy has chosen its window, if it ever does."""

_MOST_KEPT = 1_000_000
"""Tokens that are kept for another window; a run with more keeps the lines that it has."""

_MOST_TEXT = 16 << 20
"""Bytes of text that are kept of one run."""

_MOST_RECORDED = 8_000_000
"""Characters of all traces' texts in a recorded run; each trace has an equal part of them."""

_ROWS = 8
"""Answers whose votes are listed; the others are summed up."""

_LONGEST = 300
"""Characters of an answer or an error."""

_MOST_QUESTION = 100_000
"""Characters of a question."""

_MOST_ANSWER = 10_000
"""Characters of an answer in a verdict."""

_BASE_BYTES, _RECORD_BYTES = 24_000, 700
"""Memory of an empty tape; and of an entry of a history or a trace beside texts and points."""

_PROGRESS_ANSWER = 60
"""Characters of an answer in a line of progress."""


def encode(frame: Frame) -> bytes:
    """A frame as JSON."""
    try:
        return msgspec.json.encode(frame, enc_hook=str)
    except UnicodeEncodeError:
        # A model's text may hold halves of characters, which only escapes can write.
        return json.dumps(frame, default=str).encode()


class Tape:
    """Takes the events of a run and describes it. Pure: the caller says what time it is.

    Args:
        question: The user's own words, if the question is in others.
        gold: The right answer, where it is known.

    Attributes:
        number: Number of the newest frame.
        tokens: Tokens generated so far, those of attempts that broke off too.
    """

    def __init__(self, question: str = "", gold: str | None = None) -> None:
        self.number = 0
        self.tokens = 0
        self.finishes: Counter[FinishReason] = Counter()
        self.tally = Tally()
        # A sign for what is left out would double the memory of the rest.
        self._question = question[:_MOST_QUESTION]
        self._gold = gold
        self._at = 0
        self._traces: dict[int, TapedTrace] = {}
        self._changed: dict[int, TapedTrace] = {}
        self._sureness = Sureness()
        self._window: int | None = None
        self._keeps = False
        self._kept_tokens = 0
        self._text_bytes = 0
        self._classes: dict[str, int] = {}
        self._voters: frozenset[int] = frozenset()
        self._progress: str | None = None
        self._run: Frame = {}
        self._ending: Frame = {}
        # Histories grow only; `_framed` is how much of each is in the frames so far.
        self._histories: dict[str, list[Any]] = {"gates": [], "answers": [], "votes": []}
        self._framed: dict[str, int] = dict.fromkeys(self._histories, 0)
        self._run_framed = self._ending_framed = False

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return bool(self._ending)

    def hear(self, event: Event, at: float) -> None:
        """Take note of an event, `at` seconds after the run began."""
        self._at = max(self._at, round(at * 1000))
        match event:
            case TraceAdvanced(number, chunk):
                self.tokens += chunk.confidences.size
                trace = self._change(number)
                if trace.advance(chunk, self._at):
                    self._draw(trace)
            case TraceStarted(number, gate):
                self._start(number, gate)
            case TraceFinished(trace, standing):
                self._finish(trace, standing)
            case TraceRestarted(number, lost):
                self._change(number).begin_again(lost)
            case RunStarted():
                self._begin(event)
            case RunFinished(verdict):
                self._end({"verdict": _verdict(verdict), "over": True})

    def fail(self, reason: str, at: float) -> None:
        """The run ended without a verdict, `at` seconds after it began."""
        if not self._ending:
            self._at = max(self._at, round(at * 1000))
            self._end({"failed": reason[:_LONGEST], "over": True})

    def frame(self) -> Frame | None:
        """What is new since the last call; None if nothing is."""
        for trace in self._changed.values():
            self._draw(trace)
        new = self._news()
        if not new:
            return None
        self.number += 1
        return {"n": self.number, "at": self._at, **new}

    def snapshot(self) -> Frame:
        """The content of all frames so far, as one."""
        run = {"run": self._run} if self._run_framed else {}
        histories = {name: self._histories[name][:count] for name, count in self._framed.items()}
        traces = [known for trace in self._traces.values() if (known := trace.everything())]
        frame = {"n": self.number, "at": self._at, "whole": True, **run, **histories}
        return {**frame, "traces": traces, **(self._ending if self._ending_framed else {})}

    def text(self, trace: int, most: int) -> Frame | None:
        """What a trace wrote so far, in at most `most` characters; None if there is no such trace.

        The number of further characters is in "left".
        """
        if (taped := self._traces.get(trace)) is None:
            return None
        self._draw(taped)
        pieces: list[Piece] = []
        room = most
        for text, mark in taped.passages.pieces():
            if room > 0:
                pieces.append((text[:room], mark))
            room -= len(text)
        running = taped.running and not self.over
        return {"pieces": pieces, "left": max(-room, 0), "running": running}

    def recorded(
        self, *, spread: bool = False, has_texts: bool = True, speed: float = 1.0
    ) -> Frame:
        """The run as a file of the page and the history of verdicts hold it, once it is `encode`d.

        Frames that were not taken yet are left out.

        Args:
            spread: Whether texts were laid over their tokens evenly.
            has_texts: Whether there are any.
            speed: At which it plays at first.
        """
        texts: dict[int, Frame] = {}
        each = _MOST_RECORDED // max(len(self._traces), 1)
        for trace in self._traces if has_texts else ():
            if told := self.text(trace, each):
                texts[trace] = {**told, "spread": spread}
        return {"frame": self.snapshot(), "texts": texts, "speed": speed}

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        traces = sum(_RECORD_BYTES + trace.size for trace in self._traces.values())
        entries = sum(map(len, self._histories.values())) * _RECORD_BYTES
        votes = self._histories["votes"]
        voters = sum(len(vote["joined"]) + len(vote["left"]) for vote in votes) * 40
        begun = self._run or self._question
        texts = _text_size([begun, self._histories["answers"], self._ending])
        return _BASE_BYTES + traces + entries + voters + texts

    @property
    def traces(self) -> tuple[int, ...]:
        """Numbers of all traces."""
        return tuple(self._traces)

    @property
    def progress(self) -> str:
        """A line for people who wait; empty before the first trace."""
        if self._progress is not None:
            return self._progress
        if not self._traces:
            return ""
        counts = (
            f"{len(self._traces)} of up to {self._run['budget']} traces begun, "
            f"{self.finishes.total()} ended"
        )
        stopped = self.finishes[FinishReason.LOW_CONFIDENCE] + self.finishes[FinishReason.CANCELLED]
        if stopped:
            counts += f" ({stopped} stopped early)"
        parts = [f"{self._run['policy'].get('name', '')}: {counts}"]
        if self.tally.leader is not None:
            answer = shortened(" ".join(self.tally.leader.text.split()), _PROGRESS_ANSWER)
            parts.append(f"{answer} leads with {self.tally.share:.0%} of the vote")
        return "; ".join([*parts, f"{self.tokens:,} tokens"]) + "."

    def _begin(self, event: RunStarted) -> None:
        # A policy that has no window will not choose one, so nothing need be kept for it.
        self._keeps = "window" in event.policy and event.capabilities.top_k > 0
        self._run = {
            "question": self._question or event.question.text[:_MOST_QUESTION],
            "policy": event.policy,
            "budget": event.budget,
            "engine": event.engine,
            "model": event.capabilities.model,
            "concurrency": event.capabilities.concurrency,
            "confidences": event.capabilities.top_k > 0,
            "window": DISPLAY_WINDOW,
            "gold": self._gold,
        }

    def _start(self, number: int, gate: Gate | None) -> None:
        if gate is not None:
            self._choose(gate.window)
            self._set(gate.threshold, gate.window)
        self._traces[number] = self._changed[number] = TapedTrace(
            number,
            self._at,
            gated=gate is not None,
            window=self._window or DISPLAY_WINDOW,
            sureness=self._sureness,
            keep=self._keeps,
        )

    def _finish(self, trace: Trace, standing: Standing) -> None:
        self.finishes[trace.finish] += 1
        self.tally = standing.tally
        taped = self._change(trace.id)
        self._draw(taped)
        end: Frame = {"at": self._at, "finish": str(trace.finish), "tokens": trace.tokens}
        if trace.answer is not None:
            key, text = trace.answer.key, trace.answer.text
            end |= {"answer": shortened(text, _LONGEST), "class": self._class(key, text)}
        if trace.error:
            end["error"] = shortened(trace.error, _LONGEST)
        taped.finish(end)
        if standing.window is not None:
            self._choose(standing.window)
            if standing.threshold is not None:
                self._set(standing.threshold, standing.window)
        self._vote(standing.tally)

    def _end(self, ending: Frame) -> None:
        self._ending = ending
        self._progress = self.progress
        self.tally, self._classes = Tally(), {}  # Answers may be long.
        for trace in self._traces.values():
            self._draw(trace)
            trace.forget()

    def _change(self, number: int) -> TapedTrace:
        trace = self._changed[number] = self._traces[number]
        return trace

    def _draw(self, trace: TapedTrace) -> None:
        before = trace.tokens
        self._text_bytes += trace.draw(with_text=self._text_bytes < _MOST_TEXT)
        if self._keeps:
            self._kept_tokens += trace.tokens - before
            if self._kept_tokens > _MOST_KEPT:
                self._keep_no_longer()

    def _choose(self, window: int) -> None:
        """The policy has chosen its window: draw all lines with it."""
        if self._window is not None:
            return
        self._window = window
        for trace in self._traces.values():
            self._draw(trace)
            trace.redraw(window)
        self._changed.update(self._traces)
        self._keep_no_longer()

    def _keep_no_longer(self) -> None:
        self._keeps = False
        for trace in self._traces.values():
            trace.forget()

    def _set(self, threshold: float, window: int) -> None:
        gates = self._histories["gates"]
        if not gates or gates[-1]["threshold"] != threshold:
            gates.append({"at": self._at, "threshold": threshold, "window": window})

    def _vote(self, tally: Tally) -> None:
        rows = [
            [self._class(entry.key, entry.text), entry.weight, entry.count]
            for entry in tally.entries[:_ROWS]
        ]
        others = tally.entries[_ROWS:]
        more = [len(others), sum(one.weight for one in others), sum(one.count for one in others)]
        voters, before = tally.voters, self._voters
        votes = self._histories["votes"]
        same = voters == before and (not votes or votes[-1]["rows"] == rows)
        if same or not (rows or votes):
            return
        self._voters = voters
        joined, left = sorted(voters - before), sorted(before - voters)
        vote: Frame = {"at": self._at, "rows": rows, "more": more, "lead": lead_of(tally)}
        votes.append(vote | {"joined": joined, "left": left})

    def _class(self, key: str, text: str) -> int:
        if key not in self._classes:
            self._classes[key] = len(self._classes)
            self._histories["answers"].append(shortened(text, _LONGEST))
        return self._classes[key]

    def _news(self) -> Frame:
        new: Frame = {}
        if self._run and not self._run_framed:
            new["run"] = self._run
            self._run_framed = True
        for name, history in self._histories.items():
            if len(history) > self._framed[name]:
                new[name] = history[self._framed[name] :]
                self._framed[name] = len(history)
        traces = [changes for trace in self._changed.values() if (changes := trace.news())]
        self._changed.clear()
        if traces:
            new["traces"] = traces
        if self._ending and not self._ending_framed:
            new |= self._ending
            self._ending_framed = True
        return new


def _verdict(verdict: Verdict) -> Frame:
    whole = verdict.to_dict()
    del whole["traces"], whole["question"]
    for entry in (whole, *whole["tally"]):
        if entry["answer"] is not None:
            entry["answer"] = shortened(entry["answer"], _MOST_ANSWER)
    whole["tied"] = [shortened(one, _MOST_ANSWER) for one in whole["tied"]]
    return whole | {
        "voters": sorted(verdict.tally.voters),
        "started": len(verdict.traces),
        "finishes": {str(reason): count for reason, count in verdict.finishes().items()},
    }


def _text_size(value: object) -> int:
    """Bytes of all texts in plain JSON types."""
    if isinstance(value, str):
        return getsizeof(value)
    if isinstance(value, dict):
        return sum(map(_text_size, cast("Frame", value).values()))
    return sum(map(_text_size, cast("list[object]", value))) if isinstance(value, list) else 0
