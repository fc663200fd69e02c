"""Reading takes little more memory than what is read, and does not mind a writer at work."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import endless_recording
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from old_pools import old_pool
from recorded import META, made_up

from conviction.core import FinishReason
from conviction.errors import InvalidSettingError, RecordingError
from conviction.lab import workers
from conviction.lab.candidates import parse
from conviction.lab.diagnosis import diagnose
from conviction.lab.sources import PoolTraces, dropping
from conviction.lab.study import Plan, study
from conviction.lab.trials import run_trials
from conviction.lab.workers import each_question
from conviction.recordings import Pool, PoolWriter, RecordedTrace, file, pack, parquet

MEASURE = """
import sys, tracemalloc
import pyarrow as pa
from conviction.recordings import Pool
pool = Pool.open(sys.argv[1])
read = {
    "confidences": lambda question: pool.traces(question).confidences,
    "logprobs": pool.logprobs,
}[sys.argv[2]]
read("small")  # so that modules are there already
tracemalloc.start()
values = read("large")
arrow = pa.default_memory_pool().max_memory()
size = sum(one.nbytes for one in values if one is not None)
print(size, tracemalloc.get_traced_memory()[1] + arrow)
"""


TRACES = 400


def large(number: int) -> RecordedTrace:
    """A trace of which there are many."""
    trace = made_up("large", number, tokens=50_000)
    return trace if number % 2 else replace(trace, logprobs=-np.abs(trace.confidences))


@pytest.mark.parametrize("packed", [False, True])
def test_reading_a_large_question_takes_little_more_than_its_values(
    tmp_path: Path,
    packed: bool,  # noqa: FBT001  # pytest gives it by name
) -> None:
    path = tmp_path / "pool"
    with PoolWriter(path, META) as writer:
        writer.append(made_up("small", 0, logprobs=np.full(12, -1.0, np.float32)))
        # From the last to the first, so that nothing is read in the order in which it is wanted.
        for first in reversed(range(0, TRACES, 20)):
            writer.append(*(large(number) for number in reversed(range(first, first + 20))))
    if packed:
        pack(Pool.open(path), tmp_path / "pool.parquet")
        path = tmp_path / "pool.parquet"
    for values, traces in (("confidences", TRACES), ("logprobs", TRACES // 2)):
        # Arrow's memory is not Python's, so a process of its own counts both from nothing.
        found = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), values],
            capture_output=True,
            check=True,
            timeout=100,
            text=True,
        )
        size, taken = map(int, found.stdout.split())
        assert size == traces * 50_000 * 4
        assert size <= taken < size + TRACES * 50_000 * 2


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    order=st.randoms(use_true_random=False),
    cuts=st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(1, 60)),
)
def test_traces_are_found_wherever_their_rows_lie(
    lengths: list[int],
    order: Random,
    cuts: tuple[int, int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    in_part, rows_per_group, batch = cuts
    rows = [
        made_up(question, number, tokens=tokens)
        for question, (number, tokens) in product("ab", enumerate(lengths))
    ]
    order.shuffle(rows)
    place = tmp_path_factory.mktemp("pool")
    old_pool(place, rows[:in_part], meta=META, journal=rows[in_part:])
    for part in place.glob("part-*"):
        # As another program may write it: questions mixed within a row group, and torn apart.
        table = pq.read_table(part)
        mixed = np.random.default_rng(len(rows)).permutation(len(table))
        pq.write_table(table.take(mixed), part, row_group_size=rows_per_group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_BATCH_BYTES", batch)
        pool = Pool.open(place)
        for question in dict.fromkeys(row.question_id for row in rows):
            traces = pool.traces(question)
            assert traces.confidences is not None
            expected = [row for row in rows if row.question_id == question]
            assert traces.ids.tolist() == list(range(len(lengths)))
            for row in expected:
                np.testing.assert_array_equal(traces.confidences[row.number], row.confidences)


def rewritten(
    change: Callable[[int], object], kind: pa.DataType | None = None, column: str = "confidences"
) -> Callable[[pa.Table], pa.Table]:
    """A change of a column, row by row."""

    def changed(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(column)
        values = [change(row) for row in range(len(table))]
        array = pa.array(values, kind or table.schema.field(column).type)
        return table.set_column(position, column, array)

    return changed


def at_row_6(value: object, other: object) -> Callable[[int], object]:
    """One value in row 6, and another everywhere else."""
    return lambda row: value if row == 5 else other


FINE = [4.0] * 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewritten(at_row_6(FINE[1:], FINE)), "row 6 of .*trace 3 of .* 12 tokens and 11 conf"),
        (rewritten(at_row_6([*FINE, 4.0], FINE)), "row 6 of .*trace 3 of .* 12 tokens and 13 conf"),
        (rewritten(at_row_6(None, FINE)), "row 6 of .*trace 3 of .* 12 tokens and 0 confidences"),
        (rewritten(lambda _: None), "row 3 of .*trace 0 of question 'b' has 12 tokens and 0"),
        (rewritten(at_row_6([np.inf, *FINE[1:]], FINE)), "row 6 of .*trace 3 .*infinite"),
        (rewritten(at_row_6([*FINE[1:], -1.0], FINE)), "row 6 of .*trace 3 .*negative"),
        (rewritten(lambda _: 1.0, pa.float32()), "confidences of type float"),
        (rewritten(at_row_6(-3, 12), column="tokens"), "row 6 of .*trace 3 .*no count of tokens"),
        (rewritten(at_row_6(None, 12), column="tokens"), "row 6 of .*trace 3 .*no count of tok"),
        (rewritten(at_row_6(1 << 60, 12), column="tokens"), "row 6 of .*1152921504606846976 tok"),
    ],
)
def test_bad_confidences_are_refused_naming_file_row_and_trace(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    first = [made_up(question, number) for question, number in product("ab", (0, 1))]
    old_pool(tmp_path, first, [made_up("b", number) for number in range(2, 6)], meta=META)
    tables = [pq.read_table(part) for part in sorted(tmp_path.glob("part-*"))]
    table = change(pa.concat_tables(tables))
    path = tmp_path / "whole.parquet"
    pq.write_table(table.replace_schema_metadata(tables[0].schema.metadata), path, row_group_size=3)
    with pytest.raises(RecordingError, match=f"(?s){message}") as refused:
        Pool.open(path).traces("b")
    assert str(path) in str(refused.value)


def test_a_pool_of_answers_that_has_confidences_is_refused(tmp_path: Path) -> None:
    rows = [made_up("a", number, confidences=None) for number in range(4)]
    old_pool(tmp_path, rows, meta=replace(META, top_k=0))
    part = tmp_path / "part-000000.parquet"
    pq.write_table(rewritten(lambda row: [1.0] if row == 2 else None)(pq.read_table(part)), part)
    with pytest.raises(RecordingError, match=r"row 3 of .*has confidences, and the pool's k is 0"):
        Pool.open(tmp_path).traces("a")


FEWEST = 5
"""Traces of each question that are there when reading begins."""


def fewest(place: Path) -> int:
    """Traces of the question that has fewest."""
    try:
        questions = Pool.open(place).questions
    except (InvalidSettingError, RecordingError):  # nothing yet
        return 0
    complete = len(questions) == len(endless_recording.QUESTIONS)
    return min(question.traces for question in questions) if complete else 0


@contextmanager
def endless_recording_into(place: Path) -> Iterator[None]:
    """Another program that records as long as the block lasts."""
    command = [sys.executable, endless_recording.__file__, str(place)]
    with subprocess.Popen(command) as writer:
        try:
            deadline = time.monotonic() + 30
            while not place.exists() or fewest(place) < FEWEST:
                assert writer.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield
            assert writer.poll() is None
        finally:
            writer.kill()


def frozen(place: Path, counts: dict[str, int]) -> PoolTraces:
    """A pool of its own with the first traces of each question."""
    with PoolWriter(place, META) as writer:
        for question, traces in counts.items():
            writer.append(*(made_up(question, n, tokens=1 + n % 50) for n in range(traces)))
    return PoolTraces.open(place)


def test_several_processes_read_what_was_there_when_the_pool_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WORTHWHILE_SECONDS", 0.0)
    place = tmp_path / "pool"
    candidates = parse(["majority", "deepconf-low:warmup=2,window=8"], budgets=[4])
    with endless_recording_into(place):
        source = PoolTraces.open(place)
        counts = {one: source.count(one) for one in source.question_ids}
        read = dict(each_question(endless_recording.everything, source, processes=3))
        trials = run_trials(source, candidates, repeats=4, processes=3)
        # Else nothing was tried.
        assert sum(q.traces for q in Pool.open(place).questions) > sum(counts.values())
    copy = frozen(tmp_path / "copy", counts)
    assert read == dict(each_question(endless_recording.everything, copy))
    assert (trials.runs == run_trials(copy, candidates, repeats=4).runs).all()


def test_whoever_opens_a_pool_while_it_is_recorded_sees_one_moment(tmp_path: Path) -> None:
    place = tmp_path / "pool"
    seen = 0
    with endless_recording_into(place):
        end = time.monotonic() + 4
        while time.monotonic() < end:
            counts = [question.traces for question in Pool.open(place).questions]
            # Questions are recorded in turns, so any moment is told by the number of traces.
            total = sum(counts)
            assert counts == [(total + 3 - turn) // 4 for turn in range(4)]
            assert total >= seen
            seen = total
    pool = Pool.open(place)
    for question in pool.questions:
        assert pool.traces(question.id).ids.tolist() == list(range(question.traces))


def test_a_pool_that_was_replaced_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    rows = [made_up("a", number) for number in range(3)]
    for name in ("pool", "other"):
        with PoolWriter(tmp_path / name, META) as writer:
            writer.append(*rows)
    pool = Pool.open(tmp_path / "pool")
    (tmp_path / "other").replace(tmp_path / "pool")
    for read in (pool.traces, pool.texts, pool.logprobs):
        with pytest.raises(RecordingError, match="replaced by another pool"):
            read("a")


def early(question: str, number: int, finish: FinishReason) -> RecordedTrace:
    """A trace that did not complete."""
    return made_up(question, number, finish=finish)


def test_traces_that_ended_early_are_read_and_counted_and_not_played(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(
            made_up("a", 0),
            early("a", 1, FinishReason.CANCELLED),
            made_up("b", 0, finish=FinishReason.LENGTH),
            early("b", 1, FinishReason.LOW_CONFIDENCE),
        )
        writer.append(made_up("a", 2), early("b", 2, FinishReason.CONSENSUS))
    assert len(Pool.open(tmp_path / "pool").traces("a")) == 3
    source = PoolTraces.open(tmp_path / "pool")
    for question, complete in (("a", 2), ("b", 1)):
        assert source.count(question) == len(source.traces(question)) == complete
    assert source.dropped == 3
    (note,) = dropping(source)
    assert note.startswith("3 of 6 recorded traces were stopped or cancelled")
    assert not dropping(replace(source, question_ids=()))


def test_a_pool_of_a_policy_that_stops_traces_is_replayed_with_those_that_completed(
    tmp_path: Path,
) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(*(made_up("a", number) for number in range(8)))
        writer.append(*(made_up("b", number) for number in range(6)))
        writer.append(*(early("b", number, FinishReason.CANCELLED) for number in (6, 7)))
    source = PoolTraces.open(tmp_path / "pool")
    result = study(source, Plan(repeats=2))
    assert (result.trials.least_traces, result.trials.most_traces) == (6, 8)
    assert {row.candidate.budget for row in result.rows} == {6}
    with pytest.raises(InvalidSettingError, match="question 'b': 6 complete") as refused:
        study(source, Plan(specs=["majority"], budgets=[8]))
    assert "--budget 6" in str(refused.value)


UNKNOWN = np.full(12, np.nan, np.float32)


@pytest.mark.parametrize(
    "odd", [made_up("a", 4, tokens=0), made_up("a", 4, confidences=UNKNOWN)], ids=["empty", "blind"]
)
def test_one_trace_of_unknown_confidence_hinders_no_policy_and_no_diagnosis(
    tmp_path: Path, odd: RecordedTrace
) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(*(made_up("a", number) for number in range(4)), odd)
        writer.append(*(made_up("b", number) for number in range(5)))
    source = PoolTraces.open(tmp_path / "pool")
    assert [trace.confidences is None for trace in source.traces("a")] == [*[False] * 4, True]
    run_trials(source, parse(["majority", "deepconf-low", "borda"], budgets=[5]), repeats=2)
    assert diagnose(source, repeats=1).questions == 2


def test_a_question_of_unknown_confidence_is_refused_to_those_who_need_it_alone(
    tmp_path: Path,
) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(*(made_up("a", number) for number in range(4)))
        writer.append(*(made_up("b", number, confidences=UNKNOWN) for number in range(4)))
        writer.append(*(made_up("c", number, tokens=0) for number in range(4)))
    source = PoolTraces.open(tmp_path / "pool")
    run_trials(source, parse(["majority", "esc"], budgets=[4]), repeats=2)
    with pytest.raises(RecordingError, match="deepconf-low@4 on question 'b': not one") as refused:
        run_trials(source, parse(["majority", "deepconf-low"], budgets=[4]), repeats=2)
    assert "such as majority" in refused.value.remedy
    # Where there is no token, none lacks its confidence.
    others = replace(source, question_ids=("a", "c"))
    run_trials(others, parse(["deepconf-low"], budgets=[4]), repeats=2)


def test_mean_log_probabilities_are_those_of_complete_traces_and_read_no_confidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        made_up("a", number, logprobs=np.full(12, -1.0 - number, np.float32)) for number in range(4)
    ]
    rows[1] = replace(rows[1], finish=FinishReason.CANCELLED)
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(*rows, made_up("a", 4, tokens=0))
    source = PoolTraces.open(tmp_path / "pool")
    monkeypatch.setattr(file.StoredPiece, "fill", None)
    np.testing.assert_allclose(source.mean_logprobs("a"), [-1.0, -3.0, -4.0, np.nan])
