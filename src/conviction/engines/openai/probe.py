"""Finding out what a server really does, with a dozen small requests.

What a server says of itself is not enough: several answer 200 and leave out what they were
asked for. So each fact here comes from an answer that could not have been given otherwise.
"""

import re
import time
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from conviction.confidence import FILLER
from conviction.core import Message, Sampling
from conviction.engines.base import TraceRequest, seeds_count
from conviction.engines.openai.events import decode
from conviction.engines.openai.facts import FILTERS_OFF, Dialect, Route, ServerFacts
from conviction.engines.openai.http import HttpClient, Json
from conviction.engines.openai.probe_streams import StreamProbe
from conviction.engines.openai.shapes import Model, Models, NamedLogprobs, WholeAnswer, WholeChoice
from conviction.engines.openai.traces import count_fields, gate_fields, trace_body
from conviction.engines.vllm_gate import ABSURD, Channel, gate_arguments
from conviction.errors import EngineError, EngineUnavailableError, TemporarilyUnavailableError
from conviction_gate.names import DEFAULT_K, STOP_TOKEN

MOST_TOP_K = 20
"""The paper's k; more log-probabilities are of no use."""

_COUNT = (Message("user", "Count from one to one hundred in words."),)
_INVENT = (Message("user", "Invent a cat and tell its long story."),)
_SHORT, _DRAWN, _WATCHED, _GATED = 4, 24, 400, 2
"""Tokens of the traces that are asked for."""

_COLD, _HOT = 0.5, 1.0
_SAME, _SCALED = 0.15, 0.5
"""Distance of the ratio of spreads from 1 (raw) or 2 (after temperature) that is let pass."""

_LEAST_SPREAD = 0.5
_TOKEN_ID = "token_id:"  # noqa: S105  # how vLLM names a token by number
_NAMED_STOP = re.compile(rf"{STOP_TOKEN}\s*=\s*(\d{{1,9}})(?!\d)")

_MODELS = msgspec.json.Decoder(Models)
_ANSWER = msgspec.json.Decoder(WholeAnswer)


async def find_model(http: HttpClient, name: str | None) -> ServerFacts:
    """What the server's list says of a model, by default the first: the cheapest fact.

    EngineUnavailableError if it cannot be reached, or lists no model and none is named.
    """
    try:
        listed = decode(await http.ask("GET", "/models"), _MODELS).data
    except TemporarilyUnavailableError:
        raise
    except EngineUnavailableError:
        if name is None:
            raise
        listed = []  # Some have no such list; whether they work is seen with the first request.
    except (EngineError, ValueError):
        listed = []
    if not listed and name is None:
        raise EngineUnavailableError(
            tried=f"ask {http.base_url} for its models",
            found="it lists none",
            remedy="Check the address: most servers want it to end in /v1. If it is right, name "
            "the model.",
        )
    model = next((m for m in listed if name in (None, m.id)), Model(id=name or ""))
    software = model.owned_by or next((m.owned_by for m in listed if m.owned_by), "") or ""
    return ServerFacts(
        model=model.id,
        listed=tuple(m.id for m in listed),
        software=software,
        context=model.max_model_len or (model.meta.n_ctx if model.meta else None),
    )


async def probe(http: HttpClient, route: Route, facts: ServerFacts) -> ServerFacts:
    """All facts about a model, given those of `find_model`.

    EngineError if the server cannot be reached, or refuses even the plainest request.
    """
    asking, streams = _Asking(http, route, facts.model), StreamProbe(http, route)
    asking.dialect, asking.top_k, reason = await asking.find_dialect()
    top_k, vllm_arguments = asking.top_k, await asking.knows_token_ids()
    plain = asking.body(_COUNT, _SHORT, top_k=0)
    counts = await streams.counts_in_events(
        {**plain, **count_fields("timings"), **count_fields("usage")}
    )
    asking.dialect = replace(asking.dialect, token_ids=bool(vllm_arguments), counts=counts)
    # A stream that is only begun leaves room for its prompt.
    tokens = max(1, min(_WATCHED, (facts.context or 2 * _WATCHED) // 2))
    facts = await streams.watch(
        facts, lambda seed: asking.body(_INVENT, tokens, seed=seed), top_k, tokens
    )
    if vllm_arguments or facts.software == "vllm":
        facts = await asking.find_gate(facts)
    return replace(
        facts,
        top_k=top_k,
        top_k_reason=reason,
        raw=await asking.gives_raw() if top_k else None,
        seeds=await seeds_count(asking.draw),
        vllm_arguments=vllm_arguments,
        continues=await streams.continues(
            lambda begun: asking.body(_COUNT, 1, top_k=0, prefix=begun)
        ),
        dialect=asking.dialect,
        seen=time.time(),
    )


@dataclass
class _Asking:
    """The small requests to one server."""

    http: HttpClient
    route: Route
    model: str
    dialect: Dialect = field(default_factory=Dialect)
    top_k: int = 0

    async def find_dialect(self) -> tuple[Dialect, int, str]:
        """How it wants to be spoken to, the largest k, and why that is below `MOST_TOP_K`.

        Most servers take the fullest request as it is. For the others, each part is tried by
        itself: servers word their refusals in too many ways to read the cause out of them.
        """
        full = Dialect(filters_off=dict(FILTERS_OFF[0]))
        given, refusal = await self._given(full, MOST_TOP_K)
        if given == MOST_TOP_K:
            return full, given, ""
        dialect = full
        if refusal is not None:
            dialect = await self._plain_dialect()
            given, refusal = await self._given(dialect, MOST_TOP_K)
        if refusal is None:
            said = "left them out" if given == 0 else f"gave {given}"
            reason = f"asked for {MOST_TOP_K} log-probabilities a token, answered, and {said}"
            return dialect, given, "" if given == MOST_TOP_K else reason
        # Refused: the largest that is not, found by halving.
        best, low, high = 0, 1, MOST_TOP_K - 1
        while low <= high:
            middle = (low + high) // 2
            given, refused = await self._given(dialect, middle)
            if refused is None and given:
                best, low = given, middle + 1
            else:
                high = middle - 1
        reason = f"asked for {MOST_TOP_K} log-probabilities a token, and refused ({refusal.found})"
        return dialect, best, reason

    async def knows_token_ids(self) -> bool | None:
        """Whether vLLM's own arguments take effect, by one whose effect can be seen."""
        if not self.top_k:
            return None
        body = self.body(_COUNT, _SHORT)
        choice = await self._try({**body, "return_tokens_as_token_ids": True})
        if isinstance(choice, EngineError):
            return False
        logprobs = choice.logprobs or NamedLogprobs()
        names = [*(token.token for token in logprobs.content or ()), *(logprobs.tokens or ())]
        names += [name for place in _places(logprobs) for name, _ in place]
        return any(name.startswith(_TOKEN_ID) for name in names)

    async def gives_raw(self) -> bool | None:
        """Whether log-probabilities stay as they are when the temperature changes.

        Dividing logits by a temperature multiplies all distances between log-probabilities;
        their ratio between two temperatures is 1 if they are raw.
        """
        spreads: list[dict[str, float]] = []
        for temperature in (_HOT, _COLD):
            choice = await self._ask(self.body(_INVENT, 1, temperature=temperature))
            places = _places(choice.logprobs)
            spreads.append(dict(places[0]) if places else {})
        hot, cold = spreads
        common = sorted(hot.keys() & cold.keys(), key=lambda name: hot[name])
        if len(common) < 2:
            return None
        least, most = common[0], common[-1]
        spread = hot[most] - hot[least]
        if spread < _LEAST_SPREAD:
            return None
        ratio = (cold[most] - cold[least]) / spread
        if abs(ratio - 1.0) < _SAME:
            return True
        return False if abs(ratio - _HOT / _COLD) < _SCALED else None

    async def draw(self, seed: int) -> str:
        """A short text that is drawn with a seed."""
        choice = await self._ask(self.body(_INVENT, _DRAWN, seed=seed))
        message = choice.message
        if message is None:
            return choice.text or ""
        return f"{message.reasoning or message.reasoning_content}/{message.content}"

    async def find_gate(self, facts: ServerFacts) -> ServerFacts:
        """Find the gate by a request that it must refuse, and one that it must stop.

        A gate that is not given the token to end a trace with refuses, and names one of the
        model's that fits. A server without the gate takes no notice of the arguments.
        """
        arguments = gate_arguments(ABSURD, top_k=DEFAULT_K, stop_token=0)
        del arguments[STOP_TOKEN]
        facts, reason = replace(facts, gate=False, channel=False), ""
        choice = await self._try({**self.body(_COUNT, 1, top_k=0), "vllm_xargs": arguments})
        if isinstance(choice, EngineError):
            if named := _NAMED_STOP.search(choice.found):
                return await self._try_gate(facts, int(named[1]))
            reason = choice.found if "conviction_" in choice.found else ""
        return replace(facts, gate_reason=reason)

    async def _try_gate(self, facts: ServerFacts, stop_token: int) -> ServerFacts:
        try:
            channel = Channel(_GATED)
        except OSError:
            channel = None
        report = channel and channel.name
        gate = gate_arguments(ABSURD, top_k=DEFAULT_K, stop_token=stop_token, report=report)
        try:
            choice = await self._try(self.body(_COUNT, _GATED, top_k=0) | gate_fields(gate))
            if isinstance(choice, EngineError):
                return replace(facts, gate_reason=choice.found)
            if choice.stop_reason != stop_token:
                return facts
            # They may come a moment after the answer.
            arrived = channel is not None and bool(np.isfinite(await channel.take(1)).all())
            # Where events carry no counts, it is unknown which confidence is of which token.
            usable = arrived and self.dialect.counts == "usage"
            return replace(facts, gate=True, channel=usable, stop_token=stop_token)
        finally:
            if channel is not None:
                channel.close()

    async def _plain_dialect(self) -> Dialect:
        """The fullest dialect that is not refused, log-probabilities aside."""
        refusal: EngineError | None = None
        for limit_name in ("max_tokens", "max_completion_tokens"):
            for filters in FILTERS_OFF:
                dialect = Dialect(filters_off=dict(filters), limit_name=limit_name)
                choice = await self._try(self.body(_COUNT, _SHORT, top_k=0, dialect=dialect))
                if not isinstance(choice, EngineError):
                    return dialect
                refusal = refusal or choice
        assert refusal is not None  # noqa: S101  # every dialect was refused
        raise refusal

    async def _given(self, dialect: Dialect, top_k: int) -> tuple[int, EngineError | None]:
        """Usable log-probabilities a token when asked for `top_k`, or the refusal."""
        choice = await self._try(self.body(_COUNT, _SHORT, top_k=top_k, dialect=dialect))
        if isinstance(choice, EngineError):
            return 0, choice
        return min(top_k, max(map(len, _places(choice.logprobs)), default=0)), None

    async def _try(self, body: Json) -> WholeChoice | EngineError:
        """The answer, or the error of a server that can be reached and refuses."""
        try:
            return await self._ask(body)
        except EngineUnavailableError:
            raise
        except EngineError as error:
            return error

    async def _ask(self, body: Json) -> WholeChoice:
        body = {name: value for name, value in body.items() if name != "stream_options"}
        answer = await self.http.ask("POST", self.route, {**body, "stream": False})
        try:
            choices = decode(answer, _ANSWER).choices
        except ValueError:
            choices = []
        if not choices:
            raise self.http.failures.not_a_stream("a body without choices", answer)
        return choices[0]

    def body(
        self,
        messages: tuple[Message, ...],
        tokens: int,
        *,
        top_k: int | None = None,
        dialect: Dialect | None = None,
        temperature: float = 1.0,
        seed: int = 1,
        prefix: str = "",
    ) -> dict[str, object]:
        """The request for a streamed trace; by default with the k and in the dialect found."""
        sampling = Sampling(temperature=temperature, max_tokens=tokens)
        top_k = self.top_k if top_k is None else top_k
        request = TraceRequest(messages, sampling, seed=seed, top_k=top_k, prefix=prefix)
        dialect = dialect or self.dialect
        return trace_body(request, route=self.route, model=self.model, dialect=dialect)


def _places(logprobs: NamedLogprobs | None) -> list[list[tuple[str, float]]]:
    """For each token the usable candidates at its place; two may have the same name."""
    if logprobs is None:
        return []
    pairs = [
        *([(c.token, c.logprob) for c in t.top_logprobs or ()] for t in logprobs.content or ()),
        *(list((mapping or {}).items()) for mapping in logprobs.top_logprobs or ()),
    ]
    return [
        [(name, value) for name, value in place if value is not None and FILLER < value <= 0]
        for place in pairs
    ]
