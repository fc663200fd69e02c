"""What the events of a stream mean, on both routes and in the shapes of several servers."""

import math
from typing import Any

import numpy as np
import pytest
from completion_events import (
    SOME,
    STOP,
    delta,
    event,
    events,
    plain,
    position,
    read,
    read_pieces,
    usage,
)

from conviction.core import FinishReason
from conviction.engines.openai.events import TraceReader
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
