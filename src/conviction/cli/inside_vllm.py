"""The model `vllm:NAME` of a command: vLLM inside this program, and its settings."""

import json as jsonlib
import os
from collections.abc import Sequence
from typing import Any

from conviction.engines.vllm import VLLMEngine
from conviction.errors import InvalidSettingError

PREFIX = "vllm:"


def is_inside(model: str | None) -> bool:
    """Whether a model's name asks for vLLM inside this program."""
    return model is not None and model.startswith(PREFIX)


def inside(model: str, settings: Sequence[str], *, templated: bool) -> VLLMEngine:
    """The engine for such a model.

    Args:
        model: "vllm:" and a folder, or a name on the Hugging Face hub.
        settings: vLLM's own, each as NAME=VALUE.
        templated: Whether questions have the model's template around them already.

    Raises:
        InvalidSettingError: no model is named, or a setting has no value.
    """
    name, options = settings_inside(model, settings)
    # Standard output is for the answer; of what vLLM tells, only its troubles are for everybody.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    return VLLMEngine(name, options=options, templated=templated)


def settings_inside(model: str, settings: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The folder or the name on the hub of such a model, and vLLM's settings.

    Raises:
        InvalidSettingError: no model is named, or a setting has no value.
    """
    name = model.removeprefix(PREFIX)
    if not name:
        raise InvalidSettingError(
            tried=f"use the model {model!r}",
            found="no model is named",
            remedy="Name a folder or a model on the Hugging Face hub, as in "
            "vllm:Qwen/Qwen2.5-7B-Instruct.",
        )
    return name, dict(map(_setting, settings))


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not (name and equals):
        raise InvalidSettingError(
            tried=f"use {text!r} as a setting of vLLM",
            found="it is not of the form NAME=VALUE",
            remedy="Write it as in --vllm max_model_len=8192.",
        )
    try:
        return name, jsonlib.loads(value)
    except ValueError:
        return name, value
