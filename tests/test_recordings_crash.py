"""A pool survives whatever ends its writer: kill -9, a torn tail, a full disk."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import pytest
from append_traces import QUESTIONS
from conviction.recordings.journal import read_journal
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import META, made_up

from conviction.errors import RecordingError
from conviction.recordings import Pool, PoolWriter

SUPPORT = Path(__file__).parent / "support"
KILLS = 25
SECONDS = 14.0

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[tuple[IO[str], IO[str]]]:
    """Standard input and output of a program that starts writers for the pool in tmp_path."""
    with subprocess.Popen(
        [sys.executable, SUPPORT / "append_traces.py", tmp_path / "pool"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdin, process.stdout
        finally:
            process.kill()


def told(output: IO[str]) -> tuple[str, str]:
    """The next line of the program, in two words."""
    first, _, second = output.readline().rstrip("\n").partition(" ")
    assert first, "the program has ended"
    return first, second


@posix
def test_kill_9_at_any_moment_loses_no_recorded_trace_and_doubles_none(
    tmp_path: Path, writers: tuple[IO[str], IO[str]]
) -> None:
    start, output = writers
    choose = random.Random(5)  # noqa: S311
    recorded: dict[str, int] = dict.fromkeys(QUESTIONS, 0)
    until = time.monotonic() + SECONDS
    kills = 0
    while kills < KILLS and time.monotonic() < until:
        start.write("\n")
        start.flush()
        word, pid = told(output)
        assert word == "pid"
        question, number = told(output)  # the pool could be continued
        assert question in recorded
        recorded[question] = max(recorded[question], int(number) + 1)
        time.sleep(choose.uniform(0, 0.03))
        os.kill(int(pid), signal.SIGKILL)
        kills += 1
        while (line := told(output))[0] != "ended":
            recorded[line[0]] = int(line[1]) + 1
        pool = Pool.open(tmp_path / "pool")
        for known in pool.questions:
            traces = pool.traces(known.id)
            assert traces.ids.tolist() == list(range(len(traces)))
            # One append may have reached the disk without being acknowledged.
            assert 0 <= len(traces) - recorded[known.id] <= 1
            recorded[known.id] = len(traces)
    assert kills >= 5
    assert len(list((tmp_path / "pool").glob("part-*.parquet"))) > 1
    for known in pool.questions:
        traces = pool.traces(known.id).confidences
        assert traces is not None
        for number, values in enumerate(traces):
            np.testing.assert_array_equal(values, made_up(known.id, number).confidences)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """A journal of three appends, and how long it is after each."""
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "journal-000000"
    with PoolWriter(folder, META) as writer:
        sizes = [path.stat().st_size]
        for numbers in ((0,), (1, 2), (3,)):
            writer.append(*(made_up("a", number, tokens=4) for number in numbers))
            sizes.append(path.stat().st_size)
    return path.read_bytes(), sizes


@settings(max_examples=120)
@given(data=st.data())
def test_a_journal_cut_anywhere_keeps_every_whole_append_and_goes_on(
    data: st.DataObject,
    journal: tuple[bytes, list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    whole, sizes = journal
    size = data.draw(st.integers(0, len(whole)))
    tail = data.draw(st.sampled_from([b"", bytes(40), b"\xff" * 40]))
    folder = tmp_path_factory.mktemp("torn")
    (folder / "journal-000000").write_bytes(whole[:size] + tail)
    kept = [0, 1, 3, 4][max(sum(size >= end for end in sizes) - 1, 0)]
    if 0 <= size < 8 and tail.startswith(b"\xff"):
        with pytest.raises(RecordingError, match=r"no journal|version 255"):
            PoolWriter(folder, META)
        return
    with PoolWriter(folder, META) as writer:
        assert writer.numbers("a") == set(range(kept))
        writer.append(made_up("a", kept, tokens=4))
    traces = Pool.open(folder).traces("a")
    assert traces.ids.tolist() == list(range(kept + 1))


def test_nothing_is_left_of_a_torn_append_behind_a_shorter_one(
    tmp_path: Path, journal: tuple[bytes, list[int]]
) -> None:
    whole, sizes = journal
    path = tmp_path / "journal-000000"
    # What was torn holds whole traces further on, as after a copy of which a piece is missing.
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("long", 0, tokens=400))
    torn = path.read_bytes()[sizes[0] : -1]
    path.write_bytes(whole[: sizes[1]] + torn)
    with PoolWriter(tmp_path / "pool", META) as writer:
        assert path.stat().st_size == sizes[1]
        writer.append(made_up("a", 1, tokens=1))
        size = path.stat().st_size
    assert size < sizes[1] + len(torn)
    assert read_journal(path).size == size
    assert Pool.open(tmp_path / "pool").traces("a").ids.tolist() == [0, 1]


class FailsOnce:
    """A file whose next write fails, after some of it was written."""

    def __init__(self, file: BinaryIO, kept: int) -> None:
        self._file = file
        self._kept = kept
        self._failed = False

    def write(self, data: memoryview) -> int:
        """Write all but the first time."""
        if self._failed:
            return self._file.write(data)
        self._failed = True
        self._file.write(data[: self._kept])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("kept", [0, 1, 30, 1 << 20])
def test_an_append_that_failed_leaves_nothing_and_the_same_writer_goes_on(
    tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "journal-000000"
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 0))
        size = path.stat().st_size
        file = writer._journal._file
        writer._journal._file = FailsOnce(file, kept)  # type: ignore[assignment]
        with pytest.raises(RecordingError, match="no room left"):
            writer.append(made_up("a", 1, tokens=50))
        assert path.stat().st_size == size
        assert Pool.open(tmp_path / "pool").traces("a").ids.tolist() == [0]
        writer.append(made_up("a", 2))
        assert Pool.open(tmp_path / "pool").traces("a").ids.tolist() == [0, 2]
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 1))
    assert Pool.open(tmp_path / "pool").traces("a").ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("offset", [1, 5, 9, 30])
def test_damage_in_the_middle_is_an_error_and_never_costs_the_traces_behind_it(
    tmp_path: Path, journal: tuple[bytes, list[int]], offset: int
) -> None:
    whole, sizes = journal
    damaged = bytearray(whole)
    damaged[sizes[1] + offset] ^= 0xFF
    path = tmp_path / "journal-000000"
    path.write_bytes(damaged)
    for use in (lambda: Pool.open(tmp_path / "pool"), lambda: PoolWriter(tmp_path / "pool", META)):
        with pytest.raises(RecordingError, match=f"damaged at byte {sizes[1]:,}") as error:
            use()
        assert str(path) in str(error.value)
    assert path.read_bytes() == damaged


def test_a_journal_of_a_newer_version_is_refused(
    tmp_path: Path, journal: tuple[bytes, list[int]]
) -> None:
    whole, _ = journal
    (tmp_path / "journal-000000").write_bytes(whole[:7] + b"\x02" + whole[8:])
    with pytest.raises(RecordingError, match="version 2") as refused:
        Pool.open(tmp_path / "pool")
    assert "Upgrade" in refused.value.remedy


def test_a_journal_that_became_a_part_does_not_count_any_more(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 0))
        before = (tmp_path / "journal-000000").read_bytes()
    # As if the writer was killed after it named the part, and before it removed the journal.
    (tmp_path / "journal-000000").write_bytes(before)
    (tmp_path / "journal-000001").unlink()
    assert len(Pool.open(tmp_path / "pool").traces("a")) == 1
    with PoolWriter(tmp_path / "pool", META) as writer:
        assert writer.numbers("a") == {0}
        writer.append(made_up("a", 1))
    assert not (tmp_path / "journal-000000").exists()
    assert len(Pool.open(tmp_path / "pool").traces("a")) == 2


def test_a_part_that_was_never_finished_is_not_read_and_goes_away(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 0))
    unfinished = tmp_path / "part-000000.parquet.unfinished"
    unfinished.write_bytes(b"PAR1 and no more")
    assert len(Pool.open(tmp_path / "pool").traces("a")) == 1
    with PoolWriter(tmp_path / "pool", META):
        assert not unfinished.exists()


def test_a_lost_part_is_noticed(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 0))
        kept = (tmp_path / "journal-000000").read_bytes()
        writer.append(made_up("a", 1))
    (tmp_path / "part-000000.parquet").rename(tmp_path / "elsewhere")
    (tmp_path / "journal-000000").write_bytes(kept)
    with pytest.raises(RecordingError, match="journal-000000"):
        Pool.open(tmp_path / "pool")


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 0))
        with pytest.raises(RecordingError, match="another program is recording there"):
            PoolWriter(tmp_path / "pool", META)
        writer.append(made_up("a", 1))
    with PoolWriter(tmp_path / "pool", META) as writer:
        assert writer.numbers("a") == {0, 1}


FILL = """
import json, resource, sys
from pathlib import Path
from recorded import META, made_up
from conviction.errors import RecordingError
from conviction.recordings import PoolWriter
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
done = 0
with PoolWriter(folder, META) as writer:
    try:
        while True:
            writer.append(made_up("a", done, tokens=5_000))
            done += 1
    except RecordingError as error:
        first = str(error)
    writer.append(made_up("b", 0, tokens=1))  # there is room for a little
    try:
        second = ""
    except RecordingError as error:
        second = str(error)
print(json.dumps([done, first, second]))
"""


def filled(folder: Path, *, limit: int, before: tuple[str, ...] = ()) -> list[object]:
    done = subprocess.run(
        [*before, sys.executable, "-c", FILL, str(folder), str(limit)],
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    import json

    return json.loads(done.stdout)


def check_after_it_was_full(folder: Path, done: object, first: object) -> None:
    assert isinstance(done, int)
    assert done > 3
    assert "no room left on the disk" in str(first)
    assert "Make room" in str(first)
    assert len(Pool.open(folder).traces("a")) == done
    assert len(Pool.open(folder).traces("b")) == 1
    with PoolWriter(folder, META) as writer:
        writer.append(made_up("a", done, tokens=5_000))
    traces = Pool.open(folder).traces("a").confidences
    assert traces is not None
    assert len(traces) == done + 1
    for number, values in enumerate(traces):
        np.testing.assert_array_equal(values, made_up("a", number, tokens=5_000).confidences)


@posix
def test_a_file_that_may_not_grow_any_more_keeps_every_recorded_trace(tmp_path: Path) -> None:
    # The limit of one file's size ends a write in its middle, as a full disk does.
    done, first, _ = filled(tmp_path / "pool", limit=200_000)
    check_after_it_was_full(tmp_path / "pool", done, first)


@posix
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare for a small disk")
def test_a_full_disk_keeps_every_recorded_trace(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    rescued = tmp_path / "rescued"
    script = f"""
    mount -t tmpfs -o size=200k none {small} || exit 77
    "$@" && cp -r {small}/pool {rescued}
    """
    mounted = ("unshare", "--mount", "--map-root-user", "--user", "sh", "-c", script, "sh")
    try:
        done, first, second = filled(small / "pool", limit=0, before=mounted)
    except subprocess.CalledProcessError as error:
        if error.returncode != 77 and "unshare" not in error.stderr:
            raise
        pytest.skip(f"a small disk cannot be mounted here: {error.stderr.strip()[-80:]}")
    # The part would not fit beside the journal either, and nothing was lost by trying.
    assert "no room left on the disk" in str(second)
    check_after_it_was_full(rescued, done, first)


def test_a_part_that_cannot_be_written_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 0))
        (tmp_path / "part-000000.parquet.unfinished").mkdir()
        with pytest.raises(RecordingError):
            (tmp_path / "part-000000.parquet.unfinished").rmdir()
        writer.append(made_up("a", 1))
    assert len(read_journal(tmp_path / "journal-000000").rows) == 2
    assert len(Pool.open(tmp_path / "pool").traces("a")) == 2
