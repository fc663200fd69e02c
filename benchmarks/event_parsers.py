"""What it costs to parse the events of a stream: the parser in use beside others.

    python benchmarks/event_parsers.py [--rounds 5]

CPU time; what is compared takes turns in random order. `benchmarks/http_engine.py` prints this
table, too.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from statistics import median

import msgspec
import pydantic
from replaying_server import TOP_K, tokens

from conviction.engines.openai.events import EventParser, TraceReader, decode
from conviction.engines.openai.shapes import Event

ORDER = random.Random(7)  # noqa: S311


def found(package: str) -> bool:
    if find_spec(package):
        return True
    print(f"{package} is not installed: `pip install {package}` to compare with it")
    return False


class LikelyToken(pydantic.BaseModel):
    logprob: float


class TokenPlace(pydantic.BaseModel):
    top_logprobs: list[LikelyToken]


class ContentLogprobs(pydantic.BaseModel):
    content: list[TokenPlace]


class ContentDelta(pydantic.BaseModel):
    content: str | None = None


class ContentChoice(pydantic.BaseModel):
    delta: ContentDelta
    logprobs: ContentLogprobs | None = None
    finish_reason: str | None = None


class ContentUsage(pydantic.BaseModel):
    prompt_tokens: int
    completion_tokens: int


class ContentEvent(pydantic.BaseModel):
    """The fields that we decode, for pydantic."""

    choices: list[ContentChoice]
    usage: ContentUsage | None = None


def each(parse: Callable[[bytes], object], events: list[bytes]) -> None:
    for event in events:
        parse(event)


def to_confidence(pieces: list[bytes]) -> None:
    """All that the engine does with bytes."""
    parser, reader = EventParser(), TraceReader(TOP_K)
    for piece in pieces:
        reader.read(parser.feed(piece))


def parsers(rounds: int) -> None:
    data = list(tokens(400))
    single = [b"data: " + event + b"\n\n" for event in data]
    many = [b"".join(single[first : first + 40]) for first in range(0, len(single), 40)]
    ours = partial(decode, decoder=msgspec.json.Decoder(Event))
    works: dict[str, Callable[[], None]] = {
        "msgspec, the fields we need": partial(each, ours, data),
        "pydantic, the same fields": partial(each, ContentEvent.model_validate_json, data),
        "json, everything": partial(each, json.loads, data),
        "bytes to confidence, 1 event a read": partial(to_confidence, single),
        "bytes to confidence, 40 events a read": partial(to_confidence, many),
    }
    if found("orjson"):
        works["orjson, everything"] = partial(each, import_module("orjson").loads, data)
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(4 * rounds):
        for name in ORDER.sample(list(works), len(works)):
            began = time.process_time()
            works[name]()
            taken[name].append((time.process_time() - began) / len(data) * 1e6)
    print(f"\nparsing events of {sum(map(len, data)) / len(data):,.0f} bytes, by itself")
    print(f"{'':39}{'us/event':>10}{'of msgspec':>12}")
    for name, micros in sorted(taken.items(), key=lambda item: median(item[1])):
        pairs = zip(micros, taken["msgspec, the fields we need"], strict=True)
        ratio = median(mine / fewest for mine, fewest in pairs)
        print(f"{name:39}{median(micros):>10.1f}{ratio:>11.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parsers(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
