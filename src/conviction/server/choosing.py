"""From what a request says to what is done: the policy, the prompt, the sampling, the bounds."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

from conviction.answers import kinds
from conviction.api import check_question
from conviction.core import Message, Question, Sampling
from conviction.errors import ConvictionError, InvalidSettingError, UnknownNameError
from conviction.policies import policy as named_policy
from conviction.policies import policy_names
from conviction.policies.base import Policy
from conviction.policies.named import read_spec, setting_types
from conviction.prompts import PromptStyle, compose
from conviction.server.asked import Asked
from conviction.server.failures import RequestError
from conviction.server.service import Service
from conviction.server.wishes import Generation, Wishes

_KEPT = 256
"""Policies that are kept, as reading their specifications takes a while."""


def runnable_policies(service: Service) -> tuple[str, ...]:
    """Names of the policies that can run on the engine of a service."""
    informed = service.capabilities.top_k > 0
    return tuple(
        name for name in policy_names() if informed or not named_policy(name).needs_confidence
    )


def ask_chat(
    service: Service,
    messages: Sequence[Message],
    *,
    model: str,
    wishes: Wishes,
    generation: Generation,
    client: str = "",
) -> Asked:
    """A chat that was checked, in the words that the model gets.

    Args:
        service: Who will think about it.
        messages: The user's chat, which ends with a message of the user.
        model: As asked for: a name from /v1/models, perhaps with @policy.
        wishes: The `conviction` object.
        generation: How tokens are drawn, as far as the request says.
        client: Who asks.

    Raises:
        RequestError: something of it is unknown, out of range, or not done here.
    """
    defaults = service.settings.defaults
    answers = _known("answers", wishes.answers or defaults.answers, kinds())
    policy = choose_policy(service, model, wishes)
    _check_text(messages[-1].content, "messages")
    if messages[-1].role != "user":
        raise RequestError(
            f"The last message is of the {messages[-1].role}. It has to be the user's question.",
            param="messages",
        )
    style = PromptStyle(wishes.prompt_style or defaults.prompt_style)
    if policy.budget == 1 and wishes.prompt_style is None:
        style = PromptStyle.PLAIN  # Nothing is voted on, so nothing has to be found in the text.
    *before, last = messages
    composed = compose(last.content, kind=answers, style=style, id=_id_of(messages))
    system = [message for message in before if message.role == "system"]
    turns = [message for message in before if message.role != "system"]
    question = Question(
        (*_joined(system), *composed.messages[:-1], *turns, composed.messages[-1]), composed.id
    )
    return _asked(
        service,
        question,
        text=last.content,
        answers=answers,
        policy=policy,
        model=model,
        wishes=wishes,
        generation=generation,
        client=client,
    )


def ask_prompt(
    service: Service,
    prompt: str,
    *,
    model: str,
    wishes: Wishes,
    generation: Generation,
    client: str = "",
) -> Asked:
    """A prompt that was checked, which the model gets as it is.

    Raises:
        RequestError: something of it is unknown, out of range, or not done here.
    """
    if wishes.prompt_style not in (None, PromptStyle.PLAIN.value):
        raise RequestError(
            "A prompt is sent as it is. Leave prompt_style out, or ask /v1/chat/completions.",
            param="conviction.prompt_style",
        )
    _check_text(prompt, "prompt")
    answers = wishes.answers or service.settings.defaults.answers
    return _asked(
        service,
        replace(Question.ask(prompt), templated=True),
        text=prompt,
        answers=_known("answers", answers, kinds()),
        policy=choose_policy(service, model, wishes),
        model=model,
        wishes=wishes,
        generation=generation,
        client=client,
    )


def _asked(
    service: Service,
    question: Question,
    *,
    text: str,
    answers: str,
    policy: Policy,
    model: str,
    wishes: Wishes,
    generation: Generation,
    client: str,
) -> Asked:
    defaults, ceilings = service.settings.defaults, service.settings.ceilings
    sampling = _sampling(service, generation)
    _under("max_tokens", sampling.max_tokens, ceilings.max_tokens, param="max_tokens")
    time_limit = wishes.time_limit or ceilings.seconds
    _under("time_limit", time_limit, ceilings.seconds)
    concurrency = wishes.concurrency or ceilings.concurrency
    if concurrency and ceilings.concurrency:
        _under("concurrency", concurrency, ceilings.concurrency)
    total_tokens = wishes.total_tokens or ceilings.total_tokens
    if total_tokens and ceilings.total_tokens:
        _under("total_tokens", total_tokens, ceilings.total_tokens)
    return Asked(
        question=question,
        policy=policy,
        answers=answers,
        sampling=sampling,
        model=model,
        text=text,
        time_limit=time_limit,
        seed=defaults.seed if generation.seed is None else generation.seed,
        concurrency=concurrency,
        total_tokens=total_tokens,
        content=wishes.content or defaults.content,
        client=client,
    )


def choose_policy(service: Service, model: str, wishes: Wishes) -> Policy:
    """The policy that a request names: in its `conviction` object, with its model, or not at all.

    Raises:
        RequestError: model, policy or budget are unknown, out of range, or cannot be had here.
    """
    by_model = _policy_of(service, model)
    if by_model and wishes.policy and by_model != wishes.policy:
        raise RequestError(
            f"The model names the policy {by_model!r}, the conviction object {wishes.policy!r}. "
            "Give one of them.",
            param="conviction.policy",
        )
    defaults, ceiling = service.settings.defaults, service.settings.ceilings.budget
    spec = wishes.policy or by_model or defaults.policy
    param = "conviction.policy" if wishes.policy else "model"
    try:
        chosen = _prototype(spec, wishes.budget, defaults.budget, ceiling)
    except ConvictionError as error:
        if wishes.budget is not None and _stands(spec):
            param = "conviction.budget"
        raise refused(error, param) from None
    if chosen.needs_confidence and not service.capabilities.top_k:
        raise RequestError(
            f"The policy {chosen.name!r} needs log-probabilities, and the engine gives none. "
            f"Policies that can run here: {', '.join(runnable_policies(service))}.",
            param=param,
            code="no_logprobs",
        )
    _under("budget", chosen.budget, ceiling)
    return chosen


@lru_cache(_KEPT)
def _prototype(spec: str, wished: int | None, usual: int | None, ceiling: int) -> Policy:
    """The policy of a specification; every run has its own copy, so one can be kept.

    Its budget: as wished, else as specified, else the usual one or its own, up to the ceiling.
    """
    name, given = read_spec(spec)
    budget = wished
    if budget is None and "budget" not in given and "budget" in setting_types(name):
        budget = min(usual or named_policy(spec).budget, ceiling)
    return named_policy(spec, **({} if budget is None else {"budget": budget}))


def check_model(service: Service, model: str) -> None:
    """Check that a model can be asked for by a name.

    Raises:
        RequestError: there is no such model, or no such policy.
    """
    choose_policy(service, model, Wishes())


def refused(error: ConvictionError, param: str | None) -> RequestError:
    """A wrong setting as the fault of a field of the request."""
    text = str(error)
    code = "unknown_name" if isinstance(error, UnknownNameError) else "invalid_value"
    return RequestError(text[:1].upper() + text[1:], param=param, code=code)


def _policy_of(service: Service, model: str) -> str | None:
    """The policy that stands behind a model's name."""
    if model == service.model:
        return None
    if model.startswith(f"{service.model}@"):
        return model[len(service.model) + 1 :]
    raise RequestError(
        f"There is no model {model!r} here. There is {service.model!r}, and with @policy behind "
        "it any policy that /v1/models lists.",
        param="model",
        code="model_not_found",
        status=404,
    )


def _sampling(service: Service, generation: Generation) -> Sampling:
    defaults = service.settings.defaults
    given = generation.model_dump(exclude_none=True, exclude={"seed"})
    names = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
    base = Sampling(**{name: getattr(defaults, name) for name in names})
    try:
        return replace(base, **given)
    except InvalidSettingError as error:
        name = next((name for name in given if name in error.tried), None)
        raise refused(error, name) from None


def _stands(spec: str) -> bool:
    try:
        named_policy(spec)
    except ConvictionError:
        return False
    return True


def _known(name: str, value: str, known: Any) -> str:
    names = [str(one) for one in known]
    if value in names:
        return value
    raise RequestError(
        f"There is no {name} {value!r}. Known: {', '.join(names)}.",
        param=f"conviction.{name}",
        code="unknown_name",
    )


def _under(name: str, value: float, ceiling: float, *, param: str | None = None) -> None:
    if value > ceiling:
        raise RequestError(
            f"{name} = {value:g} is above the ceiling of this server, {ceiling:g}. Ask for less.",
            param=param or f"conviction.{name}",
            code="above_ceiling",
        )


def _check_text(text: str, param: str) -> None:
    try:
        check_question(text)
    except InvalidSettingError as error:
        raise refused(error, param) from None


def _joined(system: Sequence[Message]) -> tuple[Message, ...]:
    """One system message: many chat templates take no more than one, and only at the beginning."""
    if not system:
        return ()
    return (Message("system", "\n\n".join(message.content for message in system)),)


def _id_of(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return ""
    digest = sha256()
    for message in messages:
        digest.update(f"{message.role}\0{message.content}\0".encode())
    return digest.hexdigest()[:16]
