"""Pools as earlier versions kept them: a folder of parts and a journal."""

import struct
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from zlib import crc32

import msgspec

from conviction.recordings import PoolMeta, RecordedTrace
from conviction.recordings.schema import encode_meta
from conviction.recordings.transfer import write_part

MAGIC = b"CVJRNL\x00\x01"


def old_pool(
    folder: Path,
    *parts: Sequence[RecordedTrace],
    meta: PoolMeta,
    journal: Sequence[RecordedTrace] = (),
) -> Path:
    """A folder with some parts, and a journal of what came after them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(parts):
        write_old_part(folder / f"part-{number:06d}.parquet", rows, meta)
    write_journal(folder / f"journal-{len(parts):06d}", meta, *([journal] if journal else []))
    return folder


def write_old_part(path: Path, rows: Sequence[RecordedTrace], meta: PoolMeta) -> None:
    """One part, sorted into questions."""
    order = list(dict.fromkeys(row.question_id for row in rows))
    rows = sorted(rows, key=lambda row: order.index(row.question_id))
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row.question_id)]
    write_part(path, groups, meta)


def write_journal(
    path: Path, meta: PoolMeta, *appends: Sequence[RecordedTrace], fields: int = 18
) -> list[int]:
    """A journal of some appends; how long it was after each. Rows have so many fields."""
    data = MAGIC + _framed(encode_meta(meta))
    sizes = [len(data)]
    for rows in appends:
        data += _framed(msgspec.msgpack.encode([_encoded(row)[:fields] for row in rows]))
        sizes.append(len(data))
    path.write_bytes(data)
    return sizes


def _framed(payload: bytes) -> bytes:
    return struct.pack("<4sII", b"\xf5\x9bTR", len(payload), crc32(payload)) + payload


def _encoded(row: RecordedTrace) -> list[object]:
    answer = row.answer
    return [
        *(row.question_id, row.number, row.prompt_hash, row.question, row.gold, row.seed, row.text),
        *((answer.text, answer.key) if answer else (None, None)),
        *(row.correct, str(row.finish), row.tokens, row.prompt_tokens, row.lost_tokens),
        *(row.started, row.ended),
        *(
            None if values is None else values.astype("<f4").tobytes()
            for values in (row.confidences, row.logprobs)
        ),
    ]
