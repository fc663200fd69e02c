"""The user's settings file: where it lies, and what it says."""

import os
import tomllib
from pathlib import Path
from typing import Any, cast

from platformdirs import user_config_path

from conviction.errors import InvalidSettingError

VARIABLE = "CONVICTION_CONFIG"
MODEL_COMMANDS = ("list", "pull", "rm")
"""Tables below [models] that hold options of `conviction models` and do not describe a model."""


def settings_path() -> Path:
    """The settings file: $CONVICTION_CONFIG, or config.toml in the user's configuration folder."""
    return Path(os.environ.get(VARIABLE) or user_config_path("conviction") / "config.toml")


def read_settings() -> dict[str, Any]:
    """What the settings file says; empty if the user has none.

    Raises:
        InvalidSettingError: $CONVICTION_CONFIG names a file that does not exist, or the file cannot
            be read or parsed.
    """
    path = settings_path()
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if not os.environ.get(VARIABLE):
            return {}
        found = f"{VARIABLE} names it, but there is no such file"
        remedy = f"Create it, correct {VARIABLE}, or unset it."
    except IsADirectoryError:
        found, remedy = "it is a folder", f"Name a TOML file in {VARIABLE}."
    except UnicodeDecodeError as error:
        found, remedy = f"it is not UTF-8 text (byte {error.start})", "Save it as UTF-8."
    except tomllib.TOMLDecodeError as error:
        found, remedy = str(error), "Correct the line; the format is TOML."
    except RecursionError:
        found, remedy = "its lists or tables are nested too deeply", "Correct it."
    except OSError as error:
        found, remedy = error.strerror or str(error), "Make it a file that you can read."
    raise InvalidSettingError(
        tried=f"read the settings file {path}", found=found, remedy=remedy
    ) from None


def mirrors_allowed() -> bool | None:
    """What `model_mirrors` says: whether models may be fetched from their mirrors.

    Raises:
        InvalidSettingError: as `read_settings` raises, or it is neither true nor false.
    """
    said = read_settings().get("model_mirrors")
    if not isinstance(said, bool | None):
        raise InvalidSettingError(
            tried=f"read model_mirrors in the settings file {settings_path()}",
            found=f"{said!r} is neither true nor false",
            remedy="Write model_mirrors = false to turn mirrors off.",
        )
    return said


def command_settings() -> dict[str, Any]:
    """The tables with options of commands, without the definitions of models.

    Raises:
        InvalidSettingError: as `read_settings` raises.
    """
    told = read_settings()
    models = told.get("models")
    if isinstance(models, dict):
        told["models"] = {name: models[name] for name in MODEL_COMMANDS if name in models}
    return {name: table for name, table in told.items() if isinstance(table, dict)}


def model_settings() -> dict[str, Any]:
    """The definitions of models, by name.

    Raises:
        InvalidSettingError: as `read_settings` raises, or `models` is not made of tables.
    """
    models: Any = read_settings().get("models", {})
    if not isinstance(models, dict) or not all(
        isinstance(one, dict) for one in cast("dict[str, Any]", models).values()
    ):
        raise InvalidSettingError(
            tried=f"read the models of {settings_path()}",
            found="each model must be a table",
            remedy='Write it as in [models.big], then base_url = "http://127.0.0.1:8000/v1".',
        )
    tables = cast("dict[str, Any]", models)
    return {name: table for name, table in tables.items() if name not in MODEL_COMMANDS}
