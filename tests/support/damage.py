"""Damage to stored files: flipped bits, files cut short, blocks zeroed or written twice."""

import random
from collections.abc import Iterator

_BLOCKS = (512, 4096)


def flips(data: bytes, count: int, choose: random.Random) -> Iterator[tuple[str, bytes]]:
    """Copies of some data with one bit flipped in each, and where."""
    for _ in range(count):
        place, bit = choose.randrange(len(data)), choose.randrange(8)
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        yield f"bit {bit} of byte {place:,} flipped", bytes(damaged)


def lost_blocks(data: bytes, count: int, choose: random.Random) -> Iterator[tuple[str, bytes]]:
    """Copies of some data that were cut short, lost a block or hold one twice, and where."""
    for number in range(count):
        size = choose.choice(_BLOCKS)
        place, source = (choose.randrange(0, len(data), size) for _ in range(2))
        behind = data[place + size :]
        zeros = bytes(len(data) - len(behind) - place)
        match number % 3:
            case 0:
                length = choose.randrange(1, len(data))
                yield f"cut to {length:,} bytes", data[:length]
            case 1:
                yield f"{size} bytes from {place:,} zeroed", data[:place] + zeros + behind
            case _:
                twice = data[source : source + len(zeros)]
                damaged = data[:place] + twice + data[place + len(twice) :]
                yield f"{size} bytes from {source:,} also at {place:,}", damaged
