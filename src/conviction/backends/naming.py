"""From what a user calls a model to its backend: the one vocabulary of `-m` and `model=`.

NAME                    of the settings file's [models.NAME], or of the catalogue
PATH.gguf               a file; hf:OWNER/REPOSITORY/FILE.gguf and https://… are fetched
PREFIX or PREFIX:REST   an engine of the registry: vllm:MODEL, scripted, or a plug-in's
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from conviction.backends.base import Backend, BackendOptions
from conviction.errors import InvalidSettingError
from conviction.models import ModelFile, catalogue
from conviction.registry import Registry, unknown_name
from conviction.settings import model_settings, settings_path

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
        _check_unique(named)
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
    path = Path(name).expanduser()
    with suppress(OSError, ValueError):
        return path.suffix.lower() == ".gguf" or path.is_file()
    return False


def _check_unique(name: str) -> None:
    """Check that a name of the settings file is not one of the catalogue or of an engine."""
    prefix = name.partition(":")[0]
    other = (
        "one in the catalogue (`conviction models`)"
        if catalogue().find(name)
        else f"the engine {prefix!r}"
        if prefix in ENGINES.names()
        else ""
    )
    if other:
        raise InvalidSettingError(
            tried=f"use the model {name!r}",
            found=f"[models.{name}] in {settings_path()} has the same name as {other}",
            remedy=f"Rename [models.{name}].",
        )


def _of_settings(name: str, table: Mapping[str, Any], options: BackendOptions) -> Backend:
    """The backend that the settings file describes."""
    from conviction.backends.named import read_model  # noqa: PLC0415  # pydantic is slow to import

    told = read_model(name, table, options)
    if told.options.base_url or told.model is None:
        made = backend(told.model, told.options)
    else:
        made = _unnamed(told.model, told.options, known={})
    return replace(made, name=name, price=told.price, sampling=told.sampling)
