"""What the doctor finds out about vLLM inside this program."""

import time
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec

from conviction.cli.findings import Finding
from conviction.engines.vllm import VLLMEngine
from conviction.errors import ConvictionError

_PLUGINS = "vllm.logits_processors"
_SEEDS = {
    True: "one seed gave one trace, another gave another",
    False: "were not seen to count",
}


def vllm_here() -> Finding:
    """Whether vLLM is installed beside this package; nobody needs it for the embedded engine."""
    if find_spec("vllm") is None:
        return Finding("vLLM", "not installed here; only -m vllm:MODEL needs it")
    try:
        found = version("vllm")
    except PackageNotFoundError:  # Builds for other devices have other names.
        found = "of another build"
    gate = any(point.name == "conviction" for point in entry_points(group=_PLUGINS))
    loads = "it loads the gate" if gate else "it does not load the gate"
    return Finding("vLLM", f"{found}; {loads}", ok=True)


async def examine_vllm(engine: VLLMEngine) -> list[Finding]:
    """Start vLLM with a model, and see what it does.

    Args:
        engine: Not started yet.
    """
    began = time.perf_counter()
    try:
        async with engine:
            started = time.perf_counter() - began
            can = await engine.capabilities()
    except ConvictionError as error:
        found = f"{error.tried}: {error.found}"
        return [vllm_here(), Finding("engine", found, ok=False, remedy=error.remedy)]
    gate = "stops traces inside vLLM" if can.gates else "does not; traces are stopped from here"
    seeds = _SEEDS[can.seeds]
    return [
        vllm_here(),
        Finding("engine", f"{engine.name}, started in {started:.1f} s", ok=True, value=started),
        Finding("context", f"{can.context:,} tokens" if can.context else "", value=can.context),
        Finding("traces at once", f"{can.concurrency:,}", value=can.concurrency),
        Finding("gate", gate, ok=can.gates or None, value=can.gates),
        Finding("confidences", f"over k = {can.top_k} at most", value=can.top_k),
        Finding("seeds", seeds, ok=can.seeds or None, value=can.seeds),
        *(Finding("note", note) for note in can.notes),
    ]
