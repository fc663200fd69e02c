"""What the events of a stream mean, on both routes and in the shapes of several servers."""

import json
import math
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import anyio
import numpy as np
import pytest
from completion_events import (
    SOME,
    STOP,
    collect,
    delta,
    event,
    events,
    joined,
    plain,
    position,
    read,
    read_pieces,
    request,
    stream,
    usage,
)
from scripted_server import Mark, chunked, serving

from conviction.core import FinishReason
from conviction.engines.base import Chunk
from conviction.engines.openai import OpenAIEngine
from conviction.engines.openai.events import EventParser, TraceReader
from conviction.errors import EngineError, StreamError

UNKNOWN = pytest.approx(math.nan, nan_ok=True)


def mapping(*logprobs: float | None) -> dict[str, float | None]:
    """The candidates at one place as vLLM's plain completions give them."""
    return {f"token_id:{number}": value for number, value in enumerate(logprobs)}


# --- Chat -----------------------------------------------------------------------------------------


def test_text_and_confidences_come_with_the_finish_in_the_last_chunk() -> None:
    found = read(
        event("Be", position(-1.0, -3.0)),
        event("cause", position(-2.0, -2.0)),
        STOP,
        usage(9, 2, 4),
    )
    assert (found.text, found.confidences) == ("Because", [2.0, 2.0])
    assert found.last.finish is FinishReason.STOP
    assert (found.last.prompt_tokens, found.last.cached_tokens) == (9, 4)
    assert found.last.confidences.dtype == np.float32


def test_several_tokens_in_one_event_have_a_confidence_each() -> None:
    # vLLM, when its detokenizer or its parser kept some back.
    found = read(event(" sky appears", position(-1.0, -2.0), position(-0.5, -3.5)), STOP)
    assert (found.text, found.confidences) == (" sky appears", [1.5, 2.0])


def test_only_the_k_largest_log_probabilities_count() -> None:
    # Servers add the token that was drawn when it is not among the k likeliest.
    assert read(event("a", position(-9.0, -1.0, -2.0)), STOP).confidences == [1.5]


@pytest.mark.parametrize(
    "unusable",
    [
        position(-1.0, -math.inf),
        position(-1.0, -9999.0),
        position(-1.0, math.nan),
        position(-1.0, None),
        position(-1.0, 0.5),
        position(-1.0),
        position(),
        {"token": "x", "top_logprobs": [{"token": "y", "logprob": -1.0}, {"token": "z"}]},
        {"token": "x", "top_logprobs": None},
        {"token": "x"},
    ],
)
def test_a_token_without_k_usable_log_probabilities_counts_with_unknown_confidence(
    unusable: object,
) -> None:
    found = read(event("ab", unusable, position(-1.0, -2.0)), STOP)
    assert found.confidences == [UNKNOWN, 1.5]


@pytest.mark.parametrize(
    "parts",
    [
        [event("word"), event(None, position(-1.0, -1.0))],
        [event("word"), event("", position(-1.0, -1.0))],
        [event(None, position(-1.0, -1.0)), event("word")],
        [event("word", position(-1.0, -1.0))],
    ],
)
def test_log_probabilities_may_come_before_with_or_after_their_text(parts: list[object]) -> None:
    found = read(*parts, STOP)
    assert (found.text, found.confidences) == ("word", [1.0])


def test_log_probabilities_in_the_finishing_event_are_kept() -> None:
    last = event("b", position(-1.0, -1.0), finish="length")
    found = read(event("a", position(-2.0, -2.0)), last)
    assert (found.text, found.confidences) == ("ab", [2.0, 1.0])
    assert found.last.finish is FinishReason.LENGTH


def test_events_that_only_name_a_role_add_nothing() -> None:
    first = delta({"role": "assistant", "content": None})
    empty = delta({"role": "assistant", "content": ""}, usage=usage(42, 0)["usage"])
    found = read(first, empty, SOME, {"choices": []}, {"choices": None}, {}, STOP)
    assert (found.text, found.confidences) == ("a", [1.0])


# --- Tokens that come without a word --------------------------------------------------------------


def test_the_token_that_ends_a_trace_counts_though_it_has_no_log_probabilities() -> None:
    found = read(SOME, STOP, usage(5, 2))
    assert found.confidences == [1.0, UNKNOWN]


def test_counts_that_stay_behind_take_nothing_away() -> None:
    found = read(event("ab", position(-1.0, -1.0), position(-2.0, -2.0)), STOP, usage(5, 1))
    assert found.confidences == [1.0, 2.0]


def test_tokens_that_came_in_silence_are_counted_where_they_lie() -> None:
    # llama.cpp keeps the pieces of a character back, then gives the last piece's numbers only.
    piecewise = event("한", position(-2.0, -2.0), timings={"predicted_n": 4, "prompt_n": 3})
    found = read(SOME, piecewise, event("b", position(-3.0, -3.0)), STOP)
    assert (found.text, found.confidences) == ("a한b", [1.0, UNKNOWN, UNKNOWN, 2.0, 3.0])
    assert found.last.prompt_tokens == 3


def test_counts_in_every_event_tell_of_tokens_that_came_in_silence() -> None:
    def counted(text: str, tokens: int, *positions: object) -> dict[str, Any]:
        return event(text, *positions, usage=usage(7, tokens)["usage"])

    found = read(
        counted("a", 1, position(-1.0, -1.0)),
        counted("", 2),
        counted("", 3),
        counted("bc", 5, position(-2.0, -2.0), position(-3.0, -3.0)),
        STOP,
        usage(7, 6),
    )
    assert found.confidences == [1.0, UNKNOWN, UNKNOWN, 2.0, 3.0, UNKNOWN]


def test_a_count_in_the_finishing_event_is_read_with_its_own_tokens() -> None:
    # llama.cpp's plain completions have no event of their own for the counts.
    last = {**plain("", finish="length"), "usage": usage(21, 3)["usage"]}
    found = read(plain("a", {"content": [position(-1.0, -1.0)]}), last)
    assert found.confidences == [1.0, UNKNOWN, UNKNOWN]
    assert found.last.prompt_tokens == 21


@pytest.mark.parametrize("counts", [usage(5, 10**12), usage(5, 10**30)])
def test_a_count_that_cannot_be_is_refused_before_room_is_made_for_it(
    counts: dict[str, Any],
) -> None:
    with pytest.raises(StreamError, match="more than were asked for"):
        read(SOME, STOP, counts)


# --- Without log-probabilities --------------------------------------------------------------------


def test_without_log_probabilities_the_servers_count_is_the_number_of_tokens() -> None:
    found = read(event("a"), event("b"), STOP, usage(5, 4), top_k=0)
    assert (found.text, found.confidences) == ("ab", [UNKNOWN] * 4)


def test_without_log_probabilities_or_counts_every_event_with_text_is_a_token() -> None:
    found = read(event(""), event("a"), event("b"), STOP, top_k=0)
    assert (found.text, found.confidences) == ("ab", [UNKNOWN] * 2)


def test_without_log_probabilities_counts_in_events_say_when_tokens_came() -> None:
    reader = TraceReader(0)
    sizes = [
        chunk.confidences.size if chunk else 0
        for chunk in (
            reader.read([events(payload).removeprefix(b"data: ")])
            for payload in (
                event("a", usage=usage(5, 1)["usage"]),
                event("", usage=usage(5, 2)["usage"]),
                event("bc", usage=usage(5, 4)["usage"]),
            )
        )
    ]
    assert sizes == [1, 1, 2]


# --- What a model thinks --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_what_a_model_thinks_is_part_of_its_trace(name: str) -> None:
    found = read(
        delta({name: "Hm", "content": None}, position(-1.0, -1.0)),
        delta({name: "! "}, position(-2.0, -2.0)),
        delta({name: None, "content": "It is "}, position(-3.0, -3.0)),
        event("42", position(-4.0, -4.0)),
        STOP,
    )
    assert found.text == "<think>Hm! </think>It is 42"
    assert found.confidences == [1.0, 2.0, 3.0, 4.0]


def test_a_thought_under_both_names_is_taken_once() -> None:
    both = delta({"reasoning": "Hm", "reasoning_content": "Hm"}, position(-1.0, -1.0))
    assert read(both, STOP).text == "<think>Hm"


def test_a_thought_that_ends_within_an_event_is_closed_there() -> None:
    mixed = delta({"reasoning": " so", "content": "42"}, position(-1.0, -1.0))
    found = read(delta({"reasoning": "Hm"}, position(-1.0, -1.0)), mixed, STOP)
    assert found.text == "<think>Hm so</think>42"


def test_empty_contents_do_not_end_a_thought() -> None:
    found = read(
        delta({"reasoning": "Hm", "content": ""}),
        delta({"reasoning": "", "content": ""}),
        delta({"reasoning": "m"}),
        STOP,
    )
    assert found.text == "<think>Hmm"


def test_tags_that_the_model_writes_itself_stay_as_they_are() -> None:
    found = read(event("<think>Hm"), event("</think>42"), STOP)
    assert found.text == "<think>Hm</think>42"


# --- Plain completions ----------------------------------------------------------------------------


def test_plain_completions_have_a_mapping_a_token() -> None:
    # vLLM.
    found = read(
        plain("The", {"tokens": ["token_id:5"], "top_logprobs": [mapping(-1.0, -2.0, -8.0)]}),
        plain(" sky", {"top_logprobs": [mapping(-1.0, -3.0), mapping(-1.0, None)]}),
        plain("", {"top_logprobs": [None]}),
        plain("", {"top_logprobs": [mapping(-2.0, -2.0)]}, finish="stop"),
        usage(3, 5),
    )
    assert found.text == "The sky"
    assert found.confidences == [1.5, 2.0, UNKNOWN, UNKNOWN, 2.0]


def test_plain_completions_may_have_the_shape_of_a_chats_log_probabilities() -> None:
    # llama.cpp.
    found = read(
        plain("The", {"content": [position(-1.0, -2.0)]}),
        plain(" sky", {"content": [position(-1.0, -3.0)]}),
        {**plain("", finish="length"), "usage": usage(21, 2)["usage"], "timings": {"prompt_n": 1}},
    )
    assert (found.text, found.confidences) == ("The sky", [1.5, 2.0])
    assert found.last.finish is FinishReason.LENGTH


# --- Log-probabilities of the tokens themselves ---------------------------------------------------


def generated(*payloads: object, top_k: int = 2) -> list[float] | None:
    """The log-probabilities of a trace's tokens; checks that there is one for each."""
    reader = TraceReader(top_k, logprobs=True)
    parser = EventParser()
    # Each event by itself, and all of them at once: how they are cut makes no difference.
    pieces = [[*parser.feed(events(payload))] for payload in payloads]
    chunks = [chunk for piece in pieces if (chunk := reader.read(piece))]
    chunks.append(reader.finish())
    at_once = TraceReader(top_k, logprobs=True)
    whole = [at_once.read([one for piece in pieces for one in piece]), at_once.finish()]
    values: list[list[float]] = []
    for read_chunks in (chunks, [chunk for chunk in whole if chunk]):
        if all(chunk.logprobs is None for chunk in read_chunks):
            return None
        found = [chunk.logprobs for chunk in read_chunks if chunk.logprobs is not None]
        assert [one.size for one in found] == [chunk.confidences.size for chunk in read_chunks]
        assert {one.dtype for one in found} == {np.dtype(np.float32)}
        values.append(np.concatenate(found).tolist())
    assert values[0] == pytest.approx(values[1], nan_ok=True)
    return values[0]


def drawn(logprob: float | None, *candidates: float | None) -> dict[str, Any]:
    """One token's place in `logprobs.content`, its own log-probability included."""
    return {**position(*candidates), "logprob": logprob}


def test_a_chat_tells_the_log_probability_of_each_token() -> None:
    found = generated(
        event("Be", drawn(-0.5, -0.5, -3.0)),
        event("cause it", drawn(-7.0, -2.0, -2.5), drawn(0.0, 0.0, -20.0)),
        event(finish="stop"),
        usage(9, 4),
    )
    assert found == [-0.5, -7.0, 0.0, UNKNOWN]


def test_plain_completions_list_the_log_probabilities_of_their_tokens() -> None:
    # vLLM; the lists need not be equally long.
    found = generated(
        plain("The", {"token_logprobs": [-0.5], "top_logprobs": [mapping(-0.5, -2.0)]}),
        plain(" sky", {"token_logprobs": [-3.0], "top_logprobs": [mapping(-1.0, -3.0)] * 2}),
        plain("", {"token_logprobs": [None, -1.0], "top_logprobs": [None]}),
        plain("", {"top_logprobs": [mapping(-2.0, -2.0)]}, finish="stop"),
    )
    assert found == [-0.5, -3.0, UNKNOWN, UNKNOWN, UNKNOWN]


def test_plain_completions_of_llama_cpp_have_them_in_the_shape_of_a_chat() -> None:
    last = {**plain("", finish="length"), "usage": usage(21, 3)["usage"]}
    found = generated(
        plain("The", {"content": [drawn(-1.5, -1.0, -2.0)]}),
        plain(" sky", {"content": [drawn(-0.25, -0.25, -3.0)]}),
        last,
    )
    assert found == [-1.5, -0.25, UNKNOWN]


def test_tokens_that_came_in_silence_have_no_log_probability() -> None:
    piecewise = event("한", drawn(-2.0, -2.0, -2.0), timings={"predicted_n": 4, "prompt_n": 3})
    first, last = (event(text, drawn(-1.0, -1.0, -1.0)) for text in "ab")
    assert generated(first, piecewise, last, STOP) == [-1.0, UNKNOWN, UNKNOWN, -2.0, -1.0]


@pytest.mark.parametrize("unusable", [None, -math.inf, math.nan, -9999.0, -3.4e38, 0.5])
def test_a_log_probability_that_cannot_be_is_unknown(unusable: float | None) -> None:
    place = drawn(unusable, -1.0, -2.0)
    assert generated(event("ab", place, drawn(-1.0, -1.0, -2.0)), STOP) == [UNKNOWN, -1.0]


def test_a_server_that_leaves_them_out_leaves_them_unknown() -> None:
    assert generated(event("a", position(-1.0, -2.0)), STOP) == [UNKNOWN]


def test_without_the_likeliest_tokens_there_are_none() -> None:
    assert generated(event("a"), STOP, usage(3, 1), top_k=0) is None


def test_whoever_does_not_want_them_gets_none() -> None:
    reader = TraceReader(2)
    data = events(event("a", drawn(-1.0, -1.0, -2.0))).removeprefix(b"data: ")
    assert (chunk := reader.read([data])) is not None
    assert chunk.logprobs is None


@pytest.mark.anyio
async def test_a_trace_that_wants_them_gets_them_from_its_server() -> None:
    steps = [stream(event("a", drawn(-0.5, -0.5, -2.0)), STOP)]
    with anyio.fail_after(5):
        async with serving(steps) as server, OpenAIEngine(server.url) as engine:
            wanted = await collect(engine, replace(request(), logprobs=True))
            unwanted = await collect(engine)
    assert [one.logprobs.tolist() for one in wanted if one.logprobs is not None] == [[-0.5], []]
    assert {chunk.logprobs is None for chunk in unwanted} == {True}


# --- How text is written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (rb'"\u0000\u001f"', "\0\x1f"),
        (rb'"\ud83c\udf0d"', "🌍"),
        (rb'"a\ud83c"', "a�"),
        (rb'"\udf0d\\ud83c"', "�\\ud83c"),
        ('"\u2028🌍"'.encode(), "\u2028🌍"),
    ],
)
def test_whatever_text_an_event_holds_can_be_written_as_utf_8(written: bytes, text: str) -> None:
    data = b'data: {"choices": [{"text": %b, "finish_reason": "stop"}]}\n\n' % written
    found = read_pieces([data]).text
    assert found == text
    assert found.encode().decode() == text


# --- How a stream ends ----------------------------------------------------------------------------


def test_a_stream_may_end_without_the_word_done() -> None:
    assert read_pieces([events(SOME, STOP)]).last.finish is FinishReason.STOP


def test_a_last_event_without_its_empty_line_is_read() -> None:
    assert read_pieces([events(SOME, STOP).rstrip(b"\n")]).last.finish is FinishReason.STOP


def test_a_trace_that_the_server_refuses_to_go_on_with_is_not_worth_another_try() -> None:
    for reason in ("content_filter", "tool_calls", "function_call"):
        with pytest.raises(EngineError, match=reason) as caught:
            read(SOME, event(finish=reason))
        assert type(caught.value) is EngineError


def test_an_unknown_end_is_an_error_of_the_trace() -> None:
    with pytest.raises(StreamError, match="'abort'"):
        read(SOME, event(finish="abort"))


# --- Tokens without log-probabilities -------------------------------------------------------------


@pytest.mark.parametrize("choice", [{}, {"logprobs": None}, {"logprobs": {"content": []}}])
def test_a_text_event_without_log_probabilities_is_one_token_at_least(choice: Any) -> None:
    plain = {"choices": [{"index": 0, "delta": {"content": "w "}, **choice}]}
    found = read(*[plain] * 50, STOP)
    assert found.confidences == [UNKNOWN] * 50


def test_the_servers_own_count_goes_before_the_number_of_text_events() -> None:
    found = read(*[event("two tokens ")] * 10, STOP, usage(3, 21))
    assert found.confidences == [UNKNOWN] * 21


def test_tokens_without_numbers_keep_their_place_among_those_with_some() -> None:
    found = read(event("a"), event("b"), event("c"), SOME, event("e"), event("f"), SOME, STOP)
    assert found.confidences == [*[UNKNOWN] * 3, 1.0, *[UNKNOWN] * 2, 1.0]


def test_the_most_tokens_hold_for_a_server_that_names_none() -> None:
    reader = TraceReader(top_k=2, max_tokens=100)
    endless = json.dumps(event("w ")).encode()
    with pytest.raises(StreamError, match="more than were asked for"):
        all(reader.read([endless]) is None or reader.check() is None for _ in range(1000))
    assert reader.tokens <= 100 + 18


@pytest.mark.anyio
async def test_tokens_of_a_stream_that_breaks_count_though_they_have_no_numbers() -> None:
    steps = [chunked(*[events(event("w "))] * 7), 0.1, Mark.RESET]
    chunks, error = await until_broken(steps)
    assert len(joined(chunks)[1]) == 7
    assert "reset" in error.found


@pytest.mark.anyio
async def test_one_event_of_ten_megabytes_is_an_error_that_names_the_bound_and_counts() -> None:
    huge = events(event("w" * 10_000_000)) + events(STOP)
    chunks, error = await until_broken([chunked(huge)])
    text, confidences = joined(chunks)
    assert (text, len(confidences)) == ("", 1)
    assert error.found.startswith("10,000,000 characters came, and 589,824 are the most")


async def until_broken(steps: list[Any]) -> tuple[list[Chunk], StreamError]:
    """The chunks of a trace that breaks, and how."""
    chunks: list[Chunk] = []
    async with serving(steps) as server, OpenAIEngine(server.url, retries=0) as engine:
        try:
            async with aclosing(engine.stream(request())) as stream:
                async for chunk in stream:
                    chunks.append(chunk)  # noqa: PERF401  # those before the error count
        except StreamError as error:
            return chunks, error
    raise AssertionError("the trace did not break")
