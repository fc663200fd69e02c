"""`conviction doctor`: what is installed, what is cached, what works."""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from conviction.backends import ENGINES, Backend, Finding, backend
from conviction.backends.builtin import vllm_here
from conviction.cli.inputs import EngineOptions
from conviction.cli.progress import prepared
from conviction.cli.terminal import print_json, shown
from conviction.engines.local import available_memory, usable_cores
from conviction.errors import ConvictionError
from conviction.models import cache_folder, catalogue, resolve

_ENGINE = EngineOptions()
_MARKS = {True: "[green]ok[/]", False: "[red]no[/]", None: ""}


def doctor(
    *,
    json: Annotated[bool, Parameter(negative="")] = False,
    run: Annotated[bool, Parameter(negative="")] = False,
    engine: EngineOptions = _ENGINE,
) -> int:
    """Show versions, cores, memory, the model cache, and what works here; or what an engine does.

    Args:
        json: Print the findings as JSON on stdout.
        run: Also start the embedded engine with a cached model and generate a few tokens.
        engine: A model or a server to look at in place of this machine.
    """
    chosen = engine.backend  # Refuses options that do not fit.
    console = Console(stderr=True, highlight=False)
    if engine.model is not None or engine.base_url:
        return _report(_examined(prepared(chosen, console), console), json=json)
    findings = [*_versions(), *_machine(), *_extras(), *_cache()]
    if run:
        if cached := _cached_model():
            findings += _examined(cached, console)
        else:
            remedy = "Run: conviction models pull"
            findings.append(Finding("engine", "no model is cached", ok=False, remedy=remedy))
    return _report(findings, json=json)


def _examined(backend: Backend, console: Console) -> list[Finding]:
    with console.status(f"looking at {shown(backend.label)} …"):
        return anyio.run(backend.examine)


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
        _extra("formulas compared", "mpmath", "mpmath", "math"),
        vllm_here(),
        *map(_plugin, ENGINES.plugins()),
    ]


def _extra(what: str, package: str, module: str, extra: str) -> Finding:
    remedy = f'pip install "conviction[{extra}]"'
    if find_spec(module) is None:
        return Finding(what, f"{package} is not installed", ok=False, remedy=remedy)
    try:
        return Finding(what, f"{package} {version(package)}", ok=True)
    except PackageNotFoundError:
        return Finding(what, f"{package} of unknown version", ok=True)


def _plugin(name: str) -> Finding:
    """An engine that another package brings."""
    what = f"engine {name}"
    try:
        found = ENGINES.subclass(name, Backend)
    except ConvictionError as error:
        return Finding(what, error.problem, ok=False, remedy=error.remedy)
    return Finding(what, f"{found.__module__}.{found.__qualname__}, as -m {name}:…", ok=True)


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


def _cached_model() -> Backend | None:
    """The first model of the catalogue that is in the cache."""
    for model in catalogue().models:
        try:
            return backend(resolve(model.name, fetch=False))
        except ConvictionError:
            continue
    return None


def _report(findings: Sequence[Finding], *, json: bool) -> int:
    """Print the findings on stdout; gives the exit code."""
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table(box=None, show_header=False, padding=(0, 1))
        for finding in findings:
            remedy = f"\n→ {shown(finding.remedy)}" if finding.remedy else ""
            table.add_row(shown(finding.what), _MARKS[finding.ok], shown(finding.found) + remedy)
        Console(highlight=False).print(table)
    return 1 if any(finding.ok is False for finding in findings) else 0
