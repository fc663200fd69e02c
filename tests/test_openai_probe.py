"""Every fact about a server comes from what it does, whatever it says."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import anyio
import pytest
from completion_events import assert_idle, json_answer
from played_model import PlayedModel
from scripted_server import Peer, Received, Step, answer, serving

from conviction.answers import kind
from conviction.core import Message, Question, Sampling
from conviction.engines.base import TraceRequest
from conviction.engines.openai import OpenAIEngine, Route, probe_streams, servers
from conviction.engines.openai.facts import ServerFacts
from conviction.errors import (
    EngineError,
    EngineUnavailableError,
    InvalidSettingError,
    MissingLogprobsError,
    TemporarilyUnavailableError,
)
from conviction.policies import DeepConfOffline, Majority
from conviction.thinking import deliberate

pytestmark = pytest.mark.anyio
NOTHING_MORE: dict[str, object] = {"software": "", "token_ids": False, "counts": ""}
HOSTED = PlayedModel(
    most_top_k=5,
    fields={"stream_options", "top_logprobs", "max_completion_tokens"},
    listed=[{"id": "m", "owned_by": "them"}, {"id": "n"}],
    **NOTHING_MORE,  # type: ignore[arg-type]
)
LLAMA_CPP = PlayedModel(
    software="llamacpp",
    counts="timings",
    token_ids=False,
    listed=[{"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx": 4096}}],
)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_FIRST_REST", 0.02)
    monkeypatch.setattr(probe_streams, "_FREED_SECONDS", 0.25)


async def asked(
    played: PlayedModel, *, route: Route = Route.CHAT, **settings: Any
) -> tuple[ServerFacts, tuple[str, ...]]:
    """The facts about one server, and the notes that come of them."""
    with anyio.fail_after(10):
        async with serving(played.play, keeps_alive=True) as server:
            async with OpenAIEngine(server.url, route=route, **settings) as engine:
                capabilities = await engine.capabilities()
                requests = len(server.requests)
                assert await engine.capabilities() is capabilities
                assert len(server.requests) == requests
                assert_idle(engine)
                facts = engine.servers[0].facts
            await server.idle()
    assert facts is not None
    assert capabilities.model == facts.model
    return facts, capabilities.notes


def fresh(played: PlayedModel, **changes: Any) -> PlayedModel:
    return replace(played, running=0, generated=0, asked=[], draws=0, streams=0, **changes)


# --- Servers as they are --------------------------------------------------------------------------


@pytest.mark.parametrize("route", Route)
async def test_vllm(route: Route) -> None:
    model = PlayedModel()
    facts, notes = await asked(model, route=route)
    assert (facts.model, facts.software, facts.context) == ("m", "vllm", 2048)
    assert (facts.top_k, facts.top_k_reason) == (20, "")
    assert (facts.raw, facts.seeds, facts.incremental, facts.frees) == (True, True, True, True)
    assert facts.vllm_arguments is True
    assert facts.dialect.filters_off == {
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    assert (facts.dialect.limit_name, facts.dialect.counts) == ("max_tokens", "usage")
    assert facts.dialect.token_ids
    assert facts.tokens_after_close is not None
    assert facts.tokens_after_close < 50
    assert notes == ()
    assert len(model.asked) < 20


@pytest.mark.parametrize("route", Route)
async def test_llama_cpp(route: Route) -> None:
    facts, notes = await asked(fresh(LLAMA_CPP), route=route)
    assert (facts.software, facts.context, facts.top_k) == ("llamacpp", 4096, 20)
    assert (facts.raw, facts.seeds, facts.incremental, facts.frees) == (True, True, True, True)
    assert facts.vllm_arguments is False
    assert (facts.dialect.counts, facts.dialect.token_ids) == ("timings", False)
    assert notes == ()


async def test_a_strict_hosted_service() -> None:
    facts, notes = await asked(fresh(HOSTED))
    assert facts.listed == ("m", "n")
    assert facts.context is None
    assert facts.top_k == 5
    assert "refused (status 400: top_logprobs must be at most 5)" in facts.top_k_reason
    assert facts.dialect.filters_off == {"top_p": 1.0}
    assert facts.dialect.limit_name == "max_completion_tokens"
    assert (facts.dialect.counts, facts.vllm_arguments) == ("", False)
    assert (facts.raw, facts.seeds, facts.incremental, facts.frees) == (True, True, True, None)
    [note] = notes
    assert "k = 5" in note


async def test_what_was_found_is_how_traces_are_asked_for() -> None:
    model = fresh(HOSTED, ends_after=5)
    async with serving(model.play, keeps_alive=True) as server, OpenAIEngine(server.url) as engine:
        verdict = await deliberate(
            Question.ask("2 + 2"),
            engine=engine,
            policy=Majority(budget=2),
            answers=kind("number"),
        )
    sent = model.asked[-1]
    assert (sent["top_logprobs"], sent["max_completion_tokens"]) == (5, 1024)
    assert not {"top_k", "min_p", "max_tokens"} & set(sent)
    assert verdict.top_k == 5
    assert any("k = 5" in warning for warning in verdict.warnings)


# --- Log-probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 2, 5, 11, 19, 20, 50])
@pytest.mark.parametrize("beyond", ["refuse", "give"])
async def test_the_largest_k_is_found(most: int, beyond: str) -> None:
    facts, notes = await asked(PlayedModel(most_top_k=most, beyond=beyond))
    assert facts.top_k == min(most, 20)
    assert bool(facts.top_k_reason) is (most < 20)
    assert any("k = " in note for note in notes) is (0 < most < 20)
    if 0 < most < 20:
        assert ("refused" if beyond == "refuse" else f"gave {most}") in facts.top_k_reason


async def test_without_log_probabilities_early_stopping_is_refused_and_voting_works() -> None:
    model = PlayedModel(most_top_k=0, beyond="give", ends_after=3)
    async with serving(model.play, keeps_alive=True) as server, OpenAIEngine(server.url) as engine:
        settings = {"engine": engine, "answers": kind("number")}
        with pytest.raises(MissingLogprobsError) as caught:
            await deliberate(Question.ask("?"), policy=DeepConfOffline(budget=2), **settings)
        verdict = await deliberate(Question.ask("?"), policy=Majority(budget=2), **settings)
    said = str(caught.value)
    assert server.url in said
    assert "asked for 20 log-probabilities a token, answered, and left them out" in said
    assert "--policy majority" in said
    assert (verdict.usage.generated, verdict.top_k) == (6, 0)


async def test_values_that_stand_for_minus_infinity_are_not_counted() -> None:
    class Filling(PlayedModel):
        def _logprobs(self, words: list[str], body: dict[str, Any], *, chat: bool) -> object:
            logprobs: Any = super()._logprobs(words, body, chat=chat)
            for token in logprobs["content"] if logprobs else ():
                for candidate in token["top_logprobs"][8:]:
                    candidate["logprob"] = -9999.0
            return logprobs

    facts, _ = await asked(Filling())
    assert facts.top_k == 8


async def test_the_drawn_token_that_servers_add_is_none_of_the_k() -> None:
    class Adding(PlayedModel):
        def _logprobs(self, words: list[str], body: dict[str, Any], *, chat: bool) -> object:
            logprobs: Any = super()._logprobs(words, body, chat=chat)
            for token in logprobs["content"] if logprobs else ():
                token["top_logprobs"] = [*token["top_logprobs"], {"token": "x", "logprob": -30.0}]
            return logprobs

    facts, _ = await asked(Adding())
    assert (facts.top_k, facts.raw) == (20, True)


async def test_log_probabilities_after_temperature_are_told() -> None:
    facts, notes = await asked(PlayedModel(processed=True))
    assert facts.raw is False
    assert any("change with the temperature" in note for note in notes)


async def test_with_a_single_candidate_nobody_can_tell_how_it_was_taken() -> None:
    facts, _ = await asked(PlayedModel(most_top_k=1))
    assert facts.raw is None


# --- Seeds, streams, stopping ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeded", "found"), [("always", True), ("never", False), ("alone", False)]
)
async def test_seeds_are_tried_alone_and_beside_other_traces(seeded: str, *, found: bool) -> None:
    facts, _ = await asked(PlayedModel(seeded=seeded))
    assert facts.seeds is found


async def test_traces_that_are_all_alike_tell_nothing_of_seeds() -> None:
    class Always(PlayedModel):
        def _generation(self, received: Received) -> Step:
            received.body["seed"] = 1
            return super()._generation(received)

    facts, _ = await asked(Always())
    assert facts.seeds is None


async def test_a_stream_that_is_held_back_is_told() -> None:
    facts, notes = await asked(PlayedModel(holds_back=True, ends_after=60))
    assert (facts.incremental, facts.frees) == (False, None)
    assert any("arrive in lumps" in note for note in notes)


async def test_one_stream_that_was_read_late_is_not_taken_for_one_that_is_held_back() -> None:
    # The probe's first stream is another one.
    facts, notes = await asked(PlayedModel(holds_back=2, ends_after=60))
    assert facts.incremental is True
    assert notes == ()


async def test_traces_that_end_at_once_tell_nothing_of_the_stream() -> None:
    facts, notes = await asked(PlayedModel(ends_after=3))
    assert (facts.incremental, facts.frees) == (None, None)
    assert notes == ()


async def test_a_server_that_goes_on_for_nobody_is_told() -> None:
    model = PlayedModel(goes_on=True)
    facts, notes = await asked(model)
    assert facts.frees is False
    assert facts.tokens_after_close is not None
    assert facts.tokens_after_close > 50
    assert any("went on generating" in note for note in notes)


async def test_without_metrics_nobody_can_tell_whether_stopping_frees() -> None:
    facts, _ = await asked(PlayedModel(software=""))
    assert (facts.incremental, facts.frees, facts.tokens_after_close) == (True, None, None)


# --- Going on with a beginning --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"continues": False}, False),
        ({"fields": {"stream_options", "top_logprobs", "max_tokens"}}, False),
    ],
    ids=["goes on", "closes the message", "refuses to be asked"],
)
async def test_a_server_that_goes_on_with_a_message_is_told_by_the_size_of_its_prompts(
    changes: dict[str, Any], *, found: bool
) -> None:
    facts, _ = await asked(PlayedModel(**changes))
    assert facts.continues is found


async def test_what_the_model_writes_does_not_tell_whether_its_server_goes_on() -> None:
    class GoodGuesser(PlayedModel):
        def _choice(self, text: str, *rest: object, **more: Any) -> dict[str, Any]:
            del text
            return super()._choice(" four five", *rest, **more)

    assert (await asked(GoodGuesser(continues=False)))[0].continues is False


async def test_a_beginning_that_comes_back_is_none_that_is_gone_on_with() -> None:
    class Echoing(PlayedModel):
        async def _stream(self, peer: Peer, body: dict[str, Any], *rest: Any, **more: Any) -> None:
            last = body.get("messages", [{}])[-1]
            self.echo = last["content"] if last.get("role") == "assistant" else ""
            await super()._stream(peer, body, *rest, **more)

        def _choice(self, text: str, *rest: object, **more: Any) -> dict[str, Any]:
            echo = getattr(self, "echo", "")
            return super()._choice(f"{echo}{text}", *rest, **more)

    assert (await asked(Echoing()))[0].continues is False


@pytest.mark.parametrize("tokens", [0, 30], ids=["none", "always the same"])
async def test_a_server_that_counts_no_prompts_leaves_it_open_on_its_chat_alone(
    tokens: int,
) -> None:
    class Uncounted(PlayedModel):
        def _prompt_tokens(self, body: dict[str, Any]) -> int:
            del body
            return tokens

    assert (await asked(Uncounted()))[0].continues is None
    assert (await asked(Uncounted(), route=Route.COMPLETIONS))[0].continues is True


@pytest.mark.parametrize("route", Route)
async def test_a_beginning_is_sent_as_the_route_wants_it(route: Route) -> None:
    model = PlayedModel(ends_after=5)
    request = TraceRequest((Message("user", "Count."),), Sampling(), prefix="One, two")
    async with (
        serving(model.play, keeps_alive=True) as server,
        OpenAIEngine(server.url, route=route) as engine,
    ):
        assert (await engine.capabilities()).continues
        async with aclosing(engine.stream(request)) as chunks:
            text = "".join([chunk.text async for chunk in chunks])
    sent = model.asked[-1]
    if route is Route.COMPLETIONS:
        assert sent["prompt"] == "Count.One, two"
    else:
        assert sent["messages"][-1] == {"role": "assistant", "content": "One, two"}
        assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert "One, two" not in text


async def test_servers_go_on_together_only_if_each_does() -> None:
    async with (
        serving(PlayedModel().play) as first,
        serving(PlayedModel(continues=False).play) as second,
        OpenAIEngine([first.url, second.url]) as engine,
    ):
        assert not (await engine.capabilities()).continues


# --- Lists of models ------------------------------------------------------------------------------


async def test_the_named_model_is_looked_up() -> None:
    listed = [{"id": "m"}, {"id": "big", "max_model_len": 99}]
    facts, _ = await asked(PlayedModel(listed=listed), model="big")
    assert (facts.model, facts.context) == ("big", 99)


async def test_a_model_that_is_not_listed_is_told() -> None:
    facts, notes = await asked(PlayedModel(), model="other")
    assert facts.model == "other"
    assert any("does not list the model other" in note for note in notes)


async def test_a_server_without_a_list_works_once_the_model_is_named() -> None:
    facts, _ = await asked(PlayedModel(listed=None), model="m")
    assert (facts.model, facts.top_k) == ("m", 20)
    with pytest.raises(EngineUnavailableError, match="model's name"):
        await asked(PlayedModel(listed=None))
    with pytest.raises(EngineUnavailableError, match="lists none"):
        await asked(PlayedModel(listed=[]))


async def test_a_wrong_model_name_is_an_error_that_names_it() -> None:
    def play(received: Received) -> Sequence[Step]:
        if received.body is None:
            return [json_answer({"data": [{"id": "m"}]})]
        said = f"The model {received.body['model']} does not exist"
        return [json_answer({"error": {"message": said}}, "404 Not Found")]

    async with serving(play) as server, OpenAIEngine(server.url, model="wrong") as engine:
        with pytest.raises(EngineUnavailableError, match="The model wrong does not exist"):
            await engine.capabilities()


# --- Servers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "kind_of_error"),
    [
        ([], TemporarilyUnavailableError),
        ([answer("401 Unauthorized", b"")], EngineUnavailableError),
        ([answer("200 OK", b"<html>", "text/html")], EngineUnavailableError),
        ([json_answer({"data": [{"id": "m"}], "choices": []})], EngineError),
        ([json_answer({"data": [{"id": "m"}], "choices": [{"text": 3}]})], EngineError),
        ([json_answer({"data": [{"id": "m"}], "choices": [{"text": "a"}]})], EngineError),
        ([answer("200 OK", b"\0" * 99)], EngineUnavailableError),
    ],
)
async def test_what_is_no_server_of_completions_is_an_error(
    steps: list[Step], kind_of_error: type[EngineError]
) -> None:
    async with serving(steps) as server, OpenAIEngine(server.url) as engine:
        with pytest.raises(kind_of_error), anyio.fail_after(5):
            await engine.capabilities()


async def test_an_odd_stream_tells_only_that_there_are_no_counts() -> None:
    class Odd(PlayedModel):
        def _count(self, body: dict[str, Any], tokens: int) -> dict[str, Any]:
            del tokens
            options = body["stream_options"]
            return {"choices": 3} if options.get("continuous_usage_stats") else {}

    facts, _ = await asked(Odd())
    assert facts.dialect.counts == ""


async def test_a_server_that_still_loads_its_model_is_waited_for() -> None:
    model, busy = PlayedModel(), [2]

    def play(received: Received) -> Sequence[Step]:
        if busy[0]:
            busy[0] -= 1
            return [json_answer({"error": {"message": "Loading model"}}, "503 Unavailable")]
        return model.play(received)

    async with serving(play) as server, OpenAIEngine(server.url) as engine:
        assert (await engine.capabilities()).top_k == 20


async def test_a_server_that_stays_busy_is_given_up_within_the_patience() -> None:
    steps: list[Step] = [json_answer({"error": {"message": "Loading"}}, "503 Unavailable")]
    async with serving(steps) as server, OpenAIEngine(server.url, patience=0.1) as engine:
        with pytest.raises(TemporarilyUnavailableError, match="Loading"), anyio.fail_after(5):
            await engine.capabilities()
        assert len(server.requests) > 1


async def test_a_server_that_was_down_is_asked_again_by_the_next_call() -> None:
    model, steps = PlayedModel(), [[answer("500 Internal Server Error", b"")]]
    async with (
        serving(lambda received: steps.pop() if steps else model.play(received)) as server,
        OpenAIEngine(server.url) as engine,
    ):
        with pytest.raises(TemporarilyUnavailableError):
            await engine.capabilities()
        assert (await engine.capabilities()).top_k == 20


# --- Several servers ------------------------------------------------------------------------------


async def test_several_servers_can_do_what_the_weakest_can() -> None:
    async with (
        serving(PlayedModel().play) as first,
        serving(fresh(HOSTED, processed=True, seeded="never").play) as second,
        OpenAIEngine([first.url, second.url], concurrency=7) as engine,
    ):
        found = await engine.capabilities()
    assert (found.top_k, found.concurrency, found.context, found.seeds) == (5, 14, 2048, False)
    assert any("Servers differ" in note for note in found.notes)
    assert second.url in " ".join(found.notes)


async def test_a_server_that_does_not_work_is_left_out() -> None:
    async with (
        serving([answer("401 Unauthorized", b"")]) as bad,
        serving(fresh(LLAMA_CPP, ends_after=5).play, keeps_alive=True) as good,
        OpenAIEngine([bad.url, good.url], concurrency=2) as engine,
    ):
        found = await engine.capabilities()
        assert found.concurrency == 2
        [note] = found.notes
        assert bad.url in note
        asked = len(bad.requests)
        verdict = await deliberate(
            Question.ask("?"), engine=engine, policy=Majority(budget=3), answers=kind("number")
        )
        assert_idle(engine)
        assert len(bad.requests) == asked
    assert verdict.usage.generated == 15
    assert any(bad.url in warning for warning in verdict.warnings)


async def test_servers_of_different_models_are_not_one_engine() -> None:
    async with (
        serving(PlayedModel().play) as first,
        serving(PlayedModel(listed=[{"id": "n"}]).play) as second,
        OpenAIEngine([first.url, second.url]) as engine,
    ):
        with pytest.raises(InvalidSettingError, match="different models"):
            await engine.capabilities()
