"""Reads the header of a GGUF model file, and checks that it is one of a chat model.

Nothing of the file is trusted: every length is checked against the bytes that are there before
anything is read or counted, so a broken file costs neither memory nor time. The weights are never
read.

Source of the format: the GGUF specification, versions 2 and 3 (little-endian).
"""

from dataclasses import dataclass
from math import ceil, prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import Struct
from struct import error as StructError  # noqa: N812  # the module names it in lower case
from typing import NoReturn

from conviction.errors import ModelError, NotAChatModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Far above every known model; a header that claims more is broken.
_MOST_HEADER_BYTES = 1 << 30
_MOST_KEYS = 10_000
_MOST_TENSORS = 1_000_000
_MOST_ELEMENTS = 1 << 24
_MOST_KEY_BYTES = 1 << 16
_MOST_TEXT_BYTES = 1 << 24
_MOST_LAYERS = 1024
_MOST_DIMENSIONS = 8
_MOST_ALIGNMENT = 1 << 20
_ENDLESS = "its header does not come to an end: the file is cut short or broken"

_UINT32 = Struct("<I")
_UINT64 = Struct("<Q")
# Types of numbers, in the format's order; 8 and 9 are texts and arrays
_NUMBERS = {kind: Struct(f"<{code}") for kind, code in enumerate("BbHhIif?..Qqd") if code != "."}
_STRING, _ARRAY = 8, 9
_INTEGERS = frozenset({0, 1, 2, 3, 4, 5, 10, 11})

# Bytes per block of each ggml tensor type, by the values that a block holds.
_BLOCK_BYTES = {
    # F32, F16, I8, I16, I32, I64, F64, BF16
    1: {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2},
    # Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4
    32: {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 20: 18, 39: 17},
    # Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, then TQ1_0 and TQ2_0
    256: {10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 34: 54, 35: 66}
    # IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ3_S, IQ2_S, IQ4_XS, IQ1_M
    | {16: 66, 17: 74, 18: 98, 19: 50, 21: 110, 22: 82, 23: 136, 29: 56},
}
_TENSOR_BLOCKS = {
    kind: (values, size) for values, sizes in _BLOCK_BYTES.items() for kind, size in sizes.items()
}

# The values that are kept, by what follows the architecture (or "general", "tokenizer").
_WANTED = (
    "architecture name alignment chat_template context_length block_count embedding_length "
    "attention.head_count attention.head_count_kv attention.key_length attention.value_length"
)

_Value = int | float | bool | str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What the header of a model file says. None where it says nothing, or nothing sensible.

    Attributes:
        architecture: Family of the model, as in "qwen2".
        name: The model's own name.
        context_length: Tokens that it was trained to take, prompt and answer together.
        kv_values: Keys and values that one token of context takes in all layers together.
        chat_template: The template that turns a chat into a prompt.
        tensor_count: Tensors that the file holds.
        file_size: Bytes of the file.
        tensor_end: Bytes that the file must have at least. Tensors of a type that is not
            known here count by their beginning alone.
    """

    architecture: str
    name: str | None
    context_length: int | None
    kv_values: int | None
    chat_template: str | None
    tensor_count: int
    file_size: int
    tensor_end: int

    @property
    def cut_short(self) -> bool:
        """Whether tensors are missing from the end of the file."""
        return self.file_size < self.tensor_end

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0) -> int | None:
        """Bytes of KV cache that one token of context takes, in all layers together.

        An upper bound for models that attend within a sliding window in some layers. None
        where the header does not tell, as for models without attention.

        Args:
            bytes_per_value: 2 for a cache of half precision; 34 / 32 for Q8_0.
        """
        return None if self.kv_values is None else ceil(self.kv_values * bytes_per_value)


def read_header(path: str | Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        ModelError: the file is missing or cannot be read.
        NotAChatModelError: it is no GGUF file, or its header is broken or cut short.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
            if start != _MAGIC:
                begins = f"the file begins with {start!r}, not b'GGUF'" if start else "it is empty"
                raise NotAChatModelError(
                    tried=f"read the model file {path}",
                    found=f"{begins}, so it is no GGUF model",
                    remedy="Use a model file in GGUF format.",
                )
            with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
                return _parse(_Reader(data))
    except _BrokenHeaderError as error:
        raise NotAChatModelError(
            tried=f"read the model file {path}",
            found=str(error),
            remedy="Fetch the file again; if that does not help, use another one.",
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(
            tried=f"read the model file {path}",
            found=getattr(error, "strerror", None) or str(error),
            remedy="Check the path and that you may read the file.",
        ) from None


def check_chat_model(path: str | Path) -> GgufHeader:
    """Check that a file is a whole GGUF model with a chat template, and give its header.

    Raises:
        ModelError: the file is missing or cannot be read.
        NotAChatModelError: it is no GGUF file, is cut short, or cannot chat.
    """
    header = read_header(path)
    tried = f"use {path} as a chat model"
    if header.cut_short:
        missing = header.tensor_end - header.file_size
        raise NotAChatModelError(
            tried=tried,
            found=f"the file is cut short: {missing:,} of {header.tensor_end:,} bytes are missing",
            remedy="Fetch the file again, to the end.",
        )
    if header.tensor_count == 0:
        raise NotAChatModelError(
            tried=tried, found="it holds no weights", remedy="Use the file that holds the model."
        )
    if header.chat_template is None:
        raise NotAChatModelError(
            tried=tried,
            found=f"it has no chat template (architecture {header.architecture!r})",
            remedy="Use an instruction-tuned chat model, not a base or embedding model.",
        )
    return header


class _BrokenHeaderError(Exception):
    """The header cannot be what it claims; the message says why."""


def _broken(why: str) -> NoReturn:
    raise _BrokenHeaderError(why)


class _Reader:
    """A position in the file; no read goes past its end."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self.position = len(_MAGIC)
        self.file_size = len(data)
        self._end = min(len(data), _MOST_HEADER_BYTES)

    def number(self, layout: Struct) -> int | float | bool:
        try:
            (value,) = layout.unpack_from(self._data, self.position)
        except StructError:
            _broken(_ENDLESS)
        self.position += layout.size
        return value

    def count(self, layout: Struct, most: int, what: str) -> int:
        value = int(self.number(layout))
        if value > most:
            _broken(f"the header claims {value:,} {what}")
        return value

    def text(self, most: int) -> str:
        length = self.count(_UINT64, most, "bytes in one text")
        start = self.position
        self.skip(length)
        return self._data[start : self.position].decode("utf-8", "replace")

    def skip(self, length: int) -> None:
        if length > self._end - self.position:
            _broken(_ENDLESS)
        self.position += length

    def skip_texts(self, count: int) -> None:
        # A vocabulary has hundreds of thousands of entries: this loop is most of the work.
        data, position, end, length_at = self._data, self.position, self._end, _UINT64.unpack_from
        try:
            for _ in range(count):
                position += 8 + length_at(data, position)[0]
                if position > end:
                    _broken(_ENDLESS)
        except StructError:
            _broken(_ENDLESS)
        self.position = position


def _parse(reader: _Reader) -> GgufHeader:
    version = int(reader.number(_UINT32))
    if version not in _VERSIONS:
        _broken(f"it has version {version} of the GGUF format, not 2 or 3")
    tensor_count = reader.count(_UINT64, _MOST_TENSORS, "tensors")
    key_count = reader.count(_UINT64, _MOST_KEYS, "values")
    values: dict[str, _Value] = {}
    wanted = frozenset(_WANTED.split())
    for _ in range(key_count):
        key = reader.text(_MOST_KEY_BYTES)
        kind = int(reader.number(_UINT32))
        if key.partition(".")[2] not in wanted:
            _skip_value(reader, kind)
        elif (value := _value(reader, kind)) is not None:
            values[key] = value
    tensor_end = _tensor_end(reader, tensor_count, values)
    return _header(values, tensor_count, reader.file_size, tensor_end)


def _skip_value(reader: _Reader, kind: int) -> None:
    count = 1
    if kind == _ARRAY:
        kind = int(reader.number(_UINT32))
        count = reader.count(_UINT64, _MOST_ELEMENTS, "elements in one array")
    if kind == _STRING:
        reader.skip_texts(count)
    else:
        reader.skip(count * _layout(kind).size)


def _value(reader: _Reader, kind: int) -> _Value | None:
    """A text, a number, or one number per layer; None for other arrays."""
    if kind == _STRING:
        return reader.text(_MOST_TEXT_BYTES)
    if kind != _ARRAY:
        return reader.number(_layout(kind))
    start = reader.position
    kind = int(reader.number(_UINT32))
    count = reader.count(_UINT64, _MOST_ELEMENTS, "elements in one array")
    if kind in _INTEGERS and count <= _MOST_LAYERS:
        return tuple(int(reader.number(_NUMBERS[kind])) for _ in range(count))
    reader.position = start
    _skip_value(reader, _ARRAY)
    return None


def _layout(kind: int) -> Struct:
    if kind not in _NUMBERS:
        _broken(f"the header holds a value of unknown type {kind}")
    return _NUMBERS[kind]


def _tensor_end(reader: _Reader, tensor_count: int, values: dict[str, _Value]) -> int:
    end = 0
    for _ in range(tensor_count):
        reader.text(_MOST_KEY_BYTES)
        dimensions = reader.count(_UINT32, _MOST_DIMENSIONS, "dimensions of one tensor")
        elements = prod(int(reader.number(_UINT64)) for _ in range(dimensions))
        kind = int(reader.number(_UINT32))
        offset = int(reader.number(_UINT64))
        per_block, block_bytes = _TENSOR_BLOCKS.get(kind, (1, 0))
        end = max(end, offset + -(-elements // per_block) * block_bytes)
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= _MOST_ALIGNMENT:
        _broken("the header claims an impossible alignment")
    return -(-reader.position // alignment) * alignment + end if tensor_count else reader.position


def _header(
    values: dict[str, _Value], tensor_count: int, file_size: int, tensor_end: int
) -> GgufHeader:
    architecture = _text(values, "general.architecture")
    if architecture is None:
        _broken("the header does not name the model's architecture")

    def most(name: str) -> int | None:
        return _most(values.get(f"{architecture}.{name}"))

    heads, width = most("attention.head_count"), most("embedding_length")
    head_length = (width // heads or None) if width and heads else None
    key_length = most("attention.key_length") or head_length
    value_length = most("attention.value_length") or head_length
    per_layer = values.get(f"{architecture}.attention.head_count_kv", heads)
    kv_heads = _total_kv_heads(per_layer, most("block_count"))
    kv_values = None
    if kv_heads is not None and key_length is not None and value_length is not None:
        kv_values = kv_heads * (key_length + value_length)
    return GgufHeader(
        architecture=architecture,
        name=_text(values, "general.name"),
        context_length=most("context_length"),
        kv_values=kv_values,
        chat_template=_text(values, "tokenizer.chat_template"),
        tensor_count=tensor_count,
        file_size=file_size,
        tensor_end=tensor_end,
    )


def _text(values: dict[str, _Value], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) and value.strip() else None


def _most(value: _Value | None) -> int | None:
    """A positive count, the greatest where a header gives one per layer."""
    numbers = value if isinstance(value, tuple) else (value,)
    counts = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    return max(counts, default=None)


def _total_kv_heads(per_layer: _Value | None, layers: int | None) -> int | None:
    """Key and value heads of all layers, from one number for all or one for each."""
    if isinstance(per_layer, tuple):
        return sum(per_layer) if min(per_layer, default=0) >= 0 < sum(per_layer) else None
    if layers is None or not isinstance(per_layer, int) or per_layer <= 0:
        return None
    return per_layer * layers
