"""Whether batches say what the model says: padding, dropping ended rows, and confidences.

    python benchmarks/record_gpu/check.py QUESTIONS.jsonl --model MODEL.gguf --device cuda

Prints a line of JSON. To be looked at before a recording on a new machine or with a new model:

    greedy_same          share of the first questions whose greedy trace is the same, token by
                         token, in a batch of prompts of different lengths and alone
    dropping_same        share of drawn traces that are the same when rows that ended are dropped
                         at every look and when they never are
    batching_same        share of drawn traces that are the same in another, smaller batch
    confidence_error     largest difference between a recorded token confidence and that of one
                         plain float32 forward pass of transformers over the whole text
    confidence_bias      mean of those differences, with their sign
    logprob_error        the largest for the log-probability of a token
    tokens               tokens of the greedy traces that were compared
    rows_dropped         traces that ended well before the longest one, so that rows were dropped

All shares are 1 in float32. In bfloat16 traces part where two tokens are all but equally likely.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from batches import Finished, Wanted, generate
from decoder import Decoder, read_gguf

from conviction.cli.inputs import TraceOptions
from conviction.core import Sampling
from conviction.evaluation.datasets import load
from conviction.models import resolve
from conviction.thinking import TOP_K, trace_seed

LOOK_EVERY = 4
"""More often than a recording looks, so that short traces are dropped, too."""

DRAWN = 2
"""Traces of each question that are drawn."""


def traces(
    decoder: Decoder, wanted: Sequence[Wanted], sampling: Sampling, drop_below: float
) -> list[Finished]:
    """All traces of a batch in their own order."""
    finished = generate(
        decoder, wanted, sampling, top_k=TOP_K, look_every=LOOK_EVERY, drop_below=drop_below
    )
    return sorted(finished, key=lambda one: one.place)


def share_same(some: Sequence[Finished], others: Sequence[Finished]) -> float:
    pairs = zip(some, others, strict=True)
    return float(np.mean([np.array_equal(a.tokens, b.tokens) for a, b in pairs]))


@torch.inference_mode()
def errors(
    path: Path, device: str, prompts: Sequence[Sequence[int]], found: Sequence[Finished]
) -> dict[str, float]:
    """Differences from one plain forward pass per trace: no cache, no padding, no batch."""
    model, _ = read_gguf(path, device=device, dtype=torch.float32)
    torch.set_float32_matmul_precision("highest")
    confidences: list[np.ndarray] = []
    logprobs: list[np.ndarray] = []
    for prompt, one in zip(prompts, found, strict=True):
        text = torch.tensor([[*prompt, *one.tokens.tolist()]], device=device)
        logits = model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1]
        exact = logits.float().log_softmax(-1)
        plain = -exact.topk(TOP_K).values.mean(-1)
        own = exact.gather(-1, text[0, len(prompt) :, None]).squeeze(-1)
        confidences.append(one.confidences - plain.cpu().numpy())
        logprobs.append(one.logprobs - own.cpu().numpy())
    return {
        "confidence_error": float(np.abs(np.concatenate(confidences)).max()),
        "confidence_bias": float(np.concatenate(confidences).mean()),
        "logprob_error": float(np.abs(np.concatenate(logprobs)).max()),
    }


def check(given: argparse.Namespace) -> dict[str, float]:
    model = resolve(given.model)
    questions = load(given.data, gold=False, limit=given.questions).questions
    asked = TraceOptions(answer="number").asked(questions, model, templated=False)
    decoder = Decoder.load(model.path, device=given.device, dtype=getattr(torch, given.dtype))
    prompts = [decoder.prompt(one.question.messages) for one in asked]

    greedy = Sampling(0.0, max_tokens=given.tokens)
    together = traces(decoder, [Wanted(prompt, [0]) for prompt in prompts], greedy, 1.0)
    alone = [traces(decoder, [Wanted(prompt, [0])], greedy, 0.0)[0] for prompt in prompts]

    drawn = Sampling(0.7, top_p=0.95, max_tokens=given.tokens)
    wanted = [
        Wanted(prompt, [trace_seed(0, one.question.id, number) for number in range(DRAWN)])
        for one, prompt in zip(asked, prompts, strict=True)
    ]
    dropped = traces(decoder, wanted, drawn, 1.0)
    kept = traces(decoder, wanted, drawn, 0.0)
    smaller = [one for part in wanted for one in traces(decoder, [part], drawn, 0.0)]
    longest = max(one.tokens.size for one in dropped)
    return {
        "greedy_same": share_same(together, alone),
        "dropping_same": share_same(dropped, kept),
        "batching_same": share_same(dropped, smaller),
        **errors(model.path, given.device, prompts, together),
        "tokens": sum(one.tokens.size for one in together),
        "rows_dropped": sum(one.tokens.size + LOOK_EVERY < longest for one in dropped),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=128, help="the most of a trace")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    print(json.dumps(check(parser.parse_args())))


if __name__ == "__main__":
    main()
