"""How a user names a model, in commands, in the settings file and in programs; and plug-ins."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from completion_events import STOP, event, json_answer, usage
from completion_events import stream as streamed
from plugin_path import ECHO, install
from scripted_server import Received, Step, serving

import conviction
from conviction import registry
from conviction.backends import Backend, BackendOptions, Price, backend
from conviction.backends.builtin import VLLM, Embedded, Scripted
from conviction.backends.openai import OpenAIServers
from conviction.cli.main import run
from conviction.core import Sampling
from conviction.errors import ConvictionError, InvalidSettingError, UsageError
from conviction.evaluation.stored import read_run
from conviction.models import ModelFile
from conviction.prompts import PromptStyle
from conviction.recordings import Pool

URL = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's settings file, empty."""
    path = tmp_path / "config.toml"
    path.touch()
    monkeypatch.setenv("CONVICTION_CONFIG", str(path))
    monkeypatch.setenv("CONVICTION_CACHE", str(tmp_path / "cache"))
    return path


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "model"),
    [
        (None, Embedded, None),
        ("qwen-0.5b", Embedded, "qwen-0.5b"),
        ("SMOLLM2", Embedded, "SMOLLM2"),
        ("./some/model.gguf", Embedded, "./some/model.gguf"),
        ("hf:owner/repo/file.gguf", Embedded, "hf:owner/repo/file.gguf"),
        ("https://example.org/m.gguf", Embedded, "https://example.org/m.gguf"),
        ("embedded:qwen-0.5b", Embedded, "qwen-0.5b"),
        ("vllm:owner/model", VLLM, "owner/model"),
        ("scripted", Scripted, None),
        ("scripted:other", Scripted, "other"),
    ],
)
def test_a_name_stands_for_one_engine(name: str | None, kind: type, model: str | None) -> None:
    found = backend(name)
    assert type(found) is kind
    assert found.model == model
    assert found.name == (name or "")
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301  # our own bytes


def test_with_an_address_a_name_is_the_servers() -> None:
    found = backend("qwen-0.5b", BackendOptions(base_url=[URL, URL, f"{URL}/b"], api_key="sk-hush"))
    assert isinstance(found, OpenAIServers)
    assert (found.model, found.base_url) == ("qwen-0.5b", (URL, f"{URL}/b"))
    assert [one.base_url for one in found.apart()] == [(URL,), (f"{URL}/b",)]
    assert "sk-hush" not in repr(found)


def test_a_file_and_a_backend_stand_for_themselves() -> None:
    file = ModelFile(Path("m.gguf"), "m", PromptStyle.PLAIN)
    assert backend(file).prepare().prompt_style is PromptStyle.PLAIN
    scripted = Scripted(delay=0)
    assert backend(scripted) is scripted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "scriptd"], "Did you mean 'scripted'?"),
        (["-m", "qwen-0.5"], "Did you mean 'qwen-0.5b'?"),
        (["-m", "vlm:owner/model"], "unknown engine 'vlm'. Did you mean 'vllm'?"),
        (["-m", "openai:m"], "there is no --base-url"),
        (["-m", "scripted", "--context", "9"], "--context with scripted"),
        (["-m", "scripted", "--concurrency", "9"], "there is no server"),
        (["-m", "scripted", "--slots", "0"], "slots must be at least 1"),
        (["-m", "scripted", "--delay", "-1"], "delay must be at least 0"),
        (["-m", "qwen-0.5b", "--delay", "1"], "it plays no made-up traces"),
        (["-m", "qwen-0.5b", "--context", "0"], "context must be at least 1"),
        (["--base-url", URL, "--context", "9"], "it has a context of its own"),
        (["--base-url", "127.0.0.1:9/v1"], "does not begin with http://"),
    ],
)
@pytest.mark.parametrize("command", ["think", "serve", "doctor"])
def test_a_wrong_name_or_option_is_refused_in_every_command(
    command: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"think": ["2 + 2?"], "serve": ["--port", "0"], "doctor": []}[command]
    assert run([command, *asked, *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_the_removed_option_says_what_took_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--engine", "scripted"]) == 2
    said = capsys.readouterr().err
    assert "--engine was removed" in said
    assert "-m scripted" in said


def test_slots_and_context_reach_each_engine() -> None:
    options = BackendOptions(slots=3, context=99)
    embedded = backend("qwen-0.5b", options)
    assert isinstance(embedded, Embedded)
    assert (embedded.slots, embedded.context) == (3, 99)
    assert embedded.sized(500) == embedded
    assert backend("qwen-0.5b").sized(500) == Embedded("qwen-0.5b", context=500, name="qwen-0.5b")
    vllm = backend("vllm:m", options)
    assert isinstance(vllm, VLLM)
    assert vllm.options == {"max_num_seqs": 3, "max_model_len": 99}
    assert backend(None, BackendOptions(base_url=[URL], slots=3)).traces_at_once == 3


def test_a_cluster_gives_its_resources() -> None:
    embedded = Embedded("qwen-0.5b", file=ModelFile(Path("here.gguf"), "m", PromptStyle.PLAIN))
    placed = embedded.placed({"CPU": 4})
    assert (placed.threads, placed.file) == (4, None)
    assert VLLM("m").placed({"GPU": 2}).options == {"tensor_parallel_size": 2}
    assert VLLM("m", options={"tensor_parallel_size": 1}).placed({"GPU": 2}).options == {
        "tensor_parallel_size": 1
    }


# --- Programs -------------------------------------------------------------------------------------


def test_a_program_names_a_model_as_commands_do() -> None:
    by_name = conviction.think("2 + 2?", model="scripted:a", budget=4)
    by_backend = conviction.think("2 + 2?", model=Scripted("a", delay=0), budget=4)
    assert by_name.answer == by_backend.answer
    assert by_name.engine == "scripted"
    with pytest.raises(UsageError, match="Did you mean 'scripted'"):
        conviction.think("2 + 2?", model="scriptd")


# --- The settings file ----------------------------------------------------------------------------

BIG = """
[models.big]
base_url = "URL"
model = "team/big"
api_key_env = "BIG_KEY"
price = {input = 0.4, cached_input = 0.1, output = 1.2}
headers = {X-Team = "research", X-Token = "hush-hush-hush"}
extra_body = {chat_template_kwargs = {enable_thinking = true}}
sampling = {temperature = 0.6, top_k = 20, max_tokens = 77}

[models.played]
model = "scripted:b"
sampling = {max_tokens = 5}
"""


def test_a_named_model_is_all_that_the_file_says(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.write_text(BIG.replace("URL", URL))
    monkeypatch.setenv("BIG_KEY", "sk-big")
    big = backend("big")
    assert isinstance(big, OpenAIServers)
    assert (big.name, big.model, big.base_url) == ("big", "team/big", (URL,))
    assert big.price == Price(input=0.4, output=1.2, cached_input=0.1)
    assert big.sampling == Sampling(temperature=0.6, top_k=20, max_tokens=77)
    assert big.extra_body == {"chat_template_kwargs": {"enable_thinking": True}}
    assert big.api_key == "sk-big"
    assert "hush" not in repr(big)
    assert "sk-big" not in repr(big)
    assert pickle.loads(pickle.dumps(big)) == big  # noqa: S301  # our own bytes
    played = backend("played")
    assert (type(played), played.model, played.name) == (Scripted, "b", "played")


def test_a_command_sends_what_the_named_model_says_and_flags_override_it(
    settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "So it is.\nAnswer: 100"

    def told(received: Received) -> list[Step]:
        if received.path.endswith("/models"):
            return [json_answer({"data": [{"id": "team/big"}]})]
        if "Reveal" in str(received.body):
            revealed = f"{received.headers['x-token']} {received.headers['authorization']}"
            return [json_answer({"error": {"message": revealed}}, "400 Bad Request")]
        if received.body and received.body["stream"]:
            return [streamed(event(said), STOP, usage(9, 4))]
        return [json_answer({"choices": [{"message": {"content": said}}]})]

    monkeypatch.setenv("BIG_KEY", "sk-big")
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(told)) as server,
    ):
        settings.write_text(BIG.replace("URL", server.url))
        think = ["think", "What is 12 * 12 - 44?", "-m", "big", "--budget", "2", "--json"]
        code = run([*think, "--temperature", "0.9"])
        done = capsys.readouterr()
        assert code == 0, done.err
        assert run(["think", "Reveal it.", "-m", "big", "--budget", "2"]) == 1
    assert json.loads(done.out)["answer"] == "100"
    sent = [one for one in server.requests if one.body and "12 * 12" in str(one.body)]
    assert sent
    for one in sent:
        assert one.headers["x-team"] == "research"
        assert one.headers["authorization"] == "Bearer sk-big"
        assert one.body["model"] == "team/big"
        assert one.body["chat_template_kwargs"] == {"enable_thinking": True}
        assert (one.body["temperature"], one.body["top_k"]) == (0.9, 20)
        assert one.body["max_tokens"] == 77
    answered = capsys.readouterr().err
    assert "status 400" in answered
    for secret in ("sk-big", "hush-hush-hush"):
        assert secret not in done.out + done.err + answered


WRONG = [
    ('[models.x]\nbase_ulr = "h"', "unknown key 'base_ulr'. Did you mean 'base_url'?"),
    (
        "[models.x]\nprice = {input = -1, output = 1}",
        "input price = -1.0: input price must be at least 0",
    ),
    ("[models.x]\nprice = {inputs = 1, output = 1}", "unknown key 'inputs'. Did you mean 'input'?"),
    ("[models.x]\nprice = {input = 1}", "price.output: field required"),
    ("[models.x]\nsampling = {temperature = -1}", "temperature = -1.0: temperature must be"),
    ("[models.x]\nsampling = {temprature = 1}", "Did you mean 'temperature'?"),
    (f'[models.x]\nbase_url = "{URL}"\nextra_body = {{n = 4}}', "'n' in extra_body"),
    (f'[models.x]\nbase_url = "{URL}"\nextra_body = {{stream = false}}', "'stream' in extra_body"),
    (f'[models.x]\nbase_url = "{URL}"\nextra_body = {{logprobs = 1}}', "'logprobs' in extra_body"),
    (f'[models.x]\nbase_url = "{URL}"\nheaders = {{X-A = "a\\nb"}}', "not a single line"),
    (f'[models.x]\nbase_url = "{URL}"\nheaders = {{"X A" = "a"}}', "not the name of a header"),
    (f'[models.x]\nbase_url = "{URL}"\nheaders = {{Authorization = "a"}}', "sets this header"),
    ('[models.x]\nbase_url = "127.0.0.1:9"', "does not begin with http://"),
    ("[models.x]\nbase_url = []", "base_url"),
    ('[models.x]\nmodel = "scripted"\nheaders = {X-A = "a"}', "there is no server"),
    ('[models.x]\nmodel = "scriptd"', "Did you mean 'scripted'?"),
    ('[models.x]\nmodel = "x"', "unknown model 'x'"),
    ("models = 4", "each model must be a table"),
    ("[models]\nx = 4", "each model must be a table"),
    ("[models.x]\nmodel = 'a'\n[models.x]\nmodel = 'b'", "line 3"),
    ("[models.x\n", "line 1"),
    ('[models.x]\nbase_url = "\udcff"', "not UTF-8"),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_a_wrong_settings_file_is_named_with_what_is_wrong(
    text: str, words: str, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert run(["think", "2 + 2?", "-m", "x"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    with pytest.raises(ConvictionError):
        conviction.think("2 + 2?", model="x")


@pytest.mark.parametrize("name", ["qwen-0.5b", "Qwen-0.5B", "scripted", "vllm:m"])
def test_two_models_of_one_name_are_refused(
    name: str, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.write_text(f'[models."{name}"]\nbase_url = "{URL}"\n')
    assert run(["think", "2 + 2?", "-m", name]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"[models.{name}]" in said
    assert "Rename" in said


@pytest.mark.parametrize("command", [["think", "2 + 2?"], ["policies"], ["models"]])
def test_a_settings_file_that_is_not_there_is_wrong_use(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVICTION_CONFIG", "/nope.toml")
    assert run(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "/nope.toml" in said
    assert "no such file" in said
    assert run(["--help"]) == 0


def test_a_file_with_models_leaves_the_command_models_alone(settings: Path) -> None:
    settings.write_text('[models.big]\nbase_url = "http://h/v1"\n[models.list]\njson = true\n')
    assert run(["models"]) == 0


# --- Plug-ins -------------------------------------------------------------------------------------


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Installs a package with an engine, in this process and in those that it starts."""

    def put(source: str = ECHO, entry: str = "echo = echo_engine:Echo") -> Path:
        folder = install(tmp_path / "packages", source, entry)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        registry._plugins.cache_clear()
        return folder

    monkeypatch.delitem(sys.modules, "echo_engine", raising=False)
    yield put  # type: ignore[misc]
    sys.modules.pop("echo_engine", None)
    registry._plugins.cache_clear()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"Number {i}?", "answer": "41"} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_package_brings_an_engine_to_every_command(
    plugin: Callable[..., Path],
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plugin()
    number = ["--answer", "number", "-q"]
    assert run(["think", "2 + 2?", "-m", "echo:41", *number]) == 0
    assert capsys.readouterr().out == "41\n"
    of_data = [str(questions), "-m", "echo:41", *number]
    assert run(["eval", *of_data, "-o", str(tmp_path / "run"), "--budget", "2"]) == 0
    assert [one.correct for one in read_run(tmp_path / "run").results] == [True] * 3
    assert run(["record", *of_data, "-o", str(tmp_path / "pool"), "-n", "2"]) == 0
    assert Pool.open(tmp_path / "pool").model == "41"
    capsys.readouterr()
    assert run(["doctor", "-m", "echo:41", "--json"]) == 0
    found = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert "echo 41" in found["engine"]["found"]
    assert found["trace"]["value"] == 3
    run(["doctor", "--json"])
    found = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["engine echo"]["ok"] is True
    assert "-m echo" in found["engine echo"]["found"]
    assert conviction.think("2 + 2?", model="echo:41", answers="number").answer == "41"


def test_a_package_brings_an_engine_to_the_settings_file(
    plugin: Callable[..., Path], settings: Path
) -> None:
    plugin()
    settings.write_text('[models.mine]\nmodel = "echo:7"\nsampling = {max_tokens = 9}\n')
    mine = backend("mine", BackendOptions(slots=2))
    assert (type(mine).__name__, mine.model, mine.slots) == ("Echo", "7", 2)
    assert mine.sampling == Sampling(max_tokens=9)


def test_a_package_brings_an_engine_to_the_server(plugin: Callable[..., Path]) -> None:
    import httpx2

    plugin()
    process = subprocess.Popen(
        [sys.executable, "-m", "conviction", "serve", "--port", "0", "-m", "echo:41"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        first = process.stderr.readline()
        assert "Serving 41 (echo 41)" in first
        url = first.split(" at ")[1].strip()
        asked = {"model": "41", "messages": [{"role": "user", "content": "What?"}]}
        with httpx2.Client(trust_env=False, timeout=60) as http:
            answer = http.post(f"{url}/chat/completions", json=asked)
        assert answer.json()["conviction"]["answer"] == "41"
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def Echo(): ...", "is not a subclass of"),
        ("raise RuntimeError('it broke')", "RuntimeError: it broke"),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_with_its_error(
    source: str, words: str, plugin: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plugin(source)
    assert run(["think", "2 + 2?", "-m", "echo:41"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "'echo'" in said
    assert run(["doctor", "--json"]) == 1
    (broken,) = [one for one in json.loads(capsys.readouterr().out) if one["what"] == "engine echo"]
    assert words in broken["found"]
    # What does not use it is not affected.
    assert run(["think", "2 + 2?", "-m", "scripted", "--delay", "0", "-q"]) == 0


@pytest.mark.servers
@pytest.mark.timeout(320)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_package_brings_an_engine_to_a_cluster(
    plugin: Callable[..., Path], questions: Path, tmp_path: Path
) -> None:
    folder = plugin()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "conviction", "eval", str(questions), "-m", "echo:41"),
            *("-o", str(tmp_path / "run"), "--answer", "number", "--budget", "2"),
            *("--ray", "local", "--actors", "1"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [one.answer for one in read_run(tmp_path / "run").results] == ["41"] * 3


def test_a_price_is_at_least_nothing() -> None:
    with pytest.raises(InvalidSettingError, match="output price must be at least 0"):
        Price(input=0, output=-0.1)


def test_a_backend_in_ten_lines_has_all_that_commands_need() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Small(Backend):
        def build(self) -> Any:
            raise NotImplementedError

    small = Small("m")
    assert small.prepare().sized(9).placed({"GPU": 1}) is small
    assert list(small.apart()) == [small]
    assert (small.label, small.traces_at_once) == ("m", 64)
    assert small.prompt_style is PromptStyle.STEP_BY_STEP
