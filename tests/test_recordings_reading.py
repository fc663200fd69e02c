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
from recorded import META, made_up

from conviction.core import FinishReason
from conviction.errors import RecordingError
from conviction.lab import workers
from conviction.lab.candidates import parse
from conviction.lab.sources import PoolTraces
from conviction.lab.trials import run_trials
from conviction.lab.workers import each_question
from conviction.recordings import Pool, PoolWriter, RecordedTrace, confidences, folder, pack

MEASURE = """
import sys, tracemalloc
import pyarrow as pa
from conviction.recordings import Pool
pool = Pool.open(sys.argv[1])
pool.traces("small")  # so that modules are there already
tracemalloc.start()
traces = pool.traces("large")
arrow = pa.default_memory_pool().max_memory()
print(traces.flat.nbytes, tracemalloc.get_traced_memory()[1] + arrow)
"""


TRACES = 400


def large(number: int) -> RecordedTrace:
    """A trace of which there are many."""
    return made_up("large", number, tokens=50_000)


@pytest.mark.parametrize("packed", [False, True])
def test_reading_a_large_question_takes_little_more_than_its_confidences(
    tmp_path: Path,
    packed: bool,  # noqa: FBT001  # pytest gives it by name
) -> None:
    path = tmp_path / "pool"
    with PoolWriter(path, META, journal_bytes=1 << 24) as writer:
        writer.append(made_up("small", 0))
        # From the last to the first, so that nothing is read in the order in which it is wanted.
        for first in reversed(range(0, TRACES, 20)):
            writer.append(*(large(number) for number in reversed(range(first, first + 20))))
    if packed:
        pack(Pool.open(path), tmp_path / "pool.parquet")
        path = tmp_path / "pool.parquet"
    # Arrow's memory is not Python's, so a process of its own counts both from nothing.
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True,
        check=True,
        timeout=100,
        text=True,
    )
    size, taken = map(int, found.stdout.split())
    assert size == TRACES * 50_000 * 4
    assert size <= taken < 1.5 * size


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
    with PoolWriter(place, META) as writer:
        writer.append(*rows[:in_part])
        writer.compact()
        writer.append(*rows[in_part:])
    for part in place.glob("part-*"):
        # As another program may write it: questions mixed within a row group, and torn apart.
        table = pq.read_table(part)
        mixed = np.random.default_rng(len(rows)).permutation(len(table))
        pq.write_table(table.take(mixed), part, row_group_size=rows_per_group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confidences, "_BATCH_BYTES", batch)
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
        (rewritten(at_row_6(None, FINE)), "row 6 of .*trace 3 of .* 12 tokens and 0 confidences"),
        (rewritten(lambda _: None), "row 3 of .*trace 0 of question 'b' has 12 tokens and 0"),
        (rewritten(at_row_6([np.inf, *FINE[1:]], FINE)), "row 6 of .*trace 3 .*infinite"),
        (rewritten(at_row_6([*FINE[1:], -1.0], FINE)), "row 6 of .*trace 3 .*negative"),
        (rewritten(lambda _: 1.0, pa.float32()), "confidences of type float"),
        (rewritten(at_row_6(-3, 12), column="tokens"), "trace 3 .*no count of tokens"),
        (rewritten(at_row_6(None, 12), column="tokens"), "trace 3 .*no count of tokens"),
        (rewritten(at_row_6(1 << 60, 12), column="tokens"), "row 6 of .*1152921504606846976 tok"),
    ],
)
def test_bad_confidences_are_refused_naming_file_row_and_trace(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    with PoolWriter(tmp_path, META) as writer:
        writer.append(*(made_up(question, number) for question, number in product("ab", (0, 1))))
        writer.compact()
        writer.append(*(made_up("b", number) for number in range(2, 6)))
        writer.compact()
    tables = [pq.read_table(part) for part in sorted(tmp_path.glob("part-*"))]
    table = change(pa.concat_tables(tables))
    path = tmp_path / "whole.parquet"
    pq.write_table(table.replace_schema_metadata(tables[0].schema.metadata), path, row_group_size=3)
    with pytest.raises(RecordingError, match=f"(?s){message}") as refused:
        Pool.open(path).traces("b")
    assert str(path) in str(refused.value)


def test_a_pool_of_answers_that_has_confidences_is_refused(tmp_path: Path) -> None:
    with PoolWriter(tmp_path, replace(META, top_k=0)) as writer:
        writer.append(*(made_up("a", number, confidences=None) for number in range(4)))
        writer.compact()
    part = tmp_path / "part-000000.parquet"
    pq.write_table(rewritten(lambda row: [1.0] if row == 2 else None)(pq.read_table(part)), part)
    with pytest.raises(RecordingError, match=r"row 3 of .*has confidences, and the pool's k is 0"):
        Pool.open(tmp_path).traces("a")


FEWEST = 5
"""Traces of each question that are there when reading begins."""


def fewest(place: Path) -> int:
    """Traces of the question that has fewest."""
    questions = Pool.open(place).questions
    complete = len(questions) == len(endless_recording.QUESTIONS)
    return min(question.traces for question in questions) if complete else 0


@contextmanager
def endless_recording_into(place: Path, journal_bytes: int) -> Iterator[None]:
    """Somebody else who records, and makes parts of it, as long as the block lasts."""
    command = [sys.executable, endless_recording.__file__, str(place), str(journal_bytes)]
    with subprocess.Popen(command) as writer:
        try:
            deadline = time.monotonic() + 30
            while not (place / "part-000002.parquet").exists() or fewest(place) < FEWEST:
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


@pytest.mark.parametrize("journal_bytes", [1, 3000])
def test_several_processes_read_what_was_there_when_the_pool_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal_bytes: int
) -> None:
    monkeypatch.setattr(workers, "WORTHWHILE_SECONDS", 0.0)
    place = tmp_path / "pool"
    candidates = parse(["majority", "deepconf-low:warmup=2,window=8"], budgets=[4])
    with endless_recording_into(place, journal_bytes):
        source = PoolTraces.open(place)
        counts = {one: source.count(one) for one in source.question_ids}
        parts = len(list(place.glob("part-*")))
        read = dict(each_question(endless_recording.everything, source, processes=3))
        trials = run_trials(source, candidates, repeats=4, processes=3)
        # Else nothing was tried.
        assert len(list(place.glob("part-*"))) > parts
        assert sum(q.traces for q in Pool.open(place).questions) > sum(counts.values())
    copy = frozen(tmp_path / "copy", counts)
    assert read == dict(each_question(endless_recording.everything, copy))
    assert (trials.runs == run_trials(copy, candidates, repeats=4).runs).all()


def test_whoever_opens_a_pool_while_journals_become_parts_sees_one_moment(tmp_path: Path) -> None:
    place = tmp_path / "pool"
    seen = 0
    with endless_recording_into(place, journal_bytes=1):
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


class Looks:
    """A folder as it is seen, look after look, while a writer is at work."""

    def __init__(self, *looks: str) -> None:
        self.looks = list(looks)

    def see(self) -> Iterator[Path]:
        """The files at the next look; the last look repeats."""
        names = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        files = {"p": "part-00000{}.parquet", "j": "journal-00000{}"}
        return iter([Path(files[name[0]].format(name[1])) for name in names.split()])


@pytest.mark.parametrize(
    ("looks", "parts", "journal"),
    [
        (["p0 p1 j2"], 2, 2),
        # journal 2 became part 2 during the first look, which saw neither, or both journals
        (["p0 p1 j3", "p0 p1 p2 j3"], 3, 3),
        (["p0 p1 j2 j3", "p0 p1 p2 j3"], 3, 3),
        (["p0 p1", "p0 p1 p2 j3"], 3, 3),
        (["j1", "p0 j1"], 1, 1),
        (["p0 p1 j3", "p0 p1 p2 j4", "p0 p1 p2 p3 j4"], 4, 4),
        # nobody is at work: what is seen twice is what there is
        (["p0 p1"], 2, None),
        (["p0 p2 j3"], 2, 3),
    ],
)
def test_a_look_at_a_folder_that_was_no_moment_of_it_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, looks: list[str], parts: int, journal: int | None
) -> None:
    monkeypatch.setattr(Path, "iterdir", Looks(*looks).see)
    listing = folder.list_folder(Path("pool"))
    assert len(listing.parts) == parts
    assert (listing.journal and listing.journal[0]) == journal


def test_a_folder_that_is_wrong_at_every_look_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", Looks("p0 j1 j2").see)
    with pytest.raises(RecordingError, match="journal-000001, journal-000002 should have become"):
        folder.list_folder(Path("pool"))
    monkeypatch.setattr(Path, "iterdir", Looks(*["p0 p2", "p0 p1"] * 200).see)
    with pytest.raises(RecordingError, match="changed each time"):
        folder.list_folder(Path("pool"))


def test_a_trace_that_ended_early_is_read_and_not_played(tmp_path: Path) -> None:
    with PoolWriter(tmp_path, META) as writer:
        writer.append(made_up("a", 0), made_up("a", 1, finish=FinishReason.CANCELLED))
    assert len(Pool.open(tmp_path).traces("a")) == 2
    assert len(PoolTraces.open(tmp_path).traces("a")) == 1
