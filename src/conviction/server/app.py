"""The application: all routes, and what stands in front of them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from opentelemetry.trace import TracerProvider
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from conviction.engines.base import Engine
from conviction.errors import ConvictionError
from conviction.server import chat, completions, documentation, health, page_routes
from conviction.server.access import AccessLog, log_failure
from conviction.server.failures import error_body, of_validation
from conviction.server.guards import (
    LOOPBACK_NAMES,
    BodyGuard,
    NameGuard,
    OriginGuard,
    SecurityHeaders,
)
from conviction.server.keys import KeyGuard, is_loopback
from conviction.server.replies import failure_response
from conviction.server.service import Service
from conviction.server.settings import Settings
from conviction.server.streaming import ClientGoneError


def create_app(
    settings: Settings, engine: Engine, *, tracing: TracerProvider | None = None
) -> FastAPI:
    """The server as an application, which starts the engine and ends it.

    Args:
        settings: What the server was told.
        engine: Generates the traces; not started yet.
        tracing: Where spans go; None for what the process has set up, which may be nowhere.
    """
    service = Service(settings, engine, tracing=tracing)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        try:
            await service.__aenter__()
        except ConvictionError as error:
            app.state.failure = error
            raise
        try:
            yield
        finally:
            await service.__aexit__(None, None, None)

    app = FastAPI(
        title="conviction",
        description="Many traces and a vote behind every answer, in OpenAI's protocol.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for module in (chat, completions, health, page_routes):
        app.include_router(module.router(service))
    documentation.add(app, service)
    _answer_failures(app, settings)
    _put_guards(app, service)
    return app


def _put_guards(app: FastAPI, service: Service) -> None:
    """The innermost first; a request passes them from the last to the first."""
    settings = service.settings
    app.add_middleware(BodyGuard, most_bytes=settings.ceilings.body_bytes)
    app.add_middleware(KeyGuard, keys=settings.keys)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(OriginGuard, origins=settings.origins)
    # Where others reach the server they need a key, which no foreign page has.
    if is_loopback(settings.host) or settings.hosts:
        names = [*LOOPBACK_NAMES, settings.host, *settings.hosts]
        app.add_middleware(NameGuard, names=names)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(AccessLog, metrics=service.metrics)


def _answer_failures(app: FastAPI, settings: Settings) -> None:
    async def on_validation(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for it
        return failure_response(of_validation(error.errors()))

    async def on_http(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, HTTPException)  # noqa: S101
        body = error_body(f"{error.detail}.", status=error.status_code, code="http_error")
        return JSONResponse(body, error.status_code, error.headers)

    async def on_error(request: Request, error: Exception) -> Response:
        del request
        log_failure(settings, error)
        return failure_response(error)

    async def on_gone(request: Request, error: Exception) -> Response:
        del request, error
        return Response(status_code=499)  # Nobody reads it but the log.

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ConvictionError, on_error)
    app.add_exception_handler(ClientGoneError, on_gone)
    app.add_exception_handler(Exception, on_error)
