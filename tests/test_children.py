"""Processes that are started here: none has a key in its environment."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import anyio
import pytest
from variables import names_of_variables

from conviction.children import child_environment, secrets_hidden
from conviction.engines.local.server import LlamaServer
from conviction.lab.workers import each_question
from conviction.models import packages

KEYS = {
    "CONVICTION_API_KEY": "secret-1",
    "CONVICTION_SERVER_KEYS": "secret-2",
    "OPENAI_API_KEY": "secret-3",
    "HF_TOKEN": "secret-4",
    "AWS_SECRET_ACCESS_KEY": "secret-5",
    "db_password": "secret-6",
    "PGPASSWORD": "secret-7",
    "ACCESS_TOKENS": "secret-8",
}
OTHERS = {
    "TOKENIZERS_PARALLELISM": "false",
    "KEYBOARD": "de",
    "PIP_INDEX_URL": "http://x",
    "PWD": "/",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (KEYS | OTHERS).items():
        monkeypatch.setenv(name, value)
    yield
    assert KEYS.items() <= os.environ.items()


def test_keys_and_passwords_are_left_out_and_all_else_stays() -> None:
    assert child_environment(KEYS | OTHERS) == OTHERS
    assert OTHERS.items() <= child_environment().items()


def test_they_can_be_hidden_for_a_while_but_for_those_that_are_needed() -> None:
    with secrets_hidden("HF_"):
        assert [name for name in KEYS if name in os.environ] == ["HF_TOKEN"]
    assert KEYS.items() <= os.environ.items()


def test_the_processes_of_the_lab_have_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conviction.lab.workers.WORTHWHILE_SECONDS", 0.0)
    source: Any = SimpleNamespace(question_ids=("q1", "q2", "q3"))
    _, *found = [names for _, names in each_question(names_of_variables, source, processes=2)]
    for names in found:
        assert OTHERS.keys() <= set(names)
        assert not KEYS.keys() & set(names)


@pytest.mark.anyio
async def test_the_embedded_engine_and_pip_get_no_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[dict[str, str]] = []

    def refuse(*_: object, env: dict[str, str], **__: object) -> NoReturn:
        given.append(env)
        raise OSError("not started")

    monkeypatch.setattr(anyio, "open_process", refuse)
    server = LlamaServer(tmp_path / "model", slots=1, context=512, threads=1, timeout=5)
    with suppress(OSError):
        await server.__aenter__()
    monkeypatch.setattr("subprocess.Popen", refuse)
    with suppress(packages.SourceFailedError):
        packages._run([sys.executable], {"TMPDIR": str(tmp_path)}, 5, lambda: None)
    assert len(given) == 2
    for environment in given:
        assert OTHERS.items() <= environment.items()
        assert not KEYS.keys() & environment.keys()
