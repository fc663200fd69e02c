"""The server in front of other servers that speak OpenAI's protocol."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import pytest
from completion_events import STOP, event, json_answer, plain, position, stream, usage
from scripted_server import Mark, Received, Step, answer, serving
from server_app import served, until

from conviction.engines.openai import OpenAIEngine

pytestmark = pytest.mark.anyio

SECRET = "My secret is 42"
SAID = "So it is.\nAnswer: 100"


def model_server(received: Received, broken: Sequence[Step] = ()) -> list[Step]:
    """A server of one model that always says the same; or does something else for streams."""
    if received.path.endswith("/models"):
        return [json_answer({"data": [{"id": "team/model", "max_model_len": 4096}]})]
    if received.path.endswith("/metrics"):
        return [json_answer({}, "404 Not Found")]
    asked = received.body.get("top_logprobs") or int(received.body.get("logprobs") or 0)
    places = [position(*[-1.0 - k / 10 for k in range(asked)])] * 4
    if not received.body["stream"]:
        logprobs = {"content": places}
        choice = {"message": {"content": SAID}, "text": SAID, "logprobs": logprobs}
        return [json_answer({"choices": [choice]})]
    if SECRET in str(received.body) and broken:
        return list(broken)
    if received.path.endswith("/chat/completions"):
        return [stream(event(SAID, *places), STOP, usage(9, 4))]
    return [stream(plain(SAID), plain("", finish="stop"), usage(9, 4))]


def of_traces(requests: Sequence[Received]) -> list[Received]:
    """Requests that are no attempts to find out what the server does."""
    return [one for one in requests if one.body and SECRET in str(one.body)]


async def test_a_chat_becomes_traces_of_that_server_and_a_prompt_goes_there_as_it_is() -> None:
    async with (
        serving(model_server) as behind,
        served(OpenAIEngine(behind.url)) as server,
    ):
        model = server.service.model
        wishes = {"policy": "majority", "budget": 3}
        chat = await server.chat(SECRET, model=model, conviction=wishes, max_tokens=50)
        prompt = {"model": model, "prompt": SECRET, "conviction": wishes}
        completed = await server.http.post("/v1/completions", json=prompt)
    assert model == "team/model"
    assert chat.json()["conviction"]["answer"] == "100"
    assert chat.json()["usage"]["completion_tokens"] == 12
    assert completed.json()["choices"][0]["text"] == SAID
    sent = of_traces(behind.requests)
    chats = [one for one in sent if one.path == "/v1/chat/completions"]
    prompts = [one for one in sent if one.path == "/v1/completions"]
    assert len(chats) == len(prompts) == 3
    assert chats[0].body["messages"][-1]["content"].startswith(f"{SECRET}\n\n")
    assert {one.body["max_tokens"] for one in chats} == {50}
    assert {one.body["prompt"] for one in prompts} == {SECRET}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("logged", [True, False])
async def test_what_that_server_says_is_wrong_is_told_but_not_logged_unless_asked_for(
    caplog: pytest.LogCaptureFixture, *, streamed: bool, logged: bool
) -> None:
    body = f'{{"error": {{"message": "I do not like: {SECRET}"}}}}'.encode()
    refusal = answer("422 Unprocessable Entity", body, Content_Length=str(len(body)))
    caplog.set_level(logging.DEBUG)
    async with (
        serving(lambda received: model_server(received, [refusal])) as behind,
        served(OpenAIEngine(behind.url), log_content=logged) as server,
    ):
        fields: dict[str, Any] = {"model": server.service.model, "conviction": {"budget": 2}}
        if streamed:
            told = (await server.events(SECRET, **fields))[-1]
        else:
            response = await server.chat(SECRET, **fields)
            assert response.status_code == 502
            told = response.json()
    assert told["error"]["code"] == "engine_failed"
    assert f"I do not like: {SECRET}" in told["error"]["message"]
    ours = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert len(ours) == 1
    assert ours[0].startswith("AllTracesFailedError: ")
    assert behind.url in ours[0]
    assert (SECRET in caplog.text) == logged


async def test_hanging_up_closes_every_stream_of_that_server() -> None:
    begun: Sequence[Step] = [stream(event("Hm."), end=b""), Mark.UNTIL_HANG_UP]
    async with (
        serving(lambda received: model_server(received, begun)) as behind,
        served(OpenAIEngine(behind.url)) as server,
    ):
        async with anyio.create_task_group() as tasks:
            model = server.service.model
            wishes = {"policy": "majority", "budget": 2}
            tasks.start_soon(partial(server.chat, SECRET, model=model, conviction=wishes))
            await until(lambda: behind.open == 2)
            tasks.cancel_scope.cancel()
        await behind.idle()
    assert len(of_traces(behind.requests)) == 2
