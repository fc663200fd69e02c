"""Keys and values of all tokens so far, in memory that is allocated once."""

import torch
from torch import Tensor


class KeysAndValues:
    """What every layer of a model remembers of the tokens of some rows.

    Stands where transformers expects a cache: each layer calls `update` once per forward pass. The
    row's tokens lie side by side, so where the next ones go is one number for all rows.

    Args:
        layers: Layers of the model.
        rows: Sequences side by side.
        heads: Key and value heads of a layer.
        room: The most tokens of a row.
        size: Values per head.
        like: A tensor of the type and on the device to use.

    Attributes:
        begin: Where the tokens of the next forward pass go.
        visible: How many places they look at; those that hold nothing yet are for a mask to hide.
    """

    def __init__(
        self, *, layers: int, rows: int, heads: int, room: int, size: int, like: Tensor
    ) -> None:
        shape = (rows, heads, room, size)
        # Zeros: a place that is hidden still takes part in sums, and 0 times NaN is NaN.
        self._keys = [like.new_zeros(shape) for _ in range(layers)]
        self._values = [like.new_zeros(shape) for _ in range(layers)]
        self.begin = 0
        self.visible = room

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The keys of each layer, then the values; shape (rows, heads, room, size)."""
        return (*self._keys, *self._values)

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Remember the tokens of a forward pass, and give all that it looks at.

        Args:
            keys: Shape (rows, heads, tokens, size).
            values: The same shape.
            layer: The layer's number.
        """
        end = self.begin + keys.shape[2]
        self._keys[layer][:, :, self.begin : end] = keys
        self._values[layer][:, :, self.begin : end] = values
        return self._keys[layer][:, :, : self.visible], self._values[layer][:, :, : self.visible]

    def copy_from(self, other: "KeysAndValues", rows: Tensor, first: int) -> None:
        """Take over rows of another store, which has no more room than this one.

        Args:
            other: The other store.
            rows: Which rows of it, shape (rows,); a row may come more than once.
            first: The row here that the first of them becomes; the others follow.
        """
        last = first + rows.numel()
        for mine, theirs in zip(self.tensors, other.tensors, strict=True):
            mine[first:last, :, : theirs.shape[2]] = theirs[rows]

    def keep(self, rows: Tensor) -> None:
        """Forget all but these rows, and free their memory layer by layer."""
        for store in (self._keys, self._values):
            for layer in range(len(store)):
                store[layer] = store[layer][rows]


def grouped_attention(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention in which query heads that share a key head are computed as one head's queries.

    So keys are read once, and never repeated in memory for each query head.

    Args:
        query: Shape (rows, query heads, tokens, size).
        key: Shape (rows, key heads, places, size).
        value: The same shape.
        attention_mask: Added to the scores; shape (rows, 1, tokens, places).
        scaling: What scores are multiplied with.

    Returns:
        Shape (rows, tokens, query heads, size), and no weights.
    """
    rows, heads, tokens, size = query.shape
    shared = heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], shared * tokens, size)
    places = attention_mask.shape[-1]
    mask = attention_mask.expand(rows, shared, tokens, places).reshape(rows, 1, -1, places)
    found = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=mask, scale=scaling
    )
    return found.reshape(rows, heads, tokens, size).transpose(1, 2).contiguous(), None
