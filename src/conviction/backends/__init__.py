"""Which engine generates the traces: one vocabulary for commands, programs and clusters.

What `-m` and `model=` take:

NAME                    of the settings file's [models.NAME], or of the catalogue
PATH.gguf               a file; hf:OWNER/REPOSITORY/FILE.gguf and https://… are fetched
PREFIX or PREFIX:REST   an engine of the registry: vllm:MODEL, scripted, or a plug-in's

A `Backend` is a small description of an engine that pickles, and builds it. A package adds an
engine with one subclass and one entry point:

    @dataclass(frozen=True)
    class Echo(Backend):
        def build(self) -> Engine:
            return EchoEngine(self.model)

    [project.entry-points."conviction.engines"]
    echo = "my_package:Echo"
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from conviction.answers import kind
from conviction.core import Question, Sampling, require, require_whole
from conviction.engines.base import Capabilities, Engine
from conviction.errors import ConvictionError, InvalidSettingError
from conviction.files import expanded
from conviction.models import ModelFile, Notice, Progress, catalogue
from conviction.models.cache import ignore
from conviction.policies.majority import Single
from conviction.prompts import PromptStyle
from conviction.registry import Registry, unknown_name
from conviction.settings import model_settings, settings_path
from conviction.thinking import deliberate

ENGINES = Registry(
    "conviction.engines",
    "engine",
    {
        "embedded": "conviction.backends.builtin:Embedded",
        "openai": "conviction.backends.openai:OpenAIServers",
        "scripted": "conviction.backends.builtin:Scripted",
        "vllm": "conviction.backends.builtin:VLLM",
    },
)
_TEMPLATE_TOKENS = 64
"""Room for what a chat template puts around each message."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs per million tokens, each at least 0, in a currency of your choice.

    Attributes:
        input: Tokens of prompts.
        output: Generated tokens.
        cached_input: Tokens of prompts that the server had cached; None for the price of others.
    """

    input: float
    output: float
    cached_input: float | None = None

    def __post_init__(self) -> None:
        require("input price", self.input, low=0)
        require("output price", self.output, low=0)
        if self.cached_input is not None:
            require("cached_input price", self.cached_input, low=0)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what `conviction doctor` reports.

    Attributes:
        what: What was looked at.
        found: What was seen.
        ok: Whether it works; None for plain facts.
        remedy: What to do if it does not.
        value: What was seen, for programs; None where words alone say it.
    """

    what: str
    found: str
    ok: bool | None = None
    remedy: str = ""
    value: bool | float | str | None = None


_SERVER = ("there is no server", "Name one, as in --base-url http://127.0.0.1:8000/v1.")
_NEEDS = {
    "context": ("it has a context of its own", "Set it where the model is started."),
    "delay": ("it plays no made-up traces", "Use it with -m scripted."),
    "vllm": (
        "vLLM does not run inside this program",
        "Name the model as in -m vllm:MODEL; a server has its settings from its own command line.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """How an engine is set up; None and False stand for its own default."""

    base_url: Sequence[str] | None = None
    "An OpenAI-compatible server, as in http://127.0.0.1:8000/v1; repeat, or list several."
    api_key_env: str | None = None
    "Environment variable that holds the server's key; CONVICTION_API_KEY if not given."
    api_key_file: Path | None = None
    "File that holds the server's key."
    api_key: str | None = field(default=None, repr=False)
    "The server's key itself."
    templated: bool = False
    "The question has the model's chat template around it: send it as it is to /completions."
    slots: int | None = None
    "Traces at once; default: 8, or 64 for each server."
    context: int | None = None
    """Tokens that prompt and trace may have together; default: room for the longest question, or
    4096 (serve)."""
    concurrency: int | None = None
    "The same as --slots, for each server."
    first_byte_timeout: float | None = None
    "Seconds until a server must begin to answer; default: 300."
    stall_timeout: float | None = None
    "Seconds that a server may fall silent in the middle of a trace; default: 120."
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    "Further headers of every request to a server."
    extra_body: Mapping[str, object] | None = None
    "Further fields of every request to a server."
    vllm: Sequence[str] | Mapping[str, object] | None = None
    "A setting of vLLM's for -m vllm:MODEL, as in max_model_len=8192; repeat, or list several."
    delay: float | None = None
    "Seconds between two pieces of a made-up trace, for -m scripted; default: 0.05."

    def check(self, takes: Iterable[str], label: str) -> None:
        """Refuse options that are not among those that the model `label` takes, or out of range."""
        for name in ("slots", "context", "concurrency"):
            if (value := getattr(self, name)) is not None:
                require_whole(name, value, low=1)
        if self.delay is not None:
            require("delay", self.delay, low=0)
        for option in fields(BackendOptions):
            if getattr(self, option.name) != option.default and option.name not in takes:
                found, remedy = _NEEDS.get(option.name, _SERVER)
                raise InvalidSettingError(
                    tried=f"use --{option.name.replace('_', '-')} with {label}",
                    found=found,
                    remedy=f"{remedy} Or leave the option out.",
                )


@dataclass(frozen=True)
class Backend(ABC):
    """Which engine generates the traces. Subclasses are frozen dataclasses that pickle.

    Attributes:
        model: The model; None for the engine's default.
        slots: Traces at once, at least 1; None for the engine's own number.
        name: What the user calls it, as in "vllm:Qwen/Qwen2.5-7B-Instruct".
        price: What it costs.
        sampling: How the model's tokens are drawn where nothing else is said.
    """

    model: str | None = None
    slots: int | None = None
    name: str = field(default="", kw_only=True)
    price: Price | None = field(default=None, kw_only=True)
    sampling: Sampling | None = field(default=None, kw_only=True)

    takes: ClassVar[frozenset[str]] = frozenset({"slots"})
    """Names of the `BackendOptions` that apply to it."""
    default_slots: ClassVar[int] = 64
    """Traces at once where `slots` says nothing."""

    @classmethod
    def from_name(cls, name: str, options: BackendOptions) -> Self:
        """The backend of "PREFIX:name"; only options in `takes` are set.

        Raises:
            UsageError: the name, which may be empty, or an option is unusable.
        """
        return cls(name or None, options.slots)

    @property
    def traces_at_once(self) -> int:
        """Traces that can be expected to run at once, before the engine has started."""
        return self.slots or self.default_slots

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return self.name or self.model or type(self).__name__

    @property
    def prompt_style(self) -> PromptStyle:
        """What to add to questions; known for certain once it is prepared."""
        return PromptStyle.STEP_BY_STEP

    def prepare(self, on_progress: Progress = ignore, on_notice: Notice = ignore) -> Self:
        """The same backend, ready to be built: what the engine needs is fetched.

        Raises:
            ConvictionError: it cannot be fetched.
        """
        del on_progress, on_notice
        return self

    @abstractmethod
    def build(self) -> Engine:
        """The engine, not started yet."""

    def sized(self, context: int) -> Self:
        """The same with room for `context` tokens of prompt and trace, where it can be chosen."""
        del context
        return self

    def apart(self) -> Sequence[Self]:
        """The backends that make it up: one for each server, to be spread over a cluster."""
        return (self,)

    def placed(self, resources: Mapping[str, float]) -> Self:
        """The same on another machine, with these resources of it ("CPU", "GPU", …)."""
        del resources
        return self

    async def examine(self) -> list[Finding]:
        """Start the engine and generate a short trace, for `conviction doctor`."""
        began = time.perf_counter()
        try:
            async with self.build() as engine:
                started = time.perf_counter() - began
                can = await engine.capabilities()
                return [*_described(engine, can, started), *await _short_trace(engine)]
        except ConvictionError as error:
            return [Finding("engine", error.problem, ok=False, remedy=error.remedy)]


def room_for(questions: Iterable[Question], sampling: Sampling) -> int:
    """Tokens that hold the longest question and a trace."""
    # No tokenizer is at hand yet, but no token is shorter than a byte.
    longest = max(
        (
            sum(len(message.content.encode()) + _TEMPLATE_TOKENS for message in question.messages)
            for question in questions
        ),
        default=0,
    )
    return longest + sampling.max_tokens


def _described(engine: Engine, can: Capabilities, started: float) -> Iterator[Finding]:
    """What an engine says of itself."""
    name = f"{engine.name}, started in {started:.1f} s"
    yield Finding("engine", name, ok=True, value=started)
    yield Finding("model", can.model, value=can.model)
    context = f"{can.context:,} tokens" if can.context else "not known"
    yield Finding("context", context, value=can.context)
    yield Finding("traces at once", f"{can.concurrency:,}", value=can.concurrency)
    gate = "stops traces inside the engine" if can.gates else "traces are stopped from here"
    yield Finding("gate", gate, ok=can.gates or None, value=can.gates)
    confidences = f"over k = {can.top_k} at most" if can.top_k else "none"
    yield Finding("confidences", confidences, value=can.top_k)
    seeds = "a seed reproduces a trace" if can.seeds else "not seen to reproduce a trace"
    yield Finding("seeds", seeds, ok=can.seeds or None, value=can.seeds)
    for note in can.notes:
        yield Finding("note", note)


async def _short_trace(engine: Engine) -> Iterator[Finding]:
    """A trace of some tokens, and how fast it came."""
    with closing(kind("text")) as answers:
        verdict = await deliberate(
            Question.ask("Count from one to ten."),
            engine=engine,
            policy=Single(),
            answers=answers,
            sampling=Sampling(max_tokens=24),
            time_limit=60,
        )
    trace = verdict.traces[0]
    rate = trace.tokens / max(trace.ended - trace.started, 1e-9)
    found = f"{trace.tokens} tokens at {rate:,.0f} a second"
    return iter([Finding("trace", found, ok=trace.tokens > 0, value=trace.tokens)])


_NO_OPTIONS = BackendOptions()


def backend(
    named: str | Backend | ModelFile | None = None, options: BackendOptions = _NO_OPTIONS
) -> Backend:
    """The backend that generates the traces of a model.

    Args:
        named: What the user calls the model; None for the default model of the embedded engine, or
            with addresses of servers for the first model that they list.
        options: How to set it up.

    Raises:
        UnknownNameError: nothing has this name.
        PluginError: the package that brings the engine cannot be imported.
        InvalidSettingError: two models have this name, the settings file cannot be read, or an
            option does not apply.
    """
    if isinstance(named, Backend):
        return named
    if isinstance(named, ModelFile):
        from conviction.backends.builtin import Embedded  # noqa: PLC0415  # as the registry imports

        return Embedded(name=named.name, file=named)
    if options.base_url:
        return _of("openai", named, options, label=named or "a server")
    if named is None:
        return _of("embedded", None, options, label="the embedded engine")
    tables = model_settings()
    if named in tables:
        return _of_settings(named, tables[named], options)
    return _unnamed(named, options, known=tables)


def _unnamed(named: str, options: BackendOptions, known: Mapping[str, Any]) -> Backend:
    """The backend of a name that the settings file does not define."""
    prefix, colon, rest = named.partition(":")
    if prefix in ENGINES.names():
        return _of(prefix, rest, options, label=named)
    if _is_model_file(named):
        return _of("embedded", named, options, label=named)
    if colon:
        raise unknown_name("engine", prefix, ENGINES.names())
    models = [name for model in catalogue().models for name in (model.name, *model.aliases)]
    raise unknown_name("model", named, [*models, *known, *ENGINES.names()])


def _of(prefix: str, rest: str | None, options: BackendOptions, *, label: str) -> Backend:
    kind = ENGINES.subclass(prefix, Backend)
    options.check(kind.takes, label)
    made = kind.from_name(rest or "", options)
    return replace(made, name=label if rest is not None else "")


def _is_model_file(name: str) -> bool:
    """Whether a name is one of the embedded engine's: of the catalogue, a path or an address."""
    if name.startswith("hf:") or "://" in name or catalogue().find(name):
        return True
    path = expanded(name)
    with suppress(OSError, ValueError):
        return path.suffix.lower() == ".gguf" or path.is_file()
    return False


def _of_settings(name: str, table: Mapping[str, Any], options: BackendOptions) -> Backend:
    """The backend that the settings file describes."""
    from conviction.backends.named import read_model  # noqa: PLC0415  # pydantic is slow to import

    prefix = name.partition(":")[0]
    catalogued = catalogue().find(name)
    if catalogued or prefix in ENGINES.names():
        model = "one in the catalogue (`conviction models`)"
        other = model if catalogued else f"the engine {prefix!r}"
        raise InvalidSettingError(
            tried=f"use the model {name!r}",
            found=f"[models.{name}] in {settings_path()} has the same name as {other}",
            remedy=f"Rename [models.{name}].",
        )
    model, options, price, sampling = read_model(name, table, options)
    if options.base_url or model is None:
        made = backend(model, options)
    else:
        made = _unnamed(model, options, known={})
    return replace(made, name=name, price=price, sampling=sampling)
