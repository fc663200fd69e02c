"""Models that the user names in the settings file: [models.NAME]."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conviction.backends import BackendOptions, Price
from conviction.core import Sampling
from conviction.errors import ConvictionError, InvalidSettingError
from conviction.registry import unknown_name
from conviction.settings import settings_path


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Prices(_Table):
    input: float
    output: float
    cached_input: float | None = None


class _SamplingTable(_Table):
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
    sampling: _SamplingTable | None = None


def read_model(
    name: str, table: Mapping[str, Any], options: BackendOptions
) -> tuple[str | None, BackendOptions, Price | None, Sampling | None]:
    """The model that a table describes.

    Returns:
        The server's name of the model or what `-m` takes; how to set it up, with the options that
        were given beside it; what it costs; and how its tokens are drawn.

    Raises:
        InvalidSettingError: naming the file, and the key or the value that is wrong.
    """
    where = f"read [models.{name}] in {settings_path()}"
    try:
        told = _Model.model_validate(table)
        price = None if told.price is None else Price(**told.price.model_dump())
        draws = None if told.sampling is None else told.sampling.model_dump(exclude_none=True)
        sampling = None if draws is None else Sampling(**draws)
    except ValidationError as error:
        raise _refused(error, where) from None
    except ConvictionError as error:
        raise InvalidSettingError(tried=where, found=error.problem, remedy=error.remedy) from None
    options = replace(
        options,
        base_url=[told.base_url] if isinstance(told.base_url, str) else told.base_url,
        api_key_env=options.api_key_env or (None if options.api_key_file else told.api_key_env),
        headers=told.headers,
        extra_body=told.extra_body,
    )
    return told.model, options, price, sampling


def _refused(error: ValidationError, where: str) -> InvalidSettingError:
    """The error for a table that is not one of a model; it shows no values, which may be keys."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # A misspelt key is often missing, too, but its name says more.
    first = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[str]"))
    if first["type"] == "extra_forbidden":
        tables = {"price": _Prices, "sampling": _SamplingTable}
        *outer, unknown = map(str, first["loc"])
        table = tables[outer[0]] if outer else _Model
        near = unknown_name("key", unknown, table.model_fields)
        return InvalidSettingError(tried=where, found=near.problem, remedy=near.remedy)
    return InvalidSettingError(
        tried=where, found=f"{key}: {first['msg'].lower()}", remedy="Correct it in the file."
    )
