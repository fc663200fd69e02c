"""An engine over HTTP: any server that speaks the OpenAI protocol of chat completions.

One request per trace, with a single choice, so that each trace can be cancelled alone: closing
its connection is what tells the server to stop.
"""

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from http import HTTPStatus
from math import isfinite
from types import MappingProxyType, TracebackType
from typing import Self

import anyio
import httpx2
from pydantic import BaseModel, ValidationError

from conviction.core import Message, Sampling, require, require_whole
from conviction.engines.base import Capabilities, Chunk, Engine, TraceRequest
from conviction.engines.openai_errors import Failures
from conviction.engines.openai_events import Logprobs, TraceReader
from conviction.engines.sse import EventParser
from conviction.errors import EngineError, EngineUnavailableError

Json = Mapping[str, object]

FILTERS_OFF: Json = MappingProxyType({"top_p": 1.0, "top_k": 0, "min_p": 0.0})
"""Filters of sampling, and the values that switch them off on servers of open models.

They are sent because such servers have filters of their own that hold where a request is silent.
"""

_PROBE = "Count from one to five."
_PROBE_TOP_K = (20, 5, 0)
_MOST_ANSWER_BYTES = 1 << 22
_CLOSE_SECONDS = 2.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _ModelMeta(BaseModel):
    n_ctx: int | None = None


class _Model(BaseModel):
    id: str
    meta: _ModelMeta | None = None
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Model]


class _ProbedChoice(BaseModel):
    logprobs: Logprobs | None = None


class _Probed(BaseModel):
    choices: list[_ProbedChoice]


class OpenAIEngine(Engine):
    """Generates traces on a server of chat completions.

    Args:
        base_url: Address that "/chat/completions" is added to, as in "http://127.0.0.1:8000/v1".
        model: Name of the model; None for the first that the server lists.
        api_key: Key to send; never shown, never logged.
        concurrency: Requests that are open at once, at least 1; further traces wait.
        connect_timeout: Seconds until a connection must stand.
        stall_timeout: Seconds that a server may send nothing, also before its first byte.
        filters_off: What to send for filters that a sampling leaves off; empty for servers that
            refuse unknown settings.
        extra: Further settings to send with every trace.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        concurrency: int = 64,
        connect_timeout: float = 10.0,
        stall_timeout: float = 300.0,
        filters_off: Json = FILTERS_OFF,
        extra: Json = MappingProxyType({}),
    ) -> None:
        require_whole("concurrency", concurrency, low=1)
        require("connect_timeout", connect_timeout, low=1e-3)
        require("stall_timeout", stall_timeout, low=1e-3)
        self._base_url = base_url.rstrip("/")
        self._model = model
        self._api_key = api_key
        self._concurrency = concurrency
        self._timeout = httpx2.Timeout(stall_timeout, connect=connect_timeout, pool=None)
        self._filters_off = dict(filters_off)
        self._extra = dict(extra)
        self._failures = Failures(self._base_url, api_key)
        self._client: httpx2.AsyncClient | None = None
        self._free = anyio.Semaphore(concurrency)
        self._probing = anyio.Lock()
        self._capabilities: Capabilities | None = None

    @property
    def name(self) -> str:
        """The model's name and the server's address."""
        return f"{self._model or 'a model'} at {self._base_url}"

    async def __aenter__(self) -> Self:
        """Open the client; the server is first spoken to when something is asked."""
        headers = {"Accept-Encoding": "identity"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        try:
            url = httpx2.URL(self._base_url)
            self._client = httpx2.AsyncClient(
                headers=headers,
                timeout=self._timeout,
                # A trace lasts seconds, so a connection of its own costs nothing, and a request
                # never meets one that the server is about to drop.
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
                trust_env=url.host not in _LOOPBACK,
                # Reading the system's certificates takes a while; without TLS nobody asks for
                # them. This context has none, so it would trust nobody.
                verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.scheme == "http" else True,
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise EngineUnavailableError(
                tried=f"use {self._base_url!r} as a server's address",
                found=str(error),
                remedy="Give an address such as http://127.0.0.1:8000/v1.",
            ) from None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await client.aclose()

    async def capabilities(self) -> Capabilities:
        """What the server can do: asked once, with its list of models and one small request."""
        async with self._probing:
            if self._capabilities is None:
                self._capabilities = await self._probe()
            return self._capabilities

    async def stream(
        self, request: TraceRequest, *, extra: Json = MappingProxyType({})
    ) -> AsyncGenerator[Chunk, None]:
        """Generate one trace.

        Args:
            request: The trace.
            extra: Further settings to send with this trace.

        Raises:
            EngineUnavailableError: the server cannot be reached, or refuses us.
            ContextOverflowError: the trace does not fit the model's context.
            StreamError: the stream broke, stalled, or is no stream of completions.
            EngineError: the server refuses the request for another reason.
        """
        body = {**self._body(request), **self._extra, **extra}
        async with self._free:
            response = await self._open(body)
            try:
                reader, parser = TraceReader(request.top_k), EventParser()
                # Closing this generator closes the connection.
                async with aclosing(response.aiter_raw()) as pieces:
                    async for piece in pieces:
                        for data in parser.feed(piece):
                            if chunk := reader.read(data):
                                yield chunk
                        if reader.done:
                            break
                for data in parser.finish():
                    if chunk := reader.read(data):
                        yield chunk
            except httpx2.HTTPError as error:
                raise self._failures.broken(error) from error
            finally:
                await _close(response)
        yield reader.finish()

    async def post(self, path: str, body: Json) -> bytes:
        """Post JSON below the base URL and give the body of the answer.

        Raises:
            EngineError: the server cannot be reached, or does not answer with 200.
        """
        return await self._whole("POST", path, body)

    def _body(self, request: TraceRequest) -> dict[str, object]:
        body: dict[str, object] = {
            "messages": chat(request.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": request.seed,
            **sampling_fields(request.sampling, self._filters_off),
        }
        if self._model is not None:
            body["model"] = self._model
        if request.top_k:
            body |= {"logprobs": True, "top_logprobs": request.top_k}
        return body

    async def _open(self, body: Json) -> httpx2.Response:
        """The server's answer, once it is known to be a stream of events."""
        response = await self._send("POST", "/chat/completions", body)
        try:
            failure = await self._failure(response)
        except BaseException:
            await _close(response)
            raise
        if failure is not None:
            await _close(response)
            raise failure
        return response

    async def _failure(self, response: httpx2.Response) -> EngineError | None:
        content_type = response.headers.get("content-type", "")
        status = response.status_code
        is_stream = content_type.lower().startswith("text/event-stream")
        if status == HTTPStatus.OK and is_stream:
            return None
        try:
            answer = await _read(response)
        except httpx2.HTTPError as error:
            return self._failures.broken(error)
        if status != HTTPStatus.OK:
            return self._failures.answered(status, response.headers, answer)
        return self._failures.not_a_stream(content_type, answer)

    async def _whole(self, method: str, path: str, body: Json | None = None) -> bytes:
        response = await self._send(method, path, body)
        try:
            answer = await _read(response)
        except httpx2.HTTPError as error:
            raise self._failures.unreachable(error) from error
        finally:
            await _close(response)
        if response.status_code != HTTPStatus.OK:
            raise self._failures.answered(response.status_code, response.headers, answer)
        return answer

    async def _send(self, method: str, path: str, body: Json | None) -> httpx2.Response:
        if self._client is None:
            raise EngineUnavailableError(
                tried=f"ask {self._base_url}",
                found="the engine is not started",
                remedy="Use it within `async with engine:`.",
            )
        request = self._client.build_request(method, self._base_url + path, json=body)
        try:
            return await self._client.send(request, stream=True)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._failures.unreachable(error) from error

    async def _probe(self) -> Capabilities:
        model = await self._find_model()
        self._model = self._model or model.id
        return Capabilities(
            model=self._model,
            top_k=await self._probe_top_k(),
            concurrency=self._concurrency,
            context=model.max_model_len or (model.meta.n_ctx if model.meta else None),
        )

    async def _find_model(self) -> _Model:
        answer = await self._whole("GET", "/models")
        try:
            listed = _Models.model_validate_json(answer).data
        except ValidationError:
            listed = []
        if self._model is None and not listed:
            raise EngineUnavailableError(
                tried=f"ask {self._base_url} for its models",
                found="it lists none",
                remedy="Name the model.",
            )
        if self._model is None:
            return listed[0]
        return next((m for m in listed if m.id == self._model), _Model(id=self._model))

    async def _probe_top_k(self) -> int:
        """The largest k that a small request is given; servers refuse what is too large."""
        request = TraceRequest((Message("user", _PROBE),), Sampling(max_tokens=4))
        for top_k in _PROBE_TOP_K:
            body = {**self._body(request), **self._extra, "stream": False}
            del body["stream_options"]
            if top_k:
                body |= {"logprobs": True, "top_logprobs": top_k}
            try:
                return _given_top_k(await self.post("/chat/completions", body), top_k)
            except EngineUnavailableError:
                raise
            except EngineError:
                if not top_k:
                    raise
        return 0


def chat(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    """Messages as the protocol writes them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def sampling_fields(sampling: Sampling, filters_off: Json = FILTERS_OFF) -> dict[str, object]:
    """A sampling as the protocol writes it, filters that are off spelled out."""
    filters = {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p}
    return {
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        **filters_off,
        **{name: value for name, value in filters.items() if value is not None},
    }


def _given_top_k(answer: bytes, asked: int) -> int:
    try:
        choices = _Probed.model_validate_json(answer).choices
    except ValidationError:
        return 0
    counts = [
        sum(c.logprob is not None and isfinite(c.logprob) for c in token.top_logprobs or ())
        for choice in choices
        for token in (choice.logprobs and choice.logprobs.content) or ()
    ]
    return min(asked, max(counts, default=0))


async def _read(response: httpx2.Response) -> bytes:
    """The body, up to a bound; what lies beyond is of no use to anybody."""
    body = bytearray()
    async with aclosing(response.aiter_raw()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > _MOST_ANSWER_BYTES:
                break
    return bytes(body[:_MOST_ANSWER_BYTES])


async def _close(response: httpx2.Response) -> None:
    """Close the connection, also while our own task is being cancelled."""
    with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
        await response.aclose()
