"""The live page and what it is fed with. Not for programs: these routes may change at any time."""

from functools import partial
from hashlib import blake2b
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from conviction.answers import kinds
from conviction.core import Message
from conviction.policies import policy as named_policy
from conviction.policies.named import setting_types, written
from conviction.server.choosing import ask_chat, runnable_policies
from conviction.server.failures import RequestError
from conviction.server.keys import client_of
from conviction.server.page_file import TYPES, Recorded, page_files, text_of, whole_page
from conviction.server.runs import Run
from conviction.server.service import Service
from conviction.server.streaming import Emit, EventStream
from conviction.server.tape import encode
from conviction.server.wishes import MOST_NAME, Generation, Wishes

_JSON = "application/json"
_MOST_TEXT = 4_000_000
"""Characters of one trace that a page is told."""


class Question(BaseModel):
    """What the page's form asks."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    question: Annotated[str, Field(min_length=1, max_length=1_000_000)]
    model: Annotated[str | None, Field(max_length=MOST_NAME)] = None
    conviction: Wishes = Wishes()
    generation: Generation = Generation()


class _Watching(Response):
    """Tells a page of a run until it is over."""

    def __init__(self, run: Run, last: int | None, service: Service) -> None:
        super().__init__()
        self._run = run
        self._last = last
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        seconds = self._service.settings.ping_seconds
        await EventStream(self._produce, ping_seconds=seconds)(scope, receive, send)

    async def _produce(self, emit: Emit) -> None:
        async for frame in self._run.frames(self._last, self._service.closing):
            data = frame if isinstance(frame, bytes) else encode(frame)
            await emit(b"data: " + data + b"\n\n")


def router(service: Service) -> APIRouter:
    """The routes of the page: `/` and all below `/page/` and `/api/`.

    Called when the app is made, so before the service is entered.
    """
    routes = APIRouter(include_in_schema=False)
    _add_files(routes)
    _add_runs(routes, service)
    _add_run(routes, service)
    _add_contents(routes, service)
    return routes


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=12).hexdigest()


def _add_files(routes: APIRouter) -> None:
    contents = page_files()
    # The files of another version must not be mixed with those of this one.
    tags = {path: f'"{_digest(data)}"' for path, data in contents.items()}

    def answer(path: str, request: Request) -> Response:
        if path not in contents:
            return Response("There is no such file.\n", 404, media_type="text/plain")
        headers = {"etag": tags[path], "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tags[path]:
            return Response(status_code=304, headers=headers)
        kind = TYPES.get(path[path.rfind(".") :], "text/plain; charset=utf-8")
        return Response(contents[path], headers=headers | {"content-type": kind})

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return answer("index.html", request)

    @routes.api_route("/page/{path:path}", methods=["GET", "HEAD"])
    async def file(path: str, request: Request) -> Response:
        return answer(path, request)


def _add_runs(routes: APIRouter, service: Service) -> None:
    @routes.get("/api/options")
    async def options() -> dict[str, Any]:
        return _options(service)

    @routes.post("/api/runs", status_code=201)
    async def begin(body: Question, request: Request) -> dict[str, str]:
        asked = ask_chat(
            service,
            [Message("user", body.question)],
            model=body.model or service.model,
            wishes=body.conviction,
            generation=body.generation,
            client=client_of(request),
        )
        return {"id": service.begin(asked).id}

    @routes.get("/api/runs")
    async def runs(request: Request, known: str = "") -> dict[str, Any]:
        listed = [run.facts() for run in service.runs.of(client_of(request))]
        stamp = _digest(encode({"runs": listed}))
        # Pages ask every other second.
        return {"stamp": stamp} | ({} if known == stamp else {"runs": listed})


def _found(service: Service, run: str, request: Request) -> Run:
    known = service.runs.find(run, client_of(request))
    if known is None:
        raise RequestError(
            "There is no run of that id, or it is no longer kept.", code="no_run", status=404
        )
    return known


def _add_run(routes: APIRouter, service: Service) -> None:
    @routes.get("/api/runs/{run}")
    async def tape(run: str, request: Request) -> Response:
        return Response(encode(_found(service, run, request).snapshot()), media_type=_JSON)

    @routes.delete("/api/runs/{run}")
    async def cancel(run: str, request: Request) -> dict[str, bool]:
        return {"running": service.interrupt(_found(service, run, request).id)}

    @routes.get("/api/runs/{run}/events", response_model=None)
    async def events(
        run: str, request: Request, last_event_id: Annotated[int | None, Header()] = None
    ) -> Response:
        return _Watching(_found(service, run, request), last_event_id, service)


def _add_contents(routes: APIRouter, service: Service) -> None:
    @routes.get("/api/runs/{run}/traces/{trace}")
    async def text(run: str, trace: int, request: Request) -> Response:
        told = text_of(_found(service, run, request).tape, trace, _MOST_TEXT)
        if told is None:
            raise RequestError("There is no trace of that number.", code="no_trace", status=404)
        return Response(encode(told), media_type=_JSON)

    @routes.get("/api/runs/{run}/export")
    async def export(run: str, request: Request) -> Response:
        known = _found(service, run, request)
        known.snapshot()
        recorded = Recorded.of(known.tape)
        # Megabytes of JSON would hold up all that runs.
        page = await anyio.to_thread.run_sync(partial(whole_page, recorded))
        name = f'attachment; filename="conviction-{known.id[:8]}.html"'
        headers = {"content-type": TYPES[".html"], "content-disposition": name}
        return Response(page.encode(), headers=headers)


def _options(service: Service) -> dict[str, Any]:
    """What the form offers."""
    settings = service.settings
    policies: list[dict[str, Any]] = []
    for name in runnable_policies(service):
        chosen = named_policy(name)
        values = {one: written(getattr(chosen, one)) for one in setting_types(name)}
        policies.append({"name": name, "settings": values, "budget": chosen.budget})
    return {
        "models": [service.model],
        "policies": policies,
        "answers": list(kinds()),
        "confidences": service.capabilities.top_k > 0,
        "defaults": settings.defaults.model_dump(mode="json"),
        "ceilings": settings.ceilings.model_dump(mode="json"),
    }
