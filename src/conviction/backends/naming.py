"""From what a user calls a model to its backend: the one vocabulary of `-m` and `model=`.

NAME                    of the settings file's [models.NAME], or of the catalogue
PATH.gguf               a file; hf:OWNER/REPOSITORY/FILE.gguf and https://… are fetched
PREFIX or PREFIX:REST   an engine of the registry: vllm:MODEL, scripted, or a plug-in's
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conviction.backends.base import Backend, BackendOptions, Price
from conviction.core import Sampling
from conviction.errors import ConvictionError, InvalidSettingError
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


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Prices(_Table):
    input: float
    output: float
    cached_input: float | None = None


class _Draws(_Table):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None


class _Model(_Table):
    """[models.NAME] of the settings file."""

    base_url: Annotated[list[str], Field(min_length=1)] | str | None = None
    model: str | None = None
    api_key_env: str | None = None
    price: _Prices | None = None
    headers: dict[str, str] | None = None
    extra_body: dict[str, Any] | None = None
    sampling: _Draws | None = None


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
    where = f"read [models.{name}] in {settings_path()}"
    try:
        told = _Model.model_validate(table)
        price = None if told.price is None else Price(**told.price.model_dump())
        sampling = None if told.sampling is None else _sampling(told.sampling)
    except ValidationError as error:
        raise _refused(error, where) from None
    except ConvictionError as error:
        raise InvalidSettingError(tried=where, found=error.found, remedy=error.remedy) from None
    urls = [told.base_url] if isinstance(told.base_url, str) else told.base_url
    options = replace(
        options,
        base_url=urls,
        api_key_env=options.api_key_env or (None if options.api_key_file else told.api_key_env),
        headers=told.headers,
        extra_body=told.extra_body,
    )
    if urls or told.model is None:
        made = backend(told.model, options)
    else:
        made = _unnamed(told.model, options, known={})
    return replace(made, name=name, price=price, sampling=sampling)


def _sampling(draws: _Draws) -> Sampling:
    return Sampling(**draws.model_dump(exclude_none=True))


def _refused(error: ValidationError, where: str) -> InvalidSettingError:
    """The error for a table that is not one of a model; it shows no values, which may be keys."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # A misspelt key is often missing, too, but its name says more.
    first = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[str]"))
    if first["type"] == "extra_forbidden":
        tables = {"price": _Prices, "sampling": _Draws}
        *outer, unknown = map(str, first["loc"])
        table = tables[outer[0]] if outer else _Model
        near = unknown_name("key", unknown, table.model_fields)
        return InvalidSettingError(tried=where, found=near.problem, remedy=near.remedy)
    return InvalidSettingError(
        tried=where, found=f"{key}: {first['msg'].lower()}", remedy="Correct it in the file."
    )
