"""Options of every command that generates: the engine, and how tokens are drawn."""

from dataclasses import dataclass, fields, replace
from typing import Annotated

from cyclopts import Parameter

from conviction.answers import kinds_help
from conviction.backends import Backend, BackendOptions, backend
from conviction.cli.arguments import WHOLE
from conviction.core import Sampling
from conviction.prompts import PromptStyle

_UNSEEN = Parameter(parse=False)


@dataclass(frozen=True, kw_only=True)
class _ModelOption:
    """Stands before all others in the help."""

    model: Annotated[str | None, Parameter(alias="-m")] = None
    """A name from `conviction models` or of [models.NAME] in the settings file; a GGUF file;
    hf:owner/repo/file.gguf; vllm:MODEL for vLLM in this program; scripted for made-up traces;
    PREFIX:… of a plug-in; with --base-url the server's name of the model."""


@Parameter(name="*", group="Engine", negative="")
@dataclass(frozen=True, kw_only=True)
class EngineOptions(BackendOptions, _ModelOption):
    """Which model generates the traces, and how its engine is set up."""

    base_url: list[str] | None = None
    api_key: Annotated[str | None, _UNSEEN] = None
    slots: Annotated[int | None, WHOLE] = None
    context: Annotated[int | None, WHOLE] = None
    concurrency: Annotated[int | None, WHOLE] = None
    headers: Annotated[None, _UNSEEN] = None
    extra_body: Annotated[None, _UNSEEN] = None
    vllm: list[str] | None = None

    @property
    def backend(self) -> Backend:
        """The backend of that model.

        Raises:
            UsageError: there is no such model, or an option does not fit it.
        """
        named = {option.name: getattr(self, option.name) for option in fields(BackendOptions)}
        return backend(self.model, BackendOptions(**named))


@dataclass(frozen=True)
class TraceOptions:
    """How a question is put, and how tokens are drawn."""

    answer: Annotated[str, Parameter(help=kinds_help())] = "math"
    prompt_style: PromptStyle | None = None
    "What to add to the question; default: what suits the model."
    max_tokens: Annotated[int | None, WHOLE] = None
    "The most tokens of one trace; default: the model's in the settings file, else 1024."
    temperature: float | None = None
    """0 is greedy, traces then differ little or not at all; default: the model's in the settings
    file, else 0.7."""
    top_p: float | None = None
    "Nucleus mass, in (0, 1]; default: the model's in the settings file, else all."
    seed: Annotated[int, WHOLE] = 0
    "Same seed, same question, same traces, where the engine allows."

    def sampling(self, of_model: Sampling | None) -> Sampling:
        """The model's own sampling, where it has one, with the values that were given."""
        names = ("temperature", "top_p", "max_tokens")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(of_model or Sampling(), **given)
