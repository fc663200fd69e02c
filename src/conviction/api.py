"""The front door for programs: `think` and `athink`, and for many questions `think_many`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import start_blocking_portal

from conviction.answers import AnswerKind, kind
from conviction.backends import Backend, backend, room_for
from conviction.core import InvalidSettingError, Question, Sampling, require, require_whole
from conviction.engines.base import Engine
from conviction.errors import (
    AllTracesFailedError,
    AnswerError,
    ContextOverflowError,
    ConvictionError,
)
from conviction.events import Event, Listener
from conviction.models import ModelFile
from conviction.policies import policy as named_policy
from conviction.policies.base import Policy
from conviction.prompts import PromptStyle, compose
from conviction.registry import unknown_name
from conviction.sharing import Place, Slots
from conviction.tasks import unless_ended
from conviction.thinking import RESTARTS, deliberate
from conviction.verdict import Verdict

DEFAULT_POLICY = "settle"
"""Of the policies here, the one that keeps the accuracy of majority voting at fewest tokens without
taking longer, on recorded answers of large models and on the embedded default model (docs/results).
It needs no confidence, so it runs on every engine."""
MOST_CHARACTERS = 1_000_000
"""A longer question is a mistake: no context holds it."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Ready:
    """The questions in the words that the model gets, a running engine, and how it is asked."""

    questions: list[Question]
    engine: Engine
    answers: AnswerKind
    sampling: Sampling


async def athink(
    question: str | Question,
    *,
    model: str | Backend | ModelFile | None = None,
    engine: Engine | None = None,
    policy: str | Policy = DEFAULT_POLICY,
    budget: int | None = None,
    answers: str | AnswerKind = "math",
    prompt_style: PromptStyle | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    restarts: int = RESTARTS,
    time_limit: float | None = None,
    on_event: Listener | None = None,
    interrupt: anyio.Event | None = None,
) -> Verdict:
    """Think about a question many times in parallel and return the verdict.

    Args:
        question: The user's words, which get a prompt around them; or a finished `Question`,
            which is sent as it is.
        model: What `conviction think -m` takes: a name of the catalogue or of [models.NAME] in
            the settings file, a path, `hf:owner/repo/file`, `vllm:MODEL`, …; or a `Backend`.
            Default: a small model that runs anywhere, fetched if need be.
        engine: An engine in place of a model. Start it yourself (`async with`), so that many
            questions can share it.
        policy: A policy's name, or a policy with its settings.
        budget: The most traces to start; for policies given by name.
        answers: Name of an answer kind (`conviction.answers.kinds` lists them), or your own.
        prompt_style: What to add to the question; default: what suits the model.
        sampling: How tokens are drawn. Default: as the model's settings say.
        seed: Seeds of all traces derive from it.
        restarts: How often a trace whose stream broke is begun again.
        time_limit: Seconds after which the run ends with the votes it has.
        on_event: Called with every event.
        interrupt: When set, the run ends with the votes it has.

    Raises:
        UsageError: a setting or the question is unusable; nothing was started.
        ModelError: the model cannot be fetched or is broken.
        EngineError: the engine cannot be used.
        AllTracesFailedError: no trace came to an end.
    """
    steering = _policy(policy, budget)
    async with _ready(
        [question],
        model=model,
        engine=engine,
        answers=answers,
        prompt_style=prompt_style,
        sampling=sampling,
    ) as ready:
        [asked] = ready.questions
        return await deliberate(
            asked,
            engine=ready.engine,
            policy=steering,
            answers=ready.answers,
            sampling=ready.sampling,
            seed=seed,
            restarts=restarts,
            time_limit=time_limit,
            on_event=on_event,
            interrupt=interrupt,
        )


async def athink_many(
    questions: Sequence[str | Question],
    *,
    total_tokens: int | None = None,
    model: str | Backend | ModelFile | None = None,
    engine: Engine | None = None,
    policy: str | Policy = DEFAULT_POLICY,
    budget: int | None = None,
    answers: str | AnswerKind = "math",
    prompt_style: PromptStyle | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    restarts: int = RESTARTS,
    time_limit: float | None = None,
    on_event: Callable[[int, Event], None] | None = None,
    interrupt: anyio.Event | None = None,
) -> list[Verdict | ConvictionError]:
    """Think about many questions that share one engine and perhaps a total of tokens.

    All questions get their first traces before any gets more; further traces go to those nearest
    to being settled. `Slots` tells the rules, and by how much the total may be exceeded at most.
    All traces of all questions are kept until the last verdict is in.

    Options are those of `athink` and hold for each question, save these:

    - `total_tokens`: tokens that all traces together may generate, at least 1. When they are spent,
      the questions that are not settled end with the votes they have.
    - `time_limit`: seconds after which all end with the votes they have; so they do when
      `interrupt` is set.
    - `on_event`: called with the number of a question, from 0, and every event of it.

    Returns:
        For each question its verdict, or why there is none: all its traces failed, it does not fit
        the context, or its answers could not be compared.

    Raises:
        UsageError: a setting or a question is unusable; nothing was started.
        ModelError: the model cannot be fetched or is broken.
        EngineError: the engine cannot be used, or counts no tokens where there is a total.
    """
    steering = _policy(policy, budget)
    if isinstance(questions, str):
        raise InvalidSettingError(
            tried="think about many questions",
            found="there is one text in place of a list",
            remedy="Give a list of questions, or use think.",
        )
    if total_tokens is not None:
        require_whole("total_tokens", total_tokens, low=1)
    if time_limit is not None:
        require("time_limit", time_limit, low=0)
    if not questions:
        return []
    async with _ready(
        questions,
        model=model,
        engine=engine,
        answers=answers,
        prompt_style=prompt_style,
        sampling=sampling,
    ) as ready:

        async def one(number: int, place: Place) -> Verdict:
            return await deliberate(
                ready.questions[number],
                engine=ready.engine,
                policy=steering,
                answers=ready.answers,
                sampling=ready.sampling,
                seed=seed,
                restarts=restarts,
                time_limit=time_limit,
                on_event=None if on_event is None else partial(on_event, number),
                interrupt=interrupt,
                place=place,
            )

        began = anyio.current_time()
        capabilities, _ = await unless_ended(ready.engine.capabilities, time_limit, interrupt)
        if time_limit is not None:
            time_limit = max(0.0, time_limit - (anyio.current_time() - began))
        # Without an answer in time, every question ends as soon as it begins.
        concurrency = capabilities.concurrency if capabilities else 1
        slots = Slots(concurrency, total=total_tokens, longest=ready.sampling.max_tokens)
        return await _all(one, slots, len(questions))


async def _all(
    think_about: Callable[[int, Place], Awaitable[Verdict]], slots: Slots, questions: int
) -> list[Verdict | ConvictionError]:
    """The outcome of every question; an error that is not of a single one ends all."""
    outcomes: dict[int, Verdict | ConvictionError] = {}
    failures: list[Exception] = []

    async def work(number: int, place: Place) -> None:
        try:
            with place:
                outcomes[number] = await think_about(number, place)
        except (AllTracesFailedError, ContextOverflowError, AnswerError) as error:
            outcomes[number] = error
        except Exception as error:  # noqa: BLE001  # raised below as it is, not in a group
            failures.append(error)
            tasks.cancel_scope.cancel()

    # All have their place before the first begins.
    places = [slots.place() for _ in range(questions)]
    async with anyio.create_task_group() as tasks:
        for number, place in enumerate(places):
            tasks.start_soon(work, number, place)
    if failures:
        raise failures[0]
    return [outcomes[number] for number in range(questions)]


@asynccontextmanager
async def _ready(
    questions: Sequence[str | Question],
    *,
    model: str | Backend | ModelFile | None,
    engine: Engine | None,
    answers: str | AnswerKind,
    prompt_style: PromptStyle | str | None,
    sampling: Sampling | None,
) -> AsyncGenerator[_Ready]:
    """Start what a run needs."""
    wanted_style = _style(prompt_style)
    for question in questions:
        check_question(question)
    if engine is not None and model is not None:
        label = model if isinstance(model, str) else backend(model).label
        raise InvalidSettingError(
            tried=f"think with the model {label} on the engine {engine.name}",
            found="an engine has its model already",
            remedy="Give one of them.",
        )
    answer_kind = kind(answers) if isinstance(answers, str) else answers
    async with AsyncExitStack() as stack:
        if isinstance(answers, str):
            stack.callback(answer_kind.close)
        chosen = None if engine else await anyio.to_thread.run_sync(_prepared, model)
        style = wanted_style or (chosen.prompt_style if chosen else PromptStyle.STEP_BY_STEP)
        sampling = sampling or (chosen and chosen.sampling) or Sampling()
        asked = [
            compose(question, kind=answer_kind, style=style)
            if isinstance(question, str)
            else question
            for question in questions
        ]
        if chosen is not None:
            built = chosen.sized(room_for(asked, sampling)).build()
            engine = await stack.enter_async_context(built)
        assert engine is not None  # noqa: S101  # given, or just started
        yield _Ready(asked, engine, answer_kind, sampling)


def think(question: str | Question, **options: Any) -> Verdict:
    """`athink`, for programs without an event loop and for notebooks.

    Takes the same options, raises the same errors; an `engine` is started for this one call and
    stopped after it. Inside a running event loop, as in a notebook, it works in a thread of its
    own and blocks the caller until the verdict is in.
    """

    async def main() -> Verdict:
        async with options.get("engine") or nullcontext():
            return await athink(question, **options)

    return _blocking(main)


def think_many(
    questions: Sequence[str | Question], **options: Any
) -> list[Verdict | ConvictionError]:
    """`athink_many`, for programs without an event loop and for notebooks, as `think` is."""

    async def main() -> list[Verdict | ConvictionError]:
        async with options.get("engine") or nullcontext():
            return await athink_many(questions, **options)

    return _blocking(main)


def _blocking(main: Callable[[], Awaitable[Result]]) -> Result:
    """The result of `main`, run to its end, inside a running event loop in another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return anyio.run(main)
    with start_blocking_portal() as portal:
        return portal.call(main)


def check_question(question: str | Question) -> None:
    """Check that a question can be asked.

    Raises:
        InvalidSettingError: it is empty, far too long, or not text.
    """
    found = ""
    text = question.text if isinstance(question, Question) else question
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = f"it is {type(text).__name__}, not text"
    elif not text.strip():
        found = "it is empty"
    elif len(text) > MOST_CHARACTERS:
        found = f"it has {len(text):,} characters; the most is {MOST_CHARACTERS:,}"
    elif "\0" in text:
        found = "it holds NUL bytes, so it is not text"
    elif not _is_unicode(text):
        found = "it holds bytes that are not UTF-8, so it is not text"
    if found:
        raise InvalidSettingError(
            tried="ask the question", found=found, remedy="Give a question in words."
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _policy(policy: str | Policy, budget: int | None) -> Policy:
    if isinstance(policy, str):
        return named_policy(policy, **({} if budget is None else {"budget": budget}))
    if budget is None:
        return policy
    raise InvalidSettingError(
        tried=f"give a budget of {budget} beside a finished policy",
        found="the policy has its own",
        remedy=f"Set it there, or give the policy by its name, {policy.name!r}.",
    )


def _style(name: PromptStyle | str | None) -> PromptStyle | None:
    if name is None:
        return None
    if name not in set(PromptStyle):
        raise unknown_name("prompt style", name, PromptStyle)
    return PromptStyle(name)


def _prepared(model: str | Backend | ModelFile | None) -> Backend:
    return backend(model).prepare()
