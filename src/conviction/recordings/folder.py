"""Pools as earlier versions kept them: a folder of Parquet files and a journal; only read.

    part-000000.parquet   finished traces
    part-000001.parquet
    journal-000002        traces since the last part

A journal of the number of a part had become that part, and does not count.

    header   8 bytes: magic and version
    frame    12 bytes: a marker, size and crc32 of the payload; then the payload
    frame    …

A journal's first payload describes the pool, each further one holds rows as MessagePack. A tail
that is cut short was never reported as recorded, and is dropped; a bad frame that is there to its
end, or with good ones behind it, is damage.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import msgspec
import numpy as np

from conviction.core import FinishReason
from conviction.database import explained
from conviction.recordings.columns import Source, row_pieces, shared_answer
from conviction.recordings.index import Index
from conviction.recordings.parquet import parquet_pieces
from conviction.recordings.schema import RecordedTrace, check_row, decode_meta, unreadable

_NAME = re.compile(r"(part-(?P<part>\d{6,})\.parquet|journal-(?P<journal>\d{6,}))")
_MAGIC = b"CVJRNL\x00\x01"
_MARKER = b"\xf5\x9bTR"
_FRAME = struct.Struct("<4sII")
_FLOAT32 = np.dtype("<f4")


class _JournalRow(msgspec.Struct, array_like=True):
    """A row as it stands in the journal; its order of fields is the format."""

    question_id: str
    number: int
    prompt_hash: str
    question: str
    gold: str | None
    seed: int
    text: str | None
    answer: str | None
    key: str | None
    correct: bool | None
    finish: FinishReason
    tokens: int
    prompt_tokens: int
    lost_tokens: int
    started: float
    ended: float
    confidences: bytes | None
    logprobs: bytes | None = None

    def trace(self) -> RecordedTrace:
        """The row as it was recorded."""
        values = msgspec.structs.asdict(self)
        values["answer"] = shared_answer(values["answer"], values.pop("key"))
        for name in ("confidences", "logprobs"):
            if values[name] is not None:
                values[name] = np.frombuffer(values[name], _FLOAT32)
        return RecordedTrace(**values)


_DECODER = msgspec.msgpack.Decoder(list[_JournalRow])


def is_pool_folder(folder: Path) -> bool:
    """Whether an earlier version recorded into a folder."""
    return any(_NAME.fullmatch(path.name) for path in folder.iterdir())


def read_folder(folder: Path, index: Index) -> list[Source]:
    """The parts and the journal of a folder; `index` takes note of what there is.

    Raises:
        RecordingError: a file is damaged, of a newer version, or does not fit the others.
    """
    parts: dict[int, Path] = {}
    journals: dict[int, Path] = {}
    with explained(f"read the pool {folder}", folder):
        for path in sorted(folder.iterdir()):
            if match := _NAME.fullmatch(path.name):
                kept, number = (
                    (parts, match["part"]) if match["part"] else (journals, match["journal"])
                )
                kept[int(number)] = path
    counting = sorted(journals.keys() - parts.keys())
    if len(counting) > 1 or (counting and counting[0] < max(parts, default=-1)):
        names = ", ".join(journals[number].name for number in counting)
        raise unreadable(
            f"the pool {folder}",
            f"{names} should have become a part before anything was recorded after it",
            "Was a file deleted or copied here? Put the folder back as it was.",
        )
    sources = [parquet_pieces(parts[number], index) for number in sorted(parts)]
    return sources + [_read_journal(journals[number], index) for number in counting]


def _read_journal(path: Path, index: Index) -> Source:
    what = f"the recording {path}"
    with explained(f"read {what}", path):
        data = path.read_bytes()
    # Zeros are what a disk that lost its power may leave of a write.
    if not _MAGIC.startswith(data[: len(_MAGIC)].rstrip(b"\0")):
        if len(data) >= len(_MAGIC) and data.startswith(_MAGIC[:-1]):
            version = data[len(_MAGIC) - 1]
            found = f"its format has version {version}, and this program knows {_MAGIC[-1]}"
            raise unreadable(what, found, "Upgrade conviction.")
        raise unreadable(what, "it is no journal of a pool", "Put the folder back as it was.")
    rows: list[RecordedTrace] = []
    payloads = _payloads(data, path)
    if (first := next(payloads, None)) is not None:
        meta = decode_meta(first, str(path))
        index.use_meta(meta, str(path))
        for payload in payloads:
            for row in _decoded(payload, what, len(rows)):
                check_row(row, meta)
                rows.append(row)
                index.add_row(row, f"row {len(rows)} of {path}")
    return row_pieces(rows)


def _payloads(data: bytes, path: Path) -> Iterator[bytes]:
    """Each whole frame's payload, up to a torn tail."""
    position = len(_MAGIC)
    while (payload := _payload_at(data, position)) is not None:
        position += _FRAME.size + len(payload)
        yield payload
    behind, found = position, ""
    if _is_damaged(data, position):
        found = "and it is not cut short there"
    while not found and (behind := data.find(_MARKER, behind + 1)) >= 0:
        if _payload_at(data, behind) is not None:
            found = "with good traces behind that"
    if found:
        raise unreadable(
            f"the recording {path}",
            f"it is damaged at byte {position:,}, {found}",
            f"Restore {path.name} from a copy; or cut it to {position:,} bytes, which drops "
            "the traces from there on.",
        )


def _is_damaged(data: bytes, position: int) -> bool:
    """Whether a bad frame at the end is there whole, but for some bits: it was recorded once."""
    body = position + _FRAME.size
    if body >= len(data):
        return False
    marker, size, expected = _FRAME.unpack_from(data, position)
    # One of marker, size and checksum may be wrong, or the payload.
    return crc32(data[body:]) == expected or (marker == _MARKER and body + size == len(data))


def _payload_at(data: bytes, position: int) -> bytes | None:
    body = position + _FRAME.size
    if body > len(data):
        return None
    marker, size, expected = _FRAME.unpack_from(data, position)
    if marker != _MARKER or not size or body + size > len(data):
        return None
    payload = data[body : body + size]
    return payload if crc32(payload) == expected else None


def _decoded(payload: bytes, what: str, first: int) -> list[RecordedTrace]:
    try:
        return [row.trace() for row in _DECODER.decode(payload)]
    except (msgspec.DecodeError, ValueError) as error:
        found = f"row {first + 1} or one behind it is unreadable ({error})"
        raise unreadable(what, found) from None
