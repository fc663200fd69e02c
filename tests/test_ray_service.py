"""The service in a real Ray cluster: driver replicas in front of engine replicas, by Ray Serve."""

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import aclosing
from copy import copy
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import httpx2
import pytest
from ray_engines import Scripted
from server_process import free_port

from conviction.answers import kind
from conviction.core import Sampling
from conviction.engines.base import TraceRequest
from conviction.policies import policy
from conviction.prompts import PromptStyle, compose
from conviction.thinking import deliberate

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.servers,
    pytest.mark.filterwarnings("ignore"),  # Ray Serve's own: deprecations, sockets
]


class Told(NamedTuple):
    """A line that an engine wrote: "begins", "ended" or "closed", question, process, time."""

    what: str
    question: int
    pid: int
    at: float


def told() -> list[Told]:
    lines = Path(os.environ["TOLD"]).read_text(encoding="ascii").splitlines()
    parts = [line.split() for line in lines]
    return [Told(what, int(asked), int(pid), float(at)) for what, asked, pid, at in parts]


@pytest.fixture(scope="module")
def service(ray_cluster: Any) -> Generator[str]:
    """Address of a service with two engine replicas and two driver replicas."""
    del ray_cluster
    from ray import serve

    from conviction.ray.app import ServiceSettings

    build = application_of_readme()
    port = free_port()
    settings = ServiceSettings.model_validate(
        {
            "engine": {"factory": "ray_engines:telling", "slots": 16},
            "engines": {"min_replicas": 2, "max_replicas": 2},
            "drivers": {"min_replicas": 2, "max_replicas": 2},
            "server": {
                "port": port,
                "defaults": {"policy": "majority", "budget": 8, "answers": "number"},
            },
        }
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(settings))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def application_of_readme() -> Callable[..., Any]:
    """What the README's command serves; here it gets other settings than its defaults."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("serve run ")]
    [module, function] = shlex.split(line, comments=True)[2].split(":")
    return getattr(import_module(module), function)


def body(question: int, **more: object) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"What is {question} * 10?"}]
    return {"model": "scripted", "messages": asked, **more}


async def ask(service: str, question: int, **more: object) -> dict[str, Any]:
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        sent = body(question, **{"conviction": {"prompt_style": "plain"}, **more})
        answer = await client.post(f"{service}/v1/chat/completions", json=sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait for what other processes do; how long it took."""
    began = time.monotonic()
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.02)
    return time.monotonic() - began


async def test_a_chat_is_answered_as_one_process_answers_it(service: str) -> None:
    told_by_service = await ask(service, 4, seed=11)
    verdict = await deliberate(
        compose("What is 4 * 10?", kind="number", style=PromptStyle.PLAIN),
        engine=Scripted().build(),
        policy=policy("majority", budget=8),
        answers=kind("number"),
        sampling=Sampling(),
        seed=11,
    )
    assert told_by_service["conviction"]["answer"] == verdict.answer == "40"
    assert told_by_service["conviction"]["usage"]["generated"] == verdict.usage.generated
    assert told_by_service["usage"]["completion_tokens"] == verdict.usage.generated


async def test_traces_of_a_question_share_an_engine_whichever_driver_asks(service: str) -> None:
    async with anyio.create_task_group() as tasks:
        for question in range(100, 112):
            tasks.start_soon(ask, service, question)
            tasks.start_soon(ask, service, question)  # twice, perhaps by another driver
    pids: dict[int, Counter[int]] = {}
    for line in told():
        if line.what == "begins" and 100 <= line.question < 112:
            pids.setdefault(line.question, Counter())[line.pid] += 1
    assert len(pids) == 12
    assert {count.total() for count in pids.values()} == {16}
    # A full engine passes traces on, and with 24 requests at once some are full.
    home = [count.most_common(1)[0] for count in pids.values()]
    assert len({pid for pid, _ in home}) == 2
    for question in (120, 121, 122):
        await ask(service, question)
        await ask(service, question)
        used = {line.pid for line in told() if line.question == question}
        assert len(used) == 1


async def test_a_client_that_hangs_up_ends_its_traces_within_a_second(service: str) -> None:
    def running() -> int:
        counts = Counter(line.what for line in told() if line.question == 1000)
        return counts["begins"] - counts["ended"]

    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        sent = body(1000, stream=True, conviction={"prompt_style": "plain"})
        async with client.stream("POST", f"{service}/v1/chat/completions", json=sent) as answer:
            assert answer.status_code == 200
            await until(lambda: running() == 8)
            await anyio.sleep(0.3)
    assert await until(lambda: running() == 0) < 1.0


async def test_a_time_limit_reaches_the_engines_within_a_second(service: str) -> None:
    answer = await ask(service, 1001, conviction={"prompt_style": "plain", "time_limit": 2.5})
    assert answer["conviction"]["ended"] == "time"
    ended = time.time()
    lines = [line for line in told() if line.question == 1001]
    await until(lambda: Counter(one.what for one in told() if one.question == 1001)["ended"] == 8)
    assert len([line for line in lines if line.what == "begins"]) == 8
    assert time.time() - ended < 1.0


async def test_an_engine_that_dies_costs_the_tokens_of_its_traces_and_no_answer(
    service: str,
) -> None:
    answers: list[dict[str, Any]] = []

    async def asking() -> None:
        answers.append(await ask(service, 1002, max_tokens=8))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asking)

        def begun() -> list[Told]:
            return [line for line in told() if line.question == 1002]

        await until(lambda: len(begun()) == 8)
        await anyio.sleep(1.5)
        os.kill(begun()[0].pid, 9)
    [answer] = answers
    assert answer["conviction"]["answer"] == "10020"
    assert answer["conviction"]["usage"]["failed"] > 0
    assert len({line.pid for line in told() if line.question == 1002}) == 2


async def test_a_full_engine_answers_those_who_ask_about_it_and_ends_with_its_replica(
    service: str,
) -> None:
    del service  # Serve runs
    from ray import serve

    from conviction.ray.app import EngineSettings, Scale, engine_replicas
    from conviction.ray.remote import RemoteEngine

    settings = EngineSettings(factory="ray_engines:telling", slots=2)
    # The engine itself would run 16 traces at once.
    deploy = partial(serve.run, name="alone", route_prefix=None)
    handle = await anyio.to_thread.run_sync(deploy, engine_replicas(settings, Scale()))
    drivers = [RemoteEngine(copy(handle), replicas=1, takes=2) for _ in range(3)]

    async def think(driver: RemoteEngine) -> None:
        async with aclosing(driver.stream(request(2000))) as chunks:
            async for _ in chunks:
                pass

    def count(what: str) -> int:
        return len([line for line in told() if line.what == what and line.question == 2000])

    async with drivers[0], drivers[1], anyio.create_task_group() as tasks:
        assert (await drivers[0].capabilities()).concurrency == 2
        for driver in drivers[:2] * 4:
            tasks.start_soon(think, driver)
        await until(lambda: count("begins") == 2)
        for driver in drivers:
            with anyio.fail_after(3):
                async with driver:
                    await driver.check()
        await anyio.sleep(0.5)
        assert count("begins") - count("ended") == 2
        [pid] = {line.pid for line in told() if line.question == 2000}
        tasks.cancel_scope.cancel()
    await until(lambda: count("begins") == count("ended"))
    await anyio.to_thread.run_sync(serve.delete, "alone")
    assert [line.what for line in told() if line.pid == pid][-1] == "closed"


def request(question: int) -> TraceRequest:
    asked = compose(f"What is {question} * 10?", kind="number", style=PromptStyle.PLAIN)
    return TraceRequest(asked.messages, Sampling(), trace=0, seed=1)


async def test_wrong_settings_are_refused_before_anything_is_deployed() -> None:
    from conviction.errors import InvalidSettingError, UnknownNameError
    from conviction.ray.app import ServiceSettings, build

    open_to_all = {"server": {"host": "0.0.0.0"}}  # noqa: S104  # that is what is refused
    with pytest.raises(InvalidSettingError, match="there are no keys of clients"):
        build(ServiceSettings.model_validate(open_to_all))
    with pytest.raises(InvalidSettingError, match="there is no --base-url"):
        build(ServiceSettings.model_validate({"engine": {"model": "openai:m"}}))
    with pytest.raises(UnknownNameError, match="Did you mean 'scripted'"):
        build(ServiceSettings.model_validate({"engine": {"model": "scriptd"}}))
    assert json.dumps(ServiceSettings.model_json_schema())


def test_an_engine_is_named_as_on_the_command_line() -> None:
    from conviction.backends.builtin import VLLM, Embedded, Scripted
    from conviction.backends.openai import OpenAIServers
    from conviction.ray.app import EngineSettings

    def of(**settings: Any) -> Any:
        return EngineSettings.model_validate(settings).backend()

    embedded = of(slots=3, context=99, resources={"CPU": 2})
    assert embedded == Embedded(slots=3, context=99, threads=2)
    served = of(model="m", base_url="http://10.0.0.2:8000/v1", api_key="sk-k", slots=4)
    assert (type(served), served.model, served.slots) == (OpenAIServers, "m", 4)
    assert served.base_url == ("http://10.0.0.2:8000/v1",)
    vllm = of(model="vllm:m", vllm={"dtype": "half"}, resources={"GPU": 2})
    assert (type(vllm), vllm.options) == (VLLM, {"tensor_parallel_size": 2, "dtype": "half"})
    assert of(model="scripted", delay=0) == Scripted(delay=0, name="scripted")
    assert of(factory="ray_engines:telling", slots=16).traces_at_once == 16


def test_the_documentation_names_settings_that_there_are() -> None:
    import yaml

    from conviction.ray.app import ServiceSettings, build

    page = Path(__file__).parents[1] / "docs" / "past-one-machine.md"
    _, _, rest = page.read_text(encoding="utf-8").partition("```yaml\n")
    [application] = yaml.safe_load(rest.partition("```")[0])["applications"]
    assert application["import_path"] == "conviction.ray.app:build"
    settings = ServiceSettings.model_validate(application["args"])
    assert settings.engines.max_replicas == 8
    assert build(settings) is not None
