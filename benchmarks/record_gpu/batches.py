"""Complete traces in large batches: all rows step together, ended ones are dropped now and then.

The host looks at the device once in `LOOK_EVERY` tokens. In between it only queues work, so the
device never waits for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from decoder import Decoder
from drawing import draw, log_probabilities, random_numbers, token_confidences
from numpy.typing import NDArray
from torch import Tensor

from conviction.core import FinishReason, Sampling

LOOK_EVERY = 32
"""Tokens between two looks at which rows have ended."""

DROP_BELOW = 0.75
"""Rows that have ended are dropped once less than this share of the rows is alive."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Traces of one prompt.

    Attributes:
        prompt: Its tokens.
        seeds: The seed of each trace.
    """

    prompt: Sequence[int]
    seeds: Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A trace that has come to its end.

    Attributes:
        place: Its number in the batch: traces of the first prompt first.
        tokens: What was generated, with the token that ended it, shape (tokens,).
        confidences: Token confidences, float32, shape (tokens,).
        logprobs: Log-probabilities of the tokens, float32, shape (tokens,).
        finish: `STOP` or `LENGTH`.
    """

    place: int
    tokens: NDArray[np.int64]
    confidences: NDArray[np.float32]
    logprobs: NDArray[np.float32]
    finish: FinishReason


class _Written:
    """What the rows of a batch have written so far, on the device."""

    def __init__(self, rows: int, most: int, ends: Tensor) -> None:
        device = ends.device
        self._ends = ends
        self._tokens = torch.zeros(rows, most, dtype=torch.long, device=device)
        self._confidences = torch.zeros(rows, most, device=device)
        self._logprobs = torch.zeros(rows, most, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._places = np.arange(rows)
        self._told = np.zeros(rows, np.bool_)
        self._most = most
        self._length = 0

    def add(self, tokens: Tensor, confidences: Tensor, logprobs: Tensor) -> None:
        """Note one more token of each row, without waiting for the device."""
        self._tokens[:, self._length] = tokens
        self._confidences[:, self._length] = confidences
        self._logprobs[:, self._length] = logprobs
        self._ended |= (tokens[:, None] == self._ends).any(-1)
        self._length += 1

    @property
    def alive(self) -> NDArray[np.intp]:
        """Rows that were not told as finished."""
        return np.flatnonzero(~self._told)

    @property
    def share_alive(self) -> float:
        """Their share of all rows."""
        return self.alive.size / self._told.size

    def finished(self) -> Iterator[Finished]:
        """Traces that have ended since the last look; waits for the device."""
        ended = self._ended.cpu().numpy()
        last = self._length == self._most
        new = np.flatnonzero(~self._told if last else ended & ~self._told)
        if not new.size:
            return
        self._told[new] = True
        rows = torch.from_numpy(new).to(self._tokens.device)
        tokens, confidences, logprobs = (
            values[rows, : self._length].cpu().numpy()
            for values in (self._tokens, self._confidences, self._logprobs)
        )
        is_end = np.isin(tokens, self._ends.cpu().numpy())
        for position, row in enumerate(new.tolist()):
            stopped = bool(ended[row])
            size = int(is_end[position].argmax()) + 1 if stopped else self._length
            yield Finished(
                int(self._places[row]),
                tokens[position, :size].copy(),
                confidences[position, :size].copy(),
                logprobs[position, :size].copy(),
                FinishReason.STOP if stopped else FinishReason.LENGTH,
            )

    def keep(self, rows: Tensor) -> None:
        """Forget all but these rows."""
        self._tokens = self._tokens[rows]
        self._confidences = self._confidences[rows]
        self._logprobs = self._logprobs[rows]
        self._ended = self._ended[rows]
        kept = rows.cpu().numpy()
        self._places, self._told = self._places[kept], self._told[kept]


@torch.inference_mode()
def generate(
    decoder: Decoder,
    wanted: Sequence[Wanted],
    sampling: Sampling,
    *,
    top_k: int,
    look_every: int = LOOK_EVERY,
    drop_below: float = DROP_BELOW,
) -> Iterator[Finished]:
    """Generate all traces of a batch, and give each soon after it has ended.

    Args:
        decoder: The model.
        wanted: Prompts and how often each is continued.
        sampling: How tokens are drawn; its temperature, top_p and max_tokens.
        top_k: The k of token confidence.
        look_every: See `LOOK_EVERY`.
        drop_below: See `DROP_BELOW`; 0 for never, 1 for at every look.
    """
    seeds = [seed for one in wanted for seed in one.seeds]
    uniforms = random_numbers(seeds, sampling.max_tokens, decoder.ends.device)
    written = _Written(len(seeds), sampling.max_tokens, decoder.ends)
    rows, logits = decoder.begin(
        [one.prompt for one in wanted], [len(one.seeds) for one in wanted], sampling.max_tokens
    )
    for step in range(sampling.max_tokens):
        tokens = draw(logits, uniforms[:, step], sampling)
        written.add(tokens, token_confidences(logits, top_k), log_probabilities(logits, tokens))
        if (step + 1) % look_every == 0 or step + 1 == sampling.max_tokens:
            yield from written.finished()
            if not written.alive.size:
                return
            if written.share_alive < drop_below:
                alive = torch.from_numpy(written.alive).to(tokens.device)
                written.keep(alive)
                rows.keep(alive)
                uniforms, tokens = uniforms[alive], tokens[alive]
        logits = decoder.append(rows, tokens)
