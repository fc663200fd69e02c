"""From logits to a token, its confidence and its log-probability, all on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from conviction.core import Sampling


def token_confidences(logits: Tensor, k: int) -> Tensor:
    """Token confidence C_i (eq. 2) of the next token of each row.

    Args:
        logits: The model's own, before temperature and filters; float32, (rows, vocabulary).
        k: How many of the likeliest tokens to average.

    Returns:
        Shape (rows,), float32.
    """
    return logits.logsumexp(-1) - logits.topk(k, dim=-1, sorted=False).values.mean(-1)


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of one token per row in the model's own distribution, shape (rows,)."""
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
    return (chosen - logits.logsumexp(-1)).clamp(max=0)


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """One token per row: temperature first, then the nucleus.

    A row's token depends on its own logits and its own random number alone, so it does not matter
    which other rows it is drawn with.

    Args:
        logits: Shape (rows, vocabulary), float32.
        uniforms: A random number in [0, 1) for each row, shape (rows,), float64.
        sampling: Its temperature and top_p.

    Returns:
        Shape (rows,).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p is not None:
        best, order = probabilities.sort(dim=-1, descending=True)
        # The token that crosses the mass is still inside.
        outside = best.cumsum(-1) - best >= sampling.top_p
        probabilities = probabilities.scatter(-1, order, best.masked_fill(outside, 0))
    # float64: sums of 150,000 small numbers would lose the last of them.
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    wanted = uniforms[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, wanted, right=True).squeeze(-1)
    return found.clamp(max=logits.shape[-1] - 1)


def random_numbers(seeds: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Each trace's own random numbers, from its seed; shape (seeds, count), float64, [0, 1)."""
    rows = [np.random.default_rng(seed).random(count) for seed in seeds]
    return torch.from_numpy(np.stack(rows)).to(device)
