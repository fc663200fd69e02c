"""The client's side of a channel, with the worker's own writer on the other side of it."""

import errno
import fcntl
import os
import stat
import struct
import sys
import time
from math import inf, isnan, nan
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.core import Message, Sampling
from conviction.engines import vllm_gate as channels
from conviction.engines.base import TraceRequest
from conviction.engines.vllm_gate import Channel, channel_for, remove_leftovers
from conviction_gate.channel import HEADER_BYTES, NAME, Writer

pytestmark = pytest.mark.anyio


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PATIENCE", 0.05)


def file_of(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_what_the_worker_writes_arrives_token_by_token(tmp_path: Path) -> None:
    channel = Channel(10, tmp_path)
    writer = Writer(channel.name, tmp_path)
    assert channel.silent
    for place, confidence in enumerate((1.5, 2.5, 3.5)):
        writer.put(place, confidence)

    assert (await channel.take(1)).tolist() == [1.5]
    assert (await channel.take(2)).tolist() == [2.5, 3.5]
    assert not channel.silent
    assert channel.notes == ()
    channel.close()


async def test_the_file_is_for_nobody_else_and_gone_with_the_trace(tmp_path: Path) -> None:
    channel = Channel(3, tmp_path)
    path = file_of(tmp_path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert NAME.fullmatch(path.name)
    channel.close()
    channel.close()

    assert names(tmp_path) == set()


async def test_late_confidences_are_waited_for(tmp_path: Path) -> None:
    channel = Channel(4, tmp_path)
    writer = Writer(channel.name, tmp_path)

    async def write_late() -> None:
        await anyio.sleep(0.05)
        writer.put(0, 7.0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_late)
        taken = await channel.take(1)

    assert taken.tolist() == [7.0]
    channel.close()


@pytest.mark.usefixtures("impatient")
async def test_what_never_comes_is_unknown_after_one_bounded_wait_and_told(tmp_path: Path) -> None:
    channel = Channel(4, tmp_path)
    writer = Writer(channel.name, tmp_path)
    began = time.perf_counter()

    with anyio.fail_after(5):
        first = await channel.take(2)
        assert time.perf_counter() - began >= 0.05
        writer.put(0, 1.0)
        writer.put(1, 2.0)
        writer.put(2, 3.0)
        # Later tokens still get their own values, not those of the ones before.
        assert (await channel.take(1)).tolist() == [3.0]
        waited = time.perf_counter()
        assert isnan((await channel.take(1))[0])
        assert time.perf_counter() - waited < 0.05  # the patience is the trace's, not the call's

    assert np.isnan(first).tolist() == [True, True]
    assert channel.notes == ("Some confidences did not arrive through the gate's channel.",)
    channel.close()


async def test_a_value_that_is_no_number_is_unknown_and_told(tmp_path: Path) -> None:
    channel = Channel(3, tmp_path)
    writer = Writer(channel.name, tmp_path)
    for place, value in enumerate((nan, inf, 4.0)):
        writer.put(place, value)

    taken = await channel.take(3)

    assert np.isnan(taken).tolist() == [True, True, False]
    [note] = channel.notes
    assert "logits were no numbers" in note
    channel.close()


async def test_a_value_that_no_confidence_can_have_is_unknown(tmp_path: Path) -> None:
    channel = Channel(3, tmp_path)
    writer = Writer(channel.name, tmp_path)
    for place, value in enumerate((-3.0, -1e-6, 0.0)):  # the second is rounding
        writer.put(place, value)

    taken = await channel.take(3)

    assert isnan(taken[0])
    assert taken[1:].tolist() == [0.0, 0.0]
    channel.close()


async def test_a_token_that_the_worker_skipped_is_unknown(tmp_path: Path) -> None:
    channel = Channel(3, tmp_path)
    Writer(channel.name, tmp_path).put(2, 5.0)

    assert np.isnan(await channel.take(3)).tolist() == [True, True, False]
    channel.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"XXXXXXXX" + bytes(100),
        struct.pack("<8sIIQ", b"CONVGATE", 3, 4, 4) + bytes(100),
        struct.pack("<8sIIQ", b"CONVGATE", 2, 9, 4) + bytes(100),
        struct.pack("<8sIIQ", b"CONVGATE", 2, 4, 2**63) + bytes(2),
    ],
    ids=["cut", "magic", "version", "capacity", "lies"],
)
async def test_a_damaged_file_costs_confidences_and_nothing_else(
    tmp_path: Path, damage: bytes
) -> None:
    channel = Channel(4, tmp_path)
    path = file_of(tmp_path)
    with path.open("r+b") as file:
        file.truncate(len(damage))
        file.write(damage)

    taken = await channel.take(3)

    assert np.isnan(taken).tolist() == [True] * 3
    channel.close()


@pytest.mark.usefixtures("impatient")
async def test_tokens_beyond_its_room_are_unknown_at_once(tmp_path: Path) -> None:
    channel = Channel(2, tmp_path)
    writer = Writer(channel.name, tmp_path)
    for place in range(4):
        writer.put(place, 1.0 + place)

    assert (await channel.take(2)).tolist() == [1.0, 2.0]
    assert np.isnan(await channel.take(2)).tolist() == [True, True]
    channel.close()


async def test_its_room_is_bounded_whatever_a_request_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "MOST_TOKENS", 8)
    channel = Channel(2**53, tmp_path)
    assert file_of(tmp_path).stat().st_size == HEADER_BYTES + 4 * 8
    channel.close()


async def test_without_room_there_is_no_channel_a_note_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int, data: bytes) -> int:
        return len(data) - 1

    monkeypatch.setattr(channels, "channel_folder", lambda: tmp_path)
    monkeypatch.setattr(os, "write", full)

    request = TraceRequest((Message("user", "Why?"),), Sampling(), top_k=20)
    channel, [note] = channel_for(request, 20)
    assert channel is None
    assert os.strerror(errno.ENOSPC) in note
    assert "in place of" not in note
    channel, [note] = channel_for(request, 5)
    assert channel is None
    assert "means of 5 log-probabilities in place of 20" in note
    assert names(tmp_path) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a lock of Linux")
async def test_a_channel_has_one_writer_at_a_time(tmp_path: Path) -> None:
    channel = Channel(4, tmp_path)
    writer = Writer(channel.name, tmp_path)
    writer.put(0, 1.0)

    with pytest.raises(ValueError, match="writer already"):
        Writer(channel.name, tmp_path)  # as of a second request that names the same channel
    writer.put(1, 2.0)
    writer.close()
    again = Writer(channel.name, tmp_path)  # of a trace that was put aside in the meantime
    again.put(2, 3.0)

    assert (await channel.take(3)).tolist() == [1.0, 2.0, 3.0]
    again.close()
    channel.close()


# --- What killed clients leave --------------------------------------------------------------------


def aged(path: Path) -> None:
    old = time.time() - 3600
    os.utime(path, (old, old))


async def test_leftovers_of_killed_clients_are_removed_and_nothing_else(tmp_path: Path) -> None:
    living = Channel(3, tmp_path)
    aged(file_of(tmp_path))
    dead, young = (tmp_path / f"conviction-{digit * 32}" for digit in "ab")
    other = tmp_path / "conviction-of-somebody-else"
    for path in (dead, young, other):
        path.write_bytes(b"x")
    aged(dead)
    aged(other)
    target = tmp_path / "target"
    target.write_bytes(b"x")
    link = tmp_path / f"conviction-{'c' * 32}"
    link.symlink_to(target)
    os.utime(link, (0, 0), follow_symlinks=False)

    assert remove_leftovers(tmp_path) == 1

    assert names(tmp_path) == {living.name, young.name, other.name, "target", link.name}
    living.close()


def test_no_folder_leaves_nothing_to_remove(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "none") == 0


async def test_a_lock_goes_with_its_channel(tmp_path: Path) -> None:
    channel = Channel(3, tmp_path)
    with file_of(tmp_path).open("r+b") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        channel.close()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- Any order of writing and reading -------------------------------------------------------------


@given(
    values=st.lists(st.floats(0.0, 100.0, width=32), max_size=30),
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30),
)
def test_however_writing_and_reading_alternate_every_token_gets_its_own_value(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[float],
    steps: list[tuple[int, int]],
) -> None:
    folder = tmp_path_factory.mktemp("channel")
    channel = Channel(max(1, len(values)), folder)
    writer = Writer(channel.name, folder)
    written = 0
    taken: list[float] = []

    async def run() -> None:
        nonlocal written
        for more, wanted in [*steps, (len(values), len(values))]:
            for place in range(written, min(written + more, len(values))):
                writer.put(place, values[place])
            written = min(written + more, len(values))
            taken.extend((await channel.take(min(wanted, written - len(taken)))).tolist())

    anyio.run(run)
    writer.close()
    channel.close()
    assert taken == values
