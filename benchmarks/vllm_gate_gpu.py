"""How long the gate's kernel takes on a GPU, over the time to read the logits once.

    pip install torch triton && python benchmarks/vllm_gate_gpu.py
    python benchmarks/vllm_gate_gpu.py --rows 64 --vocabulary 32000 --dtype bfloat16

Needs a machine with one CUDA GPU, PyTorch and Triton, and a checkout of this repository; neither
vLLM nor this package has to be installed. For each number of rows, in turns:

- read: `amax` over each row, the floor: whoever looks at all logits reads them;
- kernel: the confidences as the plugin computes them there;
- plain: the plugin's fallback, by torch's own operations;
- softmax + topk: probabilities of all rows, then their largest 20;
- naive: each row by itself, its confidence brought to Python.

Before anything is timed, the kernel's confidences are compared with a softmax in float64. Between
two measurements the second-level cache is overwritten, as a model's next step does it.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch

from conviction_gate.confidence import plain_confidences

K = 20
TARGET = 1.5
Way = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256, 512])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This needs a CUDA GPU, and PyTorch sees none.")
    try:
        import triton  # noqa: PLC0415
    except ImportError:
        sys.exit("This needs Triton: pip install triton")
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}, {options.dtype}")
    print(f"{'rows':>5}{'way':>16}{'us':>10}{'/ read':>9}{'GB/s':>8}")
    worst = 0.0
    for rows in options.rows:
        worst = max(worst, one(rows, options.vocabulary, options.dtype, options.rounds))
    print(f"the kernel takes at most {worst:.2f} times as long as reading; aim: {TARGET}")


def one(rows: int, vocabulary: int, dtype: str, rounds: int) -> float:
    """Measure one number of rows; how many times as long as reading the kernel takes."""
    from conviction_gate.kernel import fused_confidences  # noqa: PLC0415

    torch.manual_seed(rows)
    logits = (torch.randn(rows, vocabulary, device="cuda") * 3).to(getattr(torch, dtype))
    ks = torch.full((rows,), K, device="cuda")
    check(fused_confidences(logits, ks, K), logits)
    ways: dict[str, Way] = {
        "read": lambda: logits.amax(-1),
        "kernel": lambda: fused_confidences(logits, ks, K),
        "plain": lambda: plain_confidences(logits, ks, K),
        "softmax + topk": lambda: torch.softmax(logits, -1, dtype=torch.float32).topk(K),
        "naive": lambda: naive(logits),
    }
    times = {name: median(spent) for name, spent in measure(ways, rounds).items()}
    size = logits.numel() * logits.element_size()
    for name, micros in times.items():
        floor = micros / times["read"]
        print(f"{rows:5}{name:>16}{micros:10.1f}{floor:9.2f}{size / micros / 1e3:8.0f}")
    return times["kernel"] / times["read"]


def check(found: torch.Tensor, logits: torch.Tensor) -> None:
    for row, confidence in zip(logits, found.tolist(), strict=True):
        wanted = -torch.log_softmax(row.double(), -1).topk(K).values.mean().item()
        assert abs(confidence - wanted) < 1e-4, (confidence, wanted)


def naive(logits: torch.Tensor) -> list[float]:
    """What a processor does that looks at each request by itself: it waits for each row."""
    return [
        -torch.softmax(row, -1, dtype=torch.float32).topk(K).values.log().mean().item()
        for row in logits
    ]


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each way, round by round."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    for way in ways.values():
        for _ in range(3):
            way()
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            began.record()
            way()
            ended.record()
            ended.synchronize()
            spent[name].append(began.elapsed_time(ended) * 1e3)
    return spent


if __name__ == "__main__":
    main()
