"""The embedded engine: llama.cpp in a child process, spoken to over HTTP on loopback."""

from conviction.engines.local.engine import LocalEngine
from conviction.engines.local.machine import available_memory, usable_cores

__all__ = ["LocalEngine", "available_memory", "usable_cores"]
