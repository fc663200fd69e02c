"""One trace on a server: what is asked for, its events, and its confidences wherever from."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from conviction.core import Message, Sampling
from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.openai.events import EventParser, TraceReader
from conviction.engines.openai.facts import Dialect, Route, ServerFacts
from conviction.engines.openai.failures import Failures
from conviction.engines.openai.http import NOTHING, ByteStream, HttpClient, Json
from conviction.engines.vllm_gate import Arguments, Channel, channel_for, gate_arguments
from conviction.errors import InvalidSettingError, StreamError
from conviction_gate.names import STOP_TOKEN

_TRACE_BYTES = 1 << 24
_TOKEN_BYTES = 1 << 14
"""A trace may have `_TRACE_BYTES`, and `_TOKEN_BYTES` more for each token it may generate."""


async def open_trace(
    http: HttpClient,
    facts: ServerFacts,
    request: TraceRequest,
    *,
    route: Route,
    extra: Json = NOTHING,
) -> "TraceStream":
    """Ask a server for a trace, with its gate and its channel where the server has them.

    A prompt that has its template goes as plain text, whatever the route. EngineError if the
    server cannot be reached, or refuses.
    """
    route = Route.COMPLETIONS if request.templated else route
    channel, notes, top_k = None, (), request.top_k
    # The values of generated tokens come only with log-probabilities, so nothing is saved then.
    if facts.channel and request.top_k and not (request.logprobs and facts.top_k >= request.top_k):
        channel, notes = channel_for(request, facts.top_k)
        request = replace(request, top_k=0 if channel else min(request.top_k, facts.top_k))
    stop_token = facts.stop_token if facts.gate and request.gate is not None else None
    body = trace_body(request, route=route, model=facts.model, dialect=facts.dialect)
    body |= extra
    if channel is not None or stop_token is not None:
        report = channel and channel.name
        gate = gate_arguments(request.gate, top_k=top_k, stop_token=stop_token, report=report)
        body |= gate_fields(gate, extra)
    try:
        stream = await http.stream(route, body)
    except BaseException:
        if channel is not None:
            channel.close()
        raise
    return TraceStream(
        stream, http.failures, request, stop_token=stop_token, channel=channel, notes=notes
    )


class SilentChannelError(StreamError):
    """A server that reported confidences does so no longer: it was started anew, or moved."""


class TraceStream:
    """Reads one trace. Close it to tell the server to stop.

    `request` is what was sent: its `top_k` are the log-probabilities that come. With a `channel`,
    confidences come from there. `stop_token` ends a trace that the gate stopped.
    """

    def __init__(
        self,
        stream: ByteStream,
        failures: Failures,
        request: TraceRequest,
        *,
        stop_token: int | None = None,
        channel: Channel | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._stream = stream
        self._failures = failures
        self._max_tokens = request.sampling.max_tokens
        self._reader = TraceReader(
            request.top_k,
            self._max_tokens,
            logprobs=request.logprobs,
            secret=failures.secret,
            stop_token=stop_token,
        )
        self._channel = channel
        self._checked = channel is None
        self._notes = notes

    @property
    def informed(self) -> bool:
        """Whether any confidence was known so far."""
        if self._channel is not None:
            return not self._channel.silent
        return self._reader.informed

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """All chunks but the last.

        Raises:
            StreamError: the stream broke, or brought what is no trace.
            SilentChannelError: tokens came, and no confidences.
        """
        async with aclosing(self._events()) as chunks:
            async for chunk in chunks:
                yield await self._measured(chunk)
                if not self._checked and chunk.confidences.size:
                    self._checked = True
                    if not self.informed:
                        raise SilentChannelError(
                            tried="read confidences through the gate's channel",
                            found="tokens came, and no confidences",
                            remedy="The trace is begun again with log-probabilities. If the server "
                            "runs without the gate now, `conviction doctor` tells.",
                        )

    async def last(self) -> Chunk:
        """The last chunk, once all others have come; StreamError if the trace had not ended."""
        chunk = await self._measured(self._reader.finish())
        if self._reader.done:
            await self._stream.drain()
        notes = self._channel.notes if self._channel else self._notes
        return replace(chunk, notes=notes) if notes else chunk

    def close(self) -> None:
        """Hang up, and remove the channel."""
        self._stream.close()
        if self._channel is not None:
            self._channel.close()

    async def _measured(self, chunk: Chunk) -> Chunk:
        if self._channel is None or not chunk.confidences.size:
            return chunk
        return replace(chunk, confidences=await self._channel.take(chunk.confidences.size))

    async def _events(self) -> AsyncGenerator[Chunk, None]:
        """What the stream brings until its trace has ended."""
        reader, parser = self._reader, EventParser()
        left = most_bytes = _TRACE_BYTES + _TOKEN_BYTES * self._max_tokens
        try:
            async with aclosing(self._stream.pieces()) as pieces:
                async for piece in pieces:
                    left -= len(piece)
                    if left < 0:
                        found = f"it sent more than {most_bytes:,} bytes for one trace"
                        raise self._failures.broken(found)
                    if chunk := reader.read(parser.feed(piece)):
                        yield chunk
                        reader.check()
                    if reader.done:
                        return
                    if reader.ended:
                        self._stream.expect_end()
        except StreamError:
            # A trace that has ended is whole, however its connection does.
            if not reader.ended:
                if chunk := reader.rest():
                    yield chunk
                raise
        if chunk := reader.read(parser.finish()):
            yield chunk


def trace_body(
    request: TraceRequest, *, route: Route, model: str, dialect: Dialect
) -> dict[str, object]:
    """The request for one trace, streamed; an empty `model` leaves the choice to the server."""
    body: dict[str, object] = {
        **_prompt(request, route),
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": request.seed,
        **_sampling(request.sampling, dialect),
        **count_fields(dialect.counts),
    }
    chat = route is Route.CHAT
    if request.top_k:
        k = request.top_k
        body |= {"logprobs": True, "top_logprobs": k} if chat else {"logprobs": k}
    if model:
        body["model"] = model
    if dialect.token_ids and request.top_k and not chat:
        body["return_tokens_as_token_ids"] = True
    return body


def gate_fields(arguments: Arguments, extra: Json = NOTHING) -> dict[str, object]:
    """A gate in a request to vLLM: arguments for the plugin, and the token that marks a stop.

    Beside the arguments and the tokens of the caller's own, which `extra` may hold.
    """
    fields: dict[str, object] = {}
    if arguments:
        given = extra.get("vllm_xargs")
        own = cast("Json", given) if isinstance(given, Mapping) else NOTHING
        fields["vllm_xargs"] = {**own, **arguments}
    if STOP_TOKEN in arguments:
        given = extra.get("stop_token_ids")
        tokens = cast("list[object]", given) if isinstance(given, list) else []
        fields["stop_token_ids"] = [*tokens, arguments[STOP_TOKEN]]
    return fields


def count_fields(counts: str) -> dict[str, object]:
    """What asks a server for counts of tokens in every event."""
    if counts == "usage":
        return {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    return {"timings_per_token": True} if counts == "timings" else {}


def chat_messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    """Messages as the protocol writes them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _prompt(request: TraceRequest, route: Route) -> dict[str, object]:
    """The prompt as the route wants it, with the beginning of the trace."""
    messages, prefix = request.messages, request.prefix
    if route is Route.CHAT:
        if not prefix:
            return {"messages": chat_messages(messages)}
        # As vLLM, SGLang and llama.cpp call it. Without, a new message would follow.
        return {
            "messages": chat_messages((*messages, Message("assistant", prefix))),
            "continue_final_message": True,
            "add_generation_prompt": False,
        }
    if len(messages) != 1:
        raise InvalidSettingError(
            tried=f"send a chat of {len(messages)} messages to {route}",
            found="there it takes one text, with the model's template around it",
            remedy="Put the template around the messages yourself, or use the chat route.",
        )
    return {"prompt": messages[0].content + prefix}


def _sampling(sampling: Sampling, dialect: Dialect) -> dict[str, object]:
    """A sampling as the protocol writes it, filters that are off spelled out."""
    filters = {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p}
    return {
        "temperature": sampling.temperature,
        dialect.limit_name: sampling.max_tokens,
        **dialect.filters_off,
        **{name: value for name, value in filters.items() if value is not None},
    }
