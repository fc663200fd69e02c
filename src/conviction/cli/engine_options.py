"""Which engine generates the traces: the options of every command that generates."""

from dataclasses import dataclass, fields
from typing import Annotated

from cyclopts import Parameter

from conviction.backends import Backend, BackendOptions, backend
from conviction.cli.whole_numbers import WHOLE

_UNSEEN = Parameter(parse=False)


@Parameter(name="*", group="Engine", negative="")
@dataclass(frozen=True, kw_only=True)
class EngineOptions(BackendOptions):
    """Which model generates the traces, and how its engine is set up."""

    model: Annotated[str | None, Parameter(alias="-m")] = None
    """A name from `conviction models` or of [models.NAME] in the settings file; a GGUF file;
    hf:owner/repo/file.gguf; vllm:MODEL for vLLM in this program; scripted for made-up traces;
    PREFIX:… of a plug-in; with --base-url the server's name of the model."""
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
