"""`POST /v1/completions`: prompts that have their template already."""

from typing import Any

import pytest
from server_app import MODEL, Served, engine_of, events_of, served

from conviction.engines.base import TraceRequest
from conviction.engines.local import LocalEngine
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.models import resolve

pytestmark = pytest.mark.anyio

PROMPT = "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"


async def complete(server: Served, **fields: Any) -> Any:
    body = {"model": MODEL, "prompt": PROMPT, **fields}
    return await server.http.post("/v1/completions", json=body)


async def test_the_prompt_goes_to_the_model_as_it_is() -> None:
    seen: list[TraceRequest] = []

    def script(request: TraceRequest) -> Script:
        seen.append(request)
        return Script.even("\n  Answer: 7\n")

    async with served(ScriptedEngine(script)) as server:
        body = (await complete(server)).json()
    assert [message.content for message in seen[0].messages] == [PROMPT]
    assert seen[0].templated
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "\n  Answer: 7\n"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["conviction"]["answer"] == "7"


async def test_a_stream_has_the_same_text_and_ends_with_done() -> None:
    async with served(engine_of(7, 7, 5)) as server:
        answer = await complete(server, stream=True, stream_options={"include_usage": True})
    *chunks, usage, done = events_of(answer.text)
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] > 0
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert texts[0] == ""
    assert "".join(texts) == "So it is. Answer: 7"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["conviction"]["answer"] == "7"


async def test_a_list_of_one_prompt_is_one_prompt() -> None:
    async with served(engine_of(7)) as server:
        assert (await complete(server, prompt=[PROMPT])).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ["a", "b"]),
        ("prompt", [1, 2, 3]),
        ("prompt", [[1, 2], [3]]),
        ("prompt", ""),
        ("echo", True),
        ("suffix", "end"),
        ("best_of", 3),
        ("n", 2),
        ("logprobs", 5),
        ("stop", "\n"),
        ("messages", []),
        ("conviction", {"prompt_style": "step-by-step"}),
    ],
)
async def test_what_cannot_be_done_right_is_refused(field: str, value: Any) -> None:
    engine = engine_of(7)
    async with served(engine) as server:
        answer = await complete(server, **{field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split(".")[0] == field
    assert engine.generated == []


@pytest.mark.real
@pytest.mark.timeout(300)
async def test_the_embedded_engine_puts_no_template_around_a_prompt() -> None:
    async with served(LocalEngine(resolve("smollm2").path, slots=2)) as server:
        model = f"{server.service.model}@single"
        plain = await complete(server, model=model, prompt="The capital of France is", max_tokens=4)
        body = plain.json()
        large = await complete(server, model=model, max_tokens=4096)
    assert body["usage"]["prompt_tokens"] == 5
    assert "Paris" in body["choices"][0]["text"]
    assert large.status_code == 400
    assert large.json()["error"]["code"] == "context_length_exceeded"
