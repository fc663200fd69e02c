"""Where a question comes from: the command line, a file, or standard input."""

import sys
from pathlib import Path
from typing import BinaryIO

from conviction.api import MOST_CHARACTERS, check_question
from conviction.core import InvalidSettingError

MOST_BYTES = 4 * MOST_CHARACTERS
"""No UTF-8 text of the most characters is longer."""


def read_question(argument: str | None, file: Path | None, *, as_it_is: bool = False) -> str:
    """The question: the argument, or a file's text, or standard input for the file "-" or a pipe.

    Args:
        argument: The question on the command line.
        file: The file to read, "-" for standard input.
        as_it_is: Keep white space at both ends, which has a meaning in a prompt with a template.

    Raises:
        InvalidSettingError: there is no question, there are two, or it is no usable text.
    """
    if argument is not None and file is not None:
        raise InvalidSettingError(
            tried="read the question",
            found="there is one on the command line and one in --file",
            remedy="Give only one of them.",
        )
    if file is not None and str(file) != "-":
        text = _read_file(file)
    elif argument is not None:
        text = argument
    elif file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise InvalidSettingError(
            tried="read the question",
            found="there is none",
            remedy='Ask one: conviction think "…" — or pipe it in, or use --file.',
        )
    else:
        text = _decode(_read_bounded(sys.stdin.buffer), "standard input")
    check_question(text)
    return text if as_it_is else text.strip()


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return _decode(_read_bounded(stream), str(path))
    except OSError as error:
        raise InvalidSettingError(
            tried=f"read the question from {path}",
            found=error.strerror or str(error),
            remedy="Name a text file that can be read.",
        ) from error


def _read_bounded(stream: BinaryIO) -> bytes:
    return stream.read(MOST_BYTES + 1)


def _decode(data: bytes, source: str) -> str:
    found = ""
    if len(data) > MOST_BYTES:
        found = f"it is longer than {MOST_BYTES:,} bytes"
    elif b"\0" in data:
        found = "it holds NUL bytes, so it is not text"
    if not found:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            found = f"it is not UTF-8 text (byte {error.start})"
    raise InvalidSettingError(
        tried=f"read the question from {source}",
        found=found,
        remedy="Give a question as UTF-8 text.",
    )
