"""The front door for programs: `think` and `athink`."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread

from conviction.answers import kind
from conviction.answers.base import AnswerKind
from conviction.core import InvalidSettingError, Question, Sampling
from conviction.engines.base import Engine
from conviction.events import Listener
from conviction.models import ModelFile, catalogue, resolve
from conviction.policies import policy as named_policy
from conviction.policies.base import Policy
from conviction.prompts import PromptStyle, compose
from conviction.thinking import deliberate
from conviction.verdict import Verdict

DEFAULT_POLICY = "deepconf-high"
"""Of the policies here, the one that keeps the accuracy of majority voting at fewest tokens on the
embedded default model (benchmarks/README.md)."""
MOST_CHARACTERS = 1_000_000
"""A longer question is a mistake: no context holds it."""

_PROMPT_TOKENS = 512
"""Room for what a prompt style adds to the question."""


async def athink(
    question: str | Question,
    *,
    model: str | ModelFile | None = None,
    engine: Engine | None = None,
    policy: str | Policy = DEFAULT_POLICY,
    budget: int | None = None,
    answers: str | AnswerKind = "math",
    prompt_style: PromptStyle | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    on_event: Listener | None = None,
    interrupt: anyio.Event | None = None,
) -> Verdict:
    """Think about a question many times in parallel and return the verdict.

    Args:
        question: The user's words, which get a prompt around them; or a finished `Question`,
            which is sent as it is.
        model: Name, path or `hf:owner/repo/file` of a model for the embedded engine; fetched
            if need be. Default: a small one that runs anywhere.
        engine: Generates the traces in place of the embedded engine. Start it yourself
            (`async with`), so that many questions can share it.
        policy: A policy's name, or a policy with its settings.
        budget: The most traces to start; for policies given by name.
        answers: Kind of answer: "math", "number", "choice", "text", "json", or your own.
        prompt_style: What to add to the question; default: what suits the model.
        sampling: How tokens are drawn.
        seed: Seeds of all traces derive from it.
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
    if isinstance(question, str):
        check_question(question)
    answer_kind = kind(answers) if isinstance(answers, str) else answers
    async with AsyncExitStack() as stack:
        if isinstance(answers, str):
            stack.callback(answer_kind.close)
        style = PromptStyle.STEP_BY_STEP
        if engine is None:
            chosen = await anyio.to_thread.run_sync(_model, model)
            style = PromptStyle(chosen.prompt_style)
            engine = await stack.enter_async_context(_embedded(chosen, question, sampling))
        if isinstance(question, str):
            style = PromptStyle(prompt_style) if prompt_style else style
            question = compose(question, kind=answer_kind.name, style=style)
        return await deliberate(
            question,
            engine=engine,
            policy=steering,
            answers=answer_kind,
            sampling=sampling,
            seed=seed,
            time_limit=time_limit,
            on_event=on_event,
            interrupt=interrupt,
        )


def think(question: str | Question, **options: Any) -> Verdict:
    """`athink`, for programs without an event loop and for notebooks.

    Takes the same options, raises the same errors; an `engine` is started for this one call and
    stopped after it. Inside a running event loop, as in a
    notebook, it works in a thread of its own and blocks the caller until the verdict is in.
    """

    def work() -> Verdict:
        async def main() -> Verdict:
            async with options.get("engine") or nullcontext():
                return await athink(question, **options)

        return anyio.run(main)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    return _in_thread(work)


def _in_thread(work: Callable[[], Verdict]) -> Verdict:
    verdicts: list[Verdict] = []
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            verdicts.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=guarded, name="conviction.think", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return verdicts[0]


def check_question(text: str) -> None:
    """Check that a question can be asked.

    Raises:
        InvalidSettingError: it is empty, far too long, or not text.
    """
    found = ""
    if not text.strip():
        found = "it is empty"
    elif len(text) > MOST_CHARACTERS:
        found = f"it has {len(text):,} characters; the most is {MOST_CHARACTERS:,}"
    elif "\0" in text:
        found = "it holds NUL bytes, so it is not text"
    if found:
        raise InvalidSettingError(
            tried="ask the question", found=found, remedy="Give a question in words."
        )


def _policy(policy: str | Policy, budget: int | None) -> Policy:
    if isinstance(policy, str):
        return named_policy(policy, **({} if budget is None else {"budget": budget}))
    if budget is None:
        return policy
    return replace(policy, budget=budget)  # type: ignore[type-var]  # policies are dataclasses


def _model(model: str | ModelFile | None) -> ModelFile:
    return model if isinstance(model, ModelFile) else resolve(model or catalogue().default)


def _embedded(model: ModelFile, question: str | Question, sampling: Sampling | None) -> Engine:
    from conviction.engines.local import LocalEngine  # noqa: PLC0415  # an extra

    messages = [question] if isinstance(question, str) else [m.content for m in question.messages]
    # No tokenizer is at hand yet. Two characters a token is more than text takes; the engine
    # counts exactly, and refuses what does not fit.
    prompt = _PROMPT_TOKENS + sum(len(text) for text in messages) // 2
    return LocalEngine(model.path, context=prompt + (sampling or Sampling()).max_tokens)
