"""The engines that run a model here: the embedded one, vLLM, and made-up traces."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from typing import Any, ClassVar, Self

from conviction.backends import Backend, BackendOptions, Finding
from conviction.engines.base import Engine
from conviction.errors import InvalidSettingError
from conviction.models import ModelFile, Notice, Progress, catalogue, resolve
from conviction.models.cache import ignore
from conviction.prompts import PromptStyle


@dataclass(frozen=True)
class Embedded(Backend):
    """The embedded engine: a GGUF model on this machine, run by llama.cpp.

    Attributes:
        model: Name, path or `hf:owner/repo/file` of the model; None for the default one.
        context: Tokens that prompt and trace may have together; None for 4096.
        threads: Threads that compute; None for one per core.
        file: The model's file, once it is known.
    """

    context: int | None = None
    threads: int | None = None
    file: ModelFile | None = None

    takes: ClassVar[frozenset[str]] = frozenset({"slots", "context"})
    default_slots: ClassVar[int] = 8

    @classmethod
    def from_name(cls, name: str, options: BackendOptions) -> Self:
        """The model of that name; of the catalogue's default without one."""
        return cls(name or None, options.slots, options.context)

    @property
    def label(self) -> str:
        """The model's name, also of the default one."""
        return self.name or self.model or (self.file.name if self.file else catalogue().default)

    @property
    def prompt_style(self) -> PromptStyle:
        """What the model is best asked with."""
        return self.file.prompt_style if self.file else super().prompt_style

    def prepare(self, on_progress: Progress = ignore, on_notice: Notice = ignore) -> Self:
        """Find the model, and fetch it if need be, as `conviction.models.resolve` does."""
        if self.file is not None:
            return self
        target = self.model or catalogue().default
        file = resolve(target, progress=on_progress, notice=on_notice)
        return replace(self, model=target, file=file)

    def build(self) -> Engine:
        """The engine; the model is fetched first if it was not prepared."""
        from conviction.engines.local import LocalEngine  # noqa: PLC0415  # an extra
        from conviction.engines.local.engine import DEFAULT_CONTEXT, DEFAULT_SLOTS  # noqa: PLC0415

        file = self.file or self.prepare().file
        assert file is not None  # noqa: S101  # prepared
        return LocalEngine(
            file.path,
            slots=self.slots or DEFAULT_SLOTS,
            context=self.context or DEFAULT_CONTEXT,
            threads=self.threads,
        )

    def sized(self, context: int) -> Self:
        """With room for so many tokens, unless the user chose; the engine counts exactly."""
        return self if self.context else replace(self, context=context)

    def placed(self, resources: Mapping[str, float]) -> Self:
        """Threads as there are CPUs; each machine fetches the model into its own cache."""
        threads = int(resources.get("CPU", 0)) or self.threads
        here = self.file if self.model is None else None
        return replace(self, threads=threads, file=here)


@dataclass(frozen=True)
class VLLM(Backend):
    """vLLM inside this program.

    Attributes:
        model: A folder, or a name on the Hugging Face hub.
        options: vLLM's own settings by name.
        templated: Whether prompts have the model's template around them already.
    """

    options: Mapping[str, object] = field(default_factory=dict[str, object])
    templated: bool = False

    takes: ClassVar[frozenset[str]] = frozenset({"slots", "context", "templated", "vllm"})

    @classmethod
    def from_name(cls, name: str, options: BackendOptions) -> Self:
        """The model of that name.

        Raises:
            InvalidSettingError: no model is named, or a setting has no value.
        """
        if not name:
            raise InvalidSettingError(
                tried="use the model 'vllm:'",
                found="no model is named",
                remedy="Name a folder or a model on the Hugging Face hub, as in "
                "vllm:Qwen/Qwen2.5-7B-Instruct.",
            )
        ours = {"max_num_seqs": options.slots, "max_model_len": options.context}
        given = options.vllm or ()
        settings = {
            **{setting: value for setting, value in ours.items() if value is not None},
            **(given if isinstance(given, Mapping) else dict(map(_setting, given))),
        }
        return cls(name, options.slots, settings, options.templated)

    def build(self) -> Engine:
        """The engine."""
        from conviction.engines.vllm import VLLMEngine  # noqa: PLC0415  # slow to import

        assert self.model is not None  # noqa: S101  # there is no default one
        # Standard output is for the answer; of what vLLM logs, only warnings matter to everyone.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        return VLLMEngine(self.model, options=self.options, templated=self.templated)

    def placed(self, resources: Mapping[str, float]) -> Self:
        """The model is split over all GPUs, unless the settings say otherwise."""
        gpus = int(resources.get("GPU", 0))
        parallel = {"tensor_parallel_size": gpus} if gpus > 1 else {}
        return replace(self, options={**parallel, **self.options})

    async def examine(self) -> list[Finding]:
        """Start vLLM, and see what it does."""
        return [vllm_here(), *await super().examine()]


@dataclass(frozen=True)
class Scripted(Backend):
    """Made-up traces that need no model; another name plays other traces.

    Attributes:
        delay: Seconds between two pieces of a trace, at least 0.
    """

    delay: float = 0.05

    takes: ClassVar[frozenset[str]] = frozenset({"slots", "delay"})
    default_slots: ClassVar[int] = 8

    @classmethod
    def from_name(cls, name: str, options: BackendOptions) -> Self:
        """Traces that are drawn by that name."""
        delay = cls.delay if options.delay is None else options.delay
        return cls(name or None, options.slots, delay)

    def build(self) -> Engine:
        """The engine."""
        from conviction.engines.made_up import made_up_traces  # noqa: PLC0415  # seldom needed

        slots = self.slots or self.default_slots
        return made_up_traces(delay=self.delay, concurrency=slots, name=self.model or "")


def vllm_here() -> Finding:
    """Whether vLLM is installed beside this package; the embedded engine does without."""
    if find_spec("vllm") is None:
        return Finding("vLLM", "not installed here; only -m vllm:MODEL needs it")
    try:
        found = version("vllm")
    except PackageNotFoundError:  # Builds for other devices have other names.
        found = "of another build"
    plugins = entry_points(group="vllm.logits_processors")
    gate = any(point.name == "conviction" for point in plugins)
    loads = "it loads the gate" if gate else "it does not load the gate"
    return Finding("vLLM", f"{found}; {loads}", ok=True)


def _setting(text: str) -> tuple[str, Any]:
    """A setting of vLLM's, from NAME=VALUE."""
    name, equals, value = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not (name and equals):
        raise InvalidSettingError(
            tried=f"use {text!r} as a setting of vLLM",
            found="it is not of the form NAME=VALUE",
            remedy="Write it as in --vllm max_model_len=8192.",
        )
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
