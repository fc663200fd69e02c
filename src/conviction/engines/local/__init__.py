"""The embedded engine: llama.cpp in a child process, spoken to over HTTP on loopback."""

from conviction.engines.local.engine import DEFAULT_CONTEXT, DEFAULT_SLOTS, LocalEngine
from conviction.engines.local.server import available_memory, usable_cores

__all__ = ["DEFAULT_CONTEXT", "DEFAULT_SLOTS", "LocalEngine", "available_memory", "usable_cores"]
