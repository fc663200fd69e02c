"""Whether the server lives, what it counts, and which models it has."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from conviction.server.choosing import check_model, runnable_policies
from conviction.server.openai_answers import (
    HealthAnswer,
    ModelAnswer,
    ModelsAnswer,
    failures,
)
from conviction.server.service import Service

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_KEY = {"s401": "The key is missing or wrong."}
_NAME = {"s421": "The server is not called that."}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get(
        "/health",
        tags=["Operation"],
        responses={503: {"model": HealthAnswer, "description": "It cannot."}, **failures(**_NAME)},
        response_model=HealthAnswer,
    )
    async def health() -> Response:
        """Whether the server can think just now: it is not about to end, and its engine lives."""
        trouble = await service.trouble()
        closing = service.closing.is_set()
        answer = HealthAnswer(
            status="closing" if closing else "unwell" if trouble else "ok",
            model=service.model,
            running=service.admission.running,
            queued=service.admission.queued,
        )
        return JSONResponse(answer.model_dump(), 503 if closing or trouble else 200)

    @routes.get(
        "/metrics",
        tags=["Operation"],
        response_class=Response,
        responses={
            200: {"content": {_TEXT: {"schema": {"type": "string"}}}},
            **failures(**_KEY, **_NAME),
        },
    )
    async def metrics() -> Response:
        """What was counted, for Prometheus."""
        return Response(service.metrics.exposition(), headers={"content-type": _TEXT})

    @routes.get("/v1/models", tags=["OpenAI"], responses=failures(**_KEY, **_NAME))
    async def models() -> ModelsAnswer:
        """The model's name alone, for the server's own policy, and with every policy behind it."""
        names = [service.model, *(f"{service.model}@{name}" for name in runnable_policies(service))]
        return ModelsAnswer(data=[ModelAnswer(id=name) for name in names])

    @routes.get(
        "/v1/models/{model:path}",
        tags=["OpenAI"],
        responses=failures(s400="It names no policy.", s404="There is none.", **_KEY, **_NAME),
    )
    async def model(model: str) -> ModelAnswer:
        """One of the names; with settings behind its policy, too, as in `NAME@esc:window=5`."""
        check_model(service, model)
        return ModelAnswer(id=model)

    return routes
