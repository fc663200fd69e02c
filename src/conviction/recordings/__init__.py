"""Pools of recorded traces: written as they finish, read a question at a time."""

from conviction.recordings.file import PoolWriter
from conviction.recordings.listener import recording_listener
from conviction.recordings.pool import Pool, QuestionTraces
from conviction.recordings.schema import (
    SCHEMA_VERSION,
    PoolMeta,
    RecordedQuestion,
    RecordedTrace,
    prompt_hash,
)
from conviction.recordings.transfer import import_files, pack

__all__ = [
    "SCHEMA_VERSION",
    "Pool",
    "PoolMeta",
    "PoolWriter",
    "QuestionTraces",
    "RecordedQuestion",
    "RecordedTrace",
    "import_files",
    "pack",
    "prompt_hash",
    "recording_listener",
]
