"""A run as a tape: what a page needs to show it live, later, or at another speed.

The tape hears the driver's events and gives *frames*, JSON objects that say what is new since the
frame before. All frames applied in order are the tape; `Tape.snapshot` is one frame that says it
all. Every part carries its time, so a page shows any moment of a run out of one tape: live is the
newest moment, playback any other.

A frame (what is not new is left out):

    n, at      number of the frame; milliseconds since the run began
    whole      true: forget what came before
    run        question, policy, budget, engine, model, concurrency, confidences, window, gold
    gates      [{at, threshold, window}]: thresholds as they were set
    answers    [text]: further classes of equal answers, numbered in order of appearance
    votes      [{at, rows, more, lead, joined, left}]: rows are the leading answers as [class,
               weight, votes], more is the others as [classes, weight, votes], joined and left
               are the traces that began and ceased to vote
    traces     [trace], see `conviction.server.track`
    verdict    as `Verdict.to_dict`, without traces, and with the numbers of those that voted
    failed     the reason why there is no verdict
    over       true: the run has ended
"""

import json
from typing import Any

import msgspec

from conviction.core import Tally, Trace
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
from conviction.server.passages import Passages, Sureness
from conviction.server.track import Track
from conviction.verdict import Verdict
from conviction.voting import lead_of

Frame = dict[str, Any]

DISPLAY_WINDOW = 16
"""Tokens in a group of the lines until the policy has chosen its window, if it ever does."""

_MOST_KEPT = 4_000_000
"""Tokens that are kept for another window; a run with more keeps the lines that it has."""

_MOST_TEXT = 64 << 20
"""Bytes of text that are kept of one run."""

_ROWS = 8
"""Answers whose votes are told; the others are told as a sum."""

_LONGEST = 300
"""Characters of an answer or an error."""


def encode(frame: Frame) -> bytes:
    """A frame as JSON."""
    try:
        return msgspec.json.encode(frame, enc_hook=str)
    except UnicodeEncodeError:
        # A model's text may hold halves of characters, which only escapes can write.
        return json.dumps(frame, default=str).encode()


class Tape:
    """Hears of a run and tells it. Pure: whoever calls says what time it is.

    Args:
        question: The user's own words, if the question is in others.
        gold: The right answer, where it is known.
    """

    def __init__(self, question: str = "", gold: str | None = None) -> None:
        self._question = question
        self._gold = gold
        self._number = 0
        self._at = 0
        self._tracks: dict[int, Track] = {}
        self._touched: dict[int, Track] = {}
        self._sureness = Sureness()
        self._window: int | None = None
        self._keeps = False
        self._kept_tokens = 0
        self._text_bytes = 0
        self._classes: dict[str, int] = {}
        self._voters: frozenset[int] = frozenset()
        self._run: Frame | None = None
        self._ending: Frame = {}
        # Histories grow only; `_told` says how much of each the frames have told.
        self._histories: dict[str, list[Any]] = {"gates": [], "answers": [], "votes": []}
        self._told: dict[str, int] = dict.fromkeys(self._histories, 0)
        self._told_run = self._told_ending = False

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return bool(self._ending)

    @property
    def number(self) -> int:
        """Number of the newest frame."""
        return self._number

    def hear(self, event: Event, at: float) -> None:
        """Take note of an event, `at` seconds after the run began."""
        self._at = max(self._at, round(at * 1000))
        match event:
            case TraceAdvanced(number, chunk):
                track = self._touch(number)
                if track.advance(chunk, self._at):
                    self._draw(track)
            case TraceStarted(number, gate):
                self._start(number, gate)
            case TraceFinished(trace, standing):
                self._finish(trace, standing)
            case TraceRestarted(number, lost):
                self._touch(number).begin_again(lost)
            case RunStarted():
                self._begin(event)
            case RunFinished(verdict):
                self._end({"verdict": _told_verdict(verdict), "over": True})

    def fail(self, reason: str, at: float) -> None:
        """The run ended without a verdict, `at` seconds after it began."""
        if not self._ending:
            self._at = max(self._at, round(at * 1000))
            self._end({"failed": reason[:_LONGEST], "over": True})

    def frame(self) -> Frame | None:
        """What is new since the last call; None if nothing is."""
        for track in self._touched.values():
            self._draw(track)
        new = self._news()
        if not new:
            return None
        self._number += 1
        return {"n": self._number, "at": self._at, **new}

    def snapshot(self) -> Frame:
        """All that the frames so far have told, as one."""
        told: Frame = {"n": self._number, "at": self._at, "whole": True}
        if self._told_run and self._run is not None:
            told["run"] = self._run
        told |= {name: list(self._histories[name][:count]) for name, count in self._told.items()}
        tracks = [track for track in self._tracks.values() if track.told]
        told["traces"] = [track.everything() for track in tracks]
        return told | (self._ending if self._told_ending else {})

    def passages(self, trace: int) -> Passages | None:
        """What a trace wrote so far; None if there is no such trace."""
        track = self._tracks.get(trace)
        if track is None:
            return None
        self._draw(track)
        return track.passages

    def runs(self, trace: int) -> bool:
        """Whether a trace has not ended."""
        return not self.over and self._tracks[trace].running

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return self._text_bytes + sum(track.points for track in self._tracks.values()) * 72 + 4096

    @property
    def traces(self) -> tuple[int, ...]:
        """Numbers of all traces."""
        return tuple(self._tracks)

    def _begin(self, event: RunStarted) -> None:
        # A policy that has no window will not choose one, so nothing need be kept for it.
        self._keeps = "window" in event.policy and event.capabilities.top_k > 0
        self._run = {
            "question": self._question or event.question.text,
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
        track = Track(
            number,
            self._at,
            gated=gate is not None,
            window=self._window or DISPLAY_WINDOW,
            sureness=self._sureness,
            keep=self._keeps,
        )
        self._tracks[number] = self._touched[number] = track

    def _finish(self, trace: Trace, standing: Standing) -> None:
        track = self._touch(trace.id)
        self._draw(track)
        end: Frame = {"at": self._at, "finish": str(trace.finish), "tokens": trace.tokens}
        if trace.answer is not None:
            end |= {
                "answer": _short(trace.answer.text),
                "class": self._class(trace.answer.key, trace.answer.text),
            }
        if trace.error:
            end["error"] = _short(trace.error)
        track.finish(end)
        if standing.window is not None:
            self._choose(standing.window)
            if standing.threshold is not None:
                self._set(standing.threshold, standing.window)
        self._vote(standing.tally)

    def _end(self, ending: Frame) -> None:
        self._ending = ending
        for track in self._tracks.values():
            self._draw(track)
            track.forget()

    def _touch(self, number: int) -> Track:
        track = self._tracks[number]
        self._touched[number] = track
        return track

    def _draw(self, track: Track) -> None:
        before = track.tokens
        self._text_bytes += track.draw(with_text=self._text_bytes < _MOST_TEXT)
        if self._keeps:
            self._kept_tokens += track.tokens - before
            if self._kept_tokens > _MOST_KEPT:
                self._keep_no_longer()

    def _choose(self, window: int) -> None:
        """The policy has chosen its window: draw all lines with it."""
        if self._window is not None:
            return
        self._window = window
        for track in self._tracks.values():
            self._draw(track)
            track.redraw(window)
        self._touched.update(self._tracks)
        self._keep_no_longer()

    def _keep_no_longer(self) -> None:
        self._keeps = False
        for track in self._tracks.values():
            track.forget()

    def _set(self, threshold: float, window: int) -> None:
        gates = self._histories["gates"]
        if not gates or gates[-1]["threshold"] != threshold:
            gates.append({"at": self._at, "threshold": threshold, "window": window})

    def _vote(self, tally: Tally) -> None:
        told = [
            [self._class(entry.key, entry.text), entry.weight, entry.count]
            for entry in tally.entries[:_ROWS]
        ]
        others = tally.entries[_ROWS:]
        more = [len(others), sum(one.weight for one in others), sum(one.count for one in others)]
        voters, before = tally.voters, self._voters
        votes = self._histories["votes"]
        same = voters == before and (not votes or votes[-1]["rows"] == told)
        if same or not (told or votes):
            return
        self._voters = voters
        votes.append(
            {
                "at": self._at,
                "rows": told,
                "more": more,
                "lead": lead_of(tally),
                "joined": sorted(voters - before),
                "left": sorted(before - voters),
            }
        )

    def _class(self, key: str, text: str) -> int:
        if key not in self._classes:
            self._classes[key] = len(self._classes)
            self._histories["answers"].append(_short(text))
        return self._classes[key]

    def _news(self) -> Frame:
        new: Frame = {}
        if self._run is not None and not self._told_run:
            new["run"] = self._run
            self._told_run = True
        for name, history in self._histories.items():
            if len(history) > self._told[name]:
                new[name] = history[self._told[name] :]
                self._told[name] = len(history)
        traces = [told for track in self._touched.values() if (told := track.news())]
        self._touched.clear()
        if traces:
            new["traces"] = traces
        if self._ending and not self._told_ending:
            new |= self._ending
            self._told_ending = True
        return new


def _told_verdict(verdict: Verdict) -> Frame:
    told = verdict.to_dict()
    del told["traces"], told["question"]
    return told | {
        "voters": sorted(verdict.tally.voters),
        "started": len(verdict.traces),
        "finishes": {str(reason): count for reason, count in verdict.finishes().items()},
    }


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
