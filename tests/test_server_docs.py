"""docs/server.md and the README name what there is: options, fields, metrics, paths."""

import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from server_app import SECONDS, engine_of, served, served_in_thread

from conviction.answers import kinds
from conviction.cli import main
from conviction.server.request_schema import ConvictionOptions

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first heading this is."""
    table = DOCS.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_each_option_that_the_docs_name_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["serve", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    named = set(re.findall(r"`(?:conviction serve )?(--[a-z-]+)", DOCS))
    assert len(named) > 20
    assert named <= {*known, "--help"}


def test_each_field_of_the_conviction_object_is_told() -> None:
    assert {row[0].strip("`") for row in rows("`conviction.…`")} == set(
        ConvictionOptions.model_fields
    )


@pytest.mark.anyio
async def test_the_schema_tells_the_kinds_of_answer_and_the_total_of_tokens() -> None:
    async with served(engine_of(7), ceilings={"total_tokens": 500}) as server:
        schema = (await server.http.get("/openapi.json")).json()
    wishes = schema["components"]["schemas"]["ConvictionOptions"]["properties"]
    assert wishes["answers"]["anyOf"][0]["enum"] == list(kinds())
    assert wishes["total_tokens"]["anyOf"][0]["maximum"] == 500


@pytest.mark.anyio
async def test_each_metric_is_told_and_each_that_is_told_exists() -> None:
    async with served(engine_of(7)) as server:
        text = (await server.http.get("/metrics")).text
    there = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    there -= {name for name in there if name.endswith("_created")}
    named = [name for row in rows("metric") for name in re.findall(r"`(\w+)", row[0])]
    told = {name if name.startswith("conviction_") else f"conviction{name}" for name in named}
    assert told == there


@pytest.mark.anyio
async def test_each_path_is_told_and_each_that_is_told_exists() -> None:
    async with served(engine_of(7)) as server:
        paths = set((await server.http.get("/openapi.json")).json()["paths"])
        answers = [await server.http.get(path) for path in ("/docs", "/openapi.json")]
    told = {
        re.sub("NAME", "{model}", path) for path in re.findall(r"/v1/[\w/]+", str(rows("path")))
    }
    assert {answer.status_code for answer in answers} == {200}
    assert told | {"/health", "/metrics"} == {one for one in paths if not one.startswith("/api/")}


def test_each_status_of_a_failure_is_told() -> None:
    told = {int(row[0]) for row in rows("status")}
    with served_in_thread(engine_of(7)) as url:
        schema = httpx2.get(f"{url}/openapi.json", trust_env=False, timeout=SECONDS).json()
    responses = schema["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert told == {int(status) for status in responses} - {200}


def test_the_readmes_client_gets_a_verdict_and_a_stream() -> None:
    (example,) = re.findall(r"^```python\n(from openai .*?)^```$", README, re.MULTILINE | re.DOTALL)
    with served_in_thread(engine_of(100)) as url:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", example.replace("http://127.0.0.1:8008", url)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    text, verdict, *streamed = result.stdout.splitlines()
    assert text == "So it is. Answer: 100"
    assert verdict == "100 1.0 160"
    assert "traces begun" in streamed[0]
    assert streamed[-1] == text
