"""What this machine has for us: cores and memory, and whether a model fits."""

import os
import sys
from math import ceil
from pathlib import Path

from conviction.errors import EngineStartError
from conviction.gguf import GgufHeader

_WORKING_BYTES = 256 << 20
"""For intermediate results, beside weights and context: seen to suffice for small models."""

_MEMINFO = Path("/proc/meminfo")
# The limits of a container, where there are any.
_GROUP_CORES = Path("/sys/fs/cgroup/cpu.max")
_GROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
_GROUP_MEMORY_USED = Path("/sys/fs/cgroup/memory.current")


def usable_cores() -> int:
    """Cores that this process may use: less than the machine has where it is confined."""
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = (int(part) for part in _GROUP_CORES.read_text().split())
    except (OSError, ValueError):
        return cores
    return max(1, min(cores, ceil(quota / period)))


def available_memory() -> int | None:
    """Bytes of memory that a new process may take; None where the system does not tell."""
    known = [room for room in (_system_memory(), _group_memory()) if room is not None]
    return min(known, default=None)


def check_memory(path: Path, header: GgufHeader, *, slots: int, context: int) -> None:
    """Check that a model and its context fit into memory.

    Args:
        path: The model file.
        header: Its header.
        slots: Traces at once.
        context: Tokens of context for each of them.

    Raises:
        EngineStartError: they do not fit. Where the need or the memory is unknown, they pass.
    """
    available = available_memory()
    if available is None:
        return
    cache = slots * context * (header.kv_bytes_per_token() or 0)
    needed = header.file_size + cache + _WORKING_BYTES
    if needed > available:
        raise EngineStartError(
            tried=f"load {path.name} with {slots} slots of {context:,} tokens",
            found=f"it takes about {_gib(needed)} of memory ({_gib(header.file_size)} for the "
            f"model, {_gib(cache)} for the context), and {_gib(available)} are free",
            remedy="Use a smaller model, fewer slots, a smaller context or fewer --max-tokens.",
        )


def _system_memory() -> int | None:
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _group_memory() -> int | None:
    try:
        return max(0, int(_GROUP_MEMORY.read_text()) - int(_GROUP_MEMORY_USED.read_text()))
    except (OSError, ValueError):
        return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
