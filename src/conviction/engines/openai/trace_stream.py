"""One trace as a server streams it: its events, and its confidences wherever they come from."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from conviction.engines.base import Chunk, TraceRequest
from conviction.engines.channel import Channel, channel_for
from conviction.engines.gates import gate_arguments
from conviction.engines.openai.events import TraceReader
from conviction.engines.openai.facts import ServerFacts
from conviction.engines.openai.failures import Failures
from conviction.engines.openai.http import ByteStream
from conviction.engines.openai.requests import (
    FILTERS_OFF,
    Dialect,
    Json,
    Route,
    gate_fields,
    trace_body,
)
from conviction.engines.openai.servers import Server
from conviction.engines.openai.sse import EventParser
from conviction.errors import StreamError

_TRACE_BYTES = 1 << 24
_TOKEN_BYTES = 1 << 14
"""A trace may have `_TRACE_BYTES`, and `_TOKEN_BYTES` more for each token it may generate."""


async def open_trace(
    server: Server, request: TraceRequest, *, route: Route, model: str | None, extra: Json
) -> "TraceStream":
    """Ask a server for a trace, with its gate and its channel where the server has them.

    Args:
        server: The server.
        request: The trace.
        route: Where it is asked for.
        model: Name of the model, for a server that was not asked for its facts yet.
        extra: Further settings to send.

    Raises:
        EngineError: the server cannot be reached, or refuses.
    """
    facts = server.facts or ServerFacts("", dialect=Dialect(dict(FILTERS_OFF[0])))
    channel, notes, top_k = None, (), request.top_k
    # The values of generated tokens come only with log-probabilities, so nothing is saved then.
    if facts.channel and request.top_k and not (request.logprobs and facts.top_k >= request.top_k):
        channel, notes = channel_for(request, facts.top_k)
        request = replace(request, top_k=0 if channel else min(request.top_k, facts.top_k))
    stop_token = facts.stop_token if facts.gate and request.gate is not None else None
    arguments = gate_arguments(
        request.gate, top_k=top_k, stop_token=stop_token, report=channel and channel.name
    )
    body = trace_body(request, route=route, model=facts.model or model, dialect=facts.dialect)
    try:
        stream = await server.http.stream(route, {**body, **gate_fields(arguments, extra)})
    except BaseException:
        if channel is not None:
            channel.close()
        raise
    most, failures = request.sampling.max_tokens, server.http.failures
    reader = TraceReader(
        request.top_k,
        most,
        logprobs=request.logprobs,
        secret=failures.secret,
        stop_token=stop_token,
    )
    return TraceStream(
        stream, reader, failures=failures, max_tokens=most, channel=channel, notes=notes
    )


class SilentChannelError(StreamError):
    """A server that reported confidences does so no longer: it was started anew, or moved."""


class TraceStream:
    """Reads one trace. Close it to tell the server to stop.

    Args:
        stream: What the server sends.
        reader: Makes sense of it.
        failures: Names what goes wrong.
        max_tokens: The most tokens that were asked for.
        channel: Where confidences come from in place of log-probabilities, if there is one.
        notes: What a reader of the verdict should know.
    """

    def __init__(
        self,
        stream: ByteStream,
        reader: TraceReader,
        *,
        failures: Failures,
        max_tokens: int,
        channel: Channel | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._stream = stream
        self._reader = reader
        self._failures = failures
        self._max_tokens = max_tokens
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
                    self._check_channel()

    async def last(self) -> Chunk:
        """The last chunk, once all others have come.

        Raises:
            StreamError: the stream ended before the trace did.
        """
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

    def _check_channel(self) -> None:
        if self._channel is not None and self._channel.silent:
            raise SilentChannelError(
                tried="read confidences through the gate's channel",
                found="tokens came, and no confidences",
                remedy="The trace is begun again with log-probabilities. If the server runs "
                "without the gate now, `conviction doctor` tells.",
            )

    async def _events(self) -> AsyncGenerator[Chunk, None]:
        """What the stream brings until its trace has ended."""
        reader, parser = self._reader, EventParser()
        left = most_bytes = _TRACE_BYTES + _TOKEN_BYTES * self._max_tokens
        try:
            async with aclosing(self._stream.pieces()) as pieces:
                async for piece in pieces:
                    left -= len(piece)
                    if left < 0:
                        raise self._failures.too_large(most_bytes)
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
                raise
        if chunk := reader.read(parser.finish()):
            yield chunk
