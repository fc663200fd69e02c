"""The live page and its data. Not for programs: these routes may change at any time."""

from functools import cache, partial
from hashlib import blake2b
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Header, Request
from pydantic import Field
from starlette.responses import Response

from conviction.answers import kinds
from conviction.core import Message
from conviction.policies import policy as named_policy
from conviction.policies.named import setting_types, written
from conviction.server.access import address_of, client_of
from conviction.server.failures import RequestError
from conviction.server.page_file import TYPES, page_files, whole_page
from conviction.server.request_schema import (
    MOST_NAME,
    ConvictionOptions,
    RunRequest,
    SamplingOptions,
    Strict,
)
from conviction.server.responses import Emit, EventStream
from conviction.server.runs import AnyRun
from conviction.server.service import service_of
from conviction.server.tape import encode

_JSON = "application/json"
_MOST_TEXT = 4_000_000
"""Characters of one trace that a page gets."""

router = APIRouter(include_in_schema=False)
"""The routes of the page: `/` and all below `/page/` and `/api/`."""


class PageQuestion(Strict):
    """What the page's form asks."""

    question: Annotated[str, Field(min_length=1, max_length=1_000_000)]
    model: Annotated[str | None, Field(max_length=MOST_NAME)] = None
    conviction: ConvictionOptions = ConvictionOptions()
    generation: SamplingOptions = SamplingOptions()


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """The page."""
    return await file("index.html", request)


@router.api_route("/page/{path:path}", methods=["GET", "HEAD"])
async def file(path: str, request: Request) -> Response:
    """A file of the page."""
    data = page_files().get(path)
    if data is None:
        return Response("There is no such file.\n", 404, media_type="text/plain")
    tag = _tag(path)
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    kind = TYPES.get(path[path.rfind(".") :], "text/plain; charset=utf-8")
    return Response(data, headers=headers | {"content-type": kind})


@router.get("/api/options")
async def options(request: Request) -> dict[str, Any]:
    """What the form offers."""
    service = service_of(request)
    settings = service.settings
    policies: list[dict[str, Any]] = []
    for name in service.resolver.policies:
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


@router.post("/api/runs", status_code=201)
async def begin(body: PageQuestion, request: Request) -> dict[str, str]:
    """Begin a run."""
    service = service_of(request)
    asked = RunRequest(
        body.model or service.model,
        body.conviction,
        body.generation,
        client_of(request),
        address_of(request),
    )
    run = service.begin(service.resolver.chat([Message("user", body.question)], asked))
    return {"id": run.id}


@router.get("/api/runs")
async def runs(request: Request, known: str = "") -> dict[str, Any]:
    """The client's runs, unless the page knows the list already: it asks every other second."""
    listed = [run.facts() for run in service_of(request).runs.of(client_of(request))]
    stamp = _digest(encode({"runs": listed}))
    return {"stamp": stamp} | ({} if known == stamp else {"runs": listed})


@router.get("/api/runs/{run}")
async def tape(run: str, request: Request) -> Response:
    """The tape of a run so far."""
    return Response(await _found(run, request).whole(), media_type=_JSON)


@router.delete("/api/runs/{run}")
async def cancel(run: str, request: Request) -> dict[str, bool]:
    """Let a run end with the votes it has."""
    return {"running": service_of(request).interrupt(_found(run, request).id)}


@router.get("/api/runs/{run}/events", response_model=None)
async def events(
    run: str, request: Request, last_event_id: Annotated[int | None, Header()] = None
) -> Response:
    """The frames of a run until it is over."""
    service, known = service_of(request), _found(run, request)

    async def send_frames(emit: Emit) -> None:
        async for frame in known.frames(last_event_id, service.closing):
            await emit(b"data: " + frame + b"\n\n")

    return EventStream(send_frames, ping_seconds=service.settings.ping_seconds)


@router.get("/api/runs/{run}/traces/{trace}")
async def text(run: str, trace: int, request: Request) -> Response:
    """What a trace wrote so far."""
    written_text = await _found(run, request).text(trace, _MOST_TEXT)
    if written_text is None:
        raise RequestError("There is no trace of that number.", code="no_trace", status=404)
    return Response(encode(written_text), media_type=_JSON)


@router.get("/api/runs/{run}/export")
async def export(run: str, request: Request) -> Response:
    """A run as a page in one file."""
    known = _found(run, request)
    recorded = await known.recorded()
    # Megabytes of JSON would hold up all that runs.
    page = await anyio.to_thread.run_sync(partial(whole_page, recorded))
    name = f'attachment; filename="conviction-{known.id[:8]}.html"'
    headers = {"content-type": TYPES[".html"], "content-disposition": name}
    return Response(page.encode(), headers=headers)


def _found(run: str, request: Request) -> AnyRun:
    known = service_of(request).runs.find(run, client_of(request))
    if known is None:
        raise RequestError(
            "There is no run of that id, or it is no longer kept.", code="no_run", status=404
        )
    return known


@cache
def _tag(path: str) -> str:
    """Changes with a file's content: files of two versions must not be mixed."""
    return f'"{_digest(page_files()[path])}"'


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=12).hexdigest()
