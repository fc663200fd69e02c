"""What a store wrote is read from it again, or an error says what is damaged."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from notebook import NEWER, NOTES, note, read, write, written

from conviction import database
from conviction.errors import InvalidSettingError, RecordingError
from conviction.store import Kind, Store, StoreWriter

OTHER = Kind("diary", 0x63760101, NOTES.steps)
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")


def test_rows_come_back_and_one_plain_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "notes"
    write(path, range(30))
    with StoreWriter(path, NOTES) as writer:
        assert {one.name for one in path.parent.iterdir()} >= {"notes", "notes-wal", "notes-lock"}
        with writer.transaction():
            assert writer.insert("notes", **note(30)) == 31
    assert [one.name for one in path.parent.iterdir()] == ["notes"]
    assert read(path) == written(range(31))
    with Store(path, NOTES) as reader:
        assert reader.find("notes", "word = ?", "ü5") == {"id": 6, **note(5)}
        assert reader.find("notes", "word = ?", "x") is None
        assert not reader.check()
        with pytest.raises(RecordingError, match="missing"):
            reader.one("notes", "id = ?", 99)


def test_a_copy_keeps_its_identity_and_another_store_has_another(tmp_path: Path) -> None:
    write(tmp_path / "a", range(1))
    write(tmp_path / "b", range(1))
    shutil.copy(tmp_path / "a", tmp_path / "c")
    identities = []
    for name in "abc":
        with Store(tmp_path / name, NOTES) as reader:
            identities.append(reader.identity)
    assert identities[0] == identities[2] != identities[1]


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "notes", NOTES) as writer:
        with pytest.raises(LookupError), writer.transaction():  # noqa: PT012
            writer.insert("notes", **note(0))
            raise LookupError
        with writer.transaction():
            writer.insert("notes", **note(0))
    assert read(tmp_path / "notes") == written(range(1))


def test_rows_are_deleted_and_ids_are_not_given_again(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    write(path, range(5))
    with StoreWriter(path, NOTES) as writer, writer.transaction():
        assert writer.delete("notes", "id >= ?", 4) == 2
        assert writer.insert("notes", **note(9)) == 6
    assert [row["id"] for row in read(path)] == [1, 2, 3, 6]


def test_a_reader_sees_one_moment_and_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with StoreWriter(path, NOTES) as writer:
        with writer.transaction():
            writer.insert("notes", **note(0))
        with Store(path, NOTES) as reader:
            with writer.transaction():
                writer.insert("notes", **note(1))
            assert list(reader.rows("notes")) == written(range(1))
        assert read(path) == written(range(2))
        with pytest.raises(RecordingError, match=f"another program.*process {os.getpid()} on"):
            StoreWriter(path, NOTES)
        with writer.transaction():
            writer.insert("notes", **note(2))
    assert read(path) == written(range(3))


def test_a_writer_that_closes_under_a_reader_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    with StoreWriter(path, NOTES) as writer:
        with writer.transaction():
            writer.insert("notes", **note(0))
        reader = Store(path, NOTES)
        with writer.transaction():
            writer.insert("notes", **note(1))
    write(path, range(2, 5))
    assert list(reader.rows("notes")) == written(range(1))
    reader.close()
    assert read(path) == written(range(5))
    write(path, range(5, 6))
    assert [one.name for one in tmp_path.iterdir()] == ["notes"]


def test_threads_share_a_writer(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "notes", NOTES) as writer:

        def add() -> None:
            for _ in range(20):
                with writer.transaction():
                    writer.insert("notes", word="x")
                    writer.insert("notes", word="y")

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [row["word"] for row in read(tmp_path / "notes")] == ["x", "y"] * 80


def test_an_older_version_is_brought_up_to_date_and_its_rows_stay(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    write(path, range(3))
    assert read(path, NEWER) == [{**row, "author": None} for row in written(range(3))]
    with StoreWriter(path, NEWER) as writer, writer.transaction():
        writer.insert("notes", **note(3), author="me")
        writer.insert("readers", name="you")
    assert read(path, NEWER)[3] == {"id": 4, **note(3), "author": "me"}
    for use in (Store, StoreWriter):
        with pytest.raises(RecordingError, match=r"version 2, and this program knows 1\. Upgrade"):
            use(path, NOTES)


@pytest.mark.parametrize("use", [Store, StoreWriter])
def test_what_is_no_such_store_is_refused_and_stays_as_it_is(
    tmp_path: Path, use: type[Store]
) -> None:
    (tmp_path / "text").write_text("hello, this is no database" * 100)
    write(tmp_path / "diary", range(1), kind=OTHER)
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE x (y)")
    other.close()
    (tmp_path / "folder").mkdir()
    before = {one: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()}
    for name, message in (
        ("text", "not an SQLite file"),
        ("diary", "SQLite file of something else"),
        ("other", "SQLite file of something else"),
    ):
        with pytest.raises(RecordingError, match=f"notebook {tmp_path / name}.*{message}"):
            use(tmp_path / name, NOTES)
    with pytest.raises(RecordingError, match="folder"):
        use(tmp_path / "folder", NOTES)
    assert {one: one.read_bytes() for one in tmp_path.iterdir() if one.is_file()} == before


def test_what_is_not_there_is_wrong_use_and_an_empty_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="nothing of that name"):
        Store(tmp_path / "nowhere", NOTES)
    (tmp_path / "empty").touch()
    with pytest.raises(RecordingError, match="it is empty"):
        Store(tmp_path / "empty", NOTES)
    assert not (tmp_path / "empty").read_bytes()
    write(tmp_path / "empty", range(2))
    assert read(tmp_path / "empty") == written(range(2))


def test_another_program_that_keeps_it_locked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_SECONDS_TO_WAIT", 0.1)
    write(tmp_path / "notes", range(2))
    with sqlite3.connect(tmp_path / "notes", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        for use in (Store, StoreWriter):
            with pytest.raises(RecordingError, match="another program keeps it locked"):
                use(tmp_path / "notes", NOTES)
    other.close()
    assert read(tmp_path / "notes") == written(range(2))


WRITE = """
import os, sys
from contextlib import closing
from math import inf, nan
from pathlib import Path
import conviction.database
from notebook import NOTES, note
from conviction.store import StoreWriter

def say(line):
    os.write(1, f"{line}\\n".encode())

if sys.argv[2] == "network":
    conviction.database.on_network = bool
for _ in sys.stdin:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        say("ended")
        continue
    say(os.getpid())
    with StoreWriter(Path(sys.argv[1]), NOTES) as writer:
        number = len(list(writer.rows("notes")))
        while True:
            with writer.transaction():
                writer.insert("notes", **note(number, 3000))
            number += 1
            say(number)
"""


def python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "support")}


@posix
@pytest.mark.parametrize("place", ["disk", "network"])
def test_kill_9_loses_nothing_that_was_told_and_doubles_nothing(tmp_path: Path, place: str) -> None:
    path = tmp_path / "notes"
    choose = random.Random(3)  # noqa: S311
    with subprocess.Popen(
        python("-c", WRITE, path, place),
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(15):
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            told = int(process.stdout.readline())
            time.sleep(choose.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            while (line := process.stdout.readline()) != "ended\n":
                told = int(line)
            found = read(path)
            # One transaction may have reached the disk without having been told.
            assert told <= len(found) <= told + 1
            assert found == written(range(len(found)), 3000)
        process.stdin.close()
    write(path, range(len(found), len(found) + 1), size=3000)
    assert [one.name for one in tmp_path.iterdir()] == ["notes"]
    with Store(path, NOTES) as reader:
        assert not reader.check()


def test_a_single_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    for first in range(0, 60, 6):
        write(path, range(first, first + 6), size=700)
    whole = path.read_bytes()
    choose = random.Random(7)  # noqa: S311
    places = [*range(100 * 8), *(choose.randrange(len(whole) * 8) for _ in range(1500))]
    found = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert read(path) == written(range(60), 700), place
        except RecordingError:
            found += 1
    assert found > 1000


@pytest.fixture
def left_behind(tmp_path: Path) -> tuple[Path, bytes]:
    """A store as a killed writer leaves it, and its log."""
    path = tmp_path / "notes"
    write(path, range(2))
    with StoreWriter(path, NOTES) as writer:
        for number in range(2, 6):
            with writer.transaction():
                writer.insert("notes", **note(number))
        copies = {name: (tmp_path / name).read_bytes() for name in ("notes", "notes-wal")}
    for name, content in copies.items():
        (tmp_path / name).write_bytes(content)
    return path, copies["notes-wal"]


def test_a_log_cut_anywhere_keeps_every_whole_transaction_and_goes_on(
    left_behind: tuple[Path, bytes],
) -> None:
    path, log = left_behind
    database_before = path.read_bytes()
    counts: list[int] = []
    for size in sorted({*range(0, len(log), 1500), len(log), *range(0, 60, 7)}):
        path.write_bytes(database_before)
        Path(f"{path}-wal").write_bytes(log[:size] + b"\xff" * (size % 3) * 20)
        found = read(path)
        assert found == written(range(len(found)))
        counts.append(len(found))
        write(path, range(len(found), 7))
        assert read(path) == written(range(7))
    assert counts == sorted(counts)
    assert set(counts) == {2, 3, 4, 5, 6}


def test_a_flipped_bit_of_a_log_never_costs_the_transactions_behind_it(
    left_behind: tuple[Path, bytes],
) -> None:
    path, log = left_behind
    database_before = path.read_bytes()
    choose = random.Random(4)  # noqa: S311
    last_two = len(log) - 9 * 4120
    found = 0
    for place in [*range(64), *(choose.randrange(last_two) for _ in range(100))]:
        for use in (Store, StoreWriter):
            damaged = bytearray(log)
            damaged[place] ^= 1 << choose.randrange(8)
            path.write_bytes(database_before)
            Path(f"{path}-wal").write_bytes(damaged)
            try:
                with use(path, NOTES) as opened:
                    assert list(opened.rows("notes")) == written(range(6)), place
            except RecordingError:
                found += 1
                assert Path(f"{path}-wal").read_bytes() == damaged
    assert found > 150


def test_a_lost_or_doubled_row_is_found(tmp_path: Path) -> None:
    for change in (
        "DELETE FROM notes WHERE id = 3",
        "UPDATE notes SET id = 9 WHERE id = 3",
        "UPDATE notes SET word = 'x' WHERE id = 3",
        "UPDATE notes SET data = NULL WHERE id = 3",
        "DELETE FROM totals",
    ):
        path = tmp_path / "notes"
        write(path, range(5))
        with sqlite3.connect(path) as other:
            other.execute(change)
        other.close()
        with pytest.raises(RecordingError, match=r"notes.*(damaged|were written)"):
            read(path)
        with Store(path, NOTES) as reader:
            assert any("table notes" in one for one in reader.check())
        path.unlink()


FILL = """
import resource, sys
from contextlib import closing
from math import inf, nan
from pathlib import Path
from notebook import NOTES, note
from conviction.errors import RecordingError
from conviction.store import StoreWriter
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
number = 0
with StoreWriter(Path(sys.argv[1]), NOTES) as writer:
    try:
        while True:
            with writer.transaction():
                writer.insert("notes", **note(number, 9000))
            number += 1
    except RecordingError as error:
        print(number, error)
"""


def check_full(path: Path, output: str) -> None:
    number, _, message = output.partition(" ")
    assert int(number) > 5
    assert "no room left on the disk" in message
    assert str(path.name) in message
    assert read(path) == written(range(int(number)), 9000)
    write(path, range(int(number), int(number) + 1), size=9000)
    assert read(path) == written(range(int(number) + 1), 9000)


@posix
def test_a_file_that_may_not_grow_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    done = subprocess.run(
        python("-c", FILL, path, 300_000),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    check_full(path, done.stdout)


@posix
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare for a small disk")
def test_a_full_disk_keeps_what_was_written_and_a_read_only_one_is_read(tmp_path: Path) -> None:
    small, kept, closed = (tmp_path / name for name in ("small", "kept", "closed"))
    for folder in (small, kept):
        folder.mkdir()
    write(closed, range(4))
    reading = (
        "from pathlib import Path; from notebook import *\n"
        "from conviction.errors import RecordingError\n"
        f"assert read(Path('{small}/closed')) == written(range(4))\n"
        f"assert len(read(Path('{small}/marked'))) == 4\n"
        f"try: write(Path('{small}/closed'), range(1))\n"
        "except RecordingError as error: print('refused:', error)"
    )
    script = f"""
    mount -t tmpfs -o size=300k none {small} || exit 77
    "$@" && cp {small}/* {kept} || exit 1
    rm {small}/* && cp {closed} {small}/closed
    cp {closed} {small}/marked && printf '\\002\\002' | dd of={small}/marked bs=1 seek=18 \
        conv=notrunc status=none
    mount -o remount,ro {small} || exit 1
    {sys.executable} -c "{reading}"
    """
    done = subprocess.run(
        [
            *("unshare", "--mount", "--map-root-user", "--user", "sh", "-c", script, "sh"),
            *python("-c", FILL, small / "notes", 0),
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()[-80:]}")
    assert not done.returncode, done.stderr
    full, _, refused = done.stdout.partition("\n")
    check_full(kept / "notes", full)
    assert refused.startswith("refused: write the notebook")
    assert "Read-only file system" in refused


def test_network_file_systems_are_known_by_their_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for system, network in (
        ("nfs4", True),
        ("cifs", True),
        ("fuse.sshfs", True),
        ("9p", True),
        ("fuseblk", False),
        ("ext4", False),
    ):
        lines = f"35 1 0:31 / /a rw - nfs4 x:/ rw\n36 1 {number} / /b rw shared:1 - {system} x rw\n"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", lambda *_, lines=lines, **__: lines)
            assert database.on_network(tmp_path / "notes") is network


def test_on_a_network_no_write_ahead_log_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "on_network", lambda _: True)
    path = tmp_path / "notes"
    write(path, range(2))
    with StoreWriter(path, NOTES) as writer:
        with Store(path, NOTES) as reader:
            assert list(reader.rows("notes")) == written(range(2))
        with writer.transaction():
            writer.insert("notes", **note(2))
        assert not (tmp_path / "notes-wal").exists()
        assert read(path) == written(range(3))


# --- Found by attacking it ------------------------------------------------------------------------


def test_a_link_leads_to_the_lock_of_its_file(tmp_path: Path) -> None:
    path, link = tmp_path / "real.db", tmp_path / "link.db"
    link.symlink_to(path)
    with (
        StoreWriter(path, NOTES),
        pytest.raises(RecordingError, match="another program is writing it"),
    ):
        StoreWriter(link, NOTES)


def test_a_file_that_is_removed_or_replaced_takes_no_more_rows(tmp_path: Path) -> None:
    path = tmp_path / "book"
    with StoreWriter(path, NOTES) as writer:
        path.rename(tmp_path / "elsewhere")
        for put in (lambda: None, lambda: path.write_bytes(b"")):
            put()
            with pytest.raises(RecordingError, match="removed or replaced"), writer.transaction():
                writer.insert("notes", **note(1))


@pytest.mark.parametrize("weight", [0, -0.0, True, np.float64(2.5), np.int64(3), inf])
def test_numbers_are_kept_as_they_come_back(tmp_path: Path, weight: float) -> None:
    path = tmp_path / "book"
    with StoreWriter(path, NOTES) as writer, writer.transaction():
        writer.insert("notes", word="half \ud800", weight=weight)
    with Store(path, NOTES) as reader:
        [row] = reader.rows("notes")
    assert (row["word"], row["weight"]) == ("half ?", weight)
    assert isinstance(row["weight"], float)


def test_nan_is_refused_before_it_makes_the_table_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "book"
    write(path, range(1))
    with (
        StoreWriter(path, NOTES) as writer,
        pytest.raises(RecordingError, match="weight: it is NaN"),
        writer.transaction(),
    ):
        writer.insert("notes", weight=nan)
    assert read(path) == written(range(1))


def test_a_damaged_index_hides_no_row(tmp_path: Path) -> None:
    path = tmp_path / "book"
    write(path, range(1))
    with closing(sqlite3.connect(path)) as file:
        (page,) = file.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_about_1'"
        ).fetchone()
        (size,) = file.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    place = data.index(b"identity", (page - 1) * size, page * size)
    data[place] ^= 1
    path.write_bytes(data)
    with Store(path, NOTES) as reader:
        assert reader.find("about", "name = 'identity'") is not None


def test_a_damaged_log_is_told_where_the_store_is_read_through_a_link(tmp_path: Path) -> None:
    path, log = tmp_path / "book", tmp_path / "book-wal"
    with StoreWriter(path, NOTES) as writer:
        for number in range(6):
            with writer.transaction():
                writer.insert("notes", **note(number, 5000))
        whole, logged = path.read_bytes(), bytearray(log.read_bytes())
    logged[len(logged) // 2] ^= 4
    killed = tmp_path / "killed"
    killed.write_bytes(whole)
    (tmp_path / "killed-wal").write_bytes(logged)
    (tmp_path / "link").symlink_to(killed)
    with pytest.raises(RecordingError, match="good transactions"):
        read(tmp_path / "link")


def test_reading_changes_no_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "places.sqlite"
    file = sqlite3.connect(path)
    file.execute("PRAGMA journal_mode = WAL")
    file.execute("CREATE TABLE places (name TEXT)")
    whole, logged = path.read_bytes(), (tmp_path / "places.sqlite-wal").read_bytes()
    file.close()
    path.write_bytes(whole)
    (tmp_path / "places.sqlite-wal").write_bytes(logged)
    with pytest.raises(RecordingError, match="something else"):
        Store(path, NOTES)
    assert path.read_bytes()[18:20] == b"\2\2"  # still in the mode that it had


def test_a_damaged_list_of_tables_does_not_look_like_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "book"
    write(path, range(3))
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA writable_schema = ON")
        file.execute("DELETE FROM sqlite_master")
        file.commit()
    assert not database.is_blank(path)
    for use in (Store, StoreWriter):
        with pytest.raises(RecordingError):
            use(path, NOTES)


def test_check_says_which_row_is_damaged_and_how_many_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "book"
    write(path, range(5))
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE notes SET word = 'x' WHERE id = 3")
        file.commit()
    with Store(path, NOTES) as reader:
        assert reader.check() == (
            "row 3 of table notes is damaged",
            "table notes holds 4 whole rows, and 5 were written",
        )


@pytest.mark.parametrize("done", [True, False])
def test_what_another_program_is_just_writing_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, done: bool
) -> None:
    with StoreWriter(tmp_path / "book", NOTES) as writer:
        with writer.transaction():
            writer.insert("notes", **note(1))
        copies = {name: (tmp_path / name).read_bytes() for name in ("book", "book-wal")}
    for name, data in copies.items():
        (tmp_path / name).write_bytes(data)
    log, whole = tmp_path / "book-wal", copies["book-wal"]
    log.write_bytes(whole[:-2000] + bytes(2000))

    def refuse(*_: object) -> None:
        raise PermissionError  # as in a folder of somebody else

    def wait(_: float) -> None:
        if done:
            log.write_bytes(whole)

    monkeypatch.setattr(database, "TemporaryLock", refuse)
    monkeypatch.setattr(time, "sleep", wait)
    if done:
        assert len(read(tmp_path / "book")) == 1
    else:
        with pytest.raises(RecordingError, match="is damaged"):
            read(tmp_path / "book")
