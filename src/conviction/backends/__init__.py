"""Which engine generates the traces: one vocabulary for commands, programs and clusters."""

from conviction.backends.base import Backend, BackendOptions, Finding, Price, room_for
from conviction.backends.naming import ENGINES, backend

__all__ = ["ENGINES", "Backend", "BackendOptions", "Finding", "Price", "backend", "room_for"]
