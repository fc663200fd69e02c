# pyright: basic, reportMissingModuleSource=false
"""The confidence of rows as Triton kernels: the logits are read once.

Imported only where there is a GPU, and Triton with it. Two steps: parts of a row are looked at by
themselves, each for its logsumexp and its k largest; then a row's parts are put together. A part
stays in registers while its largest are taken out one after another, so nothing is sorted and
nothing is written but what is left of each part.
"""

import torch
import triton
import triton.language as tl

MOST_K = 64
"""Beyond it, taking the largest out one by one costs more than torch's own `topk`."""

_PART = 4096


def fused_confidences(logits: torch.Tensor, ks: torch.Tensor, most_k: int) -> torch.Tensor:
    """`conviction_gate.confidence.row_confidences`, for a `most_k` up to `MOST_K`."""
    rows, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, _PART)
    kept = triton.next_power_of_2(min(most_k, vocabulary))
    device = logits.device
    sums = torch.empty((rows, parts, 2), dtype=torch.float32, device=device)
    largest = torch.empty((rows, parts, kept, 2), dtype=torch.float32, device=device)
    confidences = torch.empty(rows, dtype=torch.float32, device=device)
    _look_at_parts[(rows, parts)](
        *(logits, logits.stride(0), logits.stride(1), vocabulary, ks, sums, largest, parts),
        KEPT=kept,
        PART=_PART,
        num_warps=8,
    )
    _join_parts[(rows,)](
        *(sums, largest, ks, vocabulary, confidences, parts),
        KEPT=kept,
        PARTS=triton.next_power_of_2(parts),
        num_warps=4,
    )
    return confidences


@triton.jit
def _look_at_parts(
    logits,
    stride,
    step,
    vocabulary,
    ks,
    sums,
    largest,
    parts,
    KEPT: tl.constexpr,
    PART: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    places = part * PART + tl.arange(0, PART)
    at = logits + row * stride + places * step
    values = tl.load(at, mask=places < vocabulary, other=float("-inf")).to(tl.float32)
    # What is no number is left to the sum: it makes the whole row's unknown.
    left = tl.where(values == values, values, float("-inf"))
    greatest = tl.max(left, 0)
    base = tl.where(greatest == float("-inf"), 0.0, greatest)
    where = row * parts + part
    tl.store(sums + 2 * where, greatest)
    tl.store(sums + 2 * where + 1, tl.sum(tl.exp(values - base), 0))
    wanted = tl.minimum(tl.load(ks + row), vocabulary).to(tl.int32)
    taken = 0
    found = 0
    to = largest + 2 * where * KEPT
    # Equal ones are taken together: each round takes at least one.
    while taken < wanted:
        value = tl.max(left, 0)
        many = tl.sum((left == value).to(tl.int32), 0)
        tl.store(to + 2 * found, value)
        tl.store(to + 2 * found + 1, many.to(tl.float32))
        left = tl.where(left == value, float("-inf"), left)
        taken += many
        found += 1
    rest = tl.arange(0, KEPT)
    tl.store(to + 2 * rest + 1, 0.0, mask=rest >= found)


@triton.jit
def _join_parts(
    sums,
    largest,
    ks,
    vocabulary,
    confidences,
    parts,
    KEPT: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    there = part < parts
    base = tl.load(sums + 2 * (row * parts + part), mask=there, other=float("-inf"))
    sum_ = tl.load(sums + 2 * (row * parts + part) + 1, mask=there, other=0.0)
    greatest = tl.max(base, 0)
    whole = greatest + tl.log(tl.sum(sum_ * tl.exp(base - greatest), 0))
    entry = tl.arange(0, PARTS * KEPT)
    at = largest + 2 * (row * parts * KEPT + entry)
    inside = entry < parts * KEPT
    many = tl.load(at + 1, mask=inside, other=0.0)
    left = tl.load(at, mask=inside & (many > 0), other=float("-inf"))
    wanted = tl.minimum(tl.load(ks + row), vocabulary).to(tl.float32)
    taken = 0.0
    total = 0.0
    while taken < wanted:
        value = tl.max(left, 0)
        same = (left == value) & (many > 0)
        count = tl.minimum(tl.sum(tl.where(same, many, 0.0), 0), wanted - taken)
        # Where nothing is left, which only what is no number can cause, the sum says so already.
        count = tl.maximum(count, 1.0)
        total += value * count
        taken += count
        many = tl.where(same, 0.0, many)
        left = tl.where(same, float("-inf"), left)
    tl.store(confidences + row, whole - total / wanted)
