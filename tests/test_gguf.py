import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conviction.errors import ConvictionError, ModelError, NotAChatModelError
from conviction.gguf import check_chat_model, read_header

UINT32, INT32, FLOAT32, STRING, ARRAY, UINT64 = 4, 5, 6, 8, 9, 10


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", UINT32, value)


def string(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", STRING) + text(value)


def strings(key: str, values: list[str]) -> bytes:
    head = text(key) + struct.pack("<IIQ", ARRAY, STRING, len(values))
    return head + b"".join(map(text, values))


def numbers(key: str, values: list[int]) -> bytes:
    head = text(key) + struct.pack("<IIQ", ARRAY, INT32, len(values))
    return head + struct.pack(f"<{len(values)}i", *values)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


ARCHITECTURE = [
    string("general.architecture", "llama"),
    string("general.name", "Tiny"),
    number("general.file_type", 15),
    number("llama.context_length", 2048),
    number("llama.block_count", 4),
    number("llama.embedding_length", 64),
    number("llama.attention.head_count", 8),
    number("llama.attention.head_count_kv", 2),
    strings("tokenizer.ggml.tokens", ["<s>", "a", "", "bc"]),
]
TEMPLATE = string("tokenizer.chat_template", "{% for m in messages %}{{ m }}{% endfor %}")
TENSORS = [tensor("a", (8, 4), 0, 0), tensor("b", (32, 2), 2, 128)]  # 128 and 36 bytes


def gguf(
    values: list[bytes], tensors: list[bytes] | None = None, data: int = 164, version: int = 3
) -> bytes:
    tensors = TENSORS if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    head += b"".join(values) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


CHAT_MODEL = gguf([*ARCHITECTURE, TEMPLATE])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(CHAT_MODEL)
    return path


def test_the_header_of_a_chat_model_is_read(model: Path) -> None:
    header = check_chat_model(model)
    assert (header.architecture, header.name) == ("llama", "Tiny")
    assert (header.context_length, header.kv_values) == (2048, 8 * (8 + 8))
    assert header.chat_template is not None
    assert header.chat_template.startswith("{% for")
    assert header.file_size == header.tensor_end == len(CHAT_MODEL)


def test_the_cache_takes_a_key_and_a_value_per_head_and_layer(model: Path) -> None:
    header = read_header(model)
    assert header.kv_bytes_per_token() == 4 * 2 * (8 + 8) * 2
    assert header.kv_bytes_per_token(34 / 32) == 136


def test_layers_may_differ_in_their_heads_and_name_their_lengths(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    values = [
        string("general.architecture", "llama"),
        number("llama.block_count", 3),
        numbers("llama.attention.head_count", [4, 0, 4]),
        numbers("llama.attention.head_count_kv", [2, 0, 1]),
        number("llama.attention.key_length", 16),
        number("llama.attention.value_length", 8),
    ]
    path.write_bytes(gguf(values))
    assert read_header(path).kv_bytes_per_token() == 3 * (16 + 8) * 2


def test_the_size_of_the_cache_is_unknown_where_the_header_does_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([string("general.architecture", "mamba"), TEMPLATE]))
    assert read_header(path).kv_bytes_per_token() is None


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>", "no GGUF"),
        (b"GGUF", "cut short"),
        (gguf(ARCHITECTURE, version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (CHAT_MODEL[:300], "cut short"),
        (CHAT_MODEL[:-1], "1 of "),
        (gguf(ARCHITECTURE), "no chat template"),
        (gguf([*ARCHITECTURE, string("tokenizer.chat_template", " ")]), "no chat template"),
        (gguf([*ARCHITECTURE, TEMPLATE], tensors=[]), "no weights"),
        (gguf([TEMPLATE]), "architecture"),
        (gguf([*ARCHITECTURE, TEMPLATE, number("general.alignment", 0)]), "alignment"),
        (gguf([text("a.b") + struct.pack("<I", 99)]), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "values"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "tensors"),
        (gguf([text("a.b") + struct.pack("<IIQ", ARRAY, STRING, 1 << 62)]), "elements"),
        (gguf([text("a.b") + struct.pack("<IIQ", ARRAY, UINT64, 1 << 23)]), "cut short"),
        (gguf([struct.pack("<Q", 1 << 60)]), "bytes in one text"),
        (b"GGUF" + struct.pack("<Iqq", 3, 0, -1), "values"),
        (b"GGUF" + struct.pack("<Iqq", 3, -1, 0), "tensors"),
        (gguf([struct.pack("<q", -1)]), "bytes in one text"),
        (gguf([text("a.b") + struct.pack("<IIq", ARRAY, STRING, -1)]), "elements"),
        (gguf([text("a.b") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 9_000]), "unknown type 9"),
        (gguf([text("a.b") + struct.pack("<IIQ", ARRAY, STRING, 9) + b"\xff" * 99]), "cut short"),
        (gguf([*ARCHITECTURE, TEMPLATE], [text("a") + struct.pack("<I", 1 << 31)]), "dimensions"),
        (gguf([*ARCHITECTURE, TEMPLATE], [tensor("a", (1 << 63,) * 8, 0, 0)]), "bytes are missing"),
        (gguf([*ARCHITECTURE, TEMPLATE], [tensor("a", (1,), 0, 1 << 63)]), "bytes are missing"),
    ],
)
def test_a_file_that_is_no_whole_chat_model_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, found: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(NotAChatModelError) as caught:
        check_chat_model(path)
    assert found in caught.value.found
    assert str(path) in caught.value.tried
    assert caught.value.remedy


def test_tensors_of_a_type_not_known_count_by_their_beginning_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = [tensor("a", (1 << 40,), 777, 96)]
    path.write_bytes(gguf([*ARCHITECTURE, TEMPLATE], tensors, data=96))
    assert not check_chat_model(path).cut_short
    path.write_bytes(gguf([*ARCHITECTURE, TEMPLATE], tensors, data=95))
    assert read_header(path).cut_short


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_a_path_that_cannot_be_read_is_a_model_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="Check the path"):
        read_header(tmp_path / name)


@given(data=st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_gives_a_header_or_a_clear_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    damaged = bytearray(CHAT_MODEL)
    flips = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
    for position, value in data.draw(st.lists(flips, max_size=3)):
        damaged[position] = value
    path = tmp_path / "model.gguf"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    tracemalloc.start()
    try:
        assert check_chat_model(path).kv_bytes_per_token() != 0
    except ConvictionError as error:
        assert error.remedy  # noqa: PT017  # either outcome is right
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 1_000_000


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(CHAT_MODEL)
    for length in reversed(range(len(CHAT_MODEL))):
        os.truncate(path, length)
        with pytest.raises(NotAChatModelError):
            check_chat_model(path)


def test_a_large_vocabulary_and_large_weights_are_passed_over_quickly(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    vocabulary = strings("tokenizer.ggml.tokens", [f"token{i}" for i in range(150_000)])
    merges = strings("tokenizer.ggml.merges", [f"to ken{i}" for i in range(150_000)])
    weights = 500_000_000
    tensors = [tensor("a", (weights,), 24, 0)]
    content = gguf([vocabulary, merges, *ARCHITECTURE, TEMPLATE], tensors, data=0)
    path.write_bytes(content)
    os.truncate(path, len(content) + weights)  # a hole: takes no room on disk
    start = time.process_time()
    check_chat_model(path)
    assert time.process_time() - start < 0.3
