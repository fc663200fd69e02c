"""Logs of Inspect (UKGovernmentBEIS/inspect_ai): samples are questions, epochs are traces.

Its schema keeps log-probabilities at output.choices[].logprobs.content[].top_logprobs, if the
run asked for them (--logprobs --top-logprobs 20). Whether they are the model's own or those after
temperature and filters depends on the provider, and no log tells.
"""

import zlib
from collections import Counter
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from conviction.confidence import token_confidences
from conviction.core import FinishReason, Message, Question, Sampling, Trace
from conviction.errors import InvalidSettingError
from conviction.recordings.importing.base import (
    Imported,
    ImportedQuestion,
    asked_question,
    parsed,
    refused,
    shaped,
)
from conviction.recordings.schema import PoolMeta

_FINISHES = {
    "stop": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
}
_MOST_MEMBER_BYTES = 1 << 30


class _TopLogprob(msgspec.Struct):
    logprob: float


class _Token(msgspec.Struct):
    top_logprobs: list[_TopLogprob] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token]


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] = ""

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(str(part.get("text", "")) for part in self.content)


class _Choice(msgspec.Struct):
    message: _Message
    stop_reason: str = "unknown"
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Output(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list[_Choice])
    usage: _Usage | None = None
    time: float | None = None


class _Sample(msgspec.Struct):
    id: int | str
    epoch: int
    input: str | list[_Message]
    output: _Output
    target: str | list[str] = ""


class _Generation(msgspec.Struct):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None


class _Eval(msgspec.Struct):
    model: str
    model_generate_config: _Generation = msgspec.field(default_factory=_Generation)


def read_inspect_json(path: Path, value: Any) -> Imported:
    """A log in one JSON file.

    Raises:
        RecordingError: it has another shape, or a sample cannot be used.
    """
    return _imported(path, value["eval"], shaped(value["samples"] or [], list[Any], str(path)))


def read_inspect_zip(path: Path) -> Imported:
    """A log in Inspect's own format, which is a ZIP file of JSON files.

    Raises:
        RecordingError: the same as for JSON; or it is compressed in a way that cannot be read.
    """
    try:
        with ZipFile(path) as archive:
            names = sorted(
                name for name in archive.namelist() if name.startswith("samples/") and name[8:]
            )
            header = _member(archive, "header.json", path)
            samples = [_member(archive, name, path) for name in names]
    except (BadZipFile, NotImplementedError, KeyError, RuntimeError, EOFError, zlib.error) as error:
        remedy = "Convert it: inspect log convert --to json --output-dir FOLDER FILE."
        raise refused(path, f"it is no finished log that can be read ({error})", remedy) from None
    return _imported(path, header.get("eval"), samples)


def _member(archive: ZipFile, name: str, path: Path) -> Any:
    if archive.getinfo(name).file_size > _MOST_MEMBER_BYTES:
        raise refused(path, f"{name} is larger than {_MOST_MEMBER_BYTES:,} bytes")
    return parsed(archive.read(name), f"{name} of {path}")


def _imported(path: Path, header: Any, samples: Iterable[Any]) -> Imported:
    run = shaped(header, _Eval, str(path))
    found = [
        shaped(sample, _Sample, f"sample {position} of {path}")
        for position, sample in enumerate(samples, start=1)
    ]
    top_k = _common_k(found)
    by_question: dict[str, list[_Sample]] = {}
    for sample in found:
        by_question.setdefault(str(sample.id), []).append(sample)
    meta = PoolMeta(
        model=run.model,
        top_k=top_k,
        answers="",
        sampling=_sampling(run.model_generate_config, path),
        source=f"{path.name} of Inspect; log-probabilities as its provider gave them",
    )
    return Imported(meta, tuple(_question(one, top_k, path) for one in by_question.values()))


def _sampling(config: _Generation, path: Path) -> Sampling | None:
    if config.temperature is None or config.max_tokens is None:
        return None
    try:
        return Sampling(**msgspec.structs.asdict(config))
    except InvalidSettingError as error:
        raise refused(path, error.problem, "Correct its settings.") from None


def _common_k(samples: list[_Sample]) -> int:
    """How many log-probabilities most tokens have; 0 where there are none."""
    sizes = Counter(
        len(token.top_logprobs or ())
        for sample in samples
        for choice in sample.output.choices
        for token in (choice.logprobs.content if choice.logprobs else ())
    )
    return sizes.most_common(1)[0][0] if sizes else 0


def _question(samples: list[_Sample], top_k: int, path: Path) -> ImportedQuestion:
    first = samples[0]
    asked = [Message("user", first.input)] if isinstance(first.input, str) else _chat(first.input)
    targets = [first.target] if isinstance(first.target, str) else first.target
    if len(targets) > 1 or not asked:
        found = "several targets" if asked else "no input"
        raise refused(f"sample {first.id!r} of {path}", f"it has {found}")
    question = Question(tuple(asked), str(first.id))
    traces: list[Trace] = []
    for sample in sorted(samples, key=lambda sample: sample.epoch):
        traces += _traces(sample, top_k, path, len(traces))
    gold = targets[0] if targets and targets[0] else None
    place = f"sample {first.id!r} of {path}"
    recorded = asked_question(place, question.id, question.text, gold, question)
    return ImportedQuestion(place, recorded, tuple(traces))


def _chat(messages: list[_Message]) -> list[Message]:
    roles = {"system": "system", "user": "user", "assistant": "assistant"}
    return [Message(roles.get(message.role, "user"), message.text) for message in messages]  # type: ignore[arg-type]


def _traces(sample: _Sample, top_k: int, path: Path, first: int) -> list[Trace]:
    traces: list[Trace] = []
    usage = sample.output.usage or _Usage()
    choices, seconds = sample.output.choices, sample.output.time or 0.0
    place = f"sample {sample.id!r}, epoch {sample.epoch} of {path}"
    if not isfinite(seconds):
        raise refused(place, f"its time is {seconds}")
    for choice in choices:
        if top_k and choice.logprobs is None:
            raise refused(place, "its log-probabilities are missing, and others have theirs")
        if not top_k and len(choices) > 1:
            raise refused(place, "its tokens are told for several choices together")
        confidences = _confidences(choice, top_k) if top_k else np.empty(0, np.float32)
        traces.append(
            Trace(
                id=first + len(traces),
                finish=_FINISHES.get(choice.stop_reason, FinishReason.ERROR),
                tokens=confidences.size if top_k else usage.output_tokens,
                text=choice.message.text,
                confidences=confidences,
                prompt_tokens=usage.input_tokens,
                ended=seconds,
            )
        )
    return traces


def _confidences(choice: _Choice, top_k: int) -> NDArray[np.float32]:
    tokens = choice.logprobs.content if choice.logprobs else []
    rows = np.full((len(tokens), top_k), np.nan)
    for row, token in zip(rows, tokens, strict=True):
        best = sorted((entry.logprob for entry in token.top_logprobs or ()), reverse=True)[:top_k]
        row[: len(best)] = best
    return token_confidences(rows, top_k)
