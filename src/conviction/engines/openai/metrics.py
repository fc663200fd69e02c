"""What a server tells of itself in its Prometheus metrics: requests that run, tokens so far."""

import re
from dataclasses import dataclass

_SAMPLE = re.compile(
    r"^([a-zA-Z_:][\w:]*)(?:\{[^\n]*\})?[ \t]+(\d+(?:\.\d+)?(?:[eE][-+]?\d{1,2})?)(?:[ \t]+\d+)?$",
    re.ASCII | re.MULTILINE,
)

_RUNNING = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
)
_GENERATED = (
    "vllm:generation_tokens_total",
    "sglang:generation_tokens_total",
    "llamacpp:tokens_predicted_total",
)


@dataclass(frozen=True, slots=True)
class Load:
    """What a server was doing at one moment.

    Attributes:
        running: Requests that it worked on.
        generated: Tokens that it has generated since it started; None where it does not tell.
    """

    running: float
    generated: float | None


def read_load(metrics: str) -> Load | None:
    """The load in a page of metrics; None where no known name stands in it."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        if name in _RUNNING or name in _GENERATED:
            sums[name] = sums.get(name, 0.0) + float(value)
    running = next((sums[name] for name in _RUNNING if name in sums), None)
    if running is None:
        return None
    return Load(running, next((sums[name] for name in _GENERATED if name in sums), None))
