"""What the server was told when it was started. Requests never change it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from conviction.api import DEFAULT_POLICY
from conviction.core import GREATEST_WHOLE
from conviction.prompts import PromptStyle

Content = Literal["trace", "answer"]
"""What a message holds: the best trace's final text, or the answer alone."""

Count = Annotated[int, Field(ge=1, le=GREATEST_WHOLE)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Defaults(BaseModel):
    """What holds for a request that says nothing else.

    Attributes:
        policy: Name of a policy, with settings if wanted.
        budget: The most traces to start; None for the policy's own.
        answers: Name of the kind of answer.
        max_tokens: The most tokens of one trace.
        temperature: As `top_p`, `top_k` and `min_p` in `conviction.core.Sampling`.
        seed: Seeds of all traces derive from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = DEFAULT_POLICY
    budget: Count | None = None
    answers: str = "math"
    prompt_style: PromptStyle = PromptStyle.STEP_BY_STEP
    content: Content = "trace"
    max_tokens: Count = 1024
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int = 0


class Ceilings(BaseModel):
    """What no request may exceed; one that asks for more is refused.

    Attributes:
        budget: Traces of one request.
        max_tokens: Tokens of one trace.
        seconds: Time of one request, from when its turn comes; default when a request sets none.
        concurrency: Traces of one request that run at once; None for as many as the engine runs.
        total_tokens: Tokens of all traces of one request, None for no bound; default, too.
        body_bytes: Size of a request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Count = 128
    max_tokens: Count = 16_384
    seconds: Seconds = 600.0
    concurrency: Count | None = None
    total_tokens: Count | None = None
    body_bytes: Count = 4 << 20


class Queueing(BaseModel):
    """How many verdicts are thought about at once, and how many may wait.

    Attributes:
        running: Verdicts at once; a quarter more for clients that have none running.
        queued: Verdicts that wait, of all clients.
        queued_per_client: Verdicts that wait, of one client, where keys tell who that is.
        seconds: The longest that a verdict waits for its turn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    running: Count = 16
    queued: Annotated[int, Field(ge=0)] = 256
    queued_per_client: Annotated[int, Field(ge=0)] = 64
    seconds: Seconds = 300.0


class Limits(BaseModel):
    """What connections, requests and past runs may take, whoever they are of.

    Attributes:
        connections: Open connections; fewer where the limit of open files leaves fewer.
        header_bytes: Size of a request's head: its first line and its headers.
        header_seconds: Time for a request's head, from when the connection was made or, for a
            later request, from its first byte.
        idle_seconds: Time between an answer and the first byte of the next request; longer than
            clients keep a connection, or a request would meet one that is just being closed.
        body_seconds: Time for a request's body.
        body_rate: Bytes per second that a body has to come with, after `header_seconds`.
        send_seconds: Time in which a client has to take something of its answer.
        request_bytes: Memory of all requests together that are being read, wait or run.
        run_bytes: Memory of all runs together that are kept after their end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    connections: Count = 1000
    header_bytes: Count = 16 << 10
    header_seconds: Seconds = 10.0
    idle_seconds: Seconds = 20.0
    body_seconds: Seconds = 60.0
    body_rate: Count = 4096
    send_seconds: Seconds = 60.0
    request_bytes: Count = 64 << 20
    run_bytes: Count = 128 << 20


class Settings(BaseModel):
    """All settings of the server.

    Attributes:
        host: Address it listens on.
        model: Name that clients know the model by; None for the engine's own.
        keys: Keys of clients, and the name of each.
        hosts: Further names that clients may call this server by.
        origins: Origins of web pages that may use the API, as in "https://chat.example.org"; "*"
            for all of them. The live page's own routes stay closed to them.
        proxies: Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.
        ping_seconds: Silence after which a stream gets a sign of life.
        progress_seconds: Shortest time between two lines of progress.
        drain_seconds: Time that running verdicts have when the server is told to end.
        log_content: Whether questions and answers may be logged and traced.
        history: Whether runs are kept in the user's history, and shown again after a restart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8008
    model: Annotated[str, Field(pattern=r"^[^\s\p{C}]{1,200}$")] | None = None
    defaults: Defaults = Defaults()
    ceilings: Ceilings = Ceilings()
    queueing: Queueing = Queueing()
    limits: Limits = Limits()
    keys: Annotated[dict[str, str], Field(repr=False)] = {}
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    ping_seconds: Seconds = 10.0
    progress_seconds: Seconds = 0.5
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    log_content: bool = False
    history: bool = False
