"""`conviction doctor`: what is installed, what is cached, what works."""

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter
from rich.console import Console

from conviction.answers import kind
from conviction.cli.findings import Finding, report
from conviction.cli.server import ServerOptions
from conviction.cli.server_findings import examine
from conviction.cli.vllm_findings import examine_vllm, vllm_here
from conviction.core import Question, Sampling
from conviction.engines.local import LocalEngine, available_memory, usable_cores
from conviction.engines.vllm import VLLMEngine
from conviction.errors import ConvictionError
from conviction.models import ModelFile, cache_folder, catalogue, resolve
from conviction.policies.majority import Single
from conviction.thinking import deliberate

_SERVER = ServerOptions()


def doctor(
    *,
    json: Annotated[bool, Parameter(negative="")] = False,
    run: Annotated[bool, Parameter(negative="")] = False,
    model: Annotated[str | None, Parameter(alias="-m", group="Server")] = None,
    server: ServerOptions = _SERVER,
) -> int:
    """Show versions, cores, memory, the model cache, and what works here; or what a server does.

    Args:
        json: Print the findings as JSON on stdout.
        run: Also start the embedded engine with a cached model and generate a few tokens.
        model: The server's name for the model; default: the first that it lists. Or vllm:MODEL,
            to start vLLM in this program and see what it does.
        server: A server to look at in place of this machine.
    """
    if server.base_url:
        with Console(stderr=True).status("asking the server …"):
            return report(anyio.run(examine, server, model), json=json)
    engine = server.engine(model)  # Refuses options that make no sense without a server.
    if isinstance(engine, VLLMEngine):
        with Console(stderr=True).status("starting vLLM …"):
            return report(anyio.run(examine_vllm, engine), json=json)
    findings = [*_versions(), *_machine(), *_extras(), *_cache()]
    if run:
        findings.append(_try_engine())
    return report(findings, json=json)


def _versions() -> list[Finding]:
    return [
        Finding("conviction", version("conviction")),
        Finding("Python", f"{platform.python_version()} ({sys.executable})"),
        Finding("system", f"{platform.system()} {platform.machine()}"),
    ]


def _machine() -> list[Finding]:
    memory = available_memory()
    return [
        Finding("cores", str(usable_cores())),
        Finding("free memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"),
    ]


def _extras() -> list[Finding]:
    return [
        _extra("embedded engine", "xllamacpp", "xllamacpp", "local"),
        _extra("formulas compared", "math-verify", "math_verify", "math"),
        vllm_here(),
    ]


def _extra(what: str, package: str, module: str, extra: str) -> Finding:
    remedy = f'pip install "conviction[{extra}]"'
    if find_spec(module) is None:
        return Finding(what, f"{package} is not installed", ok=False, remedy=remedy)
    try:
        return Finding(what, f"{package} {version(package)}", ok=True)
    except PackageNotFoundError:
        return Finding(what, f"{package} of unknown version", ok=True)


def _cache() -> list[Finding]:
    return [_writable(cache_folder()), *(_cached(model.name) for model in catalogue().models)]


def _writable(folder: Path) -> Finding:
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        return Finding(
            "model cache",
            f"{folder}: {error.strerror}",
            ok=False,
            remedy="Set CONVICTION_CACHE to a folder that you can write to.",
        )
    return Finding("model cache", str(folder), ok=True)


def _cached(name: str) -> Finding:
    try:
        resolve(name, fetch=False)
    except ConvictionError:
        return Finding(f"  {name}", "not fetched")
    return Finding(f"  {name}", "ready", ok=True)


def _try_engine() -> Finding:
    what = "a trace on the embedded engine"
    for model in catalogue().models:
        try:
            file = resolve(model.name, fetch=False)
        except ConvictionError:
            continue
        try:
            return anyio.run(_generate, file)
        except ConvictionError as error:
            return Finding(what, error.found, ok=False, remedy=error.remedy)
    return Finding(what, "no model is cached", ok=False, remedy="Run: conviction models pull")


async def _generate(model: ModelFile) -> Finding:
    began = time.perf_counter()
    async with LocalEngine(model.path) as engine:
        loaded = time.perf_counter() - began
        verdict = await deliberate(
            Question.ask("Count from one to ten."),
            engine=engine,
            policy=Single(),
            answers=kind("text"),
            sampling=Sampling(max_tokens=24),
            time_limit=60,
        )
    trace = verdict.traces[0]
    rate = trace.tokens / max(trace.ended - trace.started, 1e-9)
    return Finding(
        "a trace on the embedded engine",
        f"{model.name}: loaded in {loaded:.1f} s, {trace.tokens} tokens at {rate:.0f} a second, "
        f"{verdict.top_k} log-probabilities each",
        ok=trace.tokens > 0 and verdict.top_k > 0,
    )
