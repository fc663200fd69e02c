"""What the server counts, for Prometheus. A registry per application, nothing global."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from conviction.events import Event, TraceAdvanced, TraceStarted
from conviction.server.admission import Admission
from conviction.verdict import Verdict

_VERDICT_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
_FIRST_BYTE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """What the server counts.

    Args:
        admission: Tells how many run and wait.
        traces: Tells how many traces run.
    """

    def __init__(self, admission: Admission, traces: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._verdicts = self._counter("verdicts", "Verdicts by why they ended.", "ended")
        self._failures = self._counter("failures", "Runs without a verdict, by error.", "error")
        self._refusals = self._counter("refusals", "Requests that were sent away.", "reason")
        self._traces = self._counter("traces", "Traces by how they ended.", "finish")
        self._tokens = self._counter("tokens", "Generated tokens by what became of them.", "fate")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of all traces.", "cached")
        self._saved = self._counter(
            "saved_tokens_estimate", "Tokens below what the whole budgets would have taken."
        )
        self._seconds = self._histogram(
            "verdict_seconds", "Time from a request's turn to its verdict.", _VERDICT_SECONDS
        )
        self._first_byte = self._histogram(
            "first_byte_seconds",
            "Time from a request to the first byte of its answer.",
            _FIRST_BYTE_SECONDS,
            "stream",
        )
        self._gauge("running", "Verdicts being thought about.", lambda: admission.running)
        self._gauge("queued", "Verdicts that wait for their turn.", lambda: admission.queued)
        self._gauge("traces_running", "Traces being generated.", traces)

    def refuse(self, reason: str) -> None:
        """Count a request that was sent away."""
        self._refusals.labels(reason).inc()

    def first_byte(self, seconds: float, *, stream: bool) -> None:
        """Count the time to an answer's first byte."""
        self._first_byte.labels(str(stream).lower()).observe(seconds)

    def conclude(self, verdict: Verdict) -> None:
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

    def fail(self, error: BaseException, spent: "Spent") -> None:
        """Count a run that ended without a verdict, and the tokens that it had generated."""
        self._failures.labels(type(error).__name__).inc()
        fate = "failed" if isinstance(error, Exception) else "cancelled"
        self._tokens.labels(fate).inc(spent.tokens)
        self._traces.labels("error" if fate == "failed" else fate).inc(spent.traces)

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"conviction_{name}", what, labels, registry=self._registry)

    def _histogram(
        self, name: str, what: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"conviction_{name}", what, labels, registry=self._registry, buckets=buckets
        )

    def _gauge(self, name: str, what: str, value: Callable[[], int]) -> None:
        Gauge(f"conviction_{name}", what, registry=self._registry).set_function(value)


class Spent:
    """What a run has generated so far, in case it comes to no verdict.

    Attributes:
        tokens: All generated tokens.
        traces: Traces that were begun.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.traces = 0

    def on_event(self, event: Event) -> None:
        """Count."""
        if isinstance(event, TraceAdvanced):
            self.tokens += event.chunk.confidences.size
        elif isinstance(event, TraceStarted):
            self.traces += 1
