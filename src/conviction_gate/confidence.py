"""Token confidence of rows of logits: less the mean of the k largest log-probabilities (eq. 2)."""

from collections.abc import Callable
from functools import cache

import torch

Measure = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


_BLOCK = 64


def row_confidences(logits: torch.Tensor, ks: torch.Tensor, most_k: int) -> torch.Tensor:
    """The confidence of each row.

    Args:
        logits: Raw logits, shape (rows, vocabulary).
        ks: The k of each row, at least 1, int64, shape (rows,), on the same device.
        most_k: The largest of them.

    Returns:
        float32, shape (rows,); not finite where one of the k largest is not.
    """
    kernel = _kernel() if logits.is_cuda else None
    return (kernel or plain_confidences)(logits, ks, most_k)


def plain_confidences(logits: torch.Tensor, ks: torch.Tensor, most_k: int) -> torch.Tensor:
    """`row_confidences` by torch's own operations: the reference of the kernel."""
    logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
    most_k = min(most_k, logprobs.shape[-1])
    ks = ks.clamp(max=most_k)
    wanted = torch.arange(most_k, device=logprobs.device)[None, :] < ks[:, None]
    # A sum over what is wanted only: nothing beyond a row's own k may make it unknown.
    return torch.where(wanted, -_largest(logprobs, most_k), 0.0).sum(-1) / ks


def _largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, in order.

    They lie in the k blocks whose largest are largest. To find those takes a look at each value,
    where to sort out the k largest of a whole row takes several: 2.5 times as long on a CPU.
    """
    width = values.shape[-1]
    blocks = width // _BLOCK
    if blocks < 4 * k:
        return values.topk(k, dim=-1).values
    body = values[:, : blocks * _BLOCK].unflatten(-1, (blocks, _BLOCK))
    best = body.amax(-1).topk(k, dim=-1, sorted=False).indices[:, :, None].expand(-1, -1, _BLOCK)
    rest = values[:, blocks * _BLOCK :]
    return torch.cat((body.gather(1, best).flatten(1), rest), -1).topk(k, dim=-1).values


@cache
def _kernel() -> Measure | None:
    """The kernel; None where Triton is not installed."""
    try:
        from conviction_gate.kernel import fused_confidences  # noqa: PLC0415  # heavy
    except ImportError:
        return None
    return fused_confidences
