"""What an actor makes its engine of: small objects that pickle, and are called in the actor.

Any function without arguments that returns an engine will do, if it pickles; these are the ones
that the command line needs. A new kind of engine is one more of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from conviction.engines.base import Engine
from conviction.engines.local.engine import DEFAULT_CONTEXT, DEFAULT_SLOTS
from conviction.engines.openai import OpenAIEngine, Route, Timeouts
from conviction.engines.vllm import VLLMEngine

EngineFactory = Callable[[], Engine]
"""Makes an engine that is not started yet. Pickles, and runs in the process of the actor."""


@dataclass(frozen=True, slots=True)
class EndpointFactory:
    """Makes an engine of one server of completions.

    Attributes:
        base_url: Its address, as the actor sees it.
        model: Name of the model; None for the first that it lists.
        api_key: Key to send; it passes through the cluster's own store, and is never shown.
        route: Where traces are asked for.
        concurrency: Traces that the server gets from this actor at once.
        timeouts: Bounds of every wait.
    """

    base_url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    route: Route = Route.CHAT
    concurrency: int = 64
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __call__(self) -> Engine:
        """The engine."""
        return OpenAIEngine(
            self.base_url,
            model=self.model,
            api_key=self.api_key,
            route=self.route,
            concurrency=self.concurrency,
            timeouts=self.timeouts,
        )


@dataclass(frozen=True, slots=True)
class LocalFactory:
    """Makes an embedded engine; each node fetches the model into its own cache.

    Attributes:
        model: Name, path or `hf:owner/repo/file` of the model; None for the default one.
        slots: Traces at once.
        context: Tokens that prompt and trace may have together.
        threads: Threads that compute; None for one per core of the node.
    """

    model: str | None = None
    slots: int = DEFAULT_SLOTS
    context: int = DEFAULT_CONTEXT
    threads: int | None = None

    def __call__(self) -> Engine:
        """The engine."""
        from conviction.engines.local import LocalEngine  # noqa: PLC0415  # an extra
        from conviction.models import catalogue, resolve  # noqa: PLC0415  # reads files

        path = resolve(self.model or catalogue().default).path
        return LocalEngine(path, slots=self.slots, context=self.context, threads=self.threads)


@dataclass(frozen=True, slots=True)
class VLLMFactory:
    """Makes vLLM inside the actor, over all GPUs that the actor has.

    Attributes:
        model: A folder on every node, or a name on the Hugging Face hub.
        options: vLLM's own settings by name.
        templated: Whether prompts have the model's template around them already.
        gpus: GPUs of the actor; vLLM splits the model over them, unless its settings say otherwise.
    """

    model: str
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    templated: bool = False
    gpus: int = 0

    def __call__(self) -> Engine:
        """The engine."""
        parallel = {"tensor_parallel_size": self.gpus} if self.gpus > 1 else {}
        options = {**parallel, **self.options}
        return VLLMEngine(self.model, options=options, templated=self.templated)
