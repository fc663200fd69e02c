"""Starting vLLM: what is refused before it loads for minutes, and why it did not start."""

import dataclasses
import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from conviction.children import secrets_hidden
from conviction.errors import (
    EngineStartError,
    InvalidSettingError,
    MissingExtraError,
    NotAChatModelError,
)

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_MEMORY_WORDS = ("out of memory", "kv cache", "gpu_memory_utilization", "free memory")


def check_installed() -> None:
    """Raise MissingExtraError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise MissingExtraError(
            tried="start vLLM in this program",
            found="the package vllm is not installed here",
            remedy="Install both in one environment: pip install vllm conviction. Or run vLLM's "
            "own server, and give its address with --base-url.",
        )


def check_model(model: str) -> None:
    """NotAChatModelError for a path that is not the folder of a model; names are left to vLLM."""
    path = Path(model).expanduser()
    looks_like_a_path = path.is_absolute() or model.startswith((".", "~")) or path.exists()
    if not looks_like_a_path or (path / "config.json").is_file():
        return
    if path.is_file():
        found = "it is a file"
    else:
        found = "it has no config.json" if path.is_dir() else "there is no such folder"
    raise NotAChatModelError(
        tried=f"start vLLM with the model {model}",
        found=found,
        remedy="Name a folder with config.json, weights and tokenizer, or a model on the Hugging "
        "Face hub as OWNER/NAME. A GGUF file runs on the embedded engine: leave out vllm:.",
    )


def start(model: str, options: Mapping[str, object]) -> "AsyncLLM":
    """Start vLLM with settings of its own, which takes from seconds to minutes.

    InvalidSettingError if vLLM has no such setting, EngineStartError if it did not start.
    """
    try:
        arguments = importlib.import_module("vllm.engine.arg_utils")
        engine = importlib.import_module("vllm.v1.engine.async_llm")
    except ImportError as error:
        raise EngineStartError(
            tried="import vLLM",
            found=f"{type(error).__name__}: {error}",
            remedy="Install a build of vLLM that fits this machine, 0.31 or later.",
        ) from error
    _check_names(arguments, options)
    settings = {"enable_prefix_caching": True, "disable_log_stats": True, **options}
    try:
        args = arguments.AsyncEngineArgs(model=str(Path(model).expanduser()), **settings)
        # Its processes need no keys but those that the model may be fetched with.
        with secrets_hidden("HF_", "AWS_"):
            return engine.AsyncLLM.from_engine_args(args)
    except Exception as error:
        raise _not_started(model, error) from error


def _check_names(arguments: ModuleType, options: Mapping[str, object]) -> None:
    fields = dataclasses.fields(arguments.AsyncEngineArgs)
    known = {field.name for field in fields} - {"model"}
    for name in options.keys() - known:
        near = get_close_matches(name, known, n=1)
        listed = "`vllm serve --help` lists them, with dashes in place of the underscores."
        raise InvalidSettingError(
            tried=f"start vLLM with {name}",
            found="the model has its own place" if name == "model" else "it has no such setting",
            remedy=f"Did you mean {near[0]!r}?" if near else listed,
        )


def _not_started(model: str, error: Exception) -> EngineStartError:
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 5:
        causes.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    memory = any(word in text.lower() for text in causes for word in _MEMORY_WORDS)
    if memory or "OutOfMemory" in causes[0]:
        remedy = (
            "The memory does not suffice: lower gpu_memory_utilization if others use the device, "
            "max_model_len or max_num_seqs if vLLM needs less, or take a smaller or quantized "
            "model."
        )
    else:
        remedy = (
            "What vLLM wrote above tells the cause. Most often it is memory (lower "
            "gpu_memory_utilization or max_model_len), or a model that vLLM does not know."
        )
    found = " ".join(causes[0].split())
    return EngineStartError(tried=f"start vLLM with the model {model}", found=found, remedy=remedy)
