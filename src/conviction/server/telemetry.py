"""What the server measures: counters for Prometheus, and spans for OpenTelemetry.

Counters are in a registry per application, nothing global. Spans have the names for generative AI,
one per verdict and a child per trace; as long as the process sets up no provider, nothing is
recorded.
"""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from conviction.core import FinishReason, Trace
from conviction.events import Event, RunFinished, RunStarted, TraceFinished, TraceStarted
from conviction.server.admission import Admission
from conviction.server.run_options import RunOptions
from conviction.verdict import Verdict

_VERDICT_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
_FIRST_BYTE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counters and gauges for Prometheus; `traces` returns how many traces run."""

    def __init__(self, admission: Admission, traces: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        to: dict[str, Any] = {"namespace": "conviction", "registry": self._registry}
        self._verdicts = Counter("verdicts", "Verdicts by why they ended.", ("ended",), **to)
        self._failures = Counter("failures", "Runs without a verdict, by error.", ("error",), **to)
        self._refusals = Counter("refusals", "Requests that were sent away.", ("reason",), **to)
        self._traces = Counter("traces", "Traces by how they ended.", ("finish",), **to)
        said = "Generated tokens by what became of them."
        self._tokens = Counter("tokens", said, ("fate",), **to)
        self._prompt = Counter("prompt_tokens", "Prompt tokens of all traces.", ("cached",), **to)
        said = "Tokens below what the whole budgets would have taken."
        self._saved = Counter("saved_tokens_estimate", said, **to)
        said = "Time from a request's turn to its verdict."
        self._seconds = Histogram("verdict_seconds", said, buckets=_VERDICT_SECONDS, **to)
        self._first_byte = Histogram(
            "first_byte_seconds",
            "Time from a request to the first byte of its answer.",
            ("stream",),
            buckets=_FIRST_BYTE_SECONDS,
            **to,
        )
        for name, what, value in (
            ("running", "Verdicts being thought about.", lambda: admission.running),
            ("queued", "Verdicts that wait for their turn.", lambda: admission.queued),
            ("traces_running", "Traces being generated.", traces),
        ):
            Gauge(name, what, **to).set_function(value)

    def refuse(self, reason: str) -> None:
        """Count a request that was sent away."""
        self._refusals.labels(reason).inc()

    def first_byte(self, seconds: float, *, stream: bool) -> None:
        """Count the time to an answer's first byte."""
        self._first_byte.labels(str(stream).lower()).observe(seconds)

    def finish(self, verdict: Verdict) -> None:
        """Count a verdict and all its tokens."""
        self._verdicts.labels(verdict.ended).inc()
        self._seconds.observe(verdict.seconds)
        for finish, count in verdict.finishes().items():
            self._traces.labels(str(finish)).inc(count)
        usage = verdict.usage
        for fate in ("voted", "unvoted", "stopped", "cancelled", "failed"):
            self._tokens.labels(fate).inc(getattr(usage, fate))
        self._prompt.labels("true").inc(usage.cached_prompt)
        self._prompt.labels("false").inc(max(0, usage.prompt - usage.cached_prompt))
        if usage.full_budget_estimate is not None:
            self._saved.inc(max(0, usage.full_budget_estimate - usage.generated))

    def fail(self, error: BaseException, *, traces: int, tokens: int) -> None:
        """Count a run that ended without a verdict, and the traces and tokens that it took."""
        self._failures.labels(type(error).__name__).inc()
        fate = "failed" if isinstance(error, Exception) else "cancelled"
        self._tokens.labels(fate).inc(tokens)
        self._traces.labels("error" if fate == "failed" else fate).inc(traces)

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class Tracing:
    """Makes spans, with questions and answers in them if `content`.

    They go to `provider`; None for what the process has set up.
    """

    def __init__(self, provider: TracerProvider | None, *, content: bool) -> None:
        self._tracer = trace.get_tracer("conviction", version("conviction"), provider)
        self._content = content

    @contextmanager
    def verdict(self, options: RunOptions, run: str) -> Generator["VerdictSpan"]:
        """The span of one verdict; an error or a cancellation in its context is noted in it."""
        with self._tracer.start_as_current_span(
            f"chat {options.model}",
            kind=SpanKind.SERVER,
            attributes={**_request(options), "gen_ai.response.id": run},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            verdict = VerdictSpan(self._tracer, span, options, content=self._content)
            try:
                yield verdict
            except BaseException as error:
                verdict.fail(error)
                raise


class VerdictSpan:
    """The span of a verdict, and those of its traces, made from the driver's events."""

    def __init__(
        self, tracer: trace.Tracer, span: Span, options: RunOptions, *, content: bool
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._options = options
        self._content = content
        self._traces: dict[int, Span] = {}

    def on_event(self, event: Event) -> None:
        """Take note of an event of the driver."""
        if not self._span.is_recording():
            return
        match event:
            case RunStarted():
                self._span.set_attribute("gen_ai.response.model", event.capabilities.model)
                self._span.set_attribute("conviction.policy", json.dumps(event.policy))
                if self._content:
                    messages = [_message(one.role, one.content) for one in event.question.messages]
                    self._span.set_attribute(
                        "gen_ai.input.messages", json.dumps(messages, ensure_ascii=False)
                    )
            case TraceStarted():
                self._traces[event.trace] = self._tracer.start_span(
                    f"chat {self._options.model}",
                    context=trace.set_span_in_context(self._span),
                    kind=SpanKind.CLIENT,
                    attributes={**_request(self._options), "conviction.trace": event.trace},
                )
            case TraceFinished():
                self._end(event.trace)
            case RunFinished(verdict):
                self._span.set_attributes(
                    {
                        "gen_ai.usage.input_tokens": verdict.usage.prompt,
                        "gen_ai.usage.output_tokens": verdict.usage.generated,
                        "conviction.ended": verdict.ended,
                        "conviction.share": verdict.share,
                        "conviction.traces": len(verdict.traces),
                    }
                )
                if self._content and verdict.answer is not None:
                    output = _output(verdict.answer, "stop")
                    self._span.set_attribute("gen_ai.output.messages", output)
            case _:
                pass

    def fail(self, error: BaseException) -> None:
        """End all that is open: the run ended without a verdict."""
        kind = type(error).__name__
        for span in (*self._traces.values(), self._span):
            span.set_attribute("error.type", kind)
            span.set_status(Status(StatusCode.ERROR, kind))
        for span in self._traces.values():
            span.end()
        self._traces.clear()

    def _end(self, trace: Trace) -> None:
        span = self._traces.pop(trace.id, None)
        if span is None:
            return
        span.set_attributes(
            {
                "gen_ai.response.finish_reasons": [str(trace.finish)],
                "gen_ai.usage.input_tokens": trace.prompt_tokens,
                "gen_ai.usage.output_tokens": trace.tokens + trace.lost_tokens,
                "gen_ai.request.seed": trace.seed,
            }
        )
        if trace.finish is FinishReason.ERROR:
            span.set_attribute("error.type", "EngineError")
            span.set_status(Status(StatusCode.ERROR))
        if self._content:
            span.set_attribute("gen_ai.output.messages", _output(trace.text, str(trace.finish)))
        span.end()


def _request(options: RunOptions) -> dict[str, Any]:
    sampling = options.sampling
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "conviction",
        "gen_ai.request.model": options.model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _output(text: str, finish: str) -> str:
    message = _message("assistant", text) | {"finish_reason": finish}
    return json.dumps([message], ensure_ascii=False)
