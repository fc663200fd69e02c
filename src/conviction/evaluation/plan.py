"""What to evaluate or to record: the questions with their prompts, and the settings."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from math import ceil
from os import PathLike
from typing import Any

import msgspec

from conviction.core import Question, Sampling, require, require_whole
from conviction.engines.base import Capabilities
from conviction.errors import InvalidSettingError
from conviction.evaluation.datasets import DatasetQuestion
from conviction.evaluation.results import QuestionResult, RunData, RunDescription
from conviction.evaluation.stored import check_run
from conviction.policies.base import Conditions, Policy, Start
from conviction.prompts import PromptStyle, compose
from conviction.recordings import RecordedQuestion, prompt_hash
from conviction.thinking import RESTARTS, TOP_K


@dataclass(frozen=True, slots=True)
class PromptedQuestion:
    """A question of a data set in the words that the model gets."""

    question: Question
    recorded: RecordedQuestion

    @classmethod
    def of(cls, item: DatasetQuestion, *, answers: str, style: PromptStyle) -> "PromptedQuestion":
        """A question with a prompt around it."""
        return cls.as_it_is(item, compose(item.text, kind=answers, style=style, id=item.id))

    @classmethod
    def as_it_is(
        cls, item: DatasetQuestion, question: Question | None = None
    ) -> "PromptedQuestion":
        """A question that is sent as it stands in the data set."""
        sent = question or Question.ask(item.text, id=item.id)
        recorded = RecordedQuestion(item.id, item.text, item.gold, prompt_hash(sent), traces=0)
        return cls(sent, recorded)


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """What to record.

    Attributes:
        asked: The questions.
        traces: Complete traces of each, at least 1.
        sampling: How tokens are drawn.
        seed: Seeds of all traces derive from it and the question's id.
        restarts: How often a trace whose stream broke is begun again.
        keep_text: Whether what a trace wrote is recorded.
        answers_only: Whether to go without token confidences.
        logprobs: Whether the log-probability of each token is recorded, too, where the engine
            gives them.
        origin: What to type to read the same questions of the hub again; None for a file.

    Raises:
        InvalidSettingError: there is to be no trace, or log-probabilities without confidences.
    """

    asked: Sequence[PromptedQuestion]
    traces: int
    sampling: Sampling
    seed: int = 0
    restarts: int = RESTARTS
    keep_text: bool = True
    answers_only: bool = False
    logprobs: bool = False
    origin: str | None = None

    def __post_init__(self) -> None:
        require_whole("traces", self.traces, low=1)
        if self.answers_only and self.logprobs:
            raise InvalidSettingError(
                tried="record answers alone and the log-probability of each token",
                found="log-probabilities come from the engine with the confidences",
                remedy="Leave out --answers-only or --logprobs.",
            )


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What to evaluate.

    Attributes:
        asked: The questions.
        policy: Decides which traces to start, stop and count; a prototype.
        answers: Name of the kind of answer.
        sampling: As in `RecordingPlan`, like `seed`, `restarts` and `origin`.
        time_limit: Seconds after which the votes of a question so far decide it.
        path: Where the questions were read, for people.
        questions_at_once: None for as many as keep the engine busy.
        total_tokens: Tokens that all questions share, which are then all asked at once; None for
            any number.

    Raises:
        InvalidSettingError: a value lies outside its range, or a total of tokens comes with a
            setting that keeps questions from sharing it.
    """

    asked: Sequence[PromptedQuestion]
    policy: Policy
    answers: str
    sampling: Sampling
    seed: int = 0
    restarts: int = RESTARTS
    time_limit: float | None = None
    path: str = ""
    origin: str | None = None
    questions_at_once: int | None = None
    total_tokens: int | None = None

    def __post_init__(self) -> None:
        require_whole("restarts", self.restarts, low=0)
        if self.time_limit is not None:
            require("time_limit", self.time_limit, low=0)
        if self.questions_at_once is not None:
            require_whole("questions_at_once", self.questions_at_once, low=1)
        if self.total_tokens is not None:
            require_whole("total_tokens", self.total_tokens, low=1)
            for name in ("questions_at_once", "time_limit"):
                if getattr(self, name) is not None:
                    raise InvalidSettingError(
                        tried=f"use total_tokens and {name}",
                        found="questions that share a total are all thought about from beginning "
                        "to end",
                        remedy="Leave one of them out.",
                    )

    def description(self, engine: str, capabilities: Capabilities | None) -> RunDescription:
        """The run that this plan makes on an engine, of which nothing may be known yet."""
        settings: dict[str, Any] = {
            "policy": self.policy.settings(),
            "answers": self.answers,
            "sampling": asdict(self.sampling),
            "seed": self.seed,
            "restarts": self.restarts,
            "time_limit": self.time_limit,
            "total_tokens": self.total_tokens,
        }
        recorded = [one.recorded for one in self.asked]
        rows = [(one.id, one.text, one.gold) for one in recorded]
        prompts = [(one.id, one.prompt_hash) for one in recorded]
        place = self.origin or self.path
        return RunDescription(
            settings=settings,
            model=capabilities.model if capabilities else None,
            top_k=min(TOP_K, capabilities.top_k) if capabilities else None,
            data=RunData(place, len(rows), _hash(sorted(rows)), _hash(sorted(prompts))),
            engine=engine,
            versions={"conviction": version("conviction"), "python": platform.python_version()},
            begun=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def at_once(self, capabilities: Capabilities) -> int:
        """How many questions to think about at once.

        One more than fills the engine with first traces, so that it is never short of work;
        questions that share a total all take part from the beginning.
        """
        if self.total_tokens is not None:
            return len(self.asked)
        if self.questions_at_once is not None:
            return self.questions_at_once
        conditions = Conditions(
            capabilities.concurrency, self.sampling.max_tokens, min(TOP_K, capabilities.top_k)
        )
        actions = self.policy.fresh().begin(conditions)
        first = sum(action.count for action in actions if isinstance(action, Start))
        return ceil(capabilities.concurrency / max(first, 1)) + 1

    def in_order(self, results: Sequence[QuestionResult]) -> list[QuestionResult]:
        """Results in the order of the questions; they come and are kept as they end."""
        places = {asked.recorded.id: place for place, asked in enumerate(self.asked)}
        return sorted(results, key=lambda result: places[result.id])


def check_plan(plan: EvaluationPlan, path: str | PathLike[str]) -> None:
    """Check whether a plan may begin in a folder or go on there, as far as no engine is needed.

    Raises:
        InvalidSettingError: the folder holds a run of other settings or data, or something else.
        RecordingError: it is damaged, or comes from a newer version.
    """
    check_run(path, plan.description("", None))


def _hash(rows: Sequence[Any]) -> str:
    return sha256(msgspec.json.encode(rows)).hexdigest()
