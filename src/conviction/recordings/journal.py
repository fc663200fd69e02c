"""A file that finished traces are appended to, safe against an end at any moment.

    header   8 bytes: magic and version
    frame    12 bytes: a marker, size and crc32 of the payload; then the payload
    frame    …

The first payload describes the pool, each further one holds the rows of one append as
MessagePack. A frame is whole or it is not there: a tail that is cut short or that does not match
its sum was never reported as recorded, and is dropped. A bad frame with good ones behind it is no
such tail but damage, and an error.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from conviction.core import Answer, FinishReason
from conviction.errors import RecordingError
from conviction.recordings.folder import explained, sync_folder
from conviction.recordings.schema import PoolMeta, RecordedTrace, decode_meta, encode_meta

_MAGIC = b"CVJRNL\x00\x01"
_MARKER = b"\xf5\x9bTR"
_FRAME = struct.Struct("<4sII")
_FLOAT32 = np.dtype("<f4")


class _Row(msgspec.Struct, array_like=True):
    """A row as it stands in the journal; its order of fields is the format.

    Fields may be added at the end with a default: earlier readers pass over them, and later ones
    take the default where a row ends before.
    """

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


_DECODER = msgspec.msgpack.Decoder(list[_Row])
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class JournalContents:
    """What a journal holds.

    Attributes:
        meta: The pool's facts; None if the file ends before they do.
        rows: All rows, in order of recording.
        size: Bytes up to the end of the last whole frame; what lies behind does not count.
    """

    meta: PoolMeta | None
    rows: tuple[RecordedTrace, ...]
    size: int


def read_journal(path: Path) -> JournalContents:
    """Everything whole in a journal.

    Raises:
        FileNotFoundError: it is gone, because a writer made it a part.
        RecordingError: it is damaged, of a newer version, or no journal.
    """
    data = _content(path)
    # Zeros are what a disk that lost its power may leave of a write.
    if not _MAGIC.startswith(data[: len(_MAGIC)].rstrip(b"\0")):
        raise _foreign(path, data)
    meta: PoolMeta | None = None
    rows: list[RecordedTrace] = []
    end = 0
    for payload, frame_end in _frames(data, path):
        if meta is None:
            meta = decode_meta(payload, str(path))
        else:
            rows += _decoded(payload, path, len(rows))
        end = frame_end
    return JournalContents(meta, tuple(rows), end)


class Journal:
    """Appends rows to a journal; each append is durable when it returns.

    Args:
        path: A new file, or one of which `size` bytes are whole.
        meta: The pool's facts, for a new file.
        size: Bytes to keep; 0 for a new file.

    Raises:
        RecordingError: the disk refuses.
    """

    def __init__(self, path: Path, meta: PoolMeta, size: int = 0) -> None:
        self.path = path
        self._broken = False
        with explained(path, "write"):
            self._file: BinaryIO = path.open("r+b" if path.exists() else "x+b", buffering=0)
            try:
                self._file.truncate(size)
                self._file.seek(size)
                self.size = size
                if not size:
                    self._write(_MAGIC + _framed(encode_meta(meta)))
                    sync_folder(path.parent)
            except BaseException:
                self._file.close()
                raise

    def append(self, rows: Sequence[RecordedTrace]) -> None:
        """Add rows, all of them or, after an error, none.

        Raises:
            RecordingError: the disk refuses.
        """
        with explained(self.path, "write"):
            self._write(_framed(_ENCODER.encode([_encoded(row) for row in rows])))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        if self._broken:
            raise RecordingError(
                tried=f"write the recording {self.path}",
                found="the disk failed before, and may not have kept what was written",
                remedy="Check the disk, then run the same command again.",
            )
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except BaseException:
            self._take_back()
            raise
        self.size += len(data)

    def _take_back(self) -> None:
        """Cut off what a failed write left behind."""
        try:
            self._file.truncate(self.size)
            self._file.seek(self.size)
            os.fsync(self._file.fileno())
        except OSError:
            self._broken = True


def _content(path: Path) -> bytes:
    try:
        with explained(path, "read"):
            return path.read_bytes()
    except RecordingError:
        if not path.exists():
            raise FileNotFoundError(path) from None
        raise


def _foreign(path: Path, data: bytes) -> RecordingError:
    newer = len(data) >= len(_MAGIC) and data.startswith(_MAGIC[:-1])
    return RecordingError(
        tried=f"read the recording {path}",
        found=f"its format has version {data[len(_MAGIC) - 1]}, and this program knows {_MAGIC[-1]}"
        if newer
        else "it is no journal of a pool",
        remedy="Upgrade conviction." if newer else "Put the folder back as it was.",
    )


def _framed(payload: bytes) -> bytes:
    return _FRAME.pack(_MARKER, len(payload), crc32(payload)) + payload


def _frames(data: bytes, path: Path) -> Iterator[tuple[bytes, int]]:
    """Each whole frame's payload and where it ends, up to a torn tail."""
    position = len(_MAGIC)
    while (payload := _payload_at(data, position)) is not None:
        position += _FRAME.size + len(payload)
        yield payload, position
    if _frame_behind(data, position):
        raise RecordingError(
            tried=f"read the recording {path}",
            found=f"it is damaged at byte {position:,}, with good traces behind that",
            remedy=f"Restore {path.name} from a copy; or cut it to {position:,} bytes, which "
            "drops the traces from there on, and record again.",
        )


def _payload_at(data: bytes, position: int) -> bytes | None:
    body = position + _FRAME.size
    if body > len(data):
        return None
    marker, size, expected = _FRAME.unpack_from(data, position)
    if marker != _MARKER or not size or body + size > len(data):
        return None
    payload = data[body : body + size]
    return payload if crc32(payload) == expected else None


def _frame_behind(data: bytes, position: int) -> bool:
    """Whether there is a good frame behind a bad one."""
    while (position := data.find(_MARKER, position + 1)) >= 0:
        if _payload_at(data, position) is not None:
            return True
    return False


def _encoded(row: RecordedTrace) -> _Row:
    return _Row(
        question_id=row.question_id,
        number=row.number,
        prompt_hash=row.prompt_hash,
        question=row.question,
        gold=row.gold,
        seed=row.seed,
        text=row.text,
        answer=row.answer.text if row.answer else None,
        key=row.answer.key if row.answer else None,
        correct=row.correct,
        finish=row.finish,
        tokens=row.tokens,
        prompt_tokens=row.prompt_tokens,
        lost_tokens=row.lost_tokens,
        started=row.started,
        ended=row.ended,
        confidences=_bytes(row.confidences),
        logprobs=_bytes(row.logprobs),
    )


def _bytes(values: NDArray[np.float32] | None) -> bytes | None:
    return None if values is None else values.astype(_FLOAT32, copy=False).tobytes()


def _values(data: bytes | None) -> NDArray[np.float32] | None:
    return None if data is None else np.frombuffer(data, _FLOAT32)


def _decoded(payload: bytes, path: Path, first: int) -> list[RecordedTrace]:
    try:
        return [_trace(row) for row in _DECODER.decode(payload)]
    except (msgspec.DecodeError, ValueError) as error:
        raise RecordingError(
            tried=f"read the recording {path}",
            found=f"row {first + 1} or one behind it is unreadable ({error})",
            remedy="Restore the file from a copy, or record again.",
        ) from None


def _trace(row: _Row) -> RecordedTrace:
    return RecordedTrace(
        question_id=row.question_id,
        number=row.number,
        prompt_hash=row.prompt_hash,
        question=row.question,
        gold=row.gold,
        seed=row.seed,
        text=row.text,
        answer=None if row.answer is None else Answer(row.answer, row.key or row.answer),
        correct=row.correct,
        finish=row.finish,
        tokens=row.tokens,
        prompt_tokens=row.prompt_tokens,
        lost_tokens=row.lost_tokens,
        started=row.started,
        ended=row.ended,
        confidences=_values(row.confidences),
        logprobs=_values(row.logprobs),
    )
