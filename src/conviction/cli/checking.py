"""`conviction check`: which of the files that conviction wrote are whole."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from conviction.cli import ExitCode
from conviction.cli.progress import counted, messages
from conviction.cli.terminal import shown
from conviction.database import connect_reader, explained, is_blank, is_database
from conviction.engines.openai.facts import FACTS
from conviction.errors import ConvictionError, InvalidSettingError, RecordingError
from conviction.evaluation.stored import RUN, read_run
from conviction.files import expanded
from conviction.history import HISTORY
from conviction.models.cache import VERIFIED, Watcher, beside, read_note
from conviction.models.fetch import sha256_of
from conviction.recordings import Pool
from conviction.recordings.file import RECORDING
from conviction.recordings.footer import sealed_checksums
from conviction.store import Store

_KINDS = {kind.code: kind for kind in (RECORDING, RUN, HISTORY, FACTS)}
_UNPROTECTED = "it carries no checksums, so altered values are not noticed"


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in one file.

    Attributes:
        held: What it holds, as in "a recording of 48 traces".
        problems: What is damaged; empty if nothing is.
        note: What the reader should know although nothing is damaged.
    """

    held: str = ""
    problems: tuple[str, ...] = ()
    note: str = ""


def check(*files: Path, quiet: Annotated[bool, Parameter(alias="-q", negative="")] = False) -> int:
    """Read files to their ends and say what is damaged; exit code 1 if anything is.

    For recordings, exported ones too, evaluation runs, the history, and model files in the cache.

    Args:
        files: The files, or folders of earlier versions.
        quiet: Nothing on stderr but what is damaged.
    """
    if not files:
        raise InvalidSettingError(
            tried="check files",
            found="none is named",
            remedy="Name what `record`, `eval` or the history keeps: conviction check pool.db",
        )
    places = [expanded(file) for file in files]
    for place in places:
        if not place.exists():
            raise InvalidSettingError(
                tried=f"check {place}",
                found="there is nothing of that name",
                remedy="Correct the path.",
            )
    console, whole = messages(quiet=False), True
    for place in places:
        name = shown(place)
        try:
            found = checked(place)
        except ConvictionError as error:
            found = Checked(problems=(error.problem,))
        for problem in found.problems:
            console.print(f"[red]damaged:[/] {name}: {shown(problem)}")
        if not found.problems and not quiet:
            note = f"; {found.note}" if found.note else ""
            console.print(f"whole: {name}, {shown(found.held)}{note}.")
        whole = whole and not found.problems
    return 0 if whole else ExitCode.FAILED


def checked(path: Path) -> Checked:
    """Read a file or a folder to its end.

    Raises:
        ConvictionError: it is damaged so much that it cannot be opened, or it is something else.
    """
    if path.is_dir() and (path / "run.json").exists():
        results = len(read_run(path).results)
        return Checked(f"a run of {counted(results, 'question')}", note=_UNPROTECTED)
    if path.is_file() and is_database(path):
        return _store(path)
    if path.suffix.lower() == ".gguf":
        return _model(path)
    pool = Pool.open(path)
    return Checked(_traces(pool), pool.check(), "" if _is_protected(path) else _UNPROTECTED)


def _store(path: Path) -> Checked:
    with explained(f"read {path}", path):
        if is_blank(path):
            return Checked("an empty file: nothing was written, or all of it is lost")
    with explained(f"read {path}", path), closing(connect_reader(path)) as connection:
        (code,) = connection.execute("PRAGMA application_id").fetchone()
    if code not in _KINDS:
        raise RecordingError(
            tried=f"read {path}",
            found="it is an SQLite file of something else, or its beginning is damaged",
            remedy="Name a recording, a run or a history; or restore the file from a copy.",
        )
    with Store(path, _KINDS[code]) as store:
        problems = store.check()
    if problems or code != RECORDING.code:
        return Checked(f"a {_KINDS[code].name}", problems)
    pool = Pool.open(path)
    return Checked(_traces(pool), pool.check())


def _traces(pool: Pool) -> str:
    traces = sum(question.traces for question in pool.questions)
    return f"a recording of {counted(traces, 'trace')}"


def _is_protected(path: Path) -> bool:
    if not path.is_dir():
        return sealed_checksums(path) is not None
    return all(sealed_checksums(part) is not None for part in path.glob("part-*.parquet"))


def _model(path: Path) -> Checked:
    known = read_note(beside(path, VERIFIED)).get("sha256")
    found = sha256_of(path, path.name, Watcher())
    if not isinstance(known, str):
        return Checked("a model file", note=f"its sha256 is {found}, and no other is known")
    wrong = () if found == known else (f"its sha256 is {found}, not {known}",)
    return Checked("a model file", wrong)
