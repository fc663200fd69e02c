"""Spans for OpenTelemetry: one per verdict, a child per trace, with the names for generative AI.

Only the API is used: as long as the process sets up no provider, nothing is recorded.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from conviction.core import FinishReason, Question, Trace
from conviction.events import Event, RunFinished, RunStarted, TraceFinished, TraceStarted
from conviction.server.asked import Asked
from conviction.verdict import Verdict


class Telemetry:
    """Makes spans.

    Args:
        provider: Where spans go; None for what the process has set up.
        content: Whether questions and answers are put into them.
    """

    def __init__(self, provider: TracerProvider | None, *, content: bool) -> None:
        self._tracer = trace.get_tracer("conviction", version("conviction"), provider)
        self._content = content

    @contextmanager
    def verdict(self, asked: Asked, run: str) -> Generator["VerdictSpan"]:
        """The span of one verdict; an error is told to it, and so is a cancellation."""
        with self._tracer.start_as_current_span(
            f"chat {asked.model}",
            kind=SpanKind.SERVER,
            attributes={**_request(asked), "gen_ai.response.id": run},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            made = VerdictSpan(self._tracer, span, asked, content=self._content)
            try:
                yield made
            except BaseException as error:
                made.fail(error)
                raise


class VerdictSpan:
    """The span of a verdict, and those of its traces, made from what the driver tells."""

    def __init__(self, tracer: trace.Tracer, span: Span, asked: Asked, *, content: bool) -> None:
        self._tracer = tracer
        self._span = span
        self._asked = asked
        self._content = content
        self._traces: dict[int, Span] = {}

    def on_event(self, event: Event) -> None:
        """Hear of an event of the driver."""
        if not self._span.is_recording():
            return
        match event:
            case RunStarted():
                self._span.set_attribute("gen_ai.response.model", event.capabilities.model)
                self._span.set_attribute("conviction.policy", json.dumps(event.policy))
                if self._content:
                    self._span.set_attribute("gen_ai.input.messages", _messages(event.question))
            case TraceStarted():
                self._begin(event.trace)
            case TraceFinished():
                self._end(event.trace)
            case RunFinished():
                self._conclude(event.verdict)
            case _:
                pass

    def fail(self, error: BaseException) -> None:
        """End all that is open: the run came to no verdict."""
        kind = type(error).__name__
        for span in (*self._traces.values(), self._span):
            span.set_attribute("error.type", kind)
            span.set_status(Status(StatusCode.ERROR, kind))
        for span in self._traces.values():
            span.end()
        self._traces.clear()

    def _begin(self, number: int) -> None:
        self._traces[number] = self._tracer.start_span(
            f"chat {self._asked.model}",
            context=trace.set_span_in_context(self._span),
            kind=SpanKind.CLIENT,
            attributes={**_request(self._asked), "conviction.trace": number},
        )

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

    def _conclude(self, verdict: Verdict) -> None:
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
            self._span.set_attribute("gen_ai.output.messages", _output(verdict.answer, "stop"))


def _request(asked: Asked) -> dict[str, Any]:
    sampling = asked.sampling
    given = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "conviction",
        "gen_ai.request.model": asked.model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
    }
    return {name: value for name, value in given.items() if value is not None}


def _messages(question: Question) -> str:
    return json.dumps(
        [
            {"role": one.role, "parts": [{"type": "text", "content": one.content}]}
            for one in question.messages
        ],
        ensure_ascii=False,
    )


def _output(text: str, finish: str) -> str:
    parts = [{"type": "text", "content": text}]
    message = {"role": "assistant", "parts": parts, "finish_reason": finish}
    return json.dumps([message], ensure_ascii=False)
