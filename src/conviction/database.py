"""Files of SQLite: how they are opened, where their log works, and what their errors mean."""

import errno
import os
import shutil
import sqlite3
import struct
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from math import isnan
from numbers import Integral, Real
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from conviction.errors import RecordingError
from conviction.files import TemporaryLock

_SECONDS_TO_WAIT = 30.0
_TRIES = 25
_LOOKS = 4
_LOG_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "orangefs", "panfs", "smb2", "smb3", "smbfs", "vboxsf"),
        "virtiofs",
    }
)


def is_database(path: Path) -> bool:
    """Whether a file is one of SQLite."""
    if not path.is_file():
        return False
    with suppress(sqlite3.Error):
        # Not read as a file: closing that would end the locks of a writer in this process.
        connection = connect(path, "mode=ro")
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.DatabaseError as error:
            return name_of(error) != "SQLITE_NOTADB"
        except UnicodeError:
            return True  # of a damaged schema, which the message quotes
        finally:
            connection.close()
        return True
    return False


def is_blank(path: Path) -> bool:
    """Whether a database holds no table: its first writer was killed before it made one.

    Raises:
        sqlite3.Error: it cannot be read.
        RecordingError: what a killed writer left is damaged.
    """
    connection = connect_reader(path)
    # A damaged list of tables may look empty; what names the kind of file does not, too.
    asked = "PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master"
    try:
        return all(connection.execute(query).fetchone() == (0,) for query in asked)
    finally:
        connection.close()


def is_unwritten(path: Path, tried: str) -> bool:
    """Whether there is no file, or one whose first writer was killed before it wrote anything.

    Raises:
        RecordingError: it cannot be read; `tried` says what is done.
    """
    if not path.exists():
        return True
    with explained(tried, path):
        return is_database(path) and is_blank(path)


def on_network(path: Path) -> bool:
    """Whether a file lies where a write-ahead log does not work: other machines may write it."""
    if os.name == "nt":
        return str(path.resolve()).startswith("\\\\")
    try:
        device = path.resolve().parent.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        place, _, system = line.partition(" - ")
        if place.split()[2] == number:
            name = system.split()[0]
            return name in _NETWORK or (name.startswith("fuse") and name != "fuseblk")
    return False


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection without transactions of Python's own; `mode` as in SQLite's file names."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=_SECONDS_TO_WAIT,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, after taking up what a killed writer left.

    Raises:
        sqlite3.Error: it cannot be read.
        RecordingError: what a killed writer left is damaged.
    """
    for tries_left in reversed(range(_TRIES)):
        _take_up(path)
        connection = connect(path, "mode=ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            if not name_of(error).startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                raise
            if not beside(path, "wal").exists() and not os.access(path.parent, os.W_OK):
                # Marked as being written, and here it cannot be.
                return connect(path, "mode=ro&immutable=1")
            if not tries_left:
                raise
            time.sleep(0.02)  # a writer that is just closing takes its files away
        else:
            return connection
    raise AssertionError


def _take_up(path: Path) -> None:
    """Make one plain file of what a killed writer left; nothing while another is at work."""
    if not beside(path, "wal").exists() and not beside(path, "journal").exists():
        return
    try:
        lock = TemporaryLock(beside(path, "lock"))
    except BlockingIOError:
        return
    except OSError:
        # Not ours to lock, so another program may be writing; what it has half written looks
        # damaged until it is done.
        for looks_left in reversed(range(_LOOKS)):
            try:
                check_log(path)
                break
            except RecordingError:
                if not looks_left:
                    raise
                time.sleep(0.05)
        return
    try:
        mend_log(path)
        connection = connect(path, "mode=rw")
        (code,) = connection.execute("PRAGMA application_id").fetchone()
        (close_plain if code >> 16 == 0x6376 else sqlite3.Connection.close)(connection)
    finally:
        lock.release()


def close_plain(connection: sqlite3.Connection) -> None:
    """Close what was written so that one plain file is left, if nobody is reading."""
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA busy_timeout = 500")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()


def check_log(path: Path) -> None:
    """Check that a write-ahead log is whole but for a last transaction that was cut short.

    SQLite takes a damaged frame for the end of the log, and drops all transactions behind it.

    Raises:
        RecordingError: a frame is damaged.
    """
    if damage := _log_damage(beside(path, "wal")):
        raise damage[1]


def mend_log(path: Path) -> None:
    """As `check_log`; a last transaction that is damaged is put aside, so that it is told once.

    After a loss of power that is all that can be wrong, and it was never reported as written.
    """
    log, kept = beside(path, "wal"), beside(path, "wal.damaged")
    if not (damage := _log_damage(log)):
        return
    size, error = damage
    remedy = error.remedy
    if size is not None:
        with suppress(OSError):
            shutil.copyfile(log, kept)
            with log.open("rb+") as file:
                file.truncate(size)
                os.fsync(file.fileno())
            remedy = (
                f"It is left out from now on, and kept in {kept}; all before it is whole. Run the "
                "same command again."
            )
    raise RecordingError(tried=error.tried, found=error.found, remedy=remedy)


def _log_damage(log: Path) -> tuple[int | None, RecordingError] | None:
    """What is wrong with a log, and its size without a damaged last transaction."""
    data = log.read_bytes() if log.exists() else b""
    if len(data) < _LOG_HEADER.size:
        return None
    magic, _, page, _, *salts, first, second = _LOG_HEADER.unpack_from(data)
    order = ">II" if magic & 1 else "<II"
    sums = _log_sums(order, data[:24], (0, 0))
    whole = sums == (first, second)
    size = _FRAME.size + (page if whole else 4096)
    frames = [data[i : i + size] for i in range(_LOG_HEADER.size, len(data) - size + 1, size)]
    if not whole and frames:
        salts = [*_FRAME.unpack_from(frames[0])[2:4]]
    kept = _LOG_HEADER.size if whole else 0
    damaged = behind = 0
    for number, frame in enumerate(frames, start=1):
        _, commit, *mine, first, second = _FRAME.unpack_from(frame)
        if whole and mine == salts:
            sums = _log_sums(order, frame[:8] + frame[_FRAME.size :], sums)
        whole = whole and mine == salts and sums == (first, second)
        if whole and commit:
            kept = _LOG_HEADER.size + number * size
        # Other salts are those of an older log, which this one overwrites; or one bit is wrong.
        if not whole and sum((a ^ b).bit_count() for a, b in zip(mine, salts, strict=True)) < 2:
            damaged += 1
            behind += commit > 0
    if not damaged:
        return None
    # Each transaction was on disk before the next one began, so only the last can be cut short.
    if behind > 1:
        found = f"it is damaged, with {behind - 1} good transactions or more behind that"
        remedy = "Restore it from a copy; or remove it, which drops all that it holds."
    else:
        found = "its last transaction is damaged, or was cut short by a loss of power"
        remedy = f"Restore it from a copy; or cut it to {kept:,} bytes, which drops what it wrote."
    error = RecordingError(tried=f"read {log}", found=found, remedy=remedy)
    return None if behind > 1 else kept, error


def _log_sums(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    """The checksum of SQLite's file format, section 4.2."""
    first, second = sums
    for one, other in struct.iter_unpack(order, data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


def beside(path: Path, what: str) -> Path:
    """A file that belongs to a database, as in "pool-wal"."""
    return path.with_name(f"{path.name}-{what}")


def as_kept(value: Any, declared: str, tried: str) -> Any:
    """A value as SQLite gives it back from a column of a type, or its checksum would never fit.

    Raises:
        RecordingError: it is NaN, which SQLite does not keep; `tried` says where.
    """
    if isinstance(value, str):
        # A model may write halves of characters, which no encoding holds.
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Real) and declared == "REAL":
        if isnan(value):
            raise RecordingError(tried=tried, found="it is NaN", remedy="Give a number.")
        return float(value) + 0.0  # no negative zero
    return int(value) if isinstance(value, Integral) else value


def checksum_of(table: str, values: Sequence[Any]) -> int:
    """CRC-32 of a row: the name of its table and its values, without null at the end."""
    plain = [len(value) if isinstance(value, bytes) else value for value in values]
    while plain and plain[-1] is None:
        plain.pop()
    found = crc32(msgspec.msgpack.encode([table, *plain]))
    for value in values:
        if isinstance(value, bytes):
            found = crc32(value, found)
    return found


def name_of(error: sqlite3.Error) -> str:
    """What SQLite calls an error; empty where it does not come from SQLite."""
    return getattr(error, "sqlite_errorname", None) or ""


def _translated(error: sqlite3.Error, tried: str, path: Path) -> RecordingError:
    name = name_of(error)
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE")):
        found = f"there is no room left on the disk, or the file may not grow ({error})"
        remedy = "Make room and run the same command again; what was reported as written is kept."
    elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        found = f"another program keeps it locked ({error})"
        remedy = "Wait for it, or name another file."
    elif name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        found = str(error)
        remedy = "Name a file that this program may use" + (
            "; this one was not closed by its writer: copy it with its -wal file to a folder that "
            "can be written."
            if beside(path, "wal").exists()
            else "."
        )
    elif name == "SQLITE_NOTADB":
        found = "it is not an SQLite file, or its beginning is damaged"
        remedy = "Check the path, or restore the file from a copy."
    elif name.startswith("SQLITE_IOERR"):
        found = f"the disk failed ({error})"
        remedy = "Check the disk, then run the same command again."
    else:
        found = f"it is damaged ({error})"
        remedy = "Restore the file from a copy."
    return RecordingError(tried=tried, found=found, remedy=remedy)


@contextmanager
def explained(tried: str, path: Path) -> Generator[None]:
    """Turn each error of SQLite and each OSError into a RecordingError that says what to do.

    `tried` is what is done with the file at `path`, as in "read the recording FILE".
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, tried, path) from None
    except (UnicodeError, OverflowError) as error:
        # Halves of characters and huge numbers do not fit; SQLite quotes a damaged schema.
        raise RecordingError(
            tried=tried,
            found=f"it is damaged, or what is written does not fit ({error})",
            remedy="Restore the file from a copy, or correct the values.",
        ) from None
    except BlockingIOError as error:
        raise RecordingError(
            tried=tried,
            found=f"another program is writing it ({error})",
            remedy="Wait for it, or name another file.",
        ) from None
    except OSError as error:
        full = error.errno in _FULL
        raise RecordingError(
            tried=tried,
            found="there is no room left on the disk" if full else error.strerror or str(error),
            remedy="Make room, or name a file that this program may use.",
        ) from None
