# pyright: basic, reportMissingModuleSource=false
"""The confidence of rows as Triton kernels: the logits are read once.

Imported only where there is a GPU, and Triton with it. Two steps. The first streams through the
logits and keeps of each part of a row the sum that its logsumexp needs, and of each block the
largest: it loops over nothing, so it takes about as long as reading. The second has a program for
each row: the k largest of a row lie in the k blocks whose largest are largest, so it picks those,
and takes the largest out of them one by one.
"""

import torch
import triton
import triton.language as tl

_PART, _BLOCK = 4096, 64


def fused_confidences(logits: torch.Tensor, ks: torch.Tensor, most_k: int) -> torch.Tensor:
    """`conviction_gate.confidence.row_confidences`, for a small `most_k`: one by one is taken."""
    rows, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, _PART)
    device, ks = logits.device, ks.contiguous()
    sums = torch.empty((rows, parts, 2), dtype=torch.float32, device=device)
    peaks = torch.empty((rows, parts, _PART // _BLOCK), dtype=torch.float32, device=device)
    confidences = torch.empty(rows, dtype=torch.float32, device=device)
    read = (logits, logits.stride(0), logits.stride(1), vocabulary)
    _look_at_parts[(rows, parts)](
        *(*read, sums, peaks, parts), PART=_PART, BLOCK=_BLOCK, num_warps=4
    )
    _measure_rows[(rows,)](
        *(*read, ks, sums, peaks, confidences, parts),
        KEPT=triton.next_power_of_2(min(most_k, vocabulary)),
        PARTS=triton.next_power_of_2(parts),
        PEAKS=triton.next_power_of_2(parts * _PART // _BLOCK),
        PART=_PART,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return confidences


@triton.jit
def _look_at_parts(
    logits, stride, step, vocabulary, sums, peaks, parts, PART: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    block = tl.arange(0, PART // BLOCK)
    places = part * PART + block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    at = logits + row * stride + places * step
    values = tl.load(at, mask=places < vocabulary, other=float("-inf")).to(tl.float32)
    # What is no number is left to the sum: it makes the whole row's unknown.
    largest = tl.max(tl.where(values == values, values, float("-inf")), 1)
    greatest = tl.max(largest, 0)
    base = tl.where(greatest == float("-inf"), 0.0, greatest)
    where = row * parts + part
    tl.store(peaks + where * (PART // BLOCK) + block, largest)
    tl.store(sums + 2 * where, greatest)
    tl.store(sums + 2 * where + 1, tl.sum(tl.sum(tl.exp(values - base), 1), 0))


@triton.jit
def _measure_rows(
    logits,
    stride,
    step,
    vocabulary,
    ks,
    sums,
    peaks,
    confidences,
    parts,
    KEPT: tl.constexpr,
    PARTS: tl.constexpr,
    PEAKS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    at = sums + 2 * (row * parts + part)
    base = tl.load(at, mask=part < parts, other=float("-inf"))
    sum_ = tl.load(at + 1, mask=part < parts, other=0.0)
    greatest = tl.max(base, 0)
    whole = greatest + tl.log(tl.sum(sum_ * tl.exp(base - greatest), 0))

    # The blocks that hold the largest: those with the largest peaks.
    wanted = tl.minimum(tl.load(ks + row), vocabulary).to(tl.int32)
    blocks = (vocabulary + BLOCK - 1) // BLOCK
    block = tl.arange(0, PEAKS)
    at = peaks + row * parts * (PART // BLOCK) + block
    left = tl.load(at, mask=block < blocks, other=float("-inf"))
    kept = tl.arange(0, KEPT)
    picked = tl.full((KEPT,), -1, tl.int32)
    for number in range(tl.minimum(wanted, blocks)):
        value, best = tl.max(left, 0, return_indices=True)
        # One that is all masked is none: it would be found again and again.
        best = tl.where(value == float("-inf"), -1, best)
        picked = tl.where(kept == number, best, picked)
        left = tl.where(block == best, float("-inf"), left)

    # The largest in them. Equal ones are taken together.
    places = picked[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    at = logits + row * stride + places * step
    inside = (picked[:, None] >= 0) & (places < vocabulary)
    left = tl.load(at, mask=inside, other=float("-inf")).to(tl.float32)
    left = tl.where(left == left, left, float("-inf"))
    taken = 0
    total = 0.0
    while taken < wanted:
        value = tl.max(tl.max(left, 1), 0)
        same = left == value
        count = tl.minimum(tl.sum(tl.sum(same.to(tl.int32), 1), 0), wanted - taken)
        total += value * count
        taken += count
        left = tl.where(same, float("-inf"), left)
        # Nothing is left where a mask left too few: the mean is not finite, and that is all.
        taken = tl.where(value == float("-inf"), wanted, taken)
    tl.store(confidences + row, whole - total / wanted)
