"""What the gate costs inside vLLM on the CPU, beside other ways to have confidences.

    python benchmarks/vllm_gate.py
    python benchmarks/vllm_gate.py --rounds 15 --sequences 1 8

Tokens per second of

- plain: vLLM without the plugin,
- gate: a gate on every trace that never fires,
- gate + report: the same, and all confidences written to channels,
- logprobs: 20 log-probabilities shipped with every token,
- naive: a processor that looks at each trace by itself, as they are usually written: a softmax, the
  largest 20, a number brought to Python, a list.

All in one process, in turns, in another order each round. Two engines share the model's folder: one
without any plugin, one with the gate and the naive processor, which let other requests alone. The
last column is the time that was spent inside the gate, measured there: one process, one thread and
no device to wait for, so all that it does is in it. First it says what loading the gate takes, and
what it imports that vLLM had not.

It runs in the tests' own environment of vLLM, which is made first where there is none.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
TOKENS = {1: 48, 8: 24, 32: 12}
"""Tokens of each trace, by how many there are at once."""

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
WINDOW, STOP, PROMPT = 2048, 2, [100, 101, 102]
BASELINE = "plain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sequences", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--model", type=Path, help="a folder with a model for vLLM")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        sys.exit(_run_inside(options.model, options.threads))
    measure(options.model, options.rounds, options.sequences)


def _run_inside(model: Path | None, threads: int) -> int:
    """Run this very program where vLLM is."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from vllm_environment import vllm_python  # noqa: PLC0415
    from vllm_models import REAL, model_folder  # noqa: PLC0415

    folder = model or model_folder(REAL)
    # The sources on the path, and nothing that names entry points: one engine is to have no plugin.
    paths = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(
        [vllm_python(), __file__, *sys.argv[1:], "--inside", "--model", folder],
        env=os.environ | SETTINGS | paths,
        check=False,
    ).returncode


def measure(model: Path, rounds: int, sequences: list[int]) -> None:
    import torch  # noqa: PLC0415
    import vllm  # noqa: PLC0415

    print(f"vLLM {vllm.__version__}, {model.name}, torch threads {torch.get_num_threads()}")
    plain = start(model, [])
    gate = load_gate(plain)
    gated = start(model, [gate, naive_processor()])
    ways: dict[str, Callable[[int, int], float]] = {
        BASELINE: lambda n, tokens: ask(plain, n, tokens),
        "gate": lambda n, tokens: ask(gated, n, tokens, gate_arguments()),
        "gate + report": lambda n, tokens: ask_reported(gated, n, tokens),
        "logprobs": lambda n, tokens: ask(plain, n, tokens, logprobs=20),
        "naive": lambda n, tokens: ask(gated, n, tokens, {"naive_threshold": 0.0}),
    }
    inside = Stopwatch(gate, ("update_state", "apply"))
    for n in sequences:
        tokens = TOKENS.get(n, 48)
        times: dict[str, list[Spent]] = {name: [] for name in ways}
        for way in ways.values():  # Once unmeasured.
            way(n, 8)
        for round_ in range(rounds):
            names = list(ways)
            turn = round_ % len(names)
            order = names[turn:] + names[:turn]
            for name in order if round_ % 2 else order[::-1]:
                before, inside.seconds = time.process_time(), 0.0
                wall = ways[name](n, tokens)
                times[name].append(Spent(wall, time.process_time() - before, inside.seconds))
        report(n, n * tokens, times)


class Spent(NamedTuple):
    """Seconds of one measurement."""

    wall: float
    cpu: float
    inside: float


class Stopwatch:
    """Adds up the time that methods of a class take.

    Attributes:
        seconds: So far.
    """

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        self.seconds = 0.0
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def report(n: int, tokens: int, times: dict[str, list[Spent]]) -> None:
    print(f"\n{n} at once, {tokens} tokens in all, medians of {len(times[BASELINE])}")
    print(
        f"{'':16}{'tokens/s':>10}{'least':>9}{'most':>9}{'ratio':>9}"
        f"{'CPU ms/token':>15}{'ratio':>9}{'in the gate':>14}"
    )
    base = times[BASELINE]
    for name, spent in times.items():
        walls = sorted(one.wall for one in spent)
        # A round's turns stand closest to each other: what else the machine does meets them alike.
        ratio = median(b.wall / s.wall for b, s in zip(base, spent, strict=True))
        cheaper = median(b.cpu / s.cpu for b, s in zip(base, spent, strict=True))
        share = median(one.inside / one.wall for one in spent)
        print(
            f"{name:16}{tokens / median(walls):10.1f}{tokens / walls[-1]:9.1f}"
            f"{tokens / walls[0]:9.1f}{ratio:9.3f}"
            f"{median(one.cpu for one in spent) / tokens * 1e3:15.3f}{cheaper:9.3f}"
            f"{share:14.2%}",
            flush=True,
        )


def start(model: Path, processors: list[Any]) -> Any:
    from vllm import LLM  # noqa: PLC0415

    return LLM(
        str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=32,
        max_logprobs=20,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
        logits_processors=processors,
    )


def load_gate(engine: Any) -> Any:
    """Load the plugin beside an engine that runs, and say what that takes."""
    import torch  # noqa: PLC0415

    before = set(sys.modules)
    began = time.perf_counter()
    from conviction_gate.processor import ConfidenceGate  # noqa: PLC0415

    imported = time.perf_counter()
    ConfidenceGate(engine.llm_engine.vllm_config, torch.device("cpu"), False)  # noqa: FBT003
    made = time.perf_counter()
    new = sorted(set(sys.modules) - before)
    print(
        f"the plugin's start: {imported - began:.3f} s to import, {made - imported:.3f} s to make"
    )
    print(f"imported: {', '.join(new)}")
    return ConfidenceGate


def gate_arguments() -> dict[str, Any]:
    return {"conviction_window": WINDOW, "conviction_threshold": 0.0, "conviction_stop_token": STOP}


def ask_reported(engine: Any, n: int, tokens: int) -> float:
    from conviction_gate import channel  # noqa: PLC0415

    names = [f"conviction-{os.urandom(16).hex()}" for _ in range(n)]
    head = channel.HEADER.pack(channel.MAGIC, channel.VERSION, tokens, 0)
    try:
        for name in names:
            (channel.folder() / name).write_bytes(head + bytes(4 * tokens))
        spent = ask(engine, n, tokens, gate_arguments(), names=names)
        for name in names:
            written = channel.HEADER.unpack_from((channel.folder() / name).read_bytes())[3]
            assert written == tokens, (written, tokens)
    finally:
        for name in names:
            (channel.folder() / name).unlink(missing_ok=True)
    return spent


def ask(
    engine: Any,
    n: int,
    tokens: int,
    arguments: dict[str, Any] | None = None,
    *,
    names: list[str] | None = None,
    logprobs: int | None = None,
) -> float:
    """Seconds in which n traces of so many tokens are written."""
    from vllm import SamplingParams  # noqa: PLC0415

    asked = [
        SamplingParams(
            temperature=1.0,
            max_tokens=tokens,
            ignore_eos=True,
            logprobs=logprobs,
            # Every way pays for the same: a stop token that vLLM looks out for.
            stop_token_ids=[STOP],
            min_tokens=0,
            extra_args=(arguments or {}) | ({"conviction_report": names[i]} if names else {})
            or None,
        )
        for i in range(n)
    ]
    prompts: Any = [{"prompt_token_ids": [*PROMPT, 200 + i]} for i in range(n)]
    began = time.perf_counter()
    done = engine.generate(prompts, asked, use_tqdm=False)
    spent = time.perf_counter() - began
    written = [len(one.outputs[0].token_ids) for one in done]
    # One that drew the stop token by chance wrote less.
    assert sum(written) >= 0.9 * n * tokens, written
    return spent * n * tokens / sum(written)


def naive_processor() -> Any:  # noqa: C901  # one class, within a function that may import
    """The usual processor, for runner V1."""
    import torch  # noqa: PLC0415
    from vllm.v1.sample.logits_processor import LogitsProcessor  # noqa: PLC0415
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality  # noqa: PLC0415

    class NaiveGate(LogitsProcessor):
        def __init__(self, *_: Any) -> None:
            self.traces: dict[int, tuple[float, list[float]]] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            if batch_update is None:
                return
            for row in batch_update.removed:
                self.traces.pop(row, None)
            for row, params, _, _ in batch_update.added:
                self.traces.pop(row, None)
                if "naive_threshold" in (params.extra_args or {}):
                    self.traces[row] = (params.extra_args["naive_threshold"], [])
            for origin, target, direction in batch_update.moved:
                moved, other = self.traces.pop(origin, None), self.traces.pop(target, None)
                if moved is not None:
                    self.traces[target] = moved
                if other is not None and direction == MoveDirectionality.SWAP:
                    self.traces[origin] = other

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            for row, (threshold, confidences) in self.traces.items():
                largest = torch.softmax(logits[row], -1).topk(20).values
                confidences.append(-largest.log().mean().item())
                del confidences[:-WINDOW]
                if len(confidences) == WINDOW and sum(confidences) / WINDOW < threshold:
                    logits[row] = -float("inf")
                    logits[row, STOP] = 0.0
            return logits

    return NaiveGate


if __name__ == "__main__":
    main()
