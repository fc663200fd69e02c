"""Answers are read where neither a long text nor a slow kind can stop the event loop."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import anyio
import anyio.to_thread
import pytest

from conviction.answers import AnswerKind, Grouping
from conviction.answers.reading import MOST_THREADS, QUICK_CHARACTERS, in_thread, read_answer
from conviction.core import Answer, FinishReason, Question
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.policies import Majority
from conviction.thinking import deliberate
from conviction.verdict import Verdict

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
"""Seconds after which a test fails that waits for what never comes."""


class Plain(AnswerKind):
    """The whole text; remembers in which threads it worked."""

    name = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.extracted_in: list[threading.Thread] = []
        self.read_in: list[threading.Thread] = []

    def extract(self, text: str) -> str | None:
        self.extracted_in.append(threading.current_thread())
        return text.strip() or None

    def canonical(self, answer: str) -> str:
        self.read_in.append(threading.current_thread())
        return answer.lower()


class Quick(Plain):
    name = "plain and quick"
    quick = True


class Hanging(AnswerKind):
    """What holds "slow" is not read, or not compared, until it is told to go on."""

    name = "hanging"

    def __init__(self, *, extract: bool) -> None:
        super().__init__()
        self.hangs = threading.Event()
        self.go_on = threading.Event()
        self._extract = extract

    def extract(self, text: str) -> str | None:
        if self._extract:
            self._wait(text)
        return text

    def canonical(self, answer: str) -> str:
        return answer

    def decided(self, first: str, second: str) -> bool:
        del first, second
        return False

    def equivalent(self, first: str, second: str) -> bool:
        self._wait(first + second)
        return False

    def _wait(self, text: str) -> None:
        if "slow" in text:
            self.hangs.set()
            self.go_on.wait(PATIENCE)


@pytest.fixture(params=["extract", "compare"])
def hanging(request: pytest.FixtureRequest) -> Iterator[Hanging]:
    kind = Hanging(extract=request.param == "extract")
    yield kind
    kind.go_on.set()


def saying(*texts: str) -> ScriptedEngine:
    return ScriptedEngine([Script.even(text, tokens=3) for text in texts])


async def think(kind: AnswerKind, engine: ScriptedEngine, **options: object) -> Verdict:
    with anyio.fail_after(PATIENCE / 2):
        return await deliberate(
            Question.ask("?"), engine=engine, policy=Majority(3), answers=kind, **options
        )


async def test_only_a_short_text_of_a_quick_kind_is_read_on_the_event_loop() -> None:
    def at_once(kind: Plain) -> bool:
        main = threading.main_thread()
        return kind.extracted_in == [main] and set(kind.read_in) == {main}

    for kind, text, expected in (
        (Quick(), "Yes", True),
        (Quick(), " " * QUICK_CHARACTERS + "Yes", False),
        (Quick(), "Yes" * (QUICK_CHARACTERS // 4), False),
        (Plain(), "Yes", False),
    ):
        answer = await read_answer(kind, Grouping(kind), text)
        assert answer == Answer(text.strip(), text.strip().lower())
        assert at_once(kind) is expected


async def test_the_classes_do_not_depend_on_where_answers_are_read() -> None:
    texts = ["a", "b", "A", "c", "B ", "", "a"]
    found: list[list[Answer | None]] = []
    for kind in (Quick(), Plain()):
        grouping = Grouping(kind)
        found.append([await read_answer(kind, grouping, text) for text in texts])
    assert found[0] == found[1]
    assert [answer and answer.key for answer in found[0]] == ["a", "b", "a", "c", "b", None, "a"]


async def test_a_kind_that_hangs_does_not_outlast_the_time_limit(hanging: Hanging) -> None:
    verdict = await think(hanging, saying("fast", "slow", "fast"), time_limit=0.3)
    assert not hanging.go_on.is_set()
    assert verdict.ended == "time"
    assert verdict.answer == "fast"
    assert [trace.finish for trace in verdict.traces] == [FinishReason.STOP] * 3
    assert [trace.answer is not None for trace in verdict.traces] == [True, False, False]
    assert "The answers of 2 of 3 traces were not read before the run ended." in verdict.warnings
    # They were not without an answer.
    assert not any("without an answer" in warning for warning in verdict.warnings)


async def test_a_kind_that_hangs_does_not_outlast_an_interrupt(hanging: Hanging) -> None:
    interrupt = anyio.Event()

    async def interrupt_while_it_hangs() -> None:
        await anyio.to_thread.run_sync(hanging.hangs.wait, PATIENCE)
        interrupt.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(interrupt_while_it_hangs)
        verdict = await think(hanging, saying("fast", "slow"), interrupt=interrupt)
    assert verdict.ended == "interrupted"
    assert verdict.answer == "fast"
    assert not hanging.go_on.is_set()


async def test_other_questions_go_on_while_a_kind_hangs(hanging: Hanging) -> None:
    finished: list[Verdict] = []

    async def stuck() -> None:
        await think(hanging, saying("fast", "slow"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stuck)
        await anyio.to_thread.run_sync(hanging.hangs.wait, PATIENCE)
        finished.append(await think(Plain(), saying("a", "a", "b")))
        tasks.cancel_scope.cancel()
    assert not hanging.go_on.is_set()
    assert finished[0].answer == "a"


async def test_threads_that_hang_are_few_and_further_calls_wait_for_them() -> None:
    kind = Plain()
    kind.name = "many that hang"  # type: ignore[misc]  # threads of its own
    go_on, all_hang = threading.Event(), threading.Barrier(MOST_THREADS + 1)
    begun: list[int] = []
    done: list[int] = []

    def hang(number: int) -> None:
        begun.append(number)
        if number < MOST_THREADS:
            all_hang.wait(PATIENCE)
        go_on.wait(PATIENCE)

    async def call(work: Callable[[int], None], number: int) -> None:
        await in_thread(kind, work, number)
        done.append(number)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for number in range(MOST_THREADS + 5):
                tasks.start_soon(call, hang, number)
            await anyio.to_thread.run_sync(all_hang.wait, PATIENCE)
            with anyio.move_on_after(0.2) as given_up:
                await call(begun.append, -1)
            assert given_up.cancelled_caught
            assert len(begun) == MOST_THREADS
            go_on.set()
    assert sorted(done) == list(range(MOST_THREADS + 5))
    assert -1 not in begun  # What was abandoned before its turn is not begun.


async def test_an_error_in_a_thread_is_raised_where_it_is_awaited() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(Plain(), lambda: 1 // 0)


ASLEEP = """
import time

import conviction
from conviction.answers import AnswerKind
from conviction.engines.scripted import Script, ScriptedEngine


class Asleep(AnswerKind):
    name = "asleep"

    def extract(self, text):
        time.sleep(10_000)

    def canonical(self, answer):
        return answer


verdict = conviction.think(
    "?", engine=ScriptedEngine([Script.even("a")]), policy="single", answers=Asleep(),
    time_limit=0.5,
)
print(verdict.ended)
"""


def test_a_kind_that_never_returns_does_not_keep_the_program_from_ending() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ASLEEP], capture_output=True, text=True, timeout=100, check=True
    )
    assert ended.stdout == "time\n"
