"""What commands that generate take: an engine, how tokens are drawn, and questions with prompts."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

from cyclopts import Parameter

from conviction.answers import kind, kinds_help
from conviction.api import MOST_CHARACTERS, check_question
from conviction.backends import Backend, BackendOptions, backend
from conviction.cli.terminal import WHOLE
from conviction.core import InvalidSettingError, Question, Sampling, require, require_whole
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.plan import PromptedQuestion
from conviction.models import ModelFile
from conviction.policies.base import Policy
from conviction.prompts import PromptStyle, compose
from conviction.thinking import RESTARTS

if TYPE_CHECKING:
    from conviction.cli.calibration import Calibrator

_UNSEEN = Parameter(parse=False)
MOST_BYTES = 4 * MOST_CHARACTERS
"""No UTF-8 text of the most characters is longer."""


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

    def prompt(self, model: Backend | ModelFile, *, templated: bool) -> Callable[..., Question]:
        """What makes a question of a user's words, and of an `id` if one is given.

        Without a style they are put as suits the model; `templated` words are sent as they are.
        """
        if templated:
            return Question.ask
        style = self.prompt_style or model.prompt_style
        return partial(compose, kind=self.answer, style=style)

    def asked(
        self, questions: Sequence[DatasetQuestion], model: Backend | ModelFile, *, templated: bool
    ) -> tuple[PromptedQuestion, ...]:
        """The questions of a data set in the words that the model gets."""
        prompt = self.prompt(model, templated=templated)
        return tuple(
            PromptedQuestion.as_it_is(one, prompt(one.text, id=one.id)) for one in questions
        )


@Parameter(name="*", group="Generation")
@dataclass(frozen=True)
class GenerationOptions(TraceOptions):
    """How traces are generated."""

    time_limit: float | None = None
    "Seconds after which the votes so far decide."
    restarts: Annotated[int, WHOLE] = RESTARTS
    "How often a trace whose stream broke is begun again."

    def check(self) -> None:
        """Refuse what cannot be used, before anything is fetched or started.

        Raises:
            UsageError: there is no such kind of answer, or a value is out of its range.
        """
        kind(self.answer)
        require_whole("restarts", self.restarts, low=0)
        if self.time_limit is not None:
            require("time_limit", self.time_limit, low=0)


@Parameter(name="*", group="Calibration")
@dataclass(frozen=True)
class CalibrationOptions:
    """How probable an answer is to be right, and when that is too little."""

    calibration: Path | None = None
    """A recording of other questions like these with right answers, by the same model: tells how
    probable an answer is to be right."""
    abstain_below: float | None = None
    "Give no answer that is less probable to be right than this, in (0, 1]."

    def open(self, policy: Policy) -> "Calibrator | None":
        """The recording, if there is one; raises as `open_calibration`."""
        if self == CalibrationOptions():
            return None
        from conviction.cli.calibration import open_calibration  # noqa: PLC0415  # seldom needed

        return open_calibration(self.calibration, self.abstain_below, policy)


def read_question(argument: str | None, file: Path | None, *, as_it_is: bool = False) -> str:
    """The question: the argument, or a file's text, or standard input for the file "-" or a pipe.

    White space at both ends is kept `as_it_is` where it has a meaning, as in a prompt's template.

    Raises:
        InvalidSettingError: there is no question, there are two, or it is no usable text.
    """
    if argument is not None and file is not None:
        raise InvalidSettingError(
            tried="read the question",
            found="there is one on the command line and one in --file",
            remedy="Give only one of them.",
        )
    if file is not None and str(file) != "-":
        text = _read_file(file)
    elif argument is not None:
        text = argument
    elif file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise InvalidSettingError(
            tried="read the question",
            found="there is none",
            remedy='Ask one: conviction think "…" — or pipe it in, or use --file.',
        )
    else:
        text = _decode(sys.stdin.buffer, "standard input")
    check_question(text)
    return text if as_it_is else text.strip()


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return _decode(stream, str(path))
    except OSError as error:
        raise InvalidSettingError(
            tried=f"read the question from {path}",
            found=error.strerror or str(error),
            remedy="Name a text file that can be read.",
        ) from error


def _decode(stream: BinaryIO, source: str) -> str:
    data, found = stream.read(MOST_BYTES + 1), ""
    if len(data) > MOST_BYTES:
        found = f"it is longer than {MOST_BYTES:,} bytes"
    elif b"\0" in data:
        found = "it holds NUL bytes, so it is not text"
    if not found:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            found = f"it is not UTF-8 text (byte {error.start})"
    raise InvalidSettingError(
        tried=f"read the question from {source}",
        found=found,
        remedy="Give a question as UTF-8 text.",
    )


def check_texts(questions: Sequence[DatasetQuestion]) -> None:
    """Check that every question of a data set can be asked.

    Raises:
        InvalidSettingError: naming the row.
    """
    for question in questions:
        try:
            check_question(question.text)
        except InvalidSettingError as error:
            raise InvalidSettingError(
                tried=f"ask the question in {question.place}",
                found=error.found,
                remedy="Correct the row, or leave it out.",
            ) from None
