"""A pool survives whatever ends its writer: kill -9, a torn tail, a full disk."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from append_traces import QUESTIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from old_pools import old_pool, write_journal
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
    for known in pool.questions:
        traces = pool.traces(known.id).confidences
        assert traces is not None
        for number, values in enumerate(traces):
            np.testing.assert_array_equal(values, made_up(known.id, number).confidences)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """A journal of three appends, as earlier versions wrote it, and how long it is after each."""
    path = tmp_path_factory.mktemp("whole") / "journal-000000"
    appends = [[made_up("a", n, tokens=4) for n in numbers] for numbers in ((0,), (1, 2), (3,))]
    sizes = write_journal(path, META, *appends)
    return path.read_bytes(), sizes


@settings(max_examples=120)
@given(data=st.data())
def test_an_old_journal_cut_anywhere_keeps_every_whole_append(
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
            Pool.open(folder)
        return
    if tail and size not in sizes and size + len(tail) in sizes:
        # As long as a whole append: that one was recorded, and is damaged.
        with pytest.raises(RecordingError, match="not cut short"):
            Pool.open(folder)
        return
    if not kept:
        with pytest.raises(RecordingError, match="no recorded trace"):
            Pool.open(folder)
        return
    assert Pool.open(folder).traces("a").ids.tolist() == list(range(kept))


@pytest.mark.parametrize("offset", [1, 5, 9, 30])
def test_damage_in_the_middle_is_an_error_and_never_costs_the_traces_behind_it(
    tmp_path: Path, journal: tuple[bytes, list[int]], offset: int
) -> None:
    whole, sizes = journal
    damaged = bytearray(whole)
    damaged[sizes[1] + offset] ^= 0xFF
    path = tmp_path / "journal-000000"
    path.write_bytes(damaged)
    with pytest.raises(RecordingError, match=f"damaged at byte {sizes[1]:,}") as error:
        Pool.open(tmp_path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == damaged


def test_a_journal_of_a_newer_version_is_refused(
    tmp_path: Path, journal: tuple[bytes, list[int]]
) -> None:
    whole, _ = journal
    (tmp_path / "journal-000000").write_bytes(whole[:7] + b"\x02" + whole[8:])
    with pytest.raises(RecordingError, match="version 2") as refused:
        Pool.open(tmp_path)
    assert "Upgrade" in refused.value.remedy


def test_a_journal_that_became_a_part_does_not_count_any_more(tmp_path: Path) -> None:
    old_pool(tmp_path, [made_up("a", 0)], meta=META)
    # As if the writer was killed after it named the part, and before it removed the journal.
    (tmp_path / "journal-000001").unlink()
    write_journal(tmp_path / "journal-000000", META, [made_up("a", 0)])
    (tmp_path / "part-000001.parquet.unfinished").write_bytes(b"PAR1 and no more")
    assert len(Pool.open(tmp_path).traces("a")) == 1


def test_a_lost_part_is_noticed(tmp_path: Path) -> None:
    old_pool(tmp_path, [made_up("a", 0)], [made_up("a", 1)], meta=META)
    (tmp_path / "part-000000.parquet").rename(tmp_path / "elsewhere")
    write_journal(tmp_path / "journal-000000", META, [made_up("a", 0)])
    with pytest.raises(RecordingError, match="journal-000000"):
        Pool.open(tmp_path)


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", META) as writer:
        writer.append(made_up("a", 0))
        with pytest.raises(RecordingError, match="another program is writing it"):
            PoolWriter(tmp_path / "pool", META)
        writer.append(made_up("a", 1))
    with PoolWriter(tmp_path / "pool", META) as writer:
        assert writer.numbers("a") == {0, 1}


FILL = """
import json, resource, sys
from pathlib import Path
from old_pools import old_pool, write_journal
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
print(json.dumps([done, first]))
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
    done, first = filled(tmp_path / "pool", limit=600_000)
    check_after_it_was_full(tmp_path / "pool", done, first)


@posix
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare for a small disk")
def test_a_full_disk_keeps_every_recorded_trace(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    rescued = tmp_path / "rescued"
    script = f"""
    mount -t tmpfs -o size=600k none {small} || exit 77
    "$@" && mkdir {rescued} && cp -r {small}/pool* {rescued}
    """
    mounted = ("unshare", "--mount", "--map-root-user", "--user", "sh", "-c", script, "sh")
    try:
        done, first = filled(small / "pool", limit=0, before=mounted)
    except subprocess.CalledProcessError as error:
        if error.returncode != 77 and "unshare" not in error.stderr:
            raise
        pytest.skip(f"a small disk cannot be mounted here: {error.stderr.strip()[-80:]}")
    check_after_it_was_full(rescued / "pool", done, first)
