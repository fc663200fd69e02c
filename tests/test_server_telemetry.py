"""Spans: one per verdict, a child per trace, and no content unless asked for."""

import json
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from server_app import asking, endless, engine_of, served, until

from conviction.core import Message
from conviction.engines.base import Engine
from conviction.server.request_schema import ConvictionOptions, RunRequest
from conviction.server.service import Service
from conviction.server.settings import Settings

pytestmark = pytest.mark.anyio

SECRET = "My secret is 42"


def recording() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


async def spans_of(
    engine: Engine, *, log_content: bool = False, cancel_when: Any = None
) -> list[ReadableSpan]:
    """The spans of a run, which is cancelled as soon as something is true."""
    provider, exporter = recording()
    settings = Settings(log_content=log_content)
    async with Service(settings, engine, tracing=provider) as service:
        request = RunRequest("scripted", ConvictionOptions(policy="majority", budget=3))
        options = service.resolver.chat([Message("user", SECRET)], request)
        async with anyio.create_task_group() as tasks:
            with service.join(options) as pending:
                tasks.start_soon(pending.think)
            if cancel_when:
                await until(cancel_when)
                tasks.cancel_scope.cancel()
    return list(exporter.get_finished_spans())


async def test_a_verdict_is_a_span_with_a_child_per_trace() -> None:
    *traces, verdict = await spans_of(engine_of(7, 5, 7))
    assert verdict.name == "chat scripted"
    assert verdict.parent is None
    assert len(traces) == 3
    for span in traces:
        assert span.parent is not None
        assert span.parent.span_id == verdict.context.span_id
    attributes = dict(verdict.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "scripted"
    assert attributes["gen_ai.usage.output_tokens"] == 60
    assert attributes["conviction.ended"] == "budget"
    of_trace = dict(traces[0].attributes or {})
    assert of_trace["gen_ai.usage.output_tokens"] == 20
    assert of_trace["gen_ai.response.finish_reasons"] == ("stop",)
    assert {dict(span.attributes or {})["conviction.trace"] for span in traces} == {0, 1, 2}


async def test_spans_hold_no_content_unless_that_was_asked_for() -> None:
    silent = await spans_of(engine_of(7))
    assert "secret" not in "".join(span.to_json() for span in silent)
    assert "So it is" not in "".join(span.to_json() for span in silent)
    *traces, verdict = await spans_of(engine_of(7), log_content=True)
    asked = json.loads(str(dict(verdict.attributes or {})["gen_ai.input.messages"]))
    assert SECRET in asked[-1]["parts"][0]["content"]
    told = json.loads(str(dict(traces[0].attributes or {})["gen_ai.output.messages"]))
    assert told[0]["parts"][0]["content"] == "So it is. Answer: 7"


async def test_a_run_that_is_cancelled_leaves_no_span_open() -> None:
    engine = endless()
    *traces, verdict = await spans_of(engine, cancel_when=lambda: engine.running == 3)
    assert len(traces) == 3
    assert verdict.status.status_code is StatusCode.ERROR
    assert dict(verdict.attributes or {})["error.type"] == "CancelledError"


async def test_a_verdict_belongs_to_the_trace_that_its_request_names() -> None:
    provider, exporter = recording()
    caller = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with served(engine_of(7), tracing=provider) as server:
        for stream in (False, True):
            body = asking(stream=stream, conviction={"budget": 1})
            await server.http.post("/v1/chat/completions", json=body, headers=caller)
        await server.chat(conviction={"budget": 1})
    verdicts = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    parents = [span.parent and f"{span.parent.span_id:016x}" for span in verdicts]
    assert parents == ["b7ad6b7169203331", "b7ad6b7169203331", None]
    traces = [f"{span.context.trace_id:032x}" for span in verdicts]
    assert traces[0] == traces[1] == "0af7651916cd43dd8448eb211c80319c" != traces[2]
