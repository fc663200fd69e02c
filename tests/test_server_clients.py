"""Programs that speak OpenAI's protocol, as they really speak it."""

from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from server_app import MODEL, endless, engine_of, served, served_in_thread, until

from conviction.engines.local import LocalEngine
from conviction.models import resolve

KEYS = {"a-key-of-ann": "ann"}
MAJORITY = {"conviction": {"policy": "majority", "budget": 4}}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served_in_thread(engine_of(7, 5, 7, 7, delay=0.001), keys=KEYS) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=address, api_key="a-key-of-ann", max_retries=0) as made:
        yield made


def ask(client: OpenAI, **more: object) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "How many?"}],
        extra_body=MAJORITY,
        **more,  # type: ignore[arg-type]
    )


def test_the_official_client_gets_an_answer_its_cost_and_the_verdict(client: OpenAI) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content == "So it is. Answer: 7"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 80
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 60
    assert answer.model_extra is not None
    assert answer.model_extra["conviction"]["answer"] == "7"


def test_an_answer_can_be_sent_back_as_it_came(client: OpenAI) -> None:
    first = ask(client).choices[0].message
    again = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "user", "content": "How many?"},
            first,  # type: ignore[list-item]
            {"role": "user", "content": "Sure?"},
        ],
    )
    assert again.choices[0].message.content


def test_the_official_client_streams(client: OpenAI) -> None:
    content = reasoning = ""
    usage = verdict = None
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "How many?"}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body=MAJORITY,
    )
    for chunk in stream:
        usage = chunk.usage or usage
        verdict = (chunk.model_extra or {}).get("conviction") or verdict
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += (choice.delta.model_extra or {}).get("reasoning_content", "")
    assert content == "So it is. Answer: 7"
    assert "traces begun" in reasoning
    assert usage is not None
    assert usage.completion_tokens == 80
    assert verdict["answer"] == "7"


def test_the_helper_that_gathers_a_stream_gathers_this_one(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "How many?"}]
    ) as stream:
        for _ in stream:
            pass
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == "So it is. Answer: 7"


def test_the_official_client_completes_prompts(client: OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="7 is ", extra_body=MAJORITY)
    assert whole.choices[0].text == "So it is. Answer: 7"
    pieces = client.completions.create(model=MODEL, prompt="7 is ", stream=True)
    assert "".join(one.choices[0].text for one in pieces) == "So it is. Answer: 7"


def test_the_official_client_lists_models(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL
    assert client.models.retrieve(f"{MODEL}@majority").id in names


def test_the_official_client_raises_its_own_errors(client: OpenAI, address: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, n=2)
    assert refused.value.param == "n"
    with (
        OpenAI(base_url=address, api_key="wrong-key", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


@pytest.mark.anyio
async def test_the_asynchronous_client_gets_answers_and_streams(address: str) -> None:
    async with AsyncOpenAI(base_url=address, api_key="a-key-of-ann", max_retries=0) as client:
        answer = await client.chat.completions.create(
            model=f"{MODEL}@majority", messages=[{"role": "user", "content": "How many?"}]
        )
        assert answer.choices[0].message.content == "So it is. Answer: 7"
        content = ""
        async for chunk in await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "How many?"}], stream=True
        ):
            content += chunk.choices[0].delta.content or ""
    assert content == "So it is. Answer: 7"


@pytest.mark.anyio
async def test_closing_a_stream_of_the_official_client_ends_the_traces() -> None:
    engine = endless(concurrency=4)
    async with (
        served(engine) as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "How many?"}], stream=True
        )
        async for _ in stream:
            break
        await until(lambda: engine.running == 4)
        await stream.close()
        await until(lambda: engine.running == 0)


@pytest.mark.anyio
async def test_an_overloaded_server_raises_what_the_official_client_retries() -> None:
    async with (
        served(endless(), queueing={"running": 1, "queued": 0}) as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "How many?"}], stream=True
        )
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "How many?"}]
            )
        await stream.close()
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["retry-after"]) >= 1


@pytest.mark.real
@pytest.mark.timeout(600)
def test_the_official_client_gets_a_verdict_of_the_embedded_model_with_progress() -> None:
    engine = LocalEngine(resolve("qwen-0.5b").path)
    with (
        served_in_thread(engine, defaults={"prompt_style": "worked-examples"}) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300.0) as client,
    ):
        content = reasoning = ""
        verdict = None
        for chunk in client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "What is 12 * 12 - 44?"}],
            stream=True,
            extra_body={"conviction": {"budget": 4}},
        ):
            content += chunk.choices[0].delta.content or ""
            reasoning += (chunk.choices[0].delta.model_extra or {}).get("reasoning_content", "")
            verdict = (chunk.model_extra or {}).get("conviction") or verdict
    assert "traces begun" in reasoning
    assert verdict["answer"] == "100"
    assert "100" in content


@pytest.mark.anyio
async def test_open_webui_lists_models_chats_and_names_the_chat() -> None:
    """What its backend sends: routers/openai.py, utils/middleware.py and utils/task.py there."""
    async with served(engine_of(7, 7, 5), keys=KEYS) as server:
        headers = {
            "Authorization": "Bearer a-key-of-ann",
            "Content-Type": "application/json",
            "X-OpenWebUI-User-Name": "Ann",
            "X-OpenWebUI-User-Id": "7c2d",
            "X-OpenWebUI-User-Email": "ann@example.org",
            "X-OpenWebUI-User-Role": "user",
            "X-OpenWebUI-Chat-Id": "b1f0",
        }
        server.http.headers.update(headers)
        listed = (await server.http.get("/v1/models")).json()
        assert listed["data"][0]["id"] == MODEL
        events = await server.events(
            stream_options={"include_usage": True}, temperature=0.8, max_tokens=500
        )
        named = await server.http.post(
            "/v1/chat/completions",
            json={
                "model": f"{MODEL}@single",
                "messages": [{"role": "user", "content": "### Task:\nGenerate a title."}],
                "stream": False,
                "max_completion_tokens": 1000,
            },
        )
        followed = await server.http.post(
            "/v1/chat/completions",
            json={
                "stream": True,
                "model": f"{MODEL}@majority",
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "How many?"},
                    {"role": "assistant", "content": "7"},
                    {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
                ],
                "stream_options": {"include_usage": True},
            },
        )
    assert any(event["choices"][0]["delta"].get("reasoning_content") for event in events[:-2])
    assert events[-2]["usage"]["completion_tokens"] > 0
    assert named.json()["choices"][0]["message"]["content"] == "So it is. Answer: 7"
    assert "data: [DONE]" in followed.text
