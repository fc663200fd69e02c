"""The application: all routes, and what stands in front of them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from conviction.engines.base import Engine
from conviction.errors import ConvictionError
from conviction.server import page_routes
from conviction.server.service import Service
from conviction.server.settings import Settings


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """The server as an application, which starts the engine and ends it.

    Args:
        settings: What the server was told.
        engine: Generates the traces; not started yet.
    """
    service = Service(settings, engine)

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

    app = FastAPI(title="conviction", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(page_routes.router(service))
    return app
