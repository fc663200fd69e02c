"""`POST /v1/chat/completions`: the answer, the stream, and what is refused."""

from typing import Any

import pytest
from server_app import MODEL, answers, asking, cut, engine_of, served

from conviction.core import Message
from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import StreamError

pytestmark = pytest.mark.anyio

SURE = Script.even("Quite sure. Answer: 7", confidence=20.0)


async def test_the_message_is_the_most_confident_trace_that_voted_for_the_answer() -> None:
    async with served(ScriptedEngine([*answers(7, 5, 7), SURE])) as server:
        body = (await server.chat(conviction={"policy": "majority", "budget": 4})).json()
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Quite sure. Answer: 7",
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL


async def test_the_message_can_be_the_answer_alone() -> None:
    async with served(engine_of(7, 7, 5)) as server:
        body = (await server.chat(conviction={"content": "answer"})).json()
    assert body["choices"][0]["message"]["content"] == "7"
    assert body["conviction"]["content"] == "answer"


async def test_the_server_may_give_only_answers_by_default() -> None:
    async with served(engine_of(7), defaults={"content": "answer"}) as server:
        alone = (await server.chat()).json()
        whole = (await server.chat(conviction={"content": "trace"})).json()
    assert alone["choices"][0]["message"]["content"] == "7"
    assert whole["choices"][0]["message"]["content"] == "So it is. Answer: 7"


async def test_usage_counts_every_token_of_every_trace() -> None:
    engine = engine_of(7, 5, 7, 7, concurrency=2)
    async with served(engine) as server:
        body = (await server.chat(conviction={"policy": "majority", "budget": 4})).json()
    usage = body["usage"]
    assert usage["completion_tokens"] == sum(engine.generated) == 80
    assert usage["total_tokens"] == usage["prompt_tokens"] + 80
    details = usage["completion_tokens_details"]
    assert details["reasoning_tokens"] == 60
    assert details["voted_tokens"] == 80


async def test_tokens_that_a_broken_stream_lost_are_counted_too() -> None:
    broken = Script.even("Answer: 7", tokens=20)
    fault = StreamError(tried="read", found="it broke", remedy="Ask again.")
    broken = Script(broken.text, broken.confidences, fault=fault, fault_after=5)
    async with served(ScriptedEngine([*answers(7), broken])) as server:
        body = (await server.chat(conviction={"policy": "majority", "budget": 2})).json()
    # Begun again twice, and broken for good at the third time.
    assert body["usage"]["completion_tokens"] == 20 + 3 * 5
    assert body["usage"]["completion_tokens_details"]["failed_tokens"] == 15


async def test_the_verdict_stands_in_one_object_of_its_own() -> None:
    async with served(engine_of(7, 5, 7, 7)) as server:
        body = (await server.chat(conviction={"policy": "majority", "budget": 4})).json()
    verdict = body["conviction"]
    assert verdict["answer"] == "7"
    assert verdict["share"] == 0.75
    assert [(one["answer"], one["count"]) for one in verdict["tally"]] == [("7", 3), ("5", 1)]
    assert verdict["ended"] == "budget"
    assert verdict["policy"]["name"] == "majority"
    assert verdict["traces"] == {"stop": 4}
    assert body["id"] == f"chatcmpl-{verdict['run']}"


async def test_thoughts_of_a_reasoning_model_stand_apart_from_its_text() -> None:
    script = Script.even("<think>\n3 + 4, so 7\n</think>\n\nAnswer: 7")
    async with served(ScriptedEngine([script])) as server:
        message = (await server.chat()).json()["choices"][0]["message"]
    assert message["content"] == "Answer: 7"
    assert message["reasoning_content"] == message["reasoning"] == "3 + 4, so 7"


async def test_a_question_without_an_answer_to_extract_gets_the_most_confident_text() -> None:
    poems = [Script.even("The sea is grey.", confidence=5.0), Script.even("Waves!", confidence=9.0)]
    async with served(ScriptedEngine(poems)) as server:
        fields = {"policy": "majority", "budget": 2, "content": "answer"}
        body = (await server.chat("Write a poem.", conviction=fields)).json()
    assert body["choices"][0]["message"]["content"] == "Waves!"
    assert body["conviction"]["answer"] is None
    assert body["conviction"]["content"] == "trace"
    assert any("No answer was found" in one for one in body["conviction"]["warnings"])


async def test_an_empty_text_is_an_answer_too() -> None:
    async with served(ScriptedEngine([Script.even("")])) as server:
        choice = (await server.chat(conviction={"budget": 2})).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")


async def test_a_trace_that_was_cut_says_so() -> None:
    async with served(ScriptedEngine([cut("On and on")])) as server:
        choice = (await server.chat()).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "On and on"


async def test_what_the_model_gets_is_the_chat_with_the_way_to_end_behind_it() -> None:
    seen: list[tuple[Message, ...]] = []

    def script(request: TraceRequest) -> Script:
        seen.append(request.messages)
        return SURE

    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "I have 3."},
        {"role": "assistant", "content": "I see.", "reasoning_content": "hm", "refusal": None},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": ""},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "4 more, "},
                {"type": "text", "text": "how many?"},
            ],
        },
    ]
    async with served(ScriptedEngine(script)) as server:
        response = await server.http.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": chat}
        )
    assert response.status_code == 200, response.text
    system, first, reply, *_, last = seen[0]
    assert system == Message("system", "Be brief.\n\nBe kind.")
    assert (first, reply) == (Message("user", "I have 3."), Message("assistant", "I see."))
    assert last.role == "user"
    assert last.content.startswith("4 more, how many?\n\nThink step by step")
    assert "\\boxed{}" in last.content


async def test_a_single_trace_is_asked_in_the_users_words_alone() -> None:
    seen: list[str] = []

    def script(request: TraceRequest) -> Script:
        seen.append(request.messages[-1].content)
        return SURE

    async with served(ScriptedEngine(script)) as server:
        await server.chat("Name this chat.", model=f"{MODEL}@single")
        await server.chat("Name this.", conviction={"prompt_style": "plain", "budget": 1})
        styled = {"prompt_style": "step-by-step", "policy": "single"}
        await server.chat("Count.", conviction=styled)
    assert seen[:2] == ["Name this chat.", "Name this."]
    assert seen[2].startswith("Count.\n\nThink")


async def test_the_kind_of_answer_can_be_set_with_a_request() -> None:
    scripts = [Script.even(f"Answer: {text}") for text in ("Seoul", "Busan", "seoul")]
    async with served(ScriptedEngine(scripts)) as server:
        fields = {"answers": "text", "policy": "majority", "budget": 3}
        body = (await server.chat(conviction=fields)).json()
    assert body["conviction"]["answer"] == "Seoul"
    assert body["conviction"]["share"] == pytest.approx(2 / 3)


async def test_sampling_reaches_the_engine() -> None:
    seen: list[TraceRequest] = []

    def script(request: TraceRequest) -> Script:
        seen.append(request)
        return SURE

    async with served(ScriptedEngine(script)) as server:
        await server.chat(
            temperature=0.3,
            top_p=0.9,
            top_k=5,
            min_p=0.1,
            max_tokens=50,
            max_completion_tokens=40,
            seed=3,
            conviction={"budget": 1},
        )
        await server.chat(seed=3, conviction={"budget": 1})
        await server.chat(seed=4, conviction={"budget": 1})
    sampling = seen[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.3, 0.9)
    assert (sampling.top_k, sampling.min_p, sampling.max_tokens) == (5, 0.1, 40)
    assert seen[0].seed == seen[1].seed != seen[2].seed


async def test_a_stream_begins_with_the_role_tells_progress_and_ends_with_done() -> None:
    async with served(engine_of(7, 5, 7, 7)) as server:
        events = await server.events(
            conviction={"policy": "majority", "budget": 4}, stream_options={"include_usage": True}
        )
    *chunks, usage, done = events
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 80
    assert all(chunk["usage"] is None for chunk in chunks)
    assert {chunk["object"] for chunk in events[:-1]} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in events[:-1]}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "So it is. Answer: 7"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["conviction"]["answer"] == "7"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None] * len(reasons)


async def test_progress_tells_traces_lead_and_tokens_under_both_names() -> None:
    engine = engine_of(7, 5, 7, 7, delay=0.002)
    async with served(engine, progress_seconds=0.01) as server:
        events = await server.events(conviction={"policy": "majority", "budget": 40})
    told = [
        e["choices"][0]["delta"] for e in events[:-1] if "reasoning" in e["choices"][0]["delta"]
    ]
    assert told
    assert all(delta["reasoning"] == delta["reasoning_content"] for delta in told)
    assert len(told) > 1
    assert told[-1]["reasoning"] == (
        "majority: 40 of up to 40 traces begun, 40 ended; 7 leads with 75% of the vote; "
        "800 tokens. Ended by budget.\n"
    )


async def test_without_being_asked_for_a_stream_has_no_usage() -> None:
    async with served(engine_of(7)) as server:
        events = await server.events()
    assert all("usage" not in event for event in events[:-1])


async def test_a_failure_in_mid_stream_is_an_error_event_at_the_end() -> None:
    fault = RuntimeError("the cable")
    broken = Script("x" * 20, Script.even("x").confidences, fault=fault, fault_after=3)
    async with served(ScriptedEngine([broken])) as server:
        events = await server.events(conviction={"budget": 2})
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["error"]["code"] == "engine_failed"
    assert "the cable" in events[-1]["error"]["message"]


async def test_a_failure_without_a_stream_is_a_502() -> None:
    fault = RuntimeError("the cable")
    broken = Script("x" * 20, Script.even("x").confidences, fault=fault, fault_after=3)
    async with served(ScriptedEngine([broken])) as server:
        response = await server.chat(conviction={"budget": 2})
    assert response.status_code == 502
    assert response.json()["error"]["type"] == "server_error"


async def test_fields_that_change_nothing_are_taken() -> None:
    harmless: dict[str, Any] = {
        "user": "someone",
        "metadata": {"task": "title"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
        "n": 1,
        "stop": None,
        "tools": [],
        "tool_choice": "none",
        "functions": [],
        "logit_bias": {},
        "logprobs": False,
        "modalities": ["text"],
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "response_format": {"type": "text"},
        "stream_options": None,
    }
    async with served(engine_of(7)) as server:
        response = await server.chat(**harmless)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("n", 2, "n has to be 1"),
        ("tools", [{"type": "function", "function": {"name": "f"}}], "Tools are not called"),
        ("tool_choice", "required", "Tools are not called"),
        ("functions", [{"name": "f"}], "Functions are not called"),
        ("response_format", {"type": "json_object"}, "conviction.answers"),
        ("response_format", {"type": "json_schema", "json_schema": {}}, "conviction.answers"),
        ("stop", ["\n"], "leave stop out"),
        ("stop", "\n", "leave stop out"),
        ("logprobs", True, "no log-probabilities"),
        ("top_logprobs", 3, "no log-probabilities"),
        ("modalities", ["text", "audio"], "Only text"),
        ("audio", {"voice": "alloy"}, "Only text"),
        ("frequency_penalty", 0.5, "leave it at 0"),
        ("presence_penalty", -0.5, "leave it at 0"),
        ("logit_bias", {"50256": -100}, "leave logit_bias out"),
        ("reasoning_effort", "high", "conviction.budget"),
        ("web_search_options", {}, "Nothing is fetched"),
    ],
)
async def test_fields_that_would_change_the_answer_are_refused_with_the_reason(
    field: str, value: Any, says: str
) -> None:
    engine = engine_of(7)
    async with served(engine) as server:
        response = await server.chat(**{field: value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"].split(".")[0] == field
    assert error["code"] == "unsupported"
    assert says in error["message"]
    assert engine.generated == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"colour": "blue"}, "colour"),
        ({"conviction": {"colour": "blue"}}, "conviction.colour"),
        ({"conviction": {"budget": 0}}, "conviction.budget"),
        ({"conviction": {"budget": "many"}}, "conviction.budget"),
        ({"conviction": {"budget": 2.5}}, "conviction.budget"),
        ({"conviction": {"answers": "riddles"}}, "conviction.answers"),
        ({"conviction": {"prompt_style": "baroque"}}, "conviction.prompt_style"),
        ({"conviction": {"policy": "tossing"}}, "conviction.policy"),
        ({"conviction": {"policy": "esc:size=3"}}, "conviction.policy"),
        ({"conviction": {"policy": "esc:window=many"}}, "conviction.policy"),
        ({"conviction": {"policy": f"esc:window={2**53 + 1}"}}, "conviction.policy"),
        ({"conviction": {"policy": "deepconf-low:window=131073"}}, "conviction.policy"),
        ({"conviction": {"policy": "settle:ahead=1e308"}}, "conviction.policy"),
        ({"conviction": {"policy": "single", "budget": 4}}, "conviction.budget"),
        ({"top_k": 2**53 + 1}, "top_k"),
        ({"conviction": {"time_limit": 0}}, "conviction.time_limit"),
        ({"model": "scripted@tossing"}, "model"),
        ({"model": f"scripted@deepconf-low:keep=0.{'5' * 1000}"}, "model"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
        ),
    ],
)
async def test_unknown_and_wrong_fields_are_named(fields: dict[str, Any], param: str) -> None:
    engine = engine_of(7)
    async with served(engine) as server:
        response = await server.http.post("/v1/chat/completions", json={**asking(), **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert engine.generated == []


async def test_an_unknown_model_is_a_404() -> None:
    async with served(engine_of(7)) as server:
        response = await server.chat(model="gpt-4o")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("body", [b"{", b"[]", b"7", b'"x"', b"", b"\xff\xfe"])
async def test_a_body_that_is_no_object_is_a_400(body: bytes) -> None:
    async with served(engine_of(7)) as server:
        response = await server.http.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert response.json()["error"]["param"] is None


async def test_json_that_breaks_off_is_called_no_json() -> None:
    async with served(engine_of(7)) as server:
        response = await server.http.post(
            "/v1/chat/completions",
            content=b'{"model": "scripted", "messages": [',
            headers={"content-type": "application/json"},
        )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


async def test_a_long_name_of_a_field_is_not_repeated() -> None:
    async with served(engine_of(7)) as server:
        response = await server.chat(**{"a" * 100_000: 1})
    assert response.json()["error"]["code"] == "unknown_field"
    assert len(response.content) < 1000


async def test_unknown_paths_and_methods_fail_in_the_same_shape() -> None:
    async with served(engine_of(7)) as server:
        path = await server.http.get("/v1/nothing")
        method = await server.http.get("/v1/chat/completions")
    assert path.status_code == 404
    assert path.json()["error"]["type"] == "invalid_request_error"
    assert method.status_code == 405
    assert "POST" in method.headers["allow"]
