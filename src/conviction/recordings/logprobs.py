"""Log-probabilities of the tokens of recorded traces, out of an Arrow table."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.errors import RecordingError
from conviction.recordings.parquet import arrow, list_type
from conviction.recordings.schema import in_range

LOGPROB_COLUMNS = ("question_id", "trace", "tokens", "logprobs")
"""The columns that `recorded_logprobs` looks at."""


def recorded_logprobs(table: Any, place: Path) -> dict[int, NDArray[np.float32] | None]:
    """The log-probabilities of each trace by its number, float32, shape (tokens,); None without.

    Args:
        table: What `Part.read` or `to_table` gave.
        place: Where it was read, for errors.

    Raises:
        RecordingError: a value cannot be, such as a list of the wrong length.
    """
    numbers: list[int] = table.column("trace").to_pylist()
    column = table.column("logprobs").combine_chunks()
    if column.null_count == len(column):
        return dict.fromkeys(numbers)
    if column.type != list_type():
        raise _unreadable(place, f"its column 'logprobs' holds values of type {column.type}")
    present = column.is_valid().to_numpy(zero_copy_only=False)
    compute = arrow("pyarrow.compute")
    sizes = compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    tokens = table.column("tokens").to_numpy()
    wrong = np.flatnonzero(present & (sizes != tokens))
    if wrong.size:
        row = int(wrong[0])
        raise _unreadable(
            place, f"trace {numbers[row]} has {tokens[row]} tokens and {sizes[row]} of them"
        )
    # Lists that are null have no part in it.
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if not in_range(-flat):
        raise _unreadable(place, "some are infinite or positive")
    ends = np.concatenate(([0], np.cumsum(sizes))).tolist()
    return {
        number: flat[begin:end] if there else None
        for number, there, (begin, end) in zip(numbers, present, pairwise(ends), strict=True)
    }


def _unreadable(place: Path, found: str) -> RecordingError:
    return RecordingError(
        tried=f"read log-probabilities in {place}",
        found=found,
        remedy="Restore the file from a copy, or record again.",
    )
