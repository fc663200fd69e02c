"""One file for each thing that lasts: SQLite with a checksum on every row.

A store has a kind (recording, run, …), which names its tables. One program writes it, any number
read it meanwhile. What a transaction wrote is on disk when the transaction ends, whatever happens
to the program afterwards. After `close` the store is one plain file that can be copied.

While it is written, `-wal` and `-shm` of SQLite and a `-lock` lie beside it. A program that is
killed leaves them behind; the next writer takes them up. On network file systems, where SQLite's
write-ahead log does not work, `-journal` takes the place of the first two.

Every table has a column `checksum`, which is filled in here: a CRC-32 of the table's name and all
other values of the row. The table `totals` keeps their count and sum, so that a lost row is found.
Columns that are added later allow null and stand last; null at the end changes no checksum.
"""

import errno
import os
import sqlite3
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4
from zlib import crc32

import msgspec

from conviction import database
from conviction.errors import InvalidSettingError, RecordingError
from conviction.files import TemporaryLock

Row = dict[str, Any]
"""A row by column: int, float, str, bytes or None."""

_BASE = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT, checksum INTEGER);
CREATE TABLE totals (name TEXT PRIMARY KEY, count INTEGER, sum INTEGER, last INTEGER,
                     checksum INTEGER);
"""
_PATIENCE = 0.3
"""Seconds to wait for a reader that just takes up what a killed writer left."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of store.

    Attributes:
        name: For messages, as in "recording".
        code: SQLite's application_id, unique among kinds.
        steps: SQL that brings an empty store to version 1, that to version 2, and so on.
    """

    name: str
    code: int
    steps: tuple[str, ...]


@dataclass(slots=True)
class _Total:
    """What a table holds: rows, the sum of their checksums, and the last id that was given."""

    count: int = 0
    sum: int = 0
    last: int = 0

    def add(self, checksum: int, sign: int = 1) -> None:
        self.count += sign
        self.sum = (self.sum + sign * checksum) % (1 << 32)


class Store:
    """A store that is open for reading; what it shows is one moment. Not shared by threads.

    Opening is cheap: open one for each look, and close it.

    Raises:
        InvalidSettingError: there is no such file.
        RecordingError: it is not a store of this kind, is damaged or of a newer version, or cannot
            be read.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path = path = Path(os.path.realpath(path))
        self.kind = kind
        self._names: dict[str, list[str]] = {}
        self._types: dict[tuple[str, str], str] = {}
        if path.is_dir():
            raise self._damaged("it is a folder", f"Name a {kind.name}.")
        if not path.exists():
            found = "there is nothing of that name"
            raise InvalidSettingError(tried=self._tried("read"), found=found, remedy="Check it.")
        with ExitStack() as stack:
            self._connect()
            stack.callback(self.close)
            if self._version() < len(kind.steps):
                self._connection.close()
                StoreWriter(path, kind).close()
                self._connect()
            self._check_schema()
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @property
    def identity(self) -> str:
        """A random name, given when it was made; a copy has the same."""
        return str(self.one("about", "name = 'identity'")["value"])

    def rows(self, table: str, where: str = "", *values: Any) -> Iterator[Row]:
        """Rows of a table in the order in which they were added, each checked.

        Those that meet a condition in SQL, with `values` for its question marks; without one all,
        and then none may be missing.

        Raises:
            RecordingError: a row is damaged or, without a condition, missing.
        """
        seen = _Total()
        for rowid, row, checksum in self._scan(table, where, values):
            if row is None:
                raise self._damaged(f"row {rowid} of table {table} is damaged")
            seen.add(checksum)
            yield row
        if not where and (missing := self._missing(table, seen)):
            raise self._damaged(missing[0])

    def find(self, table: str, where: str, *values: Any) -> Row | None:
        """The first row that meets a condition, or None.

        Raises:
            RecordingError: it is damaged.
        """
        return next(self.rows(table, where, *values), None)

    def one(self, table: str, where: str, *values: Any) -> Row:
        """The row that meets a condition, where there must be one.

        Raises:
            RecordingError: it is damaged or missing.
        """
        if (row := self.find(table, where, *values)) is None:
            named = f"{where} for {', '.join(map(str, values))}" if values else where
            raise self._damaged(f"a row of its table {table} is missing ({named})")
        return row

    def check(self) -> tuple[str, ...]:
        """Read everything; what is damaged, and how many rows are whole where some are not."""
        named = self.one("about", "name = 'kind'")["value"]
        problems = [] if named == self.kind.name else [f"it is marked as a {self.kind.name}"]
        for table in (None, *self._tables()):
            try:
                problems.extend(self._problems(table) if table else self._broken_pages())
            except RecordingError as error:
                problems.append(error.found)
        return tuple(problems)

    def _broken_pages(self) -> list[str]:
        with self._explained("check"):
            found = self._connection.execute("PRAGMA integrity_check").fetchall()
        return [text for (text,) in found if text != "ok"]

    def _problems(self, table: str) -> Iterator[str]:
        seen = _Total()
        for rowid, row, checksum in self._scan(table, "", ()):
            if row is None:
                yield f"row {rowid} of table {table} is damaged"
            else:
                seen.add(checksum)
        yield from self._missing(table, seen)

    def _missing(self, table: str, seen: _Total) -> list[str]:
        """What to say if rows of a table are missing."""
        total = seen if table == "totals" else self._total(table)
        if (seen.count, seen.sum) == (total.count, total.sum):
            return []
        return [f"table {table} holds {seen.count} whole rows, and {total.count} were written"]

    def _scan(
        self, table: str, where: str, values: Sequence[Any]
    ) -> Iterator[tuple[int, Row | None, int]]:
        """Row ids, rows (None if damaged) and checksums."""
        with self._explained("read"):
            names = self._columns(table)
            condition = f" WHERE {where}" if where else ""
            columns = ", ".join(names)
            # Indices have no checksums: a flipped bit in one would hide a row.
            source = f"{table} NOT INDEXED{condition}"
            query = f"SELECT rowid, checksum, {columns} FROM {source} ORDER BY rowid"  # noqa: S608
            for rowid, checksum, *found in self._connection.execute(query, values):
                whole = checksum == database.checksum_of(table, found)
                yield rowid, dict(zip(names, found, strict=True)) if whole else None, checksum

    def _columns(self, table: str) -> list[str]:
        """Columns of a table but the checksum, in the order in which they were added."""
        if table not in self._names:
            found = self._connection.execute(f"PRAGMA table_info({table})").fetchall()
            self._names[table] = [name for _, name, *_ in found if name != "checksum"]
            self._types |= {(table, name): kept for _, name, kept, *_ in found}
        return self._names[table]

    def _tables(self) -> list[str]:
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        return [name for (name,) in self._connection.execute(query)]

    def _total(self, table: str) -> _Total:
        row = self.find("totals", "name = ?", table)
        return _Total(row["count"], row["sum"], row["last"]) if row else _Total()

    def _connect(self) -> None:
        """Begin a look at one moment."""
        with self._explained("read"):
            self._connection = database.connect_reader(self.path)
            self._connection.execute("BEGIN")

    def _version(self) -> int:
        """Its version; 0 for an empty file, if it is to be written.

        Raises:
            RecordingError: it is of another kind or a newer version.
        """
        run = self._connection.execute
        with self._explained("read"):
            (code,) = run("PRAGMA application_id").fetchone()
            (version,) = run("PRAGMA user_version").fetchone()
            (tables,) = run("SELECT count(*) FROM sqlite_master").fetchone()
        if code != self.kind.code and (code or tables):
            raise self._damaged(
                "it is an SQLite file of something else",
                f"Name a {self.kind.name}, or a name that is not taken yet.",
            )
        if not version and not isinstance(self, StoreWriter):
            raise self._damaged("it is empty", f"Name a {self.kind.name}.")
        if version > len(self.kind.steps):
            found = f"its schema has version {version}, and this program knows "
            raise self._damaged(f"{found}{len(self.kind.steps)}", "Upgrade conviction.")
        return version

    def _check_schema(self) -> None:
        with self._explained("read"):
            if self.one("about", "name = 'schema'").get("value") != self._schema():
                raise self._damaged("the description of its tables is damaged")
            list(self.rows("totals"))  # each is checked

    def _schema(self) -> str:
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
        return f"{crc32(msgspec.msgpack.encode(self._connection.execute(query).fetchall())):08x}"

    def _damaged(self, found: str, remedy: str = "Restore it from a copy.") -> RecordingError:
        return RecordingError(tried=self._tried("read"), found=found, remedy=remedy)

    def _explained(self, verb: str) -> AbstractContextManager[None]:
        return database.explained(self._tried(verb), self.path)

    def _tried(self, verb: str) -> str:
        return f"{verb} the {self.kind.name} {self.path}"


class StoreWriter(Store):
    """A store that is open for writing; made if need be. Threads may share it.

    Another program that writes it is waited for up to `patience` seconds.

    Raises:
        RecordingError: another program is writing it, it is not a store of this kind, is damaged
            or of a newer version, or the disk refuses.
    """

    def __init__(self, path: Path, kind: Kind, *, patience: float = _PATIENCE) -> None:
        self.path = path = Path(os.path.realpath(path))
        self.kind = kind
        self._names = {}
        self._types = {}
        self._guard = threading.RLock()
        self._totals: dict[str, _Total] = {}
        self._opened: os.stat_result | None = None
        with self._explained("write"):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = TemporaryLock(database.beside(path, "lock"), patience)
        with ExitStack() as stack:
            stack.callback(self._lock.release)
            with self._explained("write"):
                database.mend_log(path)
                self._connection = database.connect(path, "mode=rwc")
            stack.callback(self._connection.close)
            self._upgrade()
            self._check_schema()
            with self._explained("write"):
                self._opened = path.stat()
            stack.pop_all()

    def close(self) -> None:
        """Leave one plain file, if nobody is reading; everything written is safe already."""
        database.close_plain(self._connection)
        self._lock.release()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Write several rows: all of them, durably once the block ends, or after an error none.

        Raises:
            RecordingError: the disk refuses, or the file was removed or replaced.
        """
        with self._guard, self._explained("write"):
            if not self._is_there():
                raise OSError(errno.ENOENT, "it was removed or replaced while it was written")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                for name, total in self._totals.items():
                    values = [name, total.count, total.sum, total.last]
                    self._connection.execute(
                        "INSERT OR REPLACE INTO totals VALUES (?, ?, ?, ?, ?)",
                        [*values, database.checksum_of("totals", values)],
                    )
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._totals.clear()

    def _is_there(self) -> bool:
        """Whether the opened file still has its name: what is written elsewhere is lost."""
        with suppress(FileNotFoundError):
            return self._opened is None or os.path.samestat(self._opened, self.path.stat())
        return False

    def insert(self, table: str, **values: Any) -> int:
        """Add a row, within a transaction, and return its id.

        Values are int, bool (kept as 0 or 1), float, str, bytes or None. Columns that are left out
        are null; `id`, if the table has it, is the next number.
        """
        names = self._columns(table)
        total = self._changing(table)
        if "id" in names:
            total.last = values.setdefault("id", total.last + 1)
        row = [
            database.as_kept(value, self._types[table, name], f"{self._tried('write')}, {name}")
            for name, value in values.items()
        ]
        full = dict.fromkeys(names) | dict(zip(values, row, strict=True))
        checksum = database.checksum_of(table, list(full.values()))
        marks = ", ".join("?" * (len(full) + 1))
        added = self._connection.execute(
            f"INSERT INTO {table} ({', '.join(full)}, checksum) VALUES ({marks})",  # noqa: S608
            [*full.values(), checksum],
        )
        total.add(checksum)
        return added.lastrowid or 0

    def delete(self, table: str, where: str, *values: Any) -> int:
        """Delete the rows that meet a condition, within a transaction; returns how many."""
        total = self._changing(table)
        run = self._connection.execute
        found = run(f"SELECT checksum FROM {table} WHERE {where}", values).fetchall()  # noqa: S608
        run(f"DELETE FROM {table} WHERE {where}", values)  # noqa: S608
        for (checksum,) in found:
            total.add(checksum, -1)
        return len(found)

    def _changing(self, table: str) -> _Total:
        if table not in self._totals:
            self._totals[table] = self._total(table)
        return self._totals[table]

    def _upgrade(self) -> None:
        version = self._version()
        run = self._connection.execute
        with self._explained("write"):
            run("PRAGMA synchronous = FULL")
            run("PRAGMA foreign_keys = ON")
            run(f"PRAGMA journal_mode = {'DELETE' if database.on_network(self.path) else 'WAL'}")
        if version == len(self.kind.steps):
            return
        with self.transaction():
            steps = self.kind.steps[version:]
            for statement in ";".join([*steps] if version else [_BASE, *steps]).split(";"):
                run(statement)
            run(f"PRAGMA application_id = {self.kind.code}")
            run(f"PRAGMA user_version = {len(self.kind.steps)}")
            if not version:
                self.insert("about", name="kind", value=self.kind.name)
                self.insert("about", name="identity", value=uuid4().hex)
            self.delete("about", "name = 'schema'")
            self.insert("about", name="schema", value=self._schema())
