"""Log-probabilities of the tokens of one question, some traces at a time."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conviction.recordings.confidences import PartRows
from conviction.recordings.parquet import arrow, list_type
from conviction.recordings.schema import in_range


def read_logprobs(part: PartRows) -> Iterator[NDArray[np.float32] | None]:
    """The log-probabilities of each trace, float32, shape (tokens,); None without.

    Args:
        part: The traces of one question in one part.

    Yields:
        One for each trace, in order of the file.

    Raises:
        RecordingError: a value cannot be, such as a list of the wrong length; or the file is
            damaged.
    """
    # A part from before there was this column lacks it.
    if "logprobs" not in part.part.names:
        yield from [None] * len(part.columns)
        return
    for first, lists in part.lists("logprobs"):
        yield from _values(part, first, lists)


def _values(part: PartRows, first: int, lists: Any) -> Iterator[NDArray[np.float32] | None]:
    if lists.null_count == len(lists):
        yield from [None] * len(lists)
        return
    if lists.type != list_type():
        raise part.place.unreadable(first, f"has log-probabilities of type {lists.type}")
    compute = arrow("pyarrow.compute")
    present = lists.is_valid().to_numpy(zero_copy_only=False)
    sizes = compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    tokens = part.columns.tokens[first : first + len(lists)]
    wrong = np.flatnonzero(present & (sizes != tokens))
    if wrong.size:
        row = int(wrong[0])
        found = f"has {tokens[row]} tokens and {sizes[row]} log-probabilities"
        raise part.place.unreadable(first + row, found)
    # Lists that are null have no part in it. Copied, as Arrow's memory is larger than its values.
    flat = lists.flatten().to_numpy(zero_copy_only=False).copy()
    ends = np.concatenate(([0], np.cumsum(sizes))).tolist()
    for row, (there, (begin, end)) in enumerate(zip(present, pairwise(ends), strict=True)):
        if not in_range(-flat[begin:end]):
            raise part.place.unreadable(first + row, "has infinite or positive log-probabilities")
        yield flat[begin:end] if there else None
