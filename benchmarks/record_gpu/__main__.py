"""Records traces on a GPU: transformers reads a GGUF file, hundreds of traces step together.

    python benchmarks/record_gpu QUESTIONS.jsonl --model MODEL.gguf -n 32 -o POOL --batch 1024

Makes the pool that `conviction record` makes with the same settings, and goes on with one that
either of them began: the same prompts, seeds, answers and grades. Confidences are those of the
weights in the file, taken out of their quantisation and rounded to bfloat16, so they differ a
little from llama.cpp's; the draws differ altogether, and a trace with the same seed is the same
trace on the same machine, whatever it is batched with, as far as rounding allows.

Needs torch, transformers and gguf beside `conviction[lab]`.
"""

import argparse
import sys
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.markup import escape

from conviction.answers import kind
from conviction.cli.inputs import TraceOptions, check_texts
from conviction.cli.progress import run_progress
from conviction.cli.record import reading
from conviction.cli.terminal import safe
from conviction.core import Sampling, require_whole
from conviction.errors import ConvictionError, EngineError, EngineStartError, MissingExtraError
from conviction.evaluation.datasets import load as load_questions
from conviction.evaluation.recording import ProgressListener, RecordingPlan, RecordingProgress
from conviction.gguf import read_header
from conviction.models import ModelFile, resolve
from conviction.prompts import PromptStyle

FAILED, INTERRUPTED = 1, 130

PACKAGES = ("torch", "transformers", "gguf")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="record_gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", help="a .jsonl, .csv or .parquet file, or hf://OWNER/NAME")
    parser.add_argument("-m", "--model", required=True, help="a GGUF file, or a known name")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the pool, a folder")
    parser.add_argument("-n", "--traces", type=int, default=32, help="traces of each question")
    parser.add_argument("--limit", type=int, help="the most questions, from the beginning")
    parser.add_argument("--answer", default="math", help="kind of answer")
    parser.add_argument(
        "--prompt-style",
        type=PromptStyle,
        choices=list(PromptStyle),
        help="what to add to the question; default: what suits the model",
    )
    parser.add_argument("--max-tokens", type=int, default=1024, help="of one trace")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=512, help="traces at once; bounds the memory")
    parser.add_argument("--device", default="cuda", help="as torch names it: cuda, cuda:1, cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--no-text", action="store_true", help="do not keep what traces wrote")
    parser.add_argument("--logprobs", action="store_true", help="record the tokens' own, too")
    return parser.parse_args()


def main() -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        return run(options(), console)
    except ConvictionError as error:
        console.print(f"[bold red]error:[/] {escape(safe(str(error)))}")
        return error.exit_code
    except KeyboardInterrupt:
        console.print("Interrupted. The same command records the rest.")
        return INTERRUPTED


def run(given: argparse.Namespace, console: Console) -> int:
    """Record; whatever can be refused is refused before the model is loaded."""
    check_packages()
    sampling = Sampling(given.temperature, given.top_p, max_tokens=given.max_tokens)
    require_whole("batch", given.batch, low=1)
    if given.limit is not None:
        require_whole("limit", given.limit, low=1)
    found = load_questions(given.data, limit=given.limit)
    check_texts(found.questions)
    model = resolve(given.model)
    check_device(given.device)
    options = TraceOptions(answer=given.answer, prompt_style=given.prompt_style)
    asked = options.asked(found.questions, model, templated=False)
    plan = RecordingPlan(
        asked,
        given.traces,
        sampling,
        seed=given.seed,
        keep_text=not given.no_text,
        logprobs=given.logprobs,
        origin=found.origin,
    )
    began = perf_counter()
    with run_progress(console) as show:
        progress = recorded(plan, given, model, lambda now: show(reading(now)))
    report(progress, given.output, perf_counter() - began, console)
    return 0 if progress.complete else FAILED


def recorded(
    plan: RecordingPlan, given: argparse.Namespace, model: ModelFile, listener: ProgressListener
) -> RecordingProgress:
    import torch  # noqa: PLC0415  # takes seconds, and may be missing
    from decoder import Decoder  # noqa: PLC0415
    from recording import record  # noqa: PLC0415

    dtype: torch.dtype = getattr(torch, given.dtype)
    try:
        with closing(kind(given.answer)) as answers:
            return record(
                plan,
                given.output,
                model=model.path.stem,
                source=f"transformers {model.path.stem}, {given.dtype}, {given.device}",
                load=partial(Decoder.load, model.path, device=given.device, dtype=dtype),
                answers=answers,
                batch=given.batch,
                on_progress=listener,
            )
    except torch.OutOfMemoryError as error:
        raise out_of_memory(given, model, dtype.itemsize) from error


def check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            tried="record on a GPU",
            found=f"not installed: {', '.join(missing)}",
            remedy=f"Install what it needs beside conviction: pip install {' '.join(PACKAGES)}.",
        )


def check_device(device: str) -> None:
    import torch  # noqa: PLC0415  # takes seconds, and may be missing

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineStartError(
            tried=f"compute on {device}",
            found=f"torch {torch.__version__} sees no GPU",
            remedy="Mend the driver or install a torch for it; or go without, slowly: "
            "--device cpu --batch 8.",
        )
    try:
        torch.empty(1, device=device)
    except RuntimeError as error:
        raise EngineStartError(
            tried=f"compute on {device}",
            found=str(error).splitlines()[0],
            remedy="Name a device that torch knows and this machine has, as in cuda:0.",
        ) from None


def out_of_memory(given: argparse.Namespace, model: ModelFile, value_bytes: int) -> EngineError:
    per_token = read_header(model.path).kv_bytes_per_token(value_bytes) or 0
    least = given.batch * given.max_tokens * per_token / 2**30
    return EngineError(
        tried=f"continue {given.batch:,} traces of up to {given.max_tokens:,} tokens at once",
        found=f"{given.device} has too little memory; their keys and values alone take "
        f"{least:,.1f} GiB",
        remedy="Take fewer at once: --batch. What was recorded is kept.",
    )


def report(progress: RecordingProgress, output: Path, seconds: float, console: Console) -> None:
    for note in progress.notes:
        console.print(f"[yellow]note:[/] {escape(safe(note))}")
    console.print(
        f"Recorded {progress.recorded:,} traces, {progress.tokens:,} tokens in {seconds:,.0f} s, "
        f"{progress.tokens / seconds:,.0f} tokens/s, loading included; {progress.present:,} of "
        f"{progress.wanted:,} traces are in {escape(safe(str(output)))}."
    )


if __name__ == "__main__":
    sys.exit(main())
