"""A run as a tape: what the page is told."""

import json
from collections.abc import Sequence
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tape_reader import Frame, TapeReader

from conviction.confidence import group_confidences
from conviction.core import Answer, FinishReason, Question, Tally, TallyEntry, Trace
from conviction.engines.base import Capabilities, Chunk
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
from conviction.server.tape import Tape, encode
from conviction.server.taped_trace import MOST_POINTS, ConfidenceLine
from conviction.verdict import Usage, Verdict

QUESTION = Question.ask("How many?")


def started(policy: Frame | None = None, top_k: int = 20) -> RunStarted:
    settings = policy or {"name": "deepconf-low", "window": None}
    return RunStarted(QUESTION, settings, 8, "scripted", Capabilities("a model", top_k, 8))


def tally(*traces: int) -> Tally:
    return Tally((TallyEntry("41", "41", float(len(traces)), traces),)) if traces else Tally()


def trace(number: int, confidences: NDArray[np.float32], answer: str | None = "41") -> Trace:
    return Trace(
        id=number,
        finish=FinishReason.STOP,
        tokens=confidences.size,
        confidences=confidences,
        answer=Answer(answer, answer) if answer else None,
    )


def verdict(*traces: Trace) -> Verdict:
    votes = tally(*(one.id for one in traces))
    usage = Usage.of(traces, voters=votes.voters, budget=8)
    return Verdict(QUESTION, "41", votes, "budget", {"name": "majority"}, traces, usage, 8)


def in_chunks(number: int, values: NDArray[np.float32], sizes: Sequence[int]) -> list[Event]:
    events: list[Event] = []
    begin = 0
    for size in [*sizes, values.size]:
        end = min(begin + size, values.size)
        text = " ".join(str(i) for i in range(begin, end)) + " "
        events.append(TraceAdvanced(number, Chunk(text, values[begin:end])))
        begin = end
    return events


def gamma(seed: int, size: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).gamma(9.0, 1.0, size).astype(np.float32)


def played(events: Sequence[Event], *, every: int = 3) -> tuple[Tape, list[Frame]]:
    tape, frames = Tape(), []
    for count, event in enumerate(events):
        tape.hear(event, count / 100)
        if count % every == 0:
            frames += [tape.frame()]
    frames += [tape.frame()]
    return tape, [json.loads(encode(frame)) for frame in frames if frame]


SIZES = st.lists(st.integers(0, 40), max_size=30)


@st.composite
def runs(draw: st.DrawFn) -> list[Event]:
    """Traces that grow by turns, some of which break off, and a threshold on the way."""
    count = draw(st.integers(1, 4))
    window = draw(st.integers(1, 40))
    threshold_after = draw(st.integers(0, count - 1))
    values = [gamma(draw(st.integers(0, 99)), draw(st.integers(0, 900))) for _ in range(count)]
    lanes: list[list[Event]] = []
    for number in range(count):
        lane: list[Event] = [TraceStarted(number, None)]
        if draw(st.booleans()):
            lost = gamma(number, draw(st.integers(1, 300)))
            lane += in_chunks(number, lost, draw(SIZES))
            lane += [TraceRestarted(number, lost.size, "it broke")]
        lane += in_chunks(number, values[number], draw(SIZES))
        settled = number >= threshold_after
        standing = Standing(
            tally(*range(number + 1)), 8.5 if settled else None, window if settled else None
        )
        lanes.append([*lane, TraceFinished(trace(number, values[number]), standing)])
    events: list[Event] = [started()]
    while any(lanes):
        lane = draw(st.sampled_from([lane for lane in lanes if lane]))
        steps = draw(st.integers(1, 8))
        events += lane[:steps]
        del lane[:steps]
    traces = [trace(number, values[number]) for number in range(count)]
    return [*events, RunFinished(verdict(*traces))]


@given(runs(), st.integers(1, 12))
def test_live_frames_in_order_say_what_a_snapshot_says(events: list[Event], every: int) -> None:
    tape, frames = played(events, every=every)
    late = TapeReader(json.loads(encode(tape.snapshot())))
    assert TapeReader(*frames).whole == late.whole
    assert late.number == len(frames)


@given(runs(), st.data())
def test_a_page_that_comes_in_the_middle_ends_with_the_same(
    events: list[Event], data: st.DataObject
) -> None:
    middle = data.draw(st.integers(0, len(events) - 1))
    tape = Tape()
    early, late = TapeReader(), TapeReader()
    for count, event in enumerate(events):
        if count == middle:
            if frame := tape.frame():
                early.apply(frame)
            late.apply(tape.snapshot())
        tape.hear(event, count / 100)
        if count % 5 == 0 and (frame := tape.frame()):
            early.apply(frame)
            if count >= middle:
                late.apply(frame)
    if frame := tape.frame():
        early.apply(frame)
        late.apply(frame)
    assert early.whole == late.whole


@given(st.integers(0, 99), st.integers(1, 2000), SIZES, SIZES)
def test_the_final_tape_does_not_depend_on_how_tokens_came(
    seed: int, size: int, some: list[int], others: list[int]
) -> None:
    values = gamma(seed, size)
    finals = []
    for sizes in (some, others):
        ended = trace(0, values)
        events = [
            started(),
            TraceStarted(0, None),
            *in_chunks(0, values, sizes),
            TraceFinished(ended, Standing(tally(0), 8.0, 32)),
            RunFinished(verdict(ended)),
        ]
        tape = Tape()
        for event in events:
            tape.hear(event, 0.0)
        tape.frame()
        finals.append(TapeReader(tape.snapshot()).whole)
    assert finals[0] == finals[1]


@given(st.integers(0, 99), st.integers(1, 4000), st.integers(1, 64), st.lists(st.integers(1, 500)))
def test_falls_below_a_threshold_survive_down_sampling(
    seed: int, size: int, window: int, sizes: list[int]
) -> None:
    values = gamma(seed, size)
    line = ConfidenceLine(window)
    begin = 0
    for count in [*sizes, size]:
        part = values[begin : begin + count]
        line.push(part, np.zeros(part.size, np.int64))
        begin += count
    line.end(0)
    groups = group_confidences(values, window) if size >= window else np.empty(0)
    lowest = floor(round(float(groups.min()), 9) * 100) if groups.size else None
    full = [point for point in line.points[line.partial :] if point is not None]
    assert len(line.points) <= MOST_POINTS
    assert (min(full) if full else None) == pytest.approx(lowest, abs=1)
    if groups.size:
        threshold = float(np.quantile(groups, 0.3))
        below = np.flatnonzero(groups < threshold).tolist()
        for end in below:
            place = min((end + window - 1) // line.stride, len(line.points) - 1)
            point = line.points[place]
            assert point is not None
            assert point / 100 < threshold


@given(st.integers(0, 99), st.integers(300, 4000))
def test_every_point_is_the_lowest_full_group_of_its_stride(seed: int, size: int) -> None:
    values, window = gamma(seed, size), 16
    line = ConfidenceLine(window)
    line.push(values, np.arange(size))
    groups = group_confidences(values, window)
    for place, point in enumerate(line.points):
        ends = range(max(place * line.stride, window - 1), (place + 1) * line.stride)
        if len(ends) == line.stride and place >= line.partial:
            lowest = min(groups[end - window + 1] for end in ends)
            assert point == pytest.approx(lowest * 100, abs=1.001)
            assert line.times[place] == ends[-1]


def test_lines_are_drawn_again_when_the_policy_has_chosen_its_window() -> None:
    first, second = gamma(1, 300), gamma(2, 200)
    _, frames = played(
        [
            started(),
            TraceStarted(0, None),
            TraceStarted(1, None),
            *in_chunks(1, second, [20] * 5),
            *in_chunks(0, first, [10] * 20),
            TraceFinished(trace(0, first), Standing(tally(0), 8.0, 64)),
        ]
    )
    reader = TapeReader(*frames)
    assert [one["window"] for one in reader.traces.values()] == [64, 64]
    expected = ConfidenceLine(64)
    expected.push(second, np.zeros(200, np.int64))
    assert reader.traces[1]["points"] == expected.points
    at = reader.traces[0]["end"]["at"]
    assert reader.parts["gates"] == [{"at": at, "threshold": 8.0, "window": 64}]


def test_a_gate_tells_window_and_threshold_too() -> None:
    _, frames = played([started(), TraceStarted(0, Gate(32, 7.5))])
    reader = TapeReader(*frames)
    assert reader.parts["gates"] == [{"at": 10, "threshold": 7.5, "window": 32}]
    assert reader.traces[0]["window"] == 32
    assert reader.traces[0]["gated"] is True


def test_a_policy_without_a_window_keeps_no_tokens_and_the_display_window() -> None:
    values = gamma(1, 100)
    _, frames = played(
        [
            started({"name": "settle"}),
            TraceStarted(0, None),
            *in_chunks(0, values, [7] * 20),
            TraceFinished(trace(0, values), Standing(tally(0))),
        ]
    )
    reader = TapeReader(*frames)
    assert reader.traces[0]["window"] == reader.parts["run"]["window"]
    assert reader.parts["gates"] == []


def test_without_confidences_there_are_points_without_values() -> None:
    values = np.full(50, np.nan, np.float32)
    _, frames = played([started(top_k=0), TraceStarted(0, None), *in_chunks(0, values, [5] * 9)])
    reader = TapeReader(*frames)
    assert reader.parts["run"]["confidences"] is False
    assert reader.traces[0]["points"] == [None] * 50
    assert reader.traces[0]["tokens"] == 50


def test_an_attempt_that_broke_off_is_counted_and_no_longer_drawn() -> None:
    values = gamma(3, 40)
    _, frames = played(
        [
            started(),
            TraceStarted(0, None),
            *in_chunks(0, values, [40]),
            TraceRestarted(0, 40, "it broke"),
            *in_chunks(0, values[:10], [10]),
        ],
        every=1,
    )
    reader = TapeReader(*frames)
    assert reader.traces[0]["lost"] == 40
    assert reader.traces[0]["tokens"] == 10
    assert len(reader.traces[0]["points"]) == 10


def test_a_failed_run_says_so_and_nothing_comes_after() -> None:
    tape = Tape()
    tape.hear(started(), 0.0)
    tape.fail("it broke", 1.0)
    tape.fail("it broke again", 2.0)
    frame = tape.frame()
    assert frame is not None
    assert (frame["failed"], frame["over"], frame["at"]) == ("it broke", True, 1000)
    assert tape.frame() is None


def test_the_verdict_tells_voters_and_no_texts() -> None:
    one = Trace(0, FinishReason.STOP, 3, text="a secret", answer=Answer("41", "41"))
    _, frames = played([started(), RunFinished(verdict(one))])
    told = TapeReader(*frames).parts["verdict"]
    assert (told["answer"], told["voters"], told["started"]) == ("41", [0], 1)
    assert "a secret" not in json.dumps(frames)


def test_votes_of_many_answers_are_told_as_a_sum() -> None:
    entries = tuple(TallyEntry(f"{n}", f"{n}", 20.0 - n, (n,)) for n in range(12))
    ended = trace(0, gamma(0, 5), None)
    standing = Standing(Tally(entries))
    _, frames = played([started(), TraceStarted(0, None), TraceFinished(ended, standing)])
    (vote,) = TapeReader(*frames).parts["votes"]
    assert len(vote["rows"]) == 8
    assert vote["more"] == [4, sum(20.0 - n for n in range(8, 12)), 4]


def test_halves_of_characters_do_not_break_a_frame() -> None:
    ended = trace(0, gamma(0, 5), "\ud83d")
    _, frames = played([started(), TraceStarted(0, None), TraceFinished(ended, Standing(Tally()))])
    assert TapeReader(*frames).traces[0]["end"]["answer"] == "\ud83d"


def test_text_is_told_in_passages_and_the_least_sure_are_marked() -> None:
    sure, unsure = np.full(600, 12.0, np.float32), np.full(24, 2.0, np.float32)
    values = np.concatenate((sure[:300], unsure, sure[300:]))
    tape = Tape()
    tape.hear(started(), 0.0)
    tape.hear(TraceStarted(0, None), 0.0)
    words = [f" {'doubt' if 300 <= i < 324 else 'word'}{i}" for i in range(values.size)]
    for i, word in enumerate(words):
        tape.hear(TraceAdvanced(0, Chunk(word, values[i : i + 1])), 0.0)
    told = tape.text(0, most=1_000_000)
    assert told is not None
    pieces = told["pieces"]
    assert "".join(text for text, _ in pieces) == "".join(words)
    marked = "".join(text for text, mark in pieces if mark == 2)
    assert marked.split() == [word.strip() for word in words[300:324]]
    assert tape.text(7, most=1_000_000) is None
