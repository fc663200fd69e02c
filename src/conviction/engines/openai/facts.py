"""What was found out about one server and one model, and how it is kept between runs."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from conviction.errors import ConvictionError
from conviction.store import Kind, Store, StoreWriter

FRESH_SECONDS = 24 * 3600.0
"""Servers are restarted with other settings; what is older than this is asked again."""

FACTS = Kind(
    "cache of facts",
    0x63760005,
    ("CREATE TABLE facts (id INTEGER PRIMARY KEY, key TEXT, json BLOB, checksum INTEGER)",),
)
_PATIENCE = 2.0
"""Seconds to wait for another program that keeps what it found out."""

FILTERS_OFF: tuple[Mapping[str, float], ...] = (
    {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    {"top_p": 1.0, "top_k": -1, "min_p": 0.0},
    {"top_p": 1.0, "top_k": 0, "min_p": 0.0},
    {"top_p": 1.0},
    {},
)
"""Values that switch filters and penalties off, as servers accept them, the fullest first.

They are sent because servers of open models have some of their own, which hold where a request is
silent: vLLM takes them from the model's folder. Servers differ in the `top_k` for "all", and hosted
services refuse what the original protocol does not have.
"""


class Route(StrEnum):
    """Where a trace is asked for."""

    CHAT = "/chat/completions"
    """The server puts the model's chat template around the messages."""
    COMPLETIONS = "/completions"
    """The text goes to the model as it is, for prompts that have their template already."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one server wants to be spoken to.

    Attributes:
        filters_off: What to send for filters that a sampling leaves off.
        limit_name: What the limit of tokens is called.
        counts: Where every event can carry the counts of tokens: in its usage (vLLM, SGLang), its
            timings (llama.cpp), or nowhere.
        token_ids: Whether candidates can be named by number. Plain completions give them as a
            mapping, in which two tokens that read the same would be one.
    """

    filters_off: dict[str, float] = field(default_factory=dict[str, float])
    limit_name: str = "max_tokens"
    counts: Literal["", "usage", "timings"] = ""
    token_ids: bool = False


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server does, as far as it could be seen. None stands for "could not be told".

    Attributes:
        model: Name of the model.
        listed: Names of the models that the server lists.
        software: What serves it, where it says so: "vllm", "llamacpp", …
        context: Tokens that prompt and trace may have together.
        top_k: The most log-probabilities per token that it gives, up to 20; 0 for none.
        top_k_reason: Why they are fewer, in words; empty if they are not.
        raw: Whether log-probabilities are those of the model, before temperature and filters.
        seeds: Whether the same seed gave the same trace, and another one another.
        incremental: Whether tokens arrive as they are generated.
        frees: Whether the server stopped generating when its stream was closed.
        tokens_after_close: Tokens that it went on to generate after the close.
        vllm_arguments: Whether arguments that only vLLM knows take effect.
        continues: Whether it goes on with a message that it is given the beginning of.
        gate: Whether it stops traces by their gates.
        channel: Whether confidences reach us through a file on this machine.
        stop_token: The token that a trace which was stopped by its gate ends with.
        gate_reason: Why its gate does not work, where it has one; in words.
        dialect: How it wants to be spoken to.
        seen: When this was found out, in seconds since 1970.
    """

    model: str
    listed: tuple[str, ...] = ()
    software: str = ""
    context: int | None = None
    top_k: int = 0
    top_k_reason: str = ""
    raw: bool | None = None
    seeds: bool | None = None
    incremental: bool | None = None
    frees: bool | None = None
    tokens_after_close: int | None = None
    vllm_arguments: bool | None = None
    continues: bool | None = None
    gate: bool | None = None
    channel: bool | None = None
    stop_token: int | None = None
    gate_reason: str = ""
    dialect: Dialect = field(default_factory=Dialect)
    seen: float = 0.0


_ADAPTER = TypeAdapter(ServerFacts)


class FactsCache:
    """Facts on disk, by server, model and route.

    What cannot be read or written is treated as absent: asking the server again is always
    possible. A damaged file is replaced.

    Args:
        folder: Where the file lies; made when something is first kept.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "facts.db"

    def load(self, base_url: str, model: str, route: Route) -> ServerFacts | None:
        """What is known and fresh."""
        with suppress(ConvictionError, ValidationError):
            with Store(self._path, FACTS) as store:
                row = store.find("facts", "key = ?", _key(base_url, model, route))
            facts = _ADAPTER.validate_json(row["json"]) if row else None
            if facts and 0 <= time.time() - facts.seen < FRESH_SECONDS:
                return facts
        return None

    def save(self, base_url: str, route: Route, facts: ServerFacts) -> None:
        """Keep what was found out."""
        self._replace(_key(base_url, facts.model, route), _ADAPTER.dump_json(facts))

    def forget(self, base_url: str, model: str, route: Route) -> None:
        """Drop what turned out to be wrong."""
        if self._path.exists():
            self._replace(_key(base_url, model, route), None)

    def _replace(self, key: str, json: bytes | None) -> None:
        for _ in range(2):
            try:
                with (
                    StoreWriter(self._path, FACTS, patience=_PATIENCE) as store,
                    store.transaction(),
                ):
                    store.delete("facts", "key = ?", key)
                    if json is not None:
                        store.insert("facts", key=key, json=json)
            except ConvictionError:
                if not self._damaged():
                    return
                for ending in ("", "-wal", "-shm", "-journal"):
                    with suppress(OSError):
                        self._path.with_name(self._path.name + ending).unlink()
            else:
                return

    def _damaged(self) -> bool:
        try:
            with Store(self._path, FACTS) as store:
                return bool(store.check())
        except ConvictionError:
            return self._path.is_file()


def _key(base_url: str, model: str, route: Route) -> str:
    return sha256(f"{base_url}\n{model}\n{route}".encode()).hexdigest()[:32]
