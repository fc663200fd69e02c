"""Token confidence of rows of logits: C = logsumexp - mean of the k largest logits (eq. 2)."""

from collections.abc import Callable
from functools import cache

import torch

Measure = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def row_confidences(logits: torch.Tensor, ks: torch.Tensor, most_k: int) -> torch.Tensor:
    """The confidence of each row.

    The log-probability of a token is its logit less the row's logsumexp, so the mean of the k
    largest log-probabilities needs no softmax.

    Args:
        logits: Raw logits, shape (rows, vocabulary).
        ks: The k of each row, at least 1, int64, shape (rows,), on the same device.
        most_k: The largest of them.

    Returns:
        float32, shape (rows,); not finite where one of the k largest is not.
    """
    kernel = _kernel(most_k) if logits.is_cuda else None
    return (kernel or plain_confidences)(logits, ks, most_k)


def plain_confidences(logits: torch.Tensor, ks: torch.Tensor, most_k: int) -> torch.Tensor:
    """`row_confidences` by torch's own operations: the reference of the kernel."""
    values = logits.float()
    most_k = min(most_k, values.shape[-1])
    ks = ks.clamp(max=most_k)
    largest = values.topk(most_k, dim=-1, sorted=True).values
    wanted = torch.arange(most_k, device=values.device)[None, :] < ks[:, None]
    # A sum over what is wanted only: nothing beyond a row's own k may make it unknown.
    total = torch.where(wanted, largest, 0.0).sum(-1)
    return torch.logsumexp(values, -1) - total / ks


@cache
def _kernel(most_k: int) -> Measure | None:
    """The kernel; None where Triton is not installed, or it is not made for such a k."""
    try:
        from conviction_gate.kernel import MOST_K, fused_confidences  # noqa: PLC0415  # heavy
    except ImportError:
        return None
    return fused_confidences if most_k <= MOST_K else None
