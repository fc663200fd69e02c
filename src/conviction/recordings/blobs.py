"""Values per token and texts as they lie in a store: small, and quick to read.

A float32 takes about 3.2 bytes: its two lower bytes, and the third, as they are, and the highest,
which holds most of the exponent, in a Huffman code. The rest of a confidence is noise, which no
code makes smaller. Bytes of equal place stand together.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

_DICTIONARY_BYTES = 24_000
"""A text is packed with an earlier one of its question as a dictionary; its end counts."""


def pack_floats(values: NDArray[np.float32]) -> bytes:
    """Float32 values, NaN included, without loss."""
    halves = values.astype("<f4", copy=False).view("<u2").reshape(-1, 2)
    high = halves[:, 1]
    coder = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    highest = coder.compress((high >> 8).astype(np.uint8).tobytes()) + coder.flush()
    return halves[:, 0].tobytes() + (high & 0xFF).astype(np.uint8).tobytes() + highest


def unpack_floats(data: bytes, into: NDArray[np.float32]) -> None:
    """Write what `pack_floats` was given into an array of the same size.

    Raises:
        ValueError: there are fewer or more values, or the data is damaged.
    """
    size = into.size
    try:
        highest = zlib.decompress(memoryview(data)[3 * size :], -15, size)
        bits = np.frombuffer(highest, np.uint8).astype(np.uint32).reshape(size)
    except (zlib.error, ValueError):
        raise ValueError(f"not {size} values") from None
    bits <<= 8
    bits |= np.frombuffer(data, np.uint8, size, 2 * size)
    bits <<= 16
    bits |= np.frombuffer(data, "<u2", size)
    into[:] = bits.view(np.float32)


def pack_text(text: str, dictionary: str) -> bytes:
    """A text; reading it takes the same dictionary."""
    coder = zlib.compressobj(6, zdict=_dictionary(dictionary))
    return coder.compress(text.encode("utf-8", "surrogatepass")) + coder.flush()


def unpack_text(data: bytes, dictionary: str) -> str:
    """What `pack_text` was given.

    Raises:
        ValueError: it is no such data.
    """
    decoder = zlib.decompressobj(zdict=_dictionary(dictionary))
    try:
        return (decoder.decompress(data) + decoder.flush()).decode("utf-8", "surrogatepass")
    except zlib.error as error:
        raise ValueError(str(error)) from None


def _dictionary(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")[-_DICTIONARY_BYTES:]
