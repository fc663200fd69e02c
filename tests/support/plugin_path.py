"""What vLLM's environment needs on its path to have this package, its gate included.

The environment is kept between versions of the package, so it holds none. The sources stand on the
path in its place, beside a folder with what an installed package says of itself: entry points are
how vLLM finds its plugins.
"""

import tomllib
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]


ECHO = """
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np

from conviction.backends import Backend
from conviction.core import FinishReason
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest


class EchoEngine(Engine):
    def __init__(self, word: str) -> None:
        self.word = word

    @property
    def name(self) -> str:
        return f"echo {self.word}"

    async def capabilities(self) -> Capabilities:
        return Capabilities(self.word, top_k=20, concurrency=4)

    async def stream(self, request: TraceRequest) -> AsyncGenerator[Chunk, None]:
        yield Chunk(f"Answer: {self.word}", np.full(3, 9.0, np.float32))
        yield Chunk(finish=FinishReason.STOP)


@dataclass(frozen=True)
class Echo(Backend):
    def build(self) -> Engine:
        return EchoEngine(self.model or "nothing")
"""
"""A whole package that brings an engine."""


def install(folder: Path, source: str, entry: str = "echo = echo_engine:Echo") -> Path:
    """Write a package `echo-engine` with an entry point into a folder, for the path."""
    said = folder / "echo_engine-1.0.dist-info"
    said.mkdir(parents=True)
    (folder / "echo_engine.py").write_text(source, encoding="utf-8")
    (said / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-engine\nVersion: 1.0\n")
    (said / "entry_points.txt").write_text(f"[conviction.engines]\n{entry}\n")
    return folder


def package_path(folder: Path) -> str:
    """Write what an installed package says of itself, and give the path.

    Args:
        folder: An empty folder that stays as long as the path is used.
    """
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = folder / f"conviction-{project['version']}.dist-info"
    said.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: conviction\nVersion: {project['version']}\n"
    (said / "METADATA").write_text(metadata, encoding="utf-8")
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items()), ""]
    (said / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return f"{folder}:{_REPOSITORY / 'src'}"
