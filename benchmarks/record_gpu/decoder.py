"""A GGUF model as transformers reads it, made to continue many rows of tokens side by side."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
from keys_values import KeysAndValues, grouped_attention
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from conviction.core import Message
from conviction.errors import ModelError

ATTENTION = "grouped"
AttentionInterface.register(ATTENTION, grouped_attention)

PLACES = 64
"""Rows look at a multiple of so many places: kernels like sizes that seldom change."""

PROMPTS_AT_ONCE = 64

END_TOKENS = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    *("<|end|>", "<end_of_turn>", "</s>", "<eos>", "<|return|>", "<|end_of_turn|>"),
)
"""Tokens that end a turn in the families of models that are about; a GGUF names only one."""


@dataclass(eq=False)
class Rows:
    """Rows of tokens that are being continued.

    Attributes:
        store: Keys and values of their tokens.
        mask: Added to attention scores: 0 where a row looks, very low at its padding and at
            places that hold nothing yet; shape (rows, 1, 1, room).
        positions: Where in its text each row's next token stands, shape (rows, 1).
        length: Places in use, the same in all rows: prompts are padded on the left.
    """

    store: KeysAndValues
    mask: Tensor
    positions: Tensor
    length: int

    def keep(self, rows: Tensor) -> None:
        """Forget all but these rows."""
        self.store.keep(rows)
        self.mask = self.mask[rows]
        self.positions = self.positions[rows]


class Decoder:
    """A model on a device.

    Args:
        model: A causal language model of transformers with `grouped_attention`.
        tokenizer: Its tokenizer.

    Attributes:
        context: Tokens that a row may have.
        ends: The tokens that end a trace, shape (ends,), on the device.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._like = next(model.parameters())[0]
        self.context = int(model.config.max_position_embeddings)
        self.ends = torch.tensor(sorted(self._end_ids()), device=self._like.device)

    @classmethod
    def load(cls, path: Path, *, device: str, dtype: torch.dtype) -> "Decoder":
        """Read a GGUF file and put it onto a device.

        Raises:
            ModelError: transformers cannot read it, or attends in a way that is not done here.
        """
        model, tokenizer = read_gguf(path, device=device, dtype=dtype, attention=ATTENTION)
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or getattr(model.config, "attn_logit_softcapping", None):
            raise ModelError(
                tried=f"continue many rows of {path.name}",
                found="its layers do not all attend to all tokens in the plain way",
                remedy="Record it through a server: conviction record --base-url.",
            )
        head = model.get_output_embeddings()
        model.set_output_embeddings(_ExactHead(head.weight, getattr(head, "bias", None)))
        if dtype is not torch.float32:
            # Only the head multiplies in float32 then; its factors fit TF32 without loss.
            torch.set_float32_matmul_precision("high")
        return cls(model, tokenizer)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat in the model's own template, ready to be continued."""
        chat = [{"role": message.role, "content": message.content} for message in messages]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, without those that only mean something to the model."""
        return self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    @torch.inference_mode()
    def begin(
        self, prompts: Sequence[Sequence[int]], copies: Sequence[int], new_tokens: int
    ) -> tuple[Rows, Tensor]:
        """Compute prompts, each once, and make rows of them.

        Args:
            prompts: Tokens of each prompt, at least one.
            copies: How many rows each is continued in.
            new_tokens: The most tokens that will be appended to a row.

        Returns:
            The rows, in the order of the prompts, and what may come next in each: raw logits,
            float32, shape (rows, vocabulary).
        """
        longest = max(map(len, prompts))
        room = _rounded(longest + new_tokens)
        store = self._store(sum(copies), room)
        masks: list[Tensor] = []
        logits: list[Tensor] = []
        first = 0
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            part = slice(start, start + PROMPTS_AT_ONCE)
            some = prompts[part]
            ids, attended = self._padded(some, longest)
            small = self._store(len(some), longest)
            found = self._model(
                input_ids=ids,
                attention_mask=self._causal(attended),
                position_ids=(attended.cumsum(1) - 1).clamp(min=0),
                past_key_values=small,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            counts = torch.tensor(copies[part], device=ids.device)
            rows = torch.arange(len(some), device=ids.device).repeat_interleave(counts)
            store.copy_from(small, rows, first)
            first += rows.numel()
            masks.append(attended[rows])
            logits.append(found[rows])
        attended = torch.cat(masks)
        mask = self._like.new_full((len(attended), 1, 1, room), torch.finfo(self._like.dtype).min)
        mask[:, 0, 0, :longest] = self._hidden(attended)
        rows = Rows(store, mask, attended.sum(1, keepdim=True), longest)
        return rows, torch.cat(logits)

    @torch.inference_mode()
    def append(self, rows: Rows, tokens: Tensor) -> Tensor:
        """Append one token to every row.

        Args:
            rows: The rows.
            tokens: Shape (rows,).

        Returns:
            What may come next: raw logits, float32, shape (rows, vocabulary).
        """
        rows.mask[..., rows.length] = 0
        rows.store.begin = rows.length
        rows.store.visible = _rounded(rows.length + 1)
        found = self._model(
            input_ids=tokens[:, None],
            attention_mask=rows.mask[..., : rows.store.visible],
            position_ids=rows.positions,
            past_key_values=rows.store,
            use_cache=True,
        ).logits[:, -1]
        rows.length += 1
        rows.positions = rows.positions + 1
        return found

    def _store(self, rows: int, room: int) -> KeysAndValues:
        config = self._model.config
        heads = config.num_attention_heads
        return KeysAndValues(
            layers=config.num_hidden_layers,
            rows=rows,
            heads=getattr(config, "num_key_value_heads", heads),
            room=room,
            size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            like=self._like,
        )

    def _padded(self, prompts: Sequence[Sequence[int]], longest: int) -> tuple[Tensor, Tensor]:
        """Tokens and whether they are more than padding, both of shape (prompts, longest)."""
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        attended = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            attended[row, longest - len(prompt) :] = True
        return ids.to(self._like.device), attended.to(self._like.device)

    def _causal(self, attended: Tensor) -> Tensor:
        """The mask of prompts that are computed at once, shape (prompts, 1, longest, longest)."""
        length = attended.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=attended.device).tril()
        return self._hidden(attended[:, None, None, :] & earlier)

    def _hidden(self, attended: Tensor) -> Tensor:
        # Very low and not infinite: a row of padding that sees nothing must not become NaN.
        lowest = torch.finfo(self._like.dtype).min
        return self._like.new_zeros(()).where(attended, self._like.new_full((), lowest))

    def _end_ids(self) -> set[int]:
        vocabulary = self._tokenizer.get_vocab()
        named = {vocabulary[token] for token in END_TOKENS if token in vocabulary}
        return named | {self._tokenizer.eos_token_id}


class _ExactHead(torch.nn.Module):
    """The layer that gives logits, in float32: bfloat16 has steps of 1/8 where logits are 20."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().float(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden.float(), self.weight, self.bias)


def read_gguf(
    path: Path, *, device: str, dtype: torch.dtype, attention: str | None = None
) -> tuple[Any, Any]:
    """A model and its tokenizer, as transformers reads them out of a GGUF file.

    Args:
        path: The file.
        device: Where the model shall be.
        dtype: What its weights become.
        attention: Name of its attention; None for what transformers chooses.

    Raises:
        ModelError: transformers cannot read it.
    """
    disable_progress_bar()
    set_verbosity_error()
    own = {"attn_implementation": attention} if attention else {}
    try:
        with _header_read_once():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, **own
            )
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise ModelError(
            tried=f"read {path.name} with transformers",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="Use a GGUF file of an architecture and a quantisation that transformers "
            "knows, or record through a server: conviction record --base-url.",
        ) from error
    return model.to(device).eval(), tokenizer


@contextmanager
def _header_read_once() -> Generator[None]:
    """Spare transformers reading the header for each part of the model: seconds every time."""
    usual = gguf.GGUFReader
    gguf.GGUFReader = cache(usual)
    try:
        yield
    finally:
        gguf.GGUFReader = usual


def _rounded(places: int) -> int:
    return -(-places // PLACES) * PLACES
