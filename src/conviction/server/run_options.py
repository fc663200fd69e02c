"""From a request to the options of its run: policy, prompt, sampling and bounds."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from sys import getsizeof

from conviction.answers import kinds
from conviction.api import check_question
from conviction.core import Message, Question, Sampling
from conviction.engines.base import Capabilities
from conviction.errors import ConvictionError, InvalidSettingError, UnknownNameError
from conviction.policies import policy as named_policy
from conviction.policies import policy_names
from conviction.policies.base import Policy
from conviction.policies.named import read_spec, setting_types
from conviction.prompts import PromptStyle, compose
from conviction.server.failures import RequestError, sentence
from conviction.server.request_schema import ConvictionOptions, RunRequest, SamplingOptions
from conviction.server.settings import Content, Settings

_CACHED_POLICIES = 256


@dataclass(frozen=True, eq=False)
class RunOptions:
    """How to answer one request, after all checks against defaults and ceilings.

    Attributes:
        question: In the words that the model gets.
        policy: A prototype; each run copies it.
        answers: Name of the kind of answer.
        model: Name of the model in the request.
        text: The user's own words.
        time_limit: Seconds that it may take once its turn has come.
        concurrency: The most traces of it that run at once; None for as many as there are slots.
        total_tokens: Tokens that its traces together may generate; None for no such bound.
        client: Name of the client's key; "" where there are no keys.
        address: Address that the request came from.
    """

    question: Question
    policy: Policy
    answers: str
    sampling: Sampling
    model: str
    text: str = field(repr=False)
    time_limit: float
    seed: int = 0
    concurrency: int | None = None
    total_tokens: int | None = None
    content: Content = "trace"
    client: str = ""
    address: str = ""

    @property
    def size(self) -> int:
        """Bytes that its texts take."""
        texts = (self.text, *(message.content for message in self.question.messages))
        return sum(map(getsizeof, texts))


class RequestResolver:
    """Finds the run options of requests, within a server's settings and its engine's capabilities.

    All methods raise `RequestError` where something in a request is unknown, out of range, or not
    supported. `model` is the name that clients know the model by.
    """

    def __init__(self, settings: Settings, capabilities: Capabilities) -> None:
        self.model = settings.model or capabilities.model
        self._defaults = settings.defaults
        self._ceilings = settings.ceilings
        self._has_confidence = capabilities.top_k > 0

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the policies that can run on the engine."""
        names = policy_names()
        if self._has_confidence:
            return tuple(names)
        return tuple(name for name in names if not named_policy(name).needs_confidence)

    @property
    def models(self) -> list[str]:
        """The model's name alone, and with every policy that can run behind it."""
        return [self.model, *(f"{self.model}@{name}" for name in self.policies)]

    def chat(self, messages: Sequence[Message], request: RunRequest) -> RunOptions:
        """The options for a chat, which has to end with a message of the user."""
        answers, policy = self._answer_kind(request), self.policy(request.model, request.conviction)
        *before, last = messages
        _check_text(last.content, "messages")
        if last.role != "user":
            raise RequestError(
                f"The last message is of the {last.role}. It has to be the user's question.",
                param="messages",
            )
        asked_style = request.conviction.prompt_style
        style = PromptStyle(asked_style or self._defaults.prompt_style)
        if policy.budget == 1 and asked_style is None:
            style = PromptStyle.PLAIN  # Without a vote, no answer has to be found in the text.
        composed = compose(last.content, kind=answers, style=style, id=_id_of(messages))
        system = [message for message in before if message.role == "system"]
        turns = [message for message in before if message.role != "system"]
        if system:
            # Many chat templates take only one system message, and only at the beginning.
            system = [Message("system", "\n\n".join(message.content for message in system))]
        question = Question(
            (*system, *composed.messages[:-1], *turns, composed.messages[-1]), composed.id
        )
        return self._options(request, question, last.content, answers, policy)

    def prompt(self, prompt: str, request: RunRequest) -> RunOptions:
        """The options for a prompt, which the model gets as it is."""
        if request.conviction.prompt_style not in (None, PromptStyle.PLAIN.value):
            raise RequestError(
                "A prompt is sent as it is. Leave prompt_style out, or ask /v1/chat/completions.",
                param="conviction.prompt_style",
            )
        _check_text(prompt, "prompt")
        question = replace(Question.ask(prompt), templated=True)
        answers, policy = self._answer_kind(request), self.policy(request.model, request.conviction)
        return self._options(request, question, prompt, answers, policy)

    def policy(self, model: str, conviction: ConvictionOptions) -> Policy:
        """The policy of a request: by its `conviction` object, by its model, or the default."""
        by_model = self._policy_in(model)
        if by_model and conviction.policy and by_model != conviction.policy:
            raise RequestError(
                f"The model names the policy {by_model!r}, the conviction object "
                f"{conviction.policy!r}. Give one of them.",
                param="conviction.policy",
            )
        spec = conviction.policy or by_model or self._defaults.policy
        param = "conviction.policy" if conviction.policy else "model"
        ceiling = self._ceilings.budget
        try:
            chosen = _prototype(spec, conviction.budget, self._defaults.budget, ceiling)
        except ConvictionError as error:
            if conviction.budget is not None:
                with suppress(ConvictionError):
                    named_policy(spec)  # Valid by itself: the budget is at fault.
                    param = "conviction.budget"
            raise _refused(error, param) from None
        if chosen.needs_confidence and not self._has_confidence:
            raise RequestError(
                f"The policy {chosen.name!r} needs log-probabilities, and the engine gives none. "
                f"Policies that can run here: {', '.join(self.policies)}.",
                param=param,
                code="no_logprobs",
            )
        _check_ceiling("budget", chosen.budget, ceiling)
        return chosen

    def _options(
        self, request: RunRequest, question: Question, text: str, answers: str, policy: Policy
    ) -> RunOptions:
        given, ceilings = request.conviction, self._ceilings
        sampling = self._sampling(request.sampling)
        _check_ceiling("max_tokens", sampling.max_tokens, ceilings.max_tokens, param="max_tokens")
        _check_ceiling("time_limit", given.time_limit, ceilings.seconds)
        _check_ceiling("concurrency", given.concurrency, ceilings.concurrency)
        _check_ceiling("total_tokens", given.total_tokens, ceilings.total_tokens)
        seed = request.sampling.seed
        return RunOptions(
            question=question,
            policy=policy,
            answers=answers,
            sampling=sampling,
            model=request.model,
            text=text,
            time_limit=given.time_limit or ceilings.seconds,
            seed=self._defaults.seed if seed is None else seed,
            concurrency=given.concurrency or ceilings.concurrency,
            total_tokens=given.total_tokens or ceilings.total_tokens,
            content=given.content or self._defaults.content,
            client=request.client,
            address=request.address,
        )

    def _policy_in(self, model: str) -> str | None:
        """The policy behind a model's name."""
        name, policy = model[: len(self.model)], model[len(self.model) :]
        if name == self.model and not policy:
            return None
        if name == self.model and policy.startswith("@"):
            return policy[1:]
        raise RequestError(
            f"There is no model {model!r} here. There is {self.model!r}, and with @policy behind "
            "it any policy that /v1/models lists.",
            param="model",
            code="model_not_found",
            status=404,
        )

    def _answer_kind(self, request: RunRequest) -> str:
        kind = request.conviction.answers or self._defaults.answers
        if kind not in kinds():
            raise RequestError(
                f"There is no answers {kind!r}. Known: {', '.join(kinds())}.",
                param="conviction.answers",
                code="unknown_name",
            )
        return kind

    def _sampling(self, options: SamplingOptions) -> Sampling:
        given = options.model_dump(exclude_none=True, exclude={"seed"})
        names = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
        base = Sampling(**{name: getattr(self._defaults, name) for name in names})
        try:
            return replace(base, **given)
        except InvalidSettingError as error:
            name = next((name for name in given if name in error.tried), None)
            raise _refused(error, name) from None


@lru_cache(_CACHED_POLICIES)
def _prototype(spec: str, requested: int | None, default: int | None, ceiling: int) -> Policy:
    """The policy of a specification; runs copy it, so it can be cached.

    Its budget: as requested, else as specified, else the default or its own, up to the ceiling.
    """
    name, given = read_spec(spec)
    budget = requested
    if budget is None and "budget" not in given and "budget" in setting_types(name):
        budget = min(default or named_policy(spec).budget, ceiling)
    return named_policy(spec, **({} if budget is None else {"budget": budget}))


def _refused(error: ConvictionError, param: str | None) -> RequestError:
    """A wrong setting as the fault of a field of the request."""
    code = "unknown_name" if isinstance(error, UnknownNameError) else "invalid_value"
    return RequestError(sentence(error), param=param, code=code)


def _check_ceiling(
    name: str, value: float | None, ceiling: float | None, *, param: str | None = None
) -> None:
    if value is not None and ceiling is not None and value > ceiling:
        raise RequestError(
            f"{name} = {value:g} is above the ceiling of this server, {ceiling:g}. Ask for less.",
            param=param or f"conviction.{name}",
            code="above_ceiling",
        )


def _check_text(text: str, param: str) -> None:
    try:
        check_question(text)
    except InvalidSettingError as error:
        raise _refused(error, param) from None


def _id_of(messages: Sequence[Message]) -> str:
    if len(messages) == 1:
        return ""
    digest = sha256()
    for message in messages:
        digest.update(f"{message.role}\0{message.content}\0".encode())
    return digest.hexdigest()[:16]
