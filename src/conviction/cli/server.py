"""Options for an engine other than the embedded one: servers and their key, or vLLM in here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from conviction.cli.arguments import WHOLE
from conviction.cli.inside_vllm import inside, is_inside, settings_inside
from conviction.core import InvalidSettingError
from conviction.engines.base import Engine
from conviction.engines.openai import OpenAIEngine, Route, Timeouts
from conviction.models import cache_folder
from conviction.ray.engines import EndpointFactory, EngineFactory, VLLMFactory

KEY_VARIABLE = "CONVICTION_API_KEY"
_MOST_KEY_BYTES = 1 << 14
_TIMEOUTS = Timeouts()


@Parameter(name="*", group="Server")
@dataclass(frozen=True)
class ServerOptions:
    """A server of completions, in place of the embedded engine."""

    base_url: Annotated[list[str] | None, Parameter(negative="")] = None
    "Address of an OpenAI-compatible server, as in http://127.0.0.1:8000/v1; repeat for several."
    api_key_env: str | None = None
    "Environment variable that holds the key; CONVICTION_API_KEY if not given."
    api_key_file: Path | None = None
    "File that holds the key."
    templated: Annotated[bool, Parameter(negative="")] = False
    "The question has the model's chat template around it: send it as it is to /completions."
    concurrency: Annotated[int, WHOLE] = 64
    "Traces that one server gets at once."
    first_byte_timeout: float = _TIMEOUTS.first_byte
    "Seconds until a server must begin to answer."
    stall_timeout: float = _TIMEOUTS.stall
    "Seconds that a server may fall silent in the middle of a trace."
    vllm: Annotated[list[str] | None, Parameter(negative="")] = None
    "A setting of vLLM's for -m vllm:MODEL, as in max_model_len=8192; repeat for several."

    @property
    def route(self) -> Route:
        """Where traces are asked for."""
        return Route.COMPLETIONS if self.templated else Route.CHAT

    def engine(self, model: str | None, *, facts_folder: Path | None = None) -> Engine | None:
        """The engine for the servers, or for vLLM inside this program; None for the embedded one.

        Args:
            model: Name of the model; None for the first that the server lists.
            facts_folder: Where to keep what was found out about servers.

        Raises:
            InvalidSettingError: the key cannot be read, or an option does not fit the others.
        """
        if not is_inside(model) or self.base_url:
            return self.servers(model, facts_folder=facts_folder)
        assert model is not None  # noqa: S101  # it has the name of one inside
        if replace(self, templated=False, vllm=None) != type(self)():
            raise InvalidSettingError(
                tried=f"use options for a server with the model {model}",
                found="vLLM runs inside this program then, and there is no server",
                remedy="Leave them out; vLLM's own settings go into --vllm NAME=VALUE.",
            )
        return inside(model, self.vllm or (), templated=self.templated)

    def servers(
        self, model: str | None, *, facts_folder: Path | None = None
    ) -> OpenAIEngine | None:
        """The engine for the servers; None if there are none.

        Args:
            model: Name of the model; None for the first that the server lists.
            facts_folder: Where to keep what was found out about servers.

        Raises:
            InvalidSettingError: the key cannot be read, or an option needs a server.
        """
        if self.vllm:
            raise InvalidSettingError(
                tried="use --vllm",
                found="vLLM does not run inside this program",
                remedy="Name the model as in -m vllm:MODEL; a server has its settings from its "
                "own command line.",
            )
        if not self.base_url:
            if self != type(self)():
                raise InvalidSettingError(
                    tried="use options for a server",
                    found="there is no --base-url",
                    remedy="Name the server, as in --base-url http://127.0.0.1:8000/v1.",
                )
            return None
        return OpenAIEngine(
            self.base_url,
            model=model,
            api_key=_read_key(self.api_key_env, self.api_key_file),
            route=self.route,
            concurrency=self.concurrency,
            timeouts=self._timeouts,
            facts_folder=facts_folder,
        )

    def factories(self, model: str | None, *, gpus: int = 0) -> Sequence[EngineFactory]:
        """What makes the same engines elsewhere, one per server; empty for the embedded one.

        Args:
            model: As for `engine`.
            gpus: GPUs that vLLM has there.

        Raises:
            InvalidSettingError: as `engine` raises.
        """
        self.engine(model)  # Refuses what does not fit.
        if model is not None and is_inside(model) and not self.base_url:
            name, options = settings_inside(model, self.vllm or ())
            return [VLLMFactory(name, options, self.templated, gpus)]
        key = _read_key(self.api_key_env, self.api_key_file) if self.base_url else None
        return [
            EndpointFactory(url, model, key, self.route, self.concurrency, self._timeouts)
            for url in dict.fromkeys(self.base_url or ())
        ]

    @property
    def _timeouts(self) -> Timeouts:
        return Timeouts(first_byte=self.first_byte_timeout, stall=self.stall_timeout)


def facts_folder() -> Path:
    """Where what was found out about servers is kept between runs."""
    return cache_folder().parent / "servers"


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
