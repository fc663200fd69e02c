"""The application: the routes of the API, what stands in front of them, and how failures end."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from opentelemetry.trace import TracerProvider
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from conviction.engines.base import Engine
from conviction.errors import ConvictionError
from conviction.server import access, documentation, page_routes
from conviction.server import answer_schema as schema
from conviction.server.access import address_of, client_of
from conviction.server.answers import CHAT, TEXT, CompletionFormat
from conviction.server.bodies import BodyGuard
from conviction.server.connections import most_connections
from conviction.server.failures import error_body, failure_response, log_failure, validation_error
from conviction.server.request_schema import ChatRequest, CompletionRequest, ConvictionOptions
from conviction.server.responses import ClientGoneError, StreamedAnswer, whole_answer
from conviction.server.run_options import RunOptions
from conviction.server.service import Service, service_of
from conviction.server.settings import Settings

router = APIRouter()
"""The routes of the API."""


@router.post(
    "/v1/chat/completions", tags=["OpenAI"], responses=schema.CHAT_ANSWERS, response_model=None
)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Think about a chat many times in parallel, vote, and answer.

    The policy is picked by the model's name (`NAME@policy`), by the `conviction` object, or by
    the server's default. With `stream`, progress comes as reasoning until the answer does.
    """
    messages = [message.message for message in body.messages]
    asked = body.run_request(client_of(request), address_of(request))
    options = service_of(request).resolver.chat(messages, asked)
    return await _answer(body, options, request, CHAT)


@router.post(
    "/v1/completions", tags=["OpenAI"], responses=schema.COMPLETION_ANSWERS, response_model=None
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Think about a prompt that is sent to the model as it is, vote, and answer."""
    asked = body.run_request(client_of(request), address_of(request))
    options = service_of(request).resolver.prompt(body.text, asked)
    return await _answer(body, options, request, TEXT)


async def _answer(
    body: ChatRequest | CompletionRequest,
    options: RunOptions,
    request: Request,
    format: CompletionFormat,  # noqa: A002
) -> Response:
    service = service_of(request)
    if body.stream:
        return StreamedAnswer(service, options, format, with_usage=body.stream_usage)
    return await whole_answer(service, options, request.receive, format)


@router.get(
    "/health",
    tags=["Operation"],
    responses=schema.HEALTH_ANSWERS,
    response_model=schema.HealthAnswer,
)
async def health(request: Request) -> Response:
    """Whether the server can think just now: it is not about to end, and its engine lives."""
    service = service_of(request)
    trouble = await service.trouble()
    closing = service.closing.is_set()
    answer = schema.HealthAnswer(
        status="closing" if closing else "unwell" if trouble else "ok",
        model=service.model,
        running=service.admission.running,
        queued=service.admission.queued,
    )
    return JSONResponse(answer.model_dump(), 503 if closing or trouble else 200)


@router.get(
    "/metrics", tags=["Operation"], response_class=Response, responses=schema.METRICS_ANSWERS
)
async def metrics(request: Request) -> Response:
    """What was counted, for Prometheus."""
    counted = service_of(request).metrics.exposition()
    return Response(counted, headers={"content-type": schema.METRICS_TYPE})


@router.get("/v1/models", tags=["OpenAI"], responses=schema.MODELS_ANSWERS)
async def models(request: Request) -> schema.ModelsAnswer:
    """The model's name alone, for the server's own policy, and with every policy behind it."""
    return schema.ModelsAnswer(
        data=[schema.ModelAnswer(id=name) for name in service_of(request).resolver.models]
    )


@router.get("/v1/models/{model:path}", tags=["OpenAI"], responses=schema.MODEL_ANSWERS)
async def model(model: str, request: Request) -> schema.ModelAnswer:
    """One of the names; with settings behind its policy, too, as in `NAME@esc:window=5`."""
    service_of(request).resolver.policy(model, ConvictionOptions())
    return schema.ModelAnswer(id=model)


def create_app(
    settings: Settings, engine: Engine, *, tracing: TracerProvider | None = None
) -> FastAPI:
    """The server as an application, which starts the engine and ends it.

    Spans go to `tracing`; None for what the process has set up, which may be nowhere.
    """
    service = Service(settings, engine, tracing=tracing)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(service)
            except ConvictionError as error:
                app.state.failure = error
                raise
            yield

    app = FastAPI(
        title="conviction",
        description="Many traces and a vote behind every answer, in OpenAI's protocol.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for routes in (router, page_routes.router, documentation.router):
        app.include_router(routes)
    app.openapi = partial(documentation.openapi, app)
    _answer_failures(app, settings)
    _add_guards(app, service)
    return app


def _add_guards(app: FastAPI, service: Service) -> None:
    """The innermost first; a request passes them from the last to the first."""
    settings = service.settings
    connections = most_connections(settings.limits.connections)
    app.add_middleware(
        BodyGuard,
        most_bytes=settings.ceilings.body_bytes,
        # The others wait for a request, so that a new connection can take the place of one.
        most_requests=connections - connections // 8,
        limits=settings.limits,
        memory=service.memory,
    )
    app.add_middleware(access.Guard, check=access.key_check(settings.keys))
    if settings.origins:
        app.add_middleware(access.Cors, origins=settings.origins)
    app.add_middleware(access.Guard, check=access.origin_check(settings.origins))
    # Where others reach the server they need a key, which no foreign page has.
    if access.is_loopback(settings.host) or settings.hosts:
        names = [*access.LOOPBACK_NAMES, settings.host, *settings.hosts]
        app.add_middleware(access.Guard, check=access.host_check(names))
    app.add_middleware(access.SecurityHeaders)
    app.add_middleware(access.AccessLog, metrics=service.metrics)


def _answer_failures(app: FastAPI, settings: Settings) -> None:
    async def respond(_: Request, error: Exception) -> Response:
        match error:
            case RequestValidationError():
                return failure_response(validation_error(error.errors()))
            case HTTPException(status_code=status):
                body = error_body(f"{error.detail}.", status=status, code="http_error")
                return JSONResponse(body, status, error.headers)
            case ClientGoneError():
                return Response(status_code=499)  # Read by nothing but the log.
            case _:
                log_failure(error, content=settings.log_content)
                return failure_response(error)

    kinds = (RequestValidationError, HTTPException, ConvictionError, ClientGoneError, Exception)
    for kind in kinds:
        app.add_exception_handler(kind, respond)
