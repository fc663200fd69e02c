"""The process that compares formulas: bounded, killable, and never left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import conviction
from conviction.answers import worker
from conviction.answers.mathematical import FormulaComparer

pytestmark = [
    pytest.mark.skipif(
        find_spec("math_verify") is None, reason="math-verify (extra `math`) is not installed"
    ),
    pytest.mark.skipif(os.name != "posix", reason="looks at processes as POSIX systems do"),
]

EQUAL = (r"\log_{2}(8)", "3")
# math-verify parses this for minutes.
ENDLESS = "(" * 500 + "x" + ")" * 500


@pytest.fixture
def comparer() -> Iterator[FormulaComparer]:
    comparer = FormulaComparer(seconds_per_pair=20.0)
    yield comparer
    comparer.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[FormulaComparer]:
    """One that none of its tests ends: a worker takes more than a second to start."""
    comparer = FormulaComparer(seconds_per_pair=20.0)
    yield comparer
    comparer.close()


def gone(process_id: int) -> bool:
    """Whether a process ends within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{process_id}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # ended; whoever inherited it has not looked yet
        time.sleep(0.02)
    return False


def test_formulas_are_compared_and_the_worker_is_started_once(comparer: FormulaComparer) -> None:
    assert comparer.process_id is None
    assert comparer.equivalent(*EQUAL)
    first = comparer.process_id
    assert not comparer.equivalent(r"\log_{2}(8)", "4")
    assert comparer.equivalent("(1+x)^{2}", "1+2x+x^{2}")
    assert comparer.process_id == first
    assert comparer.failure == ""


def test_either_direction_is_enough(shared: FormulaComparer) -> None:
    assert shared.equivalent("x>2", r"(2,\infty)")
    assert shared.equivalent(r"(2,\infty)", "x>2")


@pytest.mark.parametrize("garbage", ["", "}{", "\\", r"\frac{", "\ud800", "\0", "x" * 10_000])
def test_what_cannot_be_read_equals_nothing(shared: FormulaComparer, garbage: str) -> None:
    assert not shared.equivalent(garbage, "3")
    assert not shared.equivalent("3", garbage)
    assert shared.equivalent(*EQUAL)


def test_a_formula_that_takes_too_long_is_given_up_once_and_for_all() -> None:
    comparer = FormulaComparer(seconds_per_pair=1.0)
    try:
        comparer.equivalent("1", "2")
        before = comparer.process_id
        started = time.monotonic()
        assert not comparer.equivalent(ENDLESS, "1")
        assert time.monotonic() - started < 5
        assert before is not None
        assert gone(before)
        started = time.monotonic()
        for number in range(100):
            assert not comparer.equivalent(str(number), ENDLESS)
        assert time.monotonic() - started < 0.5
    finally:
        comparer.close()


def test_after_a_timeout_other_formulas_are_compared_again() -> None:
    comparer = FormulaComparer(seconds_per_pair=10.0)
    try:
        comparer.equivalent("1", "2")
        comparer._seconds_per_pair = 0.5
        assert not comparer.equivalent(ENDLESS, "1")
        comparer._seconds_per_pair = 10.0
        assert comparer.equivalent(*EQUAL)
    finally:
        comparer.close()


def test_a_worker_killed_between_questions_is_replaced(comparer: FormulaComparer) -> None:
    assert comparer.equivalent(*EQUAL)
    before = comparer.process_id
    assert before is not None
    os.kill(before, signal.SIGTERM)
    assert comparer.equivalent(*EQUAL)
    assert comparer.process_id != before


def test_a_worker_killed_in_the_middle_of_a_question_is_replaced(comparer: FormulaComparer) -> None:
    assert comparer.equivalent(*EQUAL)
    before = comparer.process_id
    assert before is not None
    killer = threading.Timer(0.3, os.kill, (before, signal.SIGTERM))
    killer.start()
    comparer._seconds_per_pair = 2.0
    started = time.monotonic()
    assert not comparer.equivalent(ENDLESS, "1")
    assert time.monotonic() - started < 30
    killer.join()
    comparer._seconds_per_pair = 20.0
    assert comparer.equivalent(*EQUAL)


def test_closing_ends_the_worker_and_using_it_again_starts_another() -> None:
    comparer = FormulaComparer(seconds_per_pair=20.0)
    assert comparer.equivalent(*EQUAL)
    before = comparer.process_id
    assert before is not None
    comparer.close()
    assert comparer.process_id is None
    assert gone(before)
    comparer.close()
    assert comparer.equivalent(*EQUAL)
    comparer.close()


def test_a_comparer_that_nobody_closed_takes_its_worker_along() -> None:
    comparer = FormulaComparer(seconds_per_pair=20.0)
    assert comparer.equivalent(*EQUAL)
    before = comparer.process_id
    assert before is not None
    del comparer
    assert gone(before)


def test_the_worker_ends_with_its_parent_even_in_the_middle_of_a_question() -> None:
    program = (
        "import sys, threading, time\n"
        "from conviction.answers.mathematical import FormulaComparer\n"
        "comparer = FormulaComparer(seconds_per_pair=60.0)\n"
        "comparer.equivalent('1', '2')\n"
        "print(comparer.process_id, flush=True)\n"
        f"comparer.equivalent({ENDLESS!r}, '1')\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, encoding="utf-8"
    )
    with parent:
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    assert gone(process_id)


def test_many_threads_may_ask_at_once(comparer: FormulaComparer) -> None:
    results: list[bool] = []

    def ask(number: int) -> None:
        results.append(comparer.equivalent(rf"\log_{{2}}({2**number})", str(number)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [True] * 8


def test_a_worker_that_does_not_start_in_time_is_reported() -> None:
    comparer = FormulaComparer(seconds_to_start=0.01)
    assert not comparer.equivalent(*EQUAL)
    assert "did not start within 0.01 s" in comparer.failure
    assert comparer.process_id is None
    comparer.close()


def test_a_broken_installation_is_reported_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "math_verify.py").write_text("raise RuntimeError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    comparer = FormulaComparer()
    assert not comparer.equivalent(*EQUAL)
    assert "half installed" in comparer.failure
    comparer.close()


def test_an_interpreter_that_cannot_be_run_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    comparer = FormulaComparer()
    assert not comparer.equivalent(*EQUAL)
    assert "did not start" in comparer.failure
    comparer.close()


def test_the_worker_imports_nothing_of_this_package() -> None:
    source = Path(worker.__file__).read_text(encoding="utf-8")
    assert f"import {conviction.__name__}" not in source
    assert f"from {conviction.__name__}" not in source
