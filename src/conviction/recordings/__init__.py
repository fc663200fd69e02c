"""Pools of recorded traces on disk: written as they finish, read a question at a time."""

from conviction.recordings.listener import recording_listener
from conviction.recordings.packing import pack
from conviction.recordings.pool import Pool, QuestionTraces
from conviction.recordings.schema import (
    SCHEMA_VERSION,
    PoolMeta,
    RecordedQuestion,
    RecordedTrace,
    prompt_hash,
)
from conviction.recordings.writer import PoolWriter

__all__ = [
    "SCHEMA_VERSION",
    "Pool",
    "PoolMeta",
    "PoolWriter",
    "QuestionTraces",
    "RecordedQuestion",
    "RecordedTrace",
    "pack",
    "prompt_hash",
    "recording_listener",
]
