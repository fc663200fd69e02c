"""Finding out what a server really does, with a dozen small requests.

What a server says of itself is not enough: several answer 200 and leave out what they were
asked for. So each fact here comes from an answer that could not have been given otherwise.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit

import anyio

from conviction.core import Message, Sampling
from conviction.engines.base import TraceRequest
from conviction.engines.openai.continuing import continues
from conviction.engines.openai.events import TraceReader, decode
from conviction.engines.openai.facts import ServerFacts
from conviction.engines.openai.gating import find_gate
from conviction.engines.openai.http import HttpClient
from conviction.engines.openai.metrics import Load, read_load
from conviction.engines.openai.requests import (
    FILTERS_OFF,
    NOTHING,
    Dialect,
    Json,
    Route,
    count_fields,
    trace_body,
)
from conviction.engines.openai.sse import EventParser
from conviction.engines.openai.whole_answers import (
    ANSWER,
    COUNTED,
    MODELS,
    Choice,
    Logprobs,
    Model,
)
from conviction.engines.seeds import seeds_count
from conviction.errors import (
    EngineError,
    EngineUnavailableError,
    TemporarilyUnavailableError,
)

MOST_TOP_K = 20
"""The paper's k; more log-probabilities are of no use."""

_COUNT = (Message("user", "Count from one to one hundred in words."),)
_INVENT = (Message("user", "Invent a cat and tell its long story."),)
_SHORT, _DRAWN, _WATCHED = 4, 24, 400
_STREAMS = 3
_ENOUGH_TOKENS = 16
"""Tokens after which it is clear whether they arrive one by one."""

_LEAST_PIECES = 4
_COLD, _HOT = 0.5, 1.0
_SAME, _SCALED = 0.15, 0.5
"""Distance of the ratio of spreads from 1 (raw) or 2 (after temperature) that is let pass."""

_LEAST_SPREAD = 0.5
_FREED_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_VLLM = "vllm"
_TOKEN_ID = "token_id:"  # noqa: S105  # how vLLM names a token by number


async def find_model(http: HttpClient, name: str | None) -> ServerFacts:
    """What the server's list says of a model: the first fact, and the cheapest.

    Args:
        http: Speaks to the server.
        name: Name of the model; None for the first that is listed.

    Raises:
        EngineUnavailableError: the server cannot be reached, or lists no model and none is named.
    """
    try:
        listed = decode(await http.ask("GET", "/models"), MODELS).data
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

    Raises:
        EngineError: the server cannot be reached, or refuses even the plainest request.
    """
    asking = _Asking(http, route, facts.model, watched=_watched(facts.context))
    dialect, top_k, reason = await asking.find_dialect()
    asking.dialect, asking.top_k = dialect, top_k
    vllm_arguments = await asking.knows_token_ids()
    asking.dialect = dialect = replace(
        dialect, token_ids=bool(vllm_arguments), counts=await asking.counts_in_events()
    )
    incremental, frees, after = await asking.watch_streams()
    may_gate = vllm_arguments or facts.software == _VLLM
    found = await find_gate(asking.for_gate) if may_gate else None
    return replace(
        facts,
        top_k=top_k,
        top_k_reason=reason,
        raw=await asking.gives_raw() if top_k else None,
        seeds=await asking.honours_seeds(),
        incremental=incremental,
        frees=frees,
        tokens_after_close=after,
        vllm_arguments=vllm_arguments,
        continues=await continues(http, route, asking.begun),
        gate=found and found.gate,
        # Where events carry no counts, nobody could tell which confidence belongs to which.
        channel=found and found.channel and dialect.counts == "usage",
        stop_token=found and found.stop_token,
        gate_reason=found.reason if found else "",
        dialect=dialect,
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
    watched: int = _WATCHED

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
        try:
            choice = await self._ask(_COUNT, _SHORT, extra={"return_tokens_as_token_ids": True})
        except EngineUnavailableError:
            raise
        except EngineError:
            return False
        logprobs = choice.logprobs or Logprobs()
        names = [*logprobs.names(), *(name for place in logprobs.places() for name, _ in place)]
        return any(name.startswith(_TOKEN_ID) for name in names)

    async def counts_in_events(self) -> Literal["", "usage", "timings"]:
        """Where every event can carry the counts of tokens."""
        body = {
            **self._body(_COUNT, _SHORT, self.dialect),
            **count_fields("timings"),
            **count_fields("usage"),
        }
        try:
            read = [decode(event, COUNTED) for event in await self._streamed(body)]
        except EngineUnavailableError:
            raise
        except (EngineError, ValueError):
            return ""
        early = [e for e in read if e.choices and not e.choices[0].finish_reason]
        if any(event.usage for event in early):
            return "usage"
        return "timings" if any(event.timings for event in early) else ""

    async def gives_raw(self) -> bool | None:
        """Whether log-probabilities stay as they are when the temperature changes.

        Dividing logits by a temperature multiplies all distances between log-probabilities;
        their ratio between two temperatures is 1 if they are raw.
        """
        spreads: list[dict[str, float]] = []
        for temperature in (_HOT, _COLD):
            choice = await self._ask(_INVENT, 1, temperature=temperature)
            places = choice.logprobs.places() if choice.logprobs else []
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

    async def honours_seeds(self) -> bool | None:
        """Whether a seed reproduces a trace, and another seed does not."""

        async def draw(seed: int) -> str:
            return _text(await self._ask(_INVENT, _DRAWN, seed=seed))

        return await seeds_count(draw)

    async def watch_streams(self) -> tuple[bool | None, bool | None, int | None]:
        """Whether tokens arrive one by one, whether closing frees, and tokens after the close.

        A trace may end by itself before that can be seen, so there are several attempts. A machine
        that is busy may read late what was sent one by one, so lumps have to be seen twice.
        """
        seen: tuple[bool | None, bool | None, int | None] = (None, None, None)
        for seed in range(1, 1 + _STREAMS):
            found = await self._watch_a_stream(seed)
            in_lumps_again = found[0] is False and seen[0] is False
            if found[0] is not None:
                seen = found
            if found[0] or in_lumps_again:
                break
        return seen

    async def _watch_a_stream(self, seed: int) -> tuple[bool | None, bool | None, int | None]:
        before = await self._load()
        body = self._body(_INVENT, self.watched, self.dialect, top_k=self.top_k, seed=seed)
        stream = await self.http.stream(self.route, body)
        reader, parser, pieces = TraceReader(self.top_k, self.watched), EventParser(), 0
        try:
            async for piece in stream.pieces():
                seen = reader.tokens
                reader.read(parser.feed(piece))
                pieces += reader.tokens > seen
                if reader.done or (reader.tokens >= _ENOUGH_TOKENS and pieces >= _LEAST_PIECES):
                    break
        finally:
            stream.close()
        incremental = None if reader.tokens < _ENOUGH_TOKENS else pieces >= _LEAST_PIECES
        if before is None or reader.done:
            return incremental, None, None
        frees, after = await self._watch_it_end(before, reader.tokens)
        return incremental, frees, after

    async def _watch_it_end(self, before: Load, read: int) -> tuple[bool, int | None]:
        """Whether the server stops, and how many tokens it generated that were not read."""
        load = await self._load()
        deadline = time.monotonic() + _FREED_SECONDS
        while load is not None and load.running > before.running and time.monotonic() < deadline:
            await anyio.sleep(_LOOK_SECONDS)
            load = await self._load()
        freed = load is not None and load.running <= before.running
        if load is None or before.generated is None or load.generated is None:
            return freed, None
        # Some servers count a request's tokens only once it has ended.
        return freed, max(0, round(load.generated - before.generated) - read)

    async def for_gate(self, tokens: int, fields: Json) -> Choice:
        """The answer to a request that a gate is told of."""
        return await self._ask(_COUNT, tokens, top_k=0, extra=fields)

    def begun(self, prefix: str) -> Json:
        """The request for one token after what a trace begins with."""
        return self._body(_COUNT, 1, self.dialect, prefix=prefix)

    async def _load(self) -> Load | None:
        address = urlsplit(self.http.base_url)
        path = address.path.removesuffix("/v1") + "/metrics"
        try:
            page = await self.http.fetch("GET", address._replace(path=path).geturl())
        except EngineError:
            return None
        return read_load(page.decode("utf-8", "replace"))

    async def _plain_dialect(self) -> Dialect:
        """The fullest dialect that is not refused, log-probabilities aside."""
        refusal: EngineError | None = None
        for limit_name in ("max_tokens", "max_completion_tokens"):
            for filters in FILTERS_OFF:
                dialect = Dialect(filters_off=dict(filters), limit_name=limit_name)
                try:
                    await self._ask(_COUNT, _SHORT, dialect=dialect, top_k=0)
                except EngineUnavailableError:
                    raise
                except EngineError as error:
                    refusal = refusal or error
                else:
                    return dialect
        assert refusal is not None  # noqa: S101  # every dialect was refused
        raise refusal

    async def _given(self, dialect: Dialect, top_k: int) -> tuple[int, EngineError | None]:
        """Usable log-probabilities a token when asked for `top_k`, or the refusal."""
        try:
            choice = await self._ask(_COUNT, _SHORT, dialect=dialect, top_k=top_k)
        except EngineUnavailableError:
            raise
        except EngineError as error:
            return 0, error
        if choice.logprobs is None:
            return 0, None
        return min(top_k, max(map(len, choice.logprobs.places()), default=0)), None

    async def _ask(
        self,
        messages: tuple[Message, ...],
        tokens: int,
        *,
        dialect: Dialect | None = None,
        top_k: int | None = None,
        temperature: float = 1.0,
        seed: int = 1,
        extra: Json = NOTHING,
    ) -> Choice:
        body = self._body(
            messages,
            tokens,
            dialect or self.dialect,
            top_k=self.top_k if top_k is None else top_k,
            temperature=temperature,
            seed=seed,
        )
        body = {**body, "stream": False, **extra}
        del body["stream_options"]
        answer = await self.http.ask("POST", self.route, body)
        try:
            choices = decode(answer, ANSWER).choices
        except ValueError:
            choices = []
        if not choices:
            raise self.http.failures.not_a_stream("a body without choices", answer)
        return choices[0]

    async def _streamed(self, body: Json) -> Sequence[bytes]:
        stream = await self.http.stream(self.route, body)
        parser = EventParser()
        try:
            events = [event async for piece in stream.pieces() for event in parser.feed(piece)]
        finally:
            stream.close()
        return [event for event in (*events, *parser.finish()) if event.startswith(b"{")]

    def _body(
        self,
        messages: tuple[Message, ...],
        tokens: int,
        dialect: Dialect,
        *,
        top_k: int = 0,
        temperature: float = 1.0,
        seed: int = 1,
        prefix: str = "",
    ) -> dict[str, object]:
        sampling = Sampling(temperature=temperature, max_tokens=tokens)
        request = TraceRequest(messages, sampling, seed=seed, top_k=top_k, prefix=prefix)
        return trace_body(request, route=self.route, model=self.model, dialect=dialect)


def _text(choice: Choice) -> str:
    message = choice.message
    if message is None:
        return choice.text or ""
    return f"{message.reasoning or message.reasoning_content}/{message.content}"


def _watched(context: int | None) -> int:
    """Tokens of a stream that is only begun, with room for its prompt."""
    return max(1, min(_WATCHED, (context or 2 * _WATCHED) // 2))
