"""Servers that speak OpenAI's protocol, as a backend: their key, and what the doctor reports."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from conviction.backends import Backend, BackendOptions, Finding
from conviction.engines.openai import OpenAIEngine, Route, Timeouts
from conviction.engines.openai.facts import FactsCache, ServerFacts
from conviction.engines.openai.probe import MOST_TOP_K
from conviction.engines.openai.servers import Server
from conviction.errors import EngineError, InvalidSettingError
from conviction.models import cache_folder

KEY_VARIABLE = "CONVICTION_API_KEY"
_MOST_KEY_BYTES = 1 << 14
_TIMEOUTS = Timeouts()

_OUR_HEADERS = (
    "accept-encoding authorization connection content-length content-type host transfer-encoding"
)
_OUR_FIELDS = (
    "best_of echo logprobs max_completion_tokens max_tokens messages min_p model n prompt seed "
    "stream stream_options temperature timings_per_token top_k top_logprobs top_p"
)
_OPTIONS = (
    "slots base_url api_key api_key_env api_key_file templated concurrency first_byte_timeout "
    "stall_timeout headers extra_body"
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True)
class OpenAIServers(Backend):
    """One or several servers that speak OpenAI's protocol.

    Attributes:
        model: The server's name of the model; None for the first that it lists.
        slots: Traces that each server gets at once; None for 64.
        base_url: Their addresses, as the machine that builds the engine sees them.
        api_key: The key to send.
        templated: Whether prompts have the model's template around them already.
        first_byte_timeout: Seconds until a server must begin to answer.
        stall_timeout: Seconds that a server may fall silent in the middle of a trace.
        headers: Further headers; they may hold keys, so they are never shown.
        extra_body: Further fields of every trace's request.
        remembers: Whether what is found out about the servers is kept between runs.

    Raises:
        InvalidSettingError: there is no address, or a header or field is one that we set.
    """

    base_url: tuple[str, ...] = ()
    api_key: str | None = field(default=None, repr=False)
    templated: bool = False
    first_byte_timeout: float = _TIMEOUTS.first_byte
    stall_timeout: float = _TIMEOUTS.stall
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    extra_body: Mapping[str, object] = field(default_factory=dict[str, object])
    remembers: bool = True

    takes: ClassVar[frozenset[str]] = frozenset(_OPTIONS.split())

    def __post_init__(self) -> None:
        if not self.base_url:
            raise InvalidSettingError(
                tried=f"use the model {self.label!r} of a server",
                found="there is no --base-url",
                remedy="Name the server, as in --base-url http://127.0.0.1:8000/v1.",
            )
        for name, value in self.headers.items():
            _check_header(name, value)
        for name in self.extra_body:
            if name in _OUR_FIELDS.split():
                raise InvalidSettingError(
                    tried=f"send {name!r} in extra_body",
                    found="conviction sets this field itself",
                    remedy="Leave it out; how tokens are drawn is set by sampling.",
                )

    @classmethod
    def from_name(cls, name: str, options: BackendOptions) -> Self:
        """The model of that name on the servers of the options.

        Raises:
            InvalidSettingError: the key cannot be read, or an option is unusable.
        """
        first_byte, stall = options.first_byte_timeout, options.stall_timeout
        backend = cls(
            name or None,
            options.concurrency or options.slots,
            base_url=tuple(dict.fromkeys(options.base_url or ())),
            api_key=options.api_key or _read_key(options.api_key_env, options.api_key_file),
            templated=options.templated,
            headers=dict(options.headers or {}),
            extra_body=dict(options.extra_body or {}),
            first_byte_timeout=_TIMEOUTS.first_byte if first_byte is None else first_byte,
            stall_timeout=_TIMEOUTS.stall if stall is None else stall,
        )
        backend.build()  # Refuses what is out of range.
        return backend

    def build(self) -> OpenAIEngine:
        """The engine."""
        return OpenAIEngine(
            self.base_url,
            model=self.model,
            api_key=self.api_key,
            route=self._route,
            concurrency=self.default_slots if self.slots is None else self.slots,
            timeouts=Timeouts(first_byte=self.first_byte_timeout, stall=self.stall_timeout),
            facts_folder=facts_folder() if self.remembers else None,
            headers=self.headers,
            extra=self.extra_body,
        )

    def apart(self) -> Sequence[Self]:
        """One for each server."""
        return [replace(self, base_url=(url,)) for url in self.base_url]

    def placed(self, resources: Mapping[str, float]) -> Self:
        """Nothing is kept on other machines."""
        del resources
        return replace(self, remembers=False)

    async def examine(self) -> list[Finding]:
        """Ask each server afresh what it does, and keep that for later runs."""
        engine = replace(self, remembers=False).build()
        together: list[Finding] = []
        async with engine:
            try:
                await engine.capabilities()
            except EngineError:
                pass  # Each server reports its own failure below.
            except InvalidSettingError as error:
                together.append(Finding("together", error.found, ok=False, remedy=error.remedy))
        cache = FactsCache(facts_folder())
        for server in engine.servers:
            if server.facts is not None:
                cache.save(server.http.base_url, self._route, server.facts)
        return [*(line for server in engine.servers for line in _findings(server)), *together]

    @property
    def _route(self) -> Route:
        return Route.COMPLETIONS if self.templated else Route.CHAT


def facts_folder() -> Path:
    """Where what was found out about servers is kept between runs."""
    return cache_folder().parent / "servers"


def _check_header(name: str, value: str) -> None:
    found = ""
    if not _HEADER_NAME.fullmatch(name):
        found = "it is not the name of a header"
    elif name.lower() in _OUR_HEADERS.split():
        found = "conviction sets this header itself"
    elif not (value.isascii() and value.isprintable()):
        found = "its value is not a single line of plain characters"
    if found:
        raise InvalidSettingError(
            tried=f"send the header {name!r}",
            found=found,
            remedy="Correct it, or leave it out; a key of the usual kind goes into api_key_env.",
        )


def _read_key(variable: str | None, file: Path | None) -> str | None:
    """The key: from a file, or the environment. It is never part of a message."""
    if file is not None and variable is not None:
        raise InvalidSettingError(
            tried="read the key",
            found="both --api-key-file and --api-key-env are given",
            remedy="Give only one of them.",
        )
    if file is not None:
        return _checked(_read_file(file), f"the file {file}")
    key = os.environ.get(variable or KEY_VARIABLE, "")
    if not key and variable is not None:
        raise InvalidSettingError(
            # Not named: where it is the key itself, that must not be shown.
            tried="read the key from the environment variable that --api-key-env names",
            found="there is no variable of that name, or it is empty",
            remedy="Set it to the key; --api-key-env takes the variable's name, not the key.",
        )
    return _checked(key, f"the variable {variable or KEY_VARIABLE}") if key else None


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_MOST_KEY_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettingError(
            tried=f"read the key from {path}",
            found=getattr(error, "strerror", None) or "it is not text",
            remedy="Name a file that holds the key and nothing else.",
        ) from None


def _checked(text: str, source: str) -> str:
    key = text.strip()
    if not key or len(key) > _MOST_KEY_BYTES or not key.isascii() or not key.isprintable():
        raise InvalidSettingError(
            tried=f"use what {source} holds as a key",
            found="it is empty" if not key else "it is no single line of plain characters",
            remedy="Put the key there and nothing else.",
        )
    return key


_UNBUFFER = (
    "Something between holds the stream back (a proxy?): go around it, or switch its buffering "
    "off; early stopping saves nothing otherwise."
)
_WITHOUT = "Without them, policies that need none work, such as the default and --policy majority."


def _findings(server: Server) -> Iterator[Finding]:
    url, facts = server.http.base_url, server.facts
    if facts is None:
        trouble = server.trouble
        assert trouble is not None  # noqa: S101  # a server that was asked has one or the other
        yield Finding("server", trouble.problem, ok=False, remedy=trouble.remedy)
        return
    software = f" ({facts.software})" if facts.software else ""
    yield Finding("server", f"{url}{software}", ok=True, value=url)
    yield _model(facts)
    context = f"{facts.context:,} tokens" if facts.context else "it does not say"
    yield Finding("context", context, value=facts.context)
    yield _logprobs(facts)
    if facts.top_k:
        yield _taken(facts)
    yield _seeds(facts)
    yield _arrival(facts)
    yield _freeing(facts)
    yield Finding("continuing", _CONTINUING[facts.continues], value=facts.continues)
    yield Finding("vLLM's arguments", _ARGUMENTS[facts.vllm_arguments], value=facts.vllm_arguments)
    if facts.gate is not None:
        yield from _gate(facts)
    if server.http.sends_key_in_the_open:
        yield Finding(
            "key",
            "it travels without TLS, so others on the way may read it",
            ok=False,
            remedy="Use an address that begins with https://.",
        )


_CONTINUING = {
    True: "goes on with a trace whose beginning it is given",
    False: "does not go on with a trace whose beginning it is given",
    None: "could not be told: it does not count its prompts' tokens",
}

_ARGUMENTS = {
    True: "take effect",
    False: "do not take effect",
    None: "could not be told without log-probabilities",
}


def _model(facts: ServerFacts) -> Finding:
    others = len(facts.listed) - (facts.model in facts.listed)
    found = f"{facts.model}, and {others} more" if others else facts.model
    if facts.listed and facts.model not in facts.listed:
        known = ", ".join(facts.listed[:5]) + (", …" if len(facts.listed) > 5 else "")
        found = f"{facts.model}, which it does not list; it lists {known}"
    return Finding("model", found, value=facts.model)


def _logprobs(facts: ServerFacts) -> Finding:
    what, k = "log-probabilities", facts.top_k
    if k == MOST_TOP_K:
        return Finding(what, f"{k} a token, as the paper's k", ok=True, value=k)
    found = f"{k or 'none'}: it was {facts.top_k_reason}"
    remedy = f"Confidences are over k = {k}, and compare only with such." if k else _WITHOUT
    return Finding(what, found, ok=k > 0, remedy=remedy, value=k)


def _taken(facts: ServerFacts) -> Finding:
    found, ok, remedy = {
        None: ("before or after temperature: could not be told", None, ""),
        True: ("before temperature and filters (raw)", True, ""),
        False: ("after temperature", None, "Compare confidences only within one sampling."),
    }[facts.raw]
    return Finding("taken", found, ok=ok, remedy=remedy, value=facts.raw)


def _seeds(facts: ServerFacts) -> Finding:
    found, ok = {
        None: ("could not be told: all draws were alike", None),
        True: ("one seed gave one trace, another gave another", True),
        False: ("the same seed gave different traces", None),
    }[facts.seeds]
    return Finding("seeds", found, ok=ok, value=facts.seeds)


def _arrival(facts: ServerFacts) -> Finding:
    found = {
        None: "too short to tell whether tokens come one by one",
        True: "tokens come as they are generated",
        False: "tokens come in lumps",
    }[facts.incremental]
    remedy = "" if facts.incremental is not False else _UNBUFFER
    return Finding("stream", found, ok=facts.incremental, remedy=remedy, value=facts.incremental)


def _gate(facts: ServerFacts) -> Iterator[Finding]:
    if not facts.gate:
        why = f"does not work: {facts.gate_reason}" if facts.gate_reason else "is not loaded there"
        yield Finding("gate", f"{why}; traces are stopped from here", value=False)
        return
    found = f"stops traces inside the server, by the token {facts.stop_token}"
    yield Finding("gate", found, ok=True, value=facts.stop_token)
    way = (
        "confidences come through a file on this machine, without log-probabilities"
        if facts.channel
        else "none reaches us, so confidences come by log-probabilities"
    )
    yield Finding("the gate's channel", way, ok=facts.channel or None, value=facts.channel)


def _freeing(facts: ServerFacts) -> Finding:
    after = facts.tokens_after_close
    tokens = "" if after is None else f"; {after} tokens came after it"
    found = {
        None: "could not be told (no metrics, or the trace ended too soon)",
        True: f"frees the server{tokens}",
        False: f"does not free the server within 5 s{tokens}",
    }[facts.frees]
    remedy = "" if facts.frees is not False else "Early stopping saves little there."
    return Finding("closing the stream", found, ok=facts.frees, remedy=remedy, value=facts.frees)
