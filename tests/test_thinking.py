import asyncio
import pickle
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from conviction.answers import AnswerKind, kind
from conviction.core import FinishReason, Question, Sampling, Trace
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.errors import (
    AllTracesFailedError,
    EngineError,
    EngineUnavailableError,
    InvalidSettingError,
    MissingLogprobsError,
    NothingGeneratedError,
    StreamError,
)
from conviction.events import Event, RunFinished, TraceFinished, TraceStarted
from conviction.gate import Gate
from conviction.policies import (
    Action,
    Conditions,
    DeepConfHigh,
    DeepConfOffline,
    Done,
    Majority,
    Policy,
    Start,
    Stop,
)
from conviction.thinking import deliberate, trace_seed
from conviction.verdict import Verdict

pytestmark = pytest.mark.anyio


class LastWord(AnswerKind):
    """The answer is what follows the last equals sign."""

    name = "last word"
    quick = True

    def extract(self, text: str) -> str | None:
        return text.rpartition("=")[2].strip() or None if "=" in text else None

    def canonical(self, answer: str) -> str:
        return answer.lower()


async def think(engine: Engine, policy: Policy, **options: Any) -> Verdict:
    options.setdefault("answers", LastWord())
    with anyio.fail_after(10):
        return await deliberate(Question.ask("?"), engine=engine, policy=policy, **options)


def saying(*answers: str, tokens: int = 20, confidence: float = 10.0) -> list[Script]:
    return [Script.even(f"= {a}", tokens=tokens, confidence=confidence) for a in answers]


def broken(text: str, after: int = 3) -> Script:
    fault = StreamError(tried="read the stream", found=text, remedy="Retry.")
    return Script("= a", np.full(9, 5.0, np.float32), fault=fault, fault_after=after)


@dataclass
class Told(Majority):
    """Does as it was told: first, and after each trace."""

    first: Sequence[Action] = ()
    then: Callable[[Trace], Sequence[Action]] = lambda _: []

    def begin(self, conditions: Conditions) -> Sequence[Action]:
        del conditions
        return self.first

    def on_finished(self, trace: Trace) -> Sequence[Action]:
        super().on_finished(trace)
        return self.then(trace)


Stream = Callable[[TraceRequest], AsyncGenerator[Chunk, None]]


class Odd(Engine):
    """An engine made of one function."""

    def __init__(self, stream: Stream, top_k: int = 20) -> None:
        self._stream = stream
        self._top_k = top_k

    @property
    def name(self) -> str:
        return "odd"

    async def capabilities(self) -> Capabilities:
        return Capabilities("odd", self._top_k, concurrency=8)

    def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        return self._stream(request)


def whole(answer: str = "a", confidence: float = 9.0) -> Chunk:
    return Chunk(f"= {answer}", np.full(3, confidence, np.float32), FinishReason.STOP)


def odd_second(second: Stream, top_k: int = 20) -> Odd:
    """An engine that does well but for its second trace."""

    async def stream(request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        await anyio.lowlevel.checkpoint()
        if request.trace == 1:
            async with aclosing(second(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        else:
            yield whole()

    return Odd(stream, top_k)


class TestTheVerdict:
    async def test_is_the_answer_most_traces_agree_on(self) -> None:
        engine = ScriptedEngine(saying("4", "4", "5", "4.0"))
        verdict = await think(engine, Majority(budget=4), answers=kind("number"))
        assert (verdict.answer, verdict.share, verdict.ended) == ("4", 0.75, "budget")
        assert verdict.usage.generated == sum(engine.generated) == 80
        assert [trace.seed for trace in verdict.traces] == [
            trace_seed(0, verdict.question.id, number) for number in range(4)
        ]

    async def test_a_number_is_read_from_the_prose_of_each_trace(self) -> None:
        texts = ["So 17 + 24 = 41. The answer is 41.", "I think it is 40.", "The answer is 41"]
        engine = ScriptedEngine([Script.even(text) for text in texts])
        verdict = await think(engine, Majority(budget=3), answers=kind("number"))
        assert verdict.tally.leader is not None
        assert verdict.tally.leader.votes == (0, 2)

    async def test_counts_traces_cut_by_their_token_limit_but_not_their_votes(self) -> None:
        engine = ScriptedEngine([*saying("a"), *saying("b", tokens=50)])
        verdict = await think(engine, Majority(budget=4), sampling=Sampling(max_tokens=30))
        assert verdict.tally.voters == {0, 2}
        assert verdict.usage.unvoted == 60
        assert any("2 of 4 traces reached 30 tokens" in text for text in verdict.warnings)

    async def test_says_how_many_traces_gave_no_answer(self) -> None:
        engine = ScriptedEngine([*saying("a"), Script.even("I do not know")])
        verdict = await think(engine, Majority(budget=4))
        assert any("2 of 4 traces ended without an answer" in text for text in verdict.warnings)

    async def test_leaves_the_policy_that_was_passed_in_unchanged(self) -> None:
        policy = DeepConfHigh(budget=8)
        first = await think(ScriptedEngine(saying("a", "b")), policy)
        second = await think(ScriptedEngine(saying("a", "b")), policy)
        assert first.tally == second.tally
        assert (policy.warmup, policy.window) == (None, None)

    async def test_seeds_differ_by_run_question_and_trace(self) -> None:
        seeds = {trace_seed(s, q, t) for s in (0, 1) for q in ("x", "y") for t in range(50)}
        assert len(seeds) == 200
        assert all(0 <= seed < 2**31 for seed in seeds)
        assert trace_seed(0, "x", 3) == trace_seed(0, "x", 3)


class TestConsensus:
    async def test_cancels_what_runs_and_never_starts_what_waits(self) -> None:
        slow = [Script.even("= b", tokens=10_000) for _ in range(12)]
        engine = ScriptedEngine([*saying("a", "a", "a", "b"), *saying("a"), *slow], concurrency=4)
        policy = DeepConfHigh(budget=16, warmup=4, window=4, consensus=0.79, quorum=5)
        events: list[Event] = []
        verdict = await think(engine, policy, on_event=events.append)
        assert verdict.ended == "consensus"
        assert len(verdict.traces) == len(engine.generated) == 8
        assert {t.finish for t in verdict.traces[5:]} == {FinishReason.CONSENSUS}
        assert 0 < verdict.usage.cancelled < 200
        assert verdict.usage.generated == sum(engine.generated)
        last_started = max(i for i, e in enumerate(events) if isinstance(e, TraceStarted))
        settled = next(
            i for i, e in enumerate(events) if isinstance(e, TraceFinished) and e.trace.id == 4
        )
        assert last_started < settled

    async def test_a_stopped_trace_is_charged_up_to_the_token_that_stopped_it(self) -> None:
        weak = np.array([12.0] * 10 + [8.0] * 200, np.float32)
        engine = ScriptedEngine([*saying("a", "b", "a", "b"), Script("= c", weak)])
        verdict = await think(engine, DeepConfHigh(budget=5, warmup=4, window=4))
        stopped = verdict.traces[4]
        assert stopped.finish is FinishReason.LOW_CONFIDENCE
        assert stopped.tokens == Gate(4, 10.0).stop_position(weak) == engine.generated[4] == 13
        assert stopped.answer is None
        assert verdict.threshold == 10.0

    async def test_a_trace_that_ends_itself_below_its_gate_was_not_stopped(self) -> None:
        async def weak_but_done(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            yield whole("a", confidence=1.0)

        policy = Told(budget=1, first=[Start(1, Gate(window=2, threshold=5.0))])
        verdict = await think(Odd(weak_but_done), policy)
        assert verdict.traces[0].finish is FinishReason.STOP
        assert verdict.answer == "a"

    async def test_a_cancelled_trace_keeps_the_prompt_tokens_it_was_told_of(self) -> None:
        async def tells_early(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            yield Chunk("", np.ones(1, np.float32))
            yield Chunk("", np.ones(1, np.float32), prompt_tokens=70, cached_tokens=64)
            await anyio.sleep(60)

        policy = Told(budget=2, first=[Start(2)], then=lambda _: [Done("enough")])
        verdict = await think(odd_second(tells_early), policy)
        assert verdict.traces[1].finish is FinishReason.CONSENSUS
        assert (verdict.usage.prompt, verdict.usage.cached_prompt) == (70, 64)

    async def test_done_ends_it_whatever_the_policy_asks_for_beside(self) -> None:
        policy = Told(budget=9, first=[Start(2)], then=lambda _: [Done("enough"), Start(3)])
        verdict = await think(ScriptedEngine(saying("a", "a")), policy)
        assert (verdict.ended, len(verdict.traces)) == ("enough", 2)

    async def test_a_trace_cancelled_by_it_did_not_fail_even_if_its_engine_says_so(self) -> None:
        async def complains(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            try:
                await anyio.sleep(60)
                yield whole()
            except anyio.get_cancelled_exc_class():
                raise StreamError(tried="read", found="closed", remedy="None.") from None

        policy = Told(budget=2, first=[Start(2)], then=lambda _: [Done("enough")])
        verdict = await think(odd_second(complains), policy)
        assert (verdict.traces[1].finish, verdict.traces[1].error) == (FinishReason.CONSENSUS, "")

    async def test_a_trace_that_had_ended_itself_is_not_called_cancelled_but_does_not_vote(
        self,
    ) -> None:
        async def slow_to_close(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            try:
                yield whole("b")
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.2)

        policy = Told(budget=2, first=[Start(2)], then=lambda _: [Done("enough")])
        verdict = await think(odd_second(slow_to_close), policy)
        assert verdict.traces[1].finish is FinishReason.STOP
        assert verdict.tally.voters == {0}
        assert verdict.usage.unvoted == 3

    async def test_a_policy_may_stop_single_traces(self) -> None:
        engine = ScriptedEngine([*saying("a"), *saying("b", tokens=5000), *saying("c", tokens=40)])
        policy = Told(budget=3, first=[Start(3)], then=lambda _: [Stop((1, 0, 77))])
        verdict = await think(engine, policy)
        finishes = [trace.finish for trace in verdict.traces]
        assert finishes == [FinishReason.STOP, FinishReason.CANCELLED, FinishReason.STOP]
        assert verdict.tally.voters == {0, 2}


class TestFailingTraces:
    async def test_do_not_end_the_others_and_are_named(self) -> None:
        engine = ScriptedEngine([broken("the line fell silent"), *saying("a", "b", "a")])
        verdict = await think(engine, Majority(budget=4), restarts=0)
        assert verdict.answer == "a"
        assert verdict.traces[0].finish is FinishReason.ERROR
        assert verdict.usage.failed == verdict.traces[0].tokens == 3
        assert "1 of 4 traces failed: " in (warning := verdict.warnings[0])
        assert "the line fell silent" in warning

    async def test_when_all_fail_each_cause_is_named_once(self) -> None:
        engine = ScriptedEngine([broken("first cause"), broken("second cause", after=0)])
        with pytest.raises(AllTracesFailedError) as caught:
            await think(engine, Majority(budget=6))
        assert [cause.count("cause") for cause in caught.value.causes] == [1, 1]
        assert "first cause" in str(caught.value)
        assert "second cause" in str(caught.value)
        assert engine.running == 0

    async def test_an_engines_bug_is_one_traces_failure(self) -> None:
        async def bug(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            yield Chunk("= b", np.ones(2, np.float32))
            raise ZeroDivisionError("in the engine")

        verdict = await think(odd_second(bug), Majority(budget=3))
        assert verdict.traces[1].error == "ZeroDivisionError: in the engine"
        assert verdict.traces[1].tokens == 2
        assert verdict.tally.voters == {0, 2}

    async def test_a_stream_that_just_ends_is_a_failure(self) -> None:
        async def silent(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            yield Chunk("= b", np.ones(2, np.float32))

        verdict = await think(odd_second(silent), Majority(budget=3))
        assert verdict.traces[1].finish is FinishReason.ERROR
        assert verdict.traces[1].error == "odd ended the stream without saying why"

    async def test_an_engine_that_cancels_a_trace_itself_does_not_cancel_the_run(self) -> None:
        async def gives_up(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            yield Chunk("= b", np.ones(2, np.float32))
            raise asyncio.CancelledError

        verdict = await think(odd_second(gives_up), Majority(budget=5))
        assert verdict.traces[1].finish is FinishReason.ERROR
        assert "cancelled the trace by itself" in verdict.traces[1].error
        assert verdict.tally.voters == {0, 2, 3, 4}

    async def test_an_engine_that_cannot_even_open_a_stream_fails_that_trace(self) -> None:
        def refuses(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            raise EngineUnavailableError(tried="connect", found="refused", remedy="Start it.")

        with pytest.raises(AllTracesFailedError, match=r"connect: refused\. Start it\."):
            await think(Odd(refuses), Majority(budget=3))

    async def test_an_engine_that_cannot_be_used_at_all_says_so_before_any_trace(self) -> None:
        class Down(Odd):
            async def capabilities(self) -> Capabilities:
                raise EngineUnavailableError(tried="connect", found="refused", remedy="Start it.")

        with pytest.raises(EngineUnavailableError):
            await think(Down(lambda _: pytest.fail("it was asked for a trace")), Majority())

    async def test_an_engine_that_fails_while_closing_keeps_the_answer_it_gave(self) -> None:
        async def untidy(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            try:
                yield whole()
            finally:
                raise RuntimeError("while closing")

        verdict = await think(Odd(untidy), Majority(budget=2))
        assert verdict.tally.voters == {0, 1}

    async def test_tokens_after_the_finish_are_not_read(self) -> None:
        async def talkative(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            yield whole()
            yield Chunk("= b", np.ones(2, np.float32))

        verdict = await think(Odd(talkative), Majority(budget=1))
        assert (verdict.answer, verdict.usage.generated) == ("a", 3)

    @pytest.mark.parametrize("chunks", [1, 2])
    async def test_confidences_of_the_wrong_type_fail_the_trace_with_the_reason(
        self, chunks: int
    ) -> None:
        async def doubles(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            for number in range(chunks):
                finish = FinishReason.STOP if number == chunks - 1 else None
                yield Chunk("= a", np.ones(3), finish)  # type: ignore[arg-type]

        verdict = await think(odd_second(doubles), DeepConfOffline(budget=3, keep=1.0))
        assert verdict.tally.voters == {0, 2}
        assert "must be float32, not float64" in verdict.traces[1].error

    async def test_confidences_of_the_wrong_sign_fail_the_trace_with_the_reason(self) -> None:
        async def minus(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            yield whole(confidence=-9.0)

        verdict = await think(odd_second(minus), DeepConfOffline(budget=3, keep=1.0))
        assert verdict.tally.voters == {0, 2}
        assert "the sign is wrong" in verdict.traces[1].error


class TestLogProbabilities:
    async def test_an_engine_without_them_is_refused_before_any_trace(self) -> None:
        engine = ScriptedEngine(saying("a"), top_k=0)
        with pytest.raises(MissingLogprobsError, match="--policy majority") as caught:
            await think(engine, DeepConfHigh(budget=4))
        assert caught.value.exit_code == 1
        assert engine.generated == []

    async def test_an_engine_that_silently_drops_them_is_found_out_at_the_first_trace(self) -> None:
        async def dropped(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            await anyio.lowlevel.checkpoint()
            yield whole(confidence=nan)

        with pytest.raises(MissingLogprobsError, match="without a single one"):
            await think(Odd(dropped), DeepConfHigh(budget=4))

    async def test_a_single_trace_without_them_does_not_end_the_others(self) -> None:
        async def blind(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            yield whole("b", confidence=nan)

        verdict = await think(odd_second(blind), DeepConfOffline(budget=4, keep=1.0))
        assert verdict.tally.voters == {0, 2, 3}

    async def test_it_may_be_the_first_to_end_while_others_have_some(self) -> None:
        async def stream(request: TraceRequest) -> AsyncGenerator[Chunk, None]:
            if request.trace == 1:
                await anyio.lowlevel.checkpoint()
                yield whole("b", confidence=nan)
                return
            yield Chunk("", np.ones(2, np.float32))
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.05)
            yield whole()

        verdict = await think(Odd(stream), DeepConfOffline(budget=3, keep=1.0))
        assert verdict.tally.voters == {0, 2}

    async def test_a_trace_of_no_tokens_does_not_end_the_others(self) -> None:
        async def empty(_: TraceRequest) -> AsyncGenerator[Chunk, None]:
            yield Chunk(finish=FinishReason.STOP)

        verdict = await think(odd_second(empty), DeepConfOffline(budget=3, keep=1.0))
        assert verdict.traces[1].tokens == 0
        assert verdict.tally.voters == {0, 2}

    async def test_majority_needs_none(self) -> None:
        verdict = await think(ScriptedEngine(saying("a"), top_k=0), Majority(budget=2))
        assert (verdict.answer, verdict.top_k) == ("a", 0)
        assert np.isnan(verdict.traces[0].confidences).all()

    async def test_no_more_are_asked_for_than_the_engine_gives(self) -> None:
        asked: list[int] = []

        def script(request: TraceRequest) -> Script:
            asked.append(request.top_k)
            return saying("a")[0]

        for offered in (5, 20, 50):
            await think(ScriptedEngine(script, top_k=offered), Majority(budget=1))
        assert asked == [5, 20, 20]


class TestEndingEarly:
    async def test_a_time_limit_ends_it_with_the_votes_it_has(self) -> None:
        async def pace(request: TraceRequest) -> None:
            await (anyio.sleep(60) if request.trace else anyio.lowlevel.checkpoint())

        engine = ScriptedEngine(saying("a", "b", "b"), pace=pace)
        verdict = await think(engine, Majority(budget=3), time_limit=0.1)
        assert (verdict.answer, verdict.ended) == ("a", "time")
        assert verdict.finishes() == {FinishReason.STOP: 1, FinishReason.CANCELLED: 2}
        assert engine.running == 0

    async def test_a_time_limit_that_is_not_needed_does_not_delay(self) -> None:
        verdict = await think(ScriptedEngine(saying("a")), Majority(budget=2), time_limit=3600)
        assert verdict.ended == "budget"
        assert verdict.seconds < 5

    @pytest.mark.parametrize("limit", [-1, nan, float("inf"), "soon"])
    async def test_an_impossible_time_limit_is_refused(self, limit: Any) -> None:
        with pytest.raises(InvalidSettingError, match="time_limit must be"):
            await think(ScriptedEngine(saying("a")), Majority(), time_limit=limit)

    async def test_an_interrupt_gives_a_partial_verdict(self) -> None:
        interrupt = anyio.Event()
        engine = ScriptedEngine([*saying("a"), *saying("b", tokens=100_000)])

        def watch(seen: Event) -> None:
            if isinstance(seen, TraceFinished):
                interrupt.set()

        verdict = await think(engine, Majority(budget=4), interrupt=interrupt, on_event=watch)
        assert verdict.ended == "interrupted"
        assert verdict.answer == "a"
        assert verdict.usage.cancelled > 0
        assert verdict.usage.generated == sum(engine.generated)

    @pytest.mark.parametrize("ended", ["interrupted", "time"])
    async def test_a_run_that_ends_before_the_first_token_has_no_verdict(self, ended: str) -> None:
        interrupt = anyio.Event()
        if ended == "interrupted":
            interrupt.set()
        engine = ScriptedEngine(saying("a"), delay=60)
        limit = 0.05 if ended == "time" else None
        with pytest.raises(NothingGeneratedError, match="not one token had come") as caught:
            await think(engine, Majority(budget=4), interrupt=interrupt, time_limit=limit)
        assert caught.value.ended == ended
        assert caught.value.unexplained
        assert caught.value.exit_code == (130 if ended == "interrupted" else 1)
        assert engine.running == 0

    async def test_traces_that_were_lost_do_not_make_a_verdict_of_nothing(self) -> None:
        """One trace fails after some tokens, and the others have not begun to write."""

        async def pace(request: TraceRequest) -> None:
            await (anyio.sleep(60) if request.trace else anyio.lowlevel.checkpoint())

        broken = replace(saying("a")[0], fault=ValueError("the disk is gone"), fault_after=3)
        engine = ScriptedEngine([broken, *saying("b", "b")], pace=pace)
        with pytest.raises(NothingGeneratedError, match="the disk is gone") as caught:
            await think(engine, Majority(budget=3), time_limit=0.1)
        assert not caught.value.unexplained

    async def test_what_the_engine_fails_with_is_named_while_it_tries_again(self) -> None:
        class Trying(ScriptedEngine):
            @property
            def failure(self) -> EngineError:
                return EngineError(tried="reach it", found="connection refused", remedy="Start it.")

        engine = Trying(saying("a"), delay=60)
        with pytest.raises(NothingGeneratedError, match="connection refused") as caught:
            await think(engine, Majority(budget=3), time_limit=0.05)
        assert caught.value.engine is not None
        # It may come from a worker in another process.
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  # of our own
        assert (str(again), again.ended, again.unexplained) == (str(caught.value), "time", False)
        assert str(again.engine) == str(caught.value.engine)

    async def test_traces_without_a_single_token_are_no_verdict(self) -> None:
        async def empty(request: TraceRequest) -> AsyncGenerator[Chunk, None]:
            del request
            yield Chunk(finish=FinishReason.STOP)

        with pytest.raises(NothingGeneratedError, match="without a single token"):
            await think(Odd(empty), Majority(budget=2))

    async def test_a_cancelled_caller_gets_its_cancellation_and_no_stream_stays_open(self) -> None:
        engine = ScriptedEngine(saying("a"), delay=60)
        task = asyncio.create_task(think(engine, Majority(budget=4)))
        await anyio.wait_all_tasks_blocked()
        assert engine.running == 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.running == 0

    async def test_tokens_made_while_a_trace_is_being_cancelled_count_if_they_were_delivered(
        self,
    ) -> None:
        # The scripted engine counts a chunk when it hands it over, so the two counts agree. An
        # engine that works ahead may have made tokens that it never delivered: nobody but that
        # engine can know how many, and the accounts name what was delivered.
        made = 0

        async def works_ahead(request: TraceRequest) -> AsyncGenerator[Chunk, None]:
            nonlocal made
            if request.trace == 0:
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                yield whole()
                return
            while True:
                made += 1
                await anyio.lowlevel.checkpoint()  # cancelled here, the token is lost
                yield Chunk("x", np.ones(1, np.float32))

        policy = Told(budget=2, first=[Start(2)], then=lambda _: [Done("enough")])
        verdict = await think(Odd(works_ahead), policy)
        assert verdict.traces[1].finish is FinishReason.CONSENSUS
        assert verdict.usage.cancelled == verdict.traces[1].tokens == made - 1

    async def test_a_policy_that_is_done_at_once_gives_an_empty_verdict(self) -> None:
        verdict = await think(ScriptedEngine(saying("a")), Told(budget=1, first=[Done("nothing")]))
        assert (verdict.answer, verdict.ended, verdict.traces) == (None, "nothing", ())


class TestPoliciesWithBugs:
    @pytest.mark.parametrize(
        ("first", "message"),
        [
            ([], "it started no trace"),
            ([Stop((0,))], "it started no trace"),
            ([Start(5)], "exceeds its own budget of 4"),
            ([Start(3), Start(2)], "exceeds its own budget of 4"),
            ([Start(10**12)], "exceeds its own budget of 4"),
        ],
    )
    async def test_are_told_what_they_did(self, first: list[Action], message: str) -> None:
        engine = ScriptedEngine(saying("a"))
        with pytest.raises(InvalidSettingError, match=message):
            await think(engine, Told(budget=4, first=first))
        assert engine.running == 0

    async def test_asking_for_too_much_later_ends_what_runs(self) -> None:
        engine = ScriptedEngine([*saying("a"), *saying("b", tokens=100_000)])
        policy = Told(budget=4, first=[Start(2)], then=lambda _: [Start(3)])
        with pytest.raises(InvalidSettingError, match="exceeds its own budget"):
            await think(engine, policy)
        assert engine.running == 0

    async def test_an_exception_of_theirs_comes_out_as_it_is_and_frees_the_engine(self) -> None:
        def fail(_: Trace) -> Sequence[Action]:
            raise KeyError("a bug in the policy")

        engine = ScriptedEngine([*saying("a"), *saying("b", tokens=100_000)])
        with pytest.raises(KeyError, match="a bug in the policy"):
            await think(engine, Told(budget=2, first=[Start(2)], then=fail))
        assert engine.running == 0

    @pytest.mark.parametrize("count", [0, -3, 1.5])
    async def test_a_start_of_nothing_cannot_be_made(self, count: Any) -> None:
        with pytest.raises(InvalidSettingError, match="count must be"):
            Start(count)

    async def test_an_enormous_budget_costs_no_memory_before_it_is_used(self) -> None:
        policy = Told(budget=10**12, first=[Start(10**12)], then=lambda _: [Done("enough")])
        verdict = await think(ScriptedEngine(saying("a"), concurrency=3), policy)
        assert len(verdict.traces) == 3


class TestListeners:
    async def test_one_that_raises_is_not_called_again_and_the_verdict_says_so(self) -> None:
        calls = 0

        def listener(_: Event) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise OSError("the terminal is gone")

        verdict = await think(ScriptedEngine(saying("a")), Majority(budget=4), on_event=listener)
        assert verdict.answer == "a"
        assert calls == 3
        assert any("OSError: the terminal is gone" in text for text in verdict.warnings)

    async def test_hear_of_the_verdict_last(self) -> None:
        events: list[Event] = []
        verdict = await think(
            ScriptedEngine(saying("a")), Majority(budget=2), on_event=events.append
        )
        assert isinstance(events[-1], RunFinished)
        assert events[-1].verdict is verdict

    async def test_are_told_where_the_vote_stands_after_each_trace(self) -> None:
        events: list[Event] = []
        engine = ScriptedEngine(saying("a", "b", "b"), concurrency=1)
        await think(engine, Majority(budget=3), on_event=events.append)
        standings = [seen.standing for seen in events if isinstance(seen, TraceFinished)]
        assert [standing.tally.total for standing in standings] == [1, 2, 3]


class TestAnswerKinds:
    async def test_a_slow_comparison_does_not_keep_other_traces_waiting(self) -> None:
        texts = [*saying("a"), *saying("b", tokens=20), *saying("c", tokens=100)]
        engine = ScriptedEngine(texts, delay=0.002)
        seen_meanwhile: list[int] = []

        class Slow(LastWord):
            def decided(self, first: str, second: str) -> bool:
                del first, second
                return False

            def equivalent(self, first: str, second: str) -> bool:
                del first, second
                before = sum(engine.generated)
                for _ in range(200):
                    if sum(engine.generated) > before:
                        break
                    time.sleep(0.005)
                seen_meanwhile.append(sum(engine.generated) - before)
                return False

        await think(engine, Majority(budget=3), answers=Slow())
        assert seen_meanwhile[0] > 0

    async def test_plain_answers_are_settled_within_the_very_turn_in_which_they_end(self) -> None:
        engine = ScriptedEngine(saying("a", "a", tokens=5) + saying("b", tokens=500))
        policy = Told(budget=3, first=[Start(3)], then=lambda trace: [Done("x")] * trace.id)
        verdict = await think(engine, policy)
        assert verdict.traces[2].finish is FinishReason.CONSENSUS
        assert verdict.traces[2].tokens <= 5 + 2

    async def test_one_with_a_bug_ends_the_run_with_that_bug(self) -> None:
        class Buggy(LastWord):
            def extract(self, text: str) -> str | None:
                raise LookupError(text)

        engine = ScriptedEngine([*saying("a"), *saying("b", tokens=100_000)])
        with pytest.raises(LookupError):
            await think(engine, Majority(budget=2), answers=Buggy())
        assert engine.running == 0


async def test_many_traces_wait_their_turn_and_all_come_to_vote() -> None:
    most = 0

    async def pace(_: TraceRequest) -> None:
        nonlocal most
        most = max(most, engine.running)
        await anyio.lowlevel.checkpoint()

    engine = ScriptedEngine(saying("a", "b", "a", tokens=2), concurrency=37, pace=pace)
    verdict = await think(engine, Majority(budget=999))
    assert most == 37
    assert len(verdict.tally.voters) == len(verdict.traces) == 999
    assert verdict.usage.generated == 1998


async def test_several_questions_may_be_thought_about_at_once_on_one_engine() -> None:
    engine = ScriptedEngine(saying("a", "b", "a"))
    verdicts: list[Verdict] = []

    async def ask(text: str) -> None:
        verdicts.append(
            await deliberate(
                Question.ask(text), engine=engine, policy=Majority(budget=3), answers=LastWord()
            )
        )

    with suppress(TimeoutError), anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(ask, f"question {number}")
    assert [verdict.usage.generated for verdict in verdicts] == [60] * 8
    assert len({verdict.traces[0].seed for verdict in verdicts}) == 8
    assert engine.running == 0
