"""`conviction serve`: OpenAI's protocol and a live page in front of any engine."""

import json
import logging
import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
from cyclopts import Parameter
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from conviction.answers import kind
from conviction.api import DEFAULT_POLICY
from conviction.cli import ExitCode
from conviction.cli.inputs import EngineOptions, TraceOptions
from conviction.cli.progress import prepared
from conviction.cli.terminal import WHOLE
from conviction.core import InvalidSettingError, Sampling
from conviction.display import safe
from conviction.errors import MissingExtraError
from conviction.policies import policy as named_policy

if TYPE_CHECKING:
    from conviction.server.service import Service
    from conviction.server.settings import Settings


@Parameter(name="*", group="Address")
@dataclass(frozen=True)
class AddressOptions:
    """Where the server listens, and who may use it."""

    host: str = "127.0.0.1"
    "Address to listen on; any that is not of this machine alone needs keys."
    port: Annotated[int, WHOLE] = 8008
    "Port to listen on; 0 takes any that is free."
    client_keys: Path | None = None
    "File with keys of clients, one a line, after a name if wanted; or CONVICTION_SERVER_KEYS."
    allow_host: Annotated[list[str] | None, Parameter(negative="")] = None
    "Further name that clients may call this server by; repeat, or list several."
    cors_origin: Annotated[list[str] | None, Parameter(negative="")] = None
    "Origin of a page that may call /v1, as in https://chat.example.org; repeat, or list several."
    trusted_proxy: Annotated[list[str] | None, Parameter(negative="")] = None
    "Address of a proxy whose X-Forwarded-For and -Proto are believed; repeat, or list several."


@Parameter(name="*", group="Engine", negative="")
@dataclass(frozen=True, kw_only=True)
class ServedOptions(EngineOptions):
    """Which model generates the traces, and how its engine is set up."""

    served_model: str | None = None
    "Name that clients know the model by; default: the engine's own."
    # Not in the help: both are refused with the reason.
    templated: Annotated[bool, Parameter(show=False)] = False
    engine: Annotated[str | None, Parameter(show=False)] = None

    def check_served(self) -> None:
        """Refuse prompts with templates, and the removed --engine."""
        if self.engine is not None:
            raise InvalidSettingError(
                tried=f"use --engine {self.engine}",
                found="--engine was removed",
                remedy="Name the model by -m, with -m scripted for made-up traces; for servers, "
                "--base-url is enough.",
            )
        if self.templated:
            raise InvalidSettingError(
                tried="serve with --templated",
                found="chats have no template yet",
                remedy="Leave it out; prompts that have theirs go to /v1/completions.",
            )


@Parameter(name="*", group="Defaults")
@dataclass(frozen=True)
class DefaultOptions(TraceOptions):
    """What holds for requests that say nothing else."""

    policy: str = DEFAULT_POLICY
    "A name from `conviction policies`, with settings if wanted."
    budget: Annotated[int | None, WHOLE] = None
    "The most traces of a request."
    content: Literal["trace", "answer"] = "trace"
    "What a message holds: the best trace's text, or only the answer."


@Parameter(name="*", group="Bounds")
@dataclass(frozen=True)
class BoundOptions:
    """What no request may exceed; one that asks for more is refused."""

    max_budget: Annotated[int, WHOLE] = 128
    "Traces of one request."
    max_trace_tokens: Annotated[int, WHOLE] = 16_384
    "Tokens of one trace."
    max_seconds: float = 600.0
    "Time of one request once its turn has come; one that names none has this."
    max_concurrency: Annotated[int | None, WHOLE] = None
    "Traces of one request at once; default: as many as the engine runs."
    max_total_tokens: Annotated[int | None, WHOLE] = None
    "Tokens of all traces of one request together; one that names none has this."
    max_body: Annotated[int, WHOLE] = 4 << 20
    "Bytes of one request."
    max_body_seconds: float = 60.0
    "Time in which the body of a request has to come; at most 10 s more than 4 KiB/s would take."
    max_header_seconds: float = 10.0
    "Time in which the headers of a request have to come."
    max_connections: Annotated[int, WHOLE] = 1000
    "Open connections; fewer where the limit of open files leaves fewer."
    max_request_memory: Annotated[int, WHOLE] = 64 << 20
    "Bytes of memory of all requests together that are read, wait or run."
    max_run_memory: Annotated[int, WHOLE] = 128 << 20
    "Bytes of memory of all runs together that the page shows after their end."
    max_running: Annotated[int, WHOLE] = 16
    "Verdicts at once; up to a quarter more for clients that have none running."
    max_queued: Annotated[int, WHOLE] = 256
    "Verdicts that may wait, of all clients."
    max_queued_per_client: Annotated[int, WHOLE] = 64
    "Verdicts that may wait, of one client, where keys tell who that is."
    max_wait: float = 300.0
    "Seconds that a verdict may wait for its turn."
    drain: float = 30.0
    "Seconds that running verdicts have when the server is told to end."


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class ServeOutputOptions:
    """What is logged and streamed."""

    ping: float = 10.0
    "Seconds of silence after which a stream gets a sign of life."
    progress: float = 0.5
    "Seconds between two lines of progress in a stream, at least."
    log_content: Annotated[bool, Parameter(negative="")] = False
    "Also log questions and answers, and put them into traces of OpenTelemetry."
    history: Annotated[bool, Parameter(negative="")] = False
    "Keep runs for `conviction history`; the page shows them again after a restart."
    quiet: Annotated[bool, Parameter(negative="", alias="-q")] = False
    "Nothing on stderr but errors."


_ADDRESS, _ENGINE, _DEFAULTS = AddressOptions(), ServedOptions(), DefaultOptions()
_BOUNDS, _OUTPUT = BoundOptions(), ServeOutputOptions()


def serve(
    *,
    address: AddressOptions = _ADDRESS,
    engine: ServedOptions = _ENGINE,
    defaults: DefaultOptions = _DEFAULTS,
    bounds: BoundOptions = _BOUNDS,
    output: ServeOutputOptions = _OUTPUT,
) -> int:
    """Serve OpenAI's protocol, with many traces and a vote behind every answer, and a live page.

    Ctrl-C ends it when what runs is done, a second one at once.
    Exit codes: 0 ended, 1 failed, 2 wrong use, 130 ended at once.

    Args:
        address: Where the server listens, and who may use it.
        engine: Which model generates the traces, and how its engine is set up.
        defaults: What holds for requests that say nothing else.
        bounds: What no request may exceed.
        output: What is logged and streamed.
    """
    check_extra()
    from conviction.server.app import create_app  # noqa: PLC0415  # an extra
    from conviction.server.running import Forced, listen, run  # noqa: PLC0415

    console = Console(stderr=True, quiet=output.quiet, highlight=False)
    # Everything that can be refused is refused before anything is fetched or started.
    engine.check_served()
    backend = engine.backend
    sampling = defaults.sampling(backend.sampling)
    settings = _settings(
        address, defaults, bounds, output, name=engine.served_model, sampling=sampling
    )
    _warn_of_open_keys([address.client_keys, engine.api_key_file], console)
    listener = listen(settings)
    try:
        backend = prepared(backend, console)
        style = defaults.prompt_style or backend.prompt_style
        told = settings.defaults.model_copy(update={"prompt_style": style})
        app = create_app(settings.model_copy(update={"defaults": told}), backend.build())
        port = listener.getsockname()[1]
        with logging_to_stderr(quiet=output.quiet):
            anyio.run(run, app, listener, lambda: announce(app.state.service, port, console))
    except Forced:
        # It ends just now: a third Ctrl-C could only make a traceback of that.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return ExitCode.INTERRUPTED
    finally:
        listener.close()
    return 0


def check_extra() -> None:
    """Check that what a server needs is installed.

    Raises:
        MissingExtraError: it is not.
    """
    needed = ("fastapi", "uvicorn", "prometheus_client", "opentelemetry")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            tried="start the server",
            found=f"not installed: {', '.join(missing)}",
            remedy='Install what a server needs: pip install "conviction[server]".',
        )


def _settings(
    address: AddressOptions,
    defaults: DefaultOptions,
    bounds: BoundOptions,
    output: ServeOutputOptions,
    *,
    name: str | None,
    sampling: Sampling,
) -> "Settings":
    """What the server is told.

    Raises:
        UsageError: a setting is unknown or out of range, or others could come in without a key.
    """
    from conviction.server import settings as told  # noqa: PLC0415  # an extra
    from conviction.server.access import check_bound, read_keys  # noqa: PLC0415

    steering = named_policy(
        defaults.policy, **({} if defaults.budget is None else {"budget": defaults.budget})
    )
    kind(defaults.answer)
    keys = read_keys(address.client_keys)
    check_bound(address.host, keys)
    _check_default("budget", steering.budget, "--max-budget", bounds.max_budget)
    _check_default("max_tokens", sampling.max_tokens, "--max-trace-tokens", bounds.max_trace_tokens)
    try:
        return told.Settings(
            host=address.host,
            port=address.port,
            model=name,
            defaults=told.Defaults(
                policy=defaults.policy,
                budget=defaults.budget,
                answers=defaults.answer,
                content=defaults.content,
                seed=defaults.seed,
                **asdict(sampling),
            ),
            **_bounds(bounds),
            keys=keys,
            hosts=tuple(address.allow_host or ()),
            origins=tuple(address.cors_origin or ()),
            proxies=tuple(address.trusted_proxy or ()),
            ping_seconds=output.ping,
            progress_seconds=output.progress,
            drain_seconds=bounds.drain,
            log_content=output.log_content,
            history=output.history,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        misnamed = first["loc"] == ("model",)
        raise InvalidSettingError(
            tried=f"use the setting {'served_model' if misnamed else first['loc'][-1]}",
            found="it is no word of up to 200 characters" if misnamed else first["msg"].lower(),
            remedy="Change it and retry; conviction serve --help tells them all.",
        ) from None


def _bounds(bounds: BoundOptions) -> dict[str, Any]:
    """The settings that say what requests and connections may take."""
    from conviction.server import settings as told  # noqa: PLC0415  # an extra

    return {
        "ceilings": told.Ceilings(
            budget=bounds.max_budget,
            max_tokens=bounds.max_trace_tokens,
            seconds=bounds.max_seconds,
            concurrency=bounds.max_concurrency,
            total_tokens=bounds.max_total_tokens,
            body_bytes=bounds.max_body,
        ),
        "queueing": told.Queueing(
            running=bounds.max_running,
            queued=bounds.max_queued,
            queued_per_client=bounds.max_queued_per_client,
            seconds=bounds.max_wait,
        ),
        "limits": told.Limits(
            connections=bounds.max_connections,
            header_seconds=bounds.max_header_seconds,
            body_seconds=bounds.max_body_seconds,
            request_bytes=bounds.max_request_memory,
            run_bytes=bounds.max_run_memory,
        ),
    }


def _warn_of_open_keys(files: Sequence[Path | None], console: Console) -> None:
    from conviction.server.access import readable_by_others  # noqa: PLC0415  # an extra

    for file in files:
        if file is not None and readable_by_others(file):
            said = f"warning: other users of this machine can read the keys in {safe(str(file))}."
            console.print(escape(f"{said} Change that with chmod 600."), soft_wrap=True)


def _check_default(name: str, value: int, option: str, ceiling: int) -> None:
    if value > ceiling:
        raise InvalidSettingError(
            tried=f"use {name} = {value} by default",
            found=f"that is above {option}, {ceiling}",
            remedy=f"Lower it, or raise {option}.",
        )


class _Indented(logging.Formatter):
    """Only the first line of an entry begins at the margin: a text in it cannot forge another."""

    def format(self, record: logging.LogRecord) -> str:
        """The entry."""
        return safe(super().format(record)).replace("\n", "\n    ")


@contextmanager
def logging_to_stderr(*, quiet: bool) -> Generator[None]:
    """Let the server log on stderr, a line per request and what fails; then all is as before."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Indented("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    names = ("conviction.server", "uvicorn", "asyncio", "aiohttp", "opentelemetry")
    logs = [logging.getLogger(name) for name in names]
    before = [(log, log.handlers, log.propagate, log.level) for log in logs]
    for log in logs:
        log.handlers = [handler]
        log.propagate = False
        own = log.name == "conviction.server"
        log.setLevel(logging.INFO if own and not quiet else logging.WARNING)
    try:
        yield
    finally:
        for log, handlers, propagates, level in before:
            log.handlers, log.propagate = handlers, propagates
            log.setLevel(level)


def announce(service: "Service", port: int, console: Console) -> None:
    """Say where the server is, and how to ask it."""
    settings = service.settings
    wildcard = settings.host in ("0.0.0.0", "::")  # noqa: S104  # compared, not bound
    host = "127.0.0.1" if wildcard else settings.host
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    model = safe(service.model)
    policy = settings.defaults.policy
    key = ' -H "Authorization: Bearer $KEY"' if settings.keys else ""
    asked = json.dumps({"role": "user", "content": "What is 12 * 12 - 44?"})
    sent = f'{{"model": "{model}", "messages": [{asked}]}}'
    client = f'OpenAI(base_url="{address}/v1", api_key="{"KEY" if settings.keys else "none"}")'
    for line in (
        f"Serving {model} ({safe(service.engine.name)}) with the policy {policy} at {address}/v1",
        f"Watch it: {address}/   API: {address}/docs   Ctrl-C ends it.",
        f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{sent}'",
        client + f'.chat.completions.create(model="{model}", messages=[{asked}])',
    ):
        console.print(escape(line), soft_wrap=True)
