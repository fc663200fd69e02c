"""Continued traces: what they begin with, what counts, and that nothing takes them for others."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from conviction.answers import kind
from conviction.core import FinishReason, InvalidSettingError, Question, Sampling, Trace
from conviction.engines.base import Chunk, Engine, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import (
    CannotContinueError,
    ContextOverflowError,
    NothingGeneratedError,
    StreamError,
)
from conviction.lab.candidates import parse
from conviction.lab.comparison import runnable
from conviction.lab.replay import PlayedTrace, replay
from conviction.lab.sources import PoolTraces
from conviction.lab.study import Plan, study
from conviction.live import beginning
from conviction.policies import Action, Conditions, Continue, Majority, Start, Stop
from conviction.policies.settle import SettleRegenerate
from conviction.recordings import Pool, recording_listener
from conviction.sharing import Slots
from conviction.thinking import deliberate
from conviction.verdict import Verdict

EXAMPLE = Path(__file__).parents[1] / "examples/gsm8k-qwen2.5-coder-0.5b.parquet"
TEXT = "First 2 + 2 = 4, then 4 + 4 = 8."


@dataclass
class Then(Majority):
    """One trace, and what follows it."""

    budget: int = 3
    then: Callable[[Trace], Sequence[Action]] = lambda trace: [Continue(trace.id)]

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        del conditions
        return [Start(1)]

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        super().on_finished(trace)
        return self.then(trace) if trace.id == 0 else []


def writing(continuation: Script, text: str = TEXT, tokens: int = 20) -> ScriptedEngine:
    """An engine whose traces write a text, and after a given beginning the continuation."""
    whole = Script.even(text, tokens=tokens)
    return ScriptedEngine(lambda request: continuation if request.prefix else whole)


async def think(engine: Engine, policy: Majority, **options: Any) -> Verdict:
    with anyio.fail_after(10):
        return await deliberate(
            Question.ask("?"), engine=engine, policy=policy, answers=kind("number"), **options
        )


class TestTheBeginning:
    @pytest.mark.parametrize(
        ("text", "share", "kept"),
        [
            ("one two three four", 0.75, "one two three"),
            ("one two three four", 0.7, "one two"),
            ("one two three four", 0.17, "one"),
            ("one two \n\n three", 0.6, "one two"),
            ("three four", 0.2, "th"),
            ("日本語の文章", 0.5, "日本語"),
            ("", 0.5, ""),
        ],
    )
    def test_is_cut_where_a_word_ends(self, text: str, share: float, kept: str) -> None:
        assert beginning(text, share) == kept


@pytest.mark.anyio
class TestAContinuedTrace:
    async def test_is_given_the_beginning_and_writes_the_rest(self) -> None:
        engine = writing(Script.even(" + 4 = 9.", tokens=5))
        verdict = await think(engine, Then())
        first, second = verdict.traces
        assert (first.text, first.continues) == (TEXT, None)
        assert second.text == "First 2 + 2 = 4, then 4 + 4 = 9."
        assert (second.id, second.continues) == (1, 0)
        assert second.answer is not None
        assert second.answer.text == "9"
        assert second.seed != first.seed

    async def test_counts_only_what_it_generated_and_does_not_vote(self) -> None:
        verdict = await think(writing(Script.even(" = 9.", tokens=5)), Then())
        usage = verdict.usage
        assert (usage.voted, usage.unvoted, usage.generated) == (20, 5, 25)
        assert verdict.tally.voters == {0}
        # What a budget of independent traces takes, the mean does not learn from it.
        assert usage.full_budget_estimate == 3 * 20
        assert [trace["continues"] for trace in verdict.to_dict()["traces"]] == [None, 0]

    async def test_may_write_as_much_as_was_left_to_the_first(self) -> None:
        asked: list[TraceRequest] = []

        def script(request: TraceRequest) -> Script:
            asked.append(request)
            return Script.even("one two three four five", tokens=20)

        sampling = Sampling(max_tokens=40)
        await think(
            ScriptedEngine(script),
            Then(then=lambda _: [Continue(0, keep=0.6)]),
            sampling=sampling,
        )
        assert [request.prefix for request in asked] == ["", "one two three"]
        assert [request.sampling.max_tokens for request in asked] == [40, 40 - 20 * 13 // 23]

    async def test_may_write_a_token_though_an_engine_kept_to_no_limit_before(self) -> None:
        asked: list[int] = []

        class Boundless(ScriptedEngine):
            def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
                asked.append(request.sampling.max_tokens)
                return super().stream(replace(request, sampling=Sampling(max_tokens=100)))

        engine = Boundless([Script.even(TEXT, tokens=40)])
        verdict = await think(engine, Then(), sampling=Sampling(max_tokens=20))
        assert asked == [20, 1]
        assert [trace.finish for trace in verdict.traces] == ["stop", "stop"]

    @pytest.mark.parametrize(("text", "tokens"), [("8", 1), ("", 0)])
    async def test_of_which_nothing_can_be_kept_is_begun_anew(self, text: str, tokens: int) -> None:
        asked: list[TraceRequest] = []

        def script(request: TraceRequest) -> Script:
            asked.append(request)
            return Script.even(text, tokens=tokens)

        asking = think(ScriptedEngine(script), Then(), sampling=Sampling(max_tokens=9))
        if tokens:
            verdict = await asking
            assert [one.continues for one in verdict.traces] == [None, 0]
            assert verdict.tally.voters <= {0}
        else:
            with pytest.raises(NothingGeneratedError):
                await asking
        assert [(one.prefix, one.sampling.max_tokens) for one in asked] == [("", 9)] * 2

    async def test_whose_beginning_names_the_answer_has_it_if_it_adds_none(self) -> None:
        boxed = r"So \boxed{8}. Let me look at that once more, slowly."
        verdict = await deliberate(
            Question.ask("?"),
            engine=writing(Script.even(" Done.", tokens=2), text=boxed),
            policy=Then(),
            answers=kind("math"),
        )
        assert [one.answer and one.answer.key for one in verdict.traces] == ["8", "8"]
        assert verdict.tally.voters == {0}

    async def test_stopped_midway_counts_the_tokens_it_wrote(self) -> None:
        @dataclass
        class Impatient(Then):
            budget: int = 4

            def on_finished(self, trace: Trace) -> Sequence[Action]:
                Majority.on_finished(self, trace)
                return [Continue(0), Continue(0)] if trace.id == 0 else [Stop((1, 2))]

        whole, short = Script.even(TEXT, tokens=20), Script.even(" 9.", tokens=2)
        long = Script.even(" and so on" * 20, tokens=5)
        plays = {0: whole, 1: short, 2: long}
        engine = ScriptedEngine(lambda request: plays[request.trace])
        verdict = await think(engine, Impatient())
        assert [trace.finish for trace in verdict.traces] == ["stop", "stop", "cancelled"]
        assert 0 < verdict.traces[2].tokens < 5
        assert verdict.usage.cancelled == verdict.traces[2].tokens
        assert verdict.usage.generated == sum(engine.generated)

    async def test_begins_again_with_the_same_beginning_when_its_stream_broke(self) -> None:
        fault = StreamError(tried="read the stream", found="it broke", remedy="Retry.")
        broken = Script("garbage", np.ones(9, np.float32), fault=fault, fault_after=4)
        plays = [Script.even(TEXT), broken, Script.even(" = 9.", tokens=5)]
        verdict = await think(ScriptedEngine(lambda _: plays.pop(0)), Then())
        second = verdict.traces[1]
        assert second.text == "First 2 + 2 = 4, then 4 = 9."
        assert (second.restarts, second.lost_tokens, second.tokens) == (1, 4, 5)

    async def test_that_fails_is_one_trace_that_failed(self) -> None:
        fault = ContextOverflowError(tried="continue", found="it is too long", remedy="None.")
        verdict = await think(writing(Script("", np.ones(1, np.float32), fault=fault)), Then())
        assert [trace.finish for trace in verdict.traces] == ["stop", "error"]
        assert verdict.answer == "8"
        assert any("it is too long" in warning for warning in verdict.warnings)

    async def test_counts_against_the_budget(self) -> None:
        again = Then(budget=2, then=lambda _: [Continue(0), Continue(0)])
        with pytest.raises(InvalidSettingError, match="its own budget of 2"):
            await think(writing(Script.even(" = 9.")), again)

    async def test_is_left_out_of_recordings(self, tmp_path: Path) -> None:
        sampling = Sampling()
        with recording_listener(tmp_path / "pool", sampling=sampling, answers="number") as heard:
            verdict = await think(
                writing(Script.even(" = 9.")), Then(), sampling=sampling, on_event=heard
            )
        assert len(verdict.traces) == 2
        pool = Pool.open(tmp_path / "pool")
        [question] = pool.questions
        assert question.traces == 1

    async def test_may_end_without_a_token_also_where_every_token_has_to_be_counted(self) -> None:
        silent = Script("", np.empty(0, np.float32))
        place = Slots(8, total=1000, longest=100).place()
        verdict = await think(writing(silent), Then(), place=place)
        assert [trace.tokens for trace in verdict.traces] == [20, 0]
        assert verdict.traces[1].finish is FinishReason.STOP

    async def test_tells_nothing_about_how_long_other_traces_are(self) -> None:
        begun: list[int] = []
        place = Slots(1, total=200, longest=100).place()
        place.begin = lambda: begun.append(place.begun)
        place.want(3, None)
        for number, (tokens, continues) in enumerate([(100, None), (10, 0)]):
            place.generated(tokens)
            place.ended(Trace(number, FinishReason.STOP, tokens, continues=continues))
            place.want(2 - number, None)
        # 90 tokens are left, and the only trace of its own took 100.
        assert begun == [1, 2]


@pytest.mark.anyio
class TestRefusals:
    async def test_an_engine_that_cannot_is_refused_before_anything_starts(self) -> None:
        engine = ScriptedEngine([Script.even(TEXT)], continues=False)
        with pytest.raises(CannotContinueError, match="settle-regenerate") as caught:
            await deliberate(
                Question.ask("?"), engine=engine, policy=SettleRegenerate(), answers=kind("number")
            )
        assert engine.generated == []
        assert "another policy, such as settle" in caught.value.remedy

    async def test_a_policy_that_does_not_say_that_it_continues_is_refused_when_it_does(
        self,
    ) -> None:
        engine = ScriptedEngine([Script.even(TEXT)], continues=False)
        with pytest.raises(CannotContinueError):
            await think(engine, Then())

    @pytest.mark.parametrize("trace", [1, 7])
    async def test_only_complete_traces_are_continued(self, trace: int) -> None:
        with pytest.raises(InvalidSettingError, match=f"continue trace {trace}"):
            await think(writing(Script.even("")), Then(then=lambda _: [Continue(trace)]))

    async def test_a_continued_trace_is_not_continued(self) -> None:
        @dataclass
        class Twice(Then):
            def on_finished(self, trace: Trace) -> Sequence[Action]:
                return [Continue(trace.id)]

        with pytest.raises(InvalidSettingError, match="not a complete trace of its own"):
            await think(writing(Script.even(" = 9.")), Twice())

    @pytest.mark.parametrize("keep", [0.0, 1.0, -1.0, float("nan")])
    async def test_a_share_that_keeps_nothing_or_all_is_refused(self, keep: float) -> None:
        with pytest.raises(InvalidSettingError, match="keep"):
            Continue(0, keep)


class TestRecordings:
    def test_the_lab_says_why_it_cannot_replay_it(self) -> None:
        source = PoolTraces.open(EXAMPLE)
        able, refused = runnable(parse(["settle-regenerate", "settle"], budgets=[16]), source)
        assert [one.policy.name for one in able] == ["settle"]
        assert [(one.candidate.policy.name, one.reason) for one in refused] == [
            ("settle-regenerate", "it continues traces, and a recording has no continuations")
        ]

    def test_nothing_but_it_to_compare_is_an_error_that_says_to_run_it_live(self) -> None:
        plan = Plan(specs=["settle-regenerate"])
        with pytest.raises(InvalidSettingError, match="no continuations") as caught:
            study(PoolTraces.open(EXAMPLE), plan)
        assert "Run it live" in caught.value.remedy

    @pytest.mark.parametrize("policy", [SettleRegenerate(), Then()])
    def test_replaying_it_is_refused(self, policy: Majority) -> None:
        traces = [PlayedTrace(10, FinishReason.STOP, None)] * 16
        with pytest.raises(InvalidSettingError, match="no continuations"):
            replay(policy, traces)
