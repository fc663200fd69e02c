"""Results as a Parquet file, for notebooks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conviction.recordings.folder import explained, finished_file
from conviction.recordings.parquet import arrow


def write_table(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per record; all of them, or after an error nothing.

    Args:
        path: The file; what was there is replaced.
        records: Plain values by name, the same names in each.

    Raises:
        MissingExtraError: pyarrow is not installed.
        RecordingError: the disk refuses.
    """
    table = arrow().Table.from_pylist([dict(record) for record in records])
    with explained(path, "write"), finished_file(path) as unfinished:
        arrow("pyarrow.parquet").write_table(table, unfinished)
