"""A server of chat completions that plays made-up tokens, in events shaped as those of vLLM.

    python benchmarks/replaying_server.py [--pace 20]

Prints its port, and ends when its standard input does. Below /fast every stream gets what its
connection takes, many events a write; below /paced all streams get one token at a time, each a
write of its own, at the same moments, as a server that batches sends them. Streams begin to move
once somebody asks for /begin/COUNT and so many stand, so that a client can leave the cost of
connecting out.
"""

import argparse
import asyncio
import json
import random
import struct
import sys
from collections.abc import AsyncIterator, Iterator, Sequence

MODEL = "Qwen/Qwen3-8B"
TOP_K = 20
PROMPT_TOKENS = 180
_BLOCK = 32
"""Events in one write of a fast stream."""
_LETTERS = "aaabcddeeeefghiiiklmnnoooprrsssttttuuvwy"
_PAUSE = 0.3
"""Seconds between the answer to /begin and the first token."""


def chunk(choices: Sequence[object], tokens: int) -> bytes:
    """The data of one event."""
    body = {
        "id": "chatcmpl-7d1c2f0a9b3e4856",
        "object": "chat.completion.chunk",
        "created": 1767225600,
        "model": MODEL,
        "choices": choices,
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "total_tokens": PROMPT_TOKENS + tokens,
            "completion_tokens": tokens,
            "completion_tokens_details": None,
        },
    }
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def tokens(count: int, seed: int = 7) -> Iterator[bytes]:
    """The data of the events of one trace, a token each, with the `TOP_K` likeliest."""
    generator = random.Random(seed)  # noqa: S311
    for number in range(1, count + 1):
        likeliest = [_candidate(generator, rank) for rank in range(TOP_K)]
        choice = {
            "index": 0,
            "delta": {"content": likeliest[0]["token"]},
            "logprobs": {"content": [{**likeliest[0], "top_logprobs": likeliest}]},
            "finish_reason": None,
            "token_ids": None,
        }
        yield chunk([choice], number)


def _candidate(generator: random.Random, rank: int) -> dict[str, object]:
    word = " " + "".join(generator.choices(_LETTERS, k=generator.randint(2, 7)))
    # Log-probabilities are computed in float32 and written with all digits of a double.
    logprob = -generator.uniform(0.02, 0.6) - 0.35 * rank
    (rounded,) = struct.unpack("f", struct.pack("f", logprob))
    return {"token": word, "logprob": rounded, "bytes": list(word.encode())}


def first() -> bytes:
    """The event that says who speaks."""
    choice = {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    return chunk([choice], 0)


def last(count: int) -> tuple[bytes, ...]:
    """What follows the last token."""
    choice = {
        "index": 0,
        "delta": {"content": ""},
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": None,
    }
    return chunk([choice], count), chunk([], count), b"[DONE]"


def framed(data: bytes) -> bytes:
    """An event as it travels: one HTTP chunk."""
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


class Replay:
    """Plays the same trace to every stream.

    Args:
        pace: Tokens a second of a paced stream.
    """

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._events: list[bytes] = []
        self._standing = 0
        self._changed = asyncio.Condition()
        self._start: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, then hang up."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(maxsplit=2)[1].decode()
            if path.startswith("/begin/"):
                await self._begin(int(path.rpartition("/")[2]), writer)
                return
            count = json.loads(await reader.readexactly(_length(head)))["max_tokens"]
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + framed(first())
            )
            play = self._fast if path.startswith("/fast/") else self._paced
            async for frames in play(count, await self._stand()):
                writer.write(frames)
                await writer.drain()
            writer.write(b"".join(map(framed, last(count))) + b"0\r\n\r\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # It hung up, as anybody may.
        finally:
            writer.close()

    async def _stand(self) -> float:
        """Wait for the beginning, with all others; gives its time."""
        start = self._start
        async with self._changed:
            self._standing += 1
            self._changed.notify_all()
        return await start

    async def _begin(self, count: int, writer: asyncio.StreamWriter) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._standing == count)
        writer.write(b"!")
        await writer.drain()
        await asyncio.sleep(_PAUSE)
        loop = asyncio.get_running_loop()
        start, self._start, self._standing = self._start, loop.create_future(), 0
        start.set_result(loop.time())

    async def _fast(self, count: int, start: float) -> AsyncIterator[bytes]:
        del start
        events = self._frames(count)
        for number in range(0, count, _BLOCK):
            yield b"".join(events[number : min(number + _BLOCK, count)])

    async def _paced(self, count: int, start: float) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        for number, event in enumerate(self._frames(count)[:count]):
            await asyncio.sleep(start + number / self._pace - clock())
            yield event

    def _frames(self, count: int) -> list[bytes]:
        if len(self._events) < count:
            self._events = [framed(event) for event in tokens(count)]
        return self._events


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pace", type=float, default=20.0, help="tokens/s of a paced stream")
    replay = Replay(parser.parse_args().pace)
    async with await asyncio.start_server(replay.answer, "127.0.0.1", 0, backlog=4096) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
