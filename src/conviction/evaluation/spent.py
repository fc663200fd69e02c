"""How many tokens a run with a total has spent: one number in a file, written over in place."""

from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from conviction.errors import RecordingError


class _Content(msgspec.Struct, frozen=True):
    tokens: int


class SpentTokens:
    """The tokens of all traces of a run, also of those that no result counts.

    Programs that end before a question does, or are killed, leave nothing else of its traces.

    Args:
        path: The file; made if need be.

    Attributes:
        tokens: The number that it holds.

    Raises:
        RecordingError: the file is damaged.
        OSError: the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        data = path.read_bytes() if path.exists() else b""
        try:
            # A file of no bytes is one that a program was about to write to for the first time.
            self.tokens = msgspec.json.decode(data, type=_Content).tokens if data else 0
        except msgspec.DecodeError as error:
            raise RecordingError(
                tried=f"read {path}",
                found=f"it does not tell how many tokens were spent ({error})",
                remedy='Write what was spent into it, as in {"tokens": 1000}.',
            ) from None
        self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, tokens: int) -> None:
        """Replace the number.

        Raises:
            OSError: the disk refuses.
        """
        # As wide as any number, so that nothing is left of the one before.
        self._file.seek(0)
        self._file.write(b'{"tokens": %20d}\n' % tokens)
        self.tokens = tokens
