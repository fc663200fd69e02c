"""What the embedded engine costs and saves, measured on one running llama.cpp server.

    python benchmarks/local_engine.py --model PATH

1. Throughput of 8 traces through `LocalEngine.stream`, beside a bare loop that sends the same
   requests to the same server and only counts events. In turns, so that both meet the same
   machine; what else it does shows in the spread.
2. Tokens that the server generates after a trace was cancelled.
3. Time until all of 8 traces have their first token, with and without a shared prefill.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from statistics import median

import anyio

from conviction.core import Message, Question, Sampling
from conviction.engines.base import TraceRequest
from conviction.engines.local import LocalEngine
from conviction.engines.openai.traces import chat_messages

TRACES = 8
QUESTION = "Tell a long story about the river that flows through the old town."
LONG_QUESTION = "Here is what we know so far. " + "The river rises in the hills. " * 12


def request(text: str, seed: int, tokens: int) -> TraceRequest:
    sampling = Sampling(temperature=0.7, max_tokens=tokens)
    return TraceRequest(Question.ask(text).messages, sampling, seed=seed, top_k=20)


class Meter:
    """Counts tokens between the first and the last."""

    def __init__(self) -> None:
        self.tokens = 0
        self.began = 0.0
        self.ended = 0.0
        self._cpu = time.process_time()

    def count(self, tokens: int) -> None:
        self.ended = time.perf_counter()
        self.began = self.began or self.ended
        self.tokens += tokens

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / (self.ended - self.began)

    def cpu_micros(self) -> float:
        """Microseconds of this process's CPU per token."""
        return (time.process_time() - self._cpu) / self.tokens * 1e6


async def eight(trace: Callable[[int], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as tasks:
        for seed in range(TRACES):
            tasks.start_soon(trace, seed)


async def through_engine(engine: LocalEngine, tokens: int) -> Meter:
    meter = Meter()

    async def trace(seed: int) -> None:
        async with aclosing(engine.stream(request(QUESTION, seed, tokens))) as chunks:
            async for chunk in chunks:
                meter.count(chunk.confidences.size)

    await eight(trace)
    return meter


async def through_bare_loop(engine: LocalEngine, tokens: int) -> Meter:
    server = engine._running.server  # noqa: SLF001  # the same server, without the engine
    host, port = server.url.removeprefix("http://").split(":")
    meter = Meter()

    async def trace(seed: int) -> None:
        body = {
            "messages": chat_messages((Message("user", QUESTION),)),
            "stream": True,
            "logprobs": True,
            "top_logprobs": 20,
            "seed": seed,
            "temperature": 0.7,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "max_tokens": tokens,
            "ignore_eos": True,
            "id_slot": seed,
        }
        data = json.dumps(body).encode()
        head = (
            f"POST /chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
            f"Authorization: Bearer {server.api_key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        writer.write(head.encode() + data)
        async for line in reader:
            if b'"top_logprobs"' in line:
                meter.count(1)
        writer.close()
        await writer.wait_closed()

    await eight(trace)
    return meter


async def throughput(engine: LocalEngine, tokens: int, rounds: int) -> None:
    # Traces of the same length, whatever the model would like.
    sent_with_every_trace = engine._facts.dialect.filters_off  # noqa: SLF001
    sent_with_every_trace["ignore_eos"] = True
    ways = {"LocalEngine.stream": through_engine, "bare loop": through_bare_loop}
    meters: dict[str, list[Meter]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        await way(engine, 8)
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in order:
            meter = await ways[name](engine, tokens)
            meters[name].append(meter)
            cpu[name].append(meter.cpu_micros())
    del sent_with_every_trace["ignore_eos"]
    print(f"\nthroughput of {TRACES} traces of {tokens} tokens, {rounds} rounds in turns")
    print(f"{'':22}{'tokens/s':>10}{'least':>8}{'most':>8}{'CPU us/token':>14}")
    for name in ways:
        rates = [meter.rate for meter in meters[name]]
        print(
            f"{name:22}{median(rates):>10.1f}{min(rates):>8.1f}{max(rates):>8.1f}"
            f"{median(cpu[name]):>14.0f}"
        )
    pairs = zip(*meters.values(), strict=True)
    ratio = median(ours.rate / bare.rate for ours, bare in pairs)
    print(f"median ratio within a round: {ratio:.3f} (target: at least 0.9)")


async def predicted(engine: LocalEngine) -> int:
    """The server's own count of generated tokens, once its slots are at rest."""
    http, url = engine._running.http, engine._running.server.url  # noqa: SLF001
    for _ in range(500):
        if b'"is_processing":true' not in await http.ask("GET", f"{url}/slots"):
            break
        await anyio.sleep(0.01)
    lines = (await http.ask("GET", f"{url}/metrics")).decode().splitlines()
    return next(
        int(line.split()[1])
        for line in lines
        if line.startswith("llamacpp:tokens_predicted_total ")
    )


async def after_cancel(engine: LocalEngine) -> None:
    consumed = 0
    before = await predicted(engine)

    async def trace(seed: int) -> None:
        nonlocal consumed
        async with aclosing(engine.stream(request(QUESTION, seed, 400))) as chunks:
            own = 0
            async for chunk in chunks:
                own += chunk.confidences.size
                consumed += chunk.confidences.size
                if own >= 10 + seed:
                    return

    await eight(trace)
    after = await predicted(engine) - before - consumed
    print(
        f"\ntokens generated after cancel: {after} of {TRACES} traces ({after / TRACES:.2f} each)"
    )


async def start_times(engine: LocalEngine, rounds: int) -> None:
    prompts = engine._running.prompts  # noqa: SLF001
    shared = prompts.load

    async def unshared(*_: object) -> None:
        return None

    async def until_all_speak(text: str) -> float:
        began, last = time.perf_counter(), 0.0

        async def trace(seed: int) -> None:
            nonlocal last
            async with aclosing(engine.stream(request(text, seed, 400))) as chunks:
                await anext(chunks)
                last = max(last, time.perf_counter())

        await eight(trace)
        return last - began

    times: dict[str, list[float]] = {"shared prefill": [], "each its own": []}
    for number in range(rounds):
        for name, load in (("shared prefill", shared), ("each its own", unshared)):
            prompts.load = load  # type: ignore[method-assign]
            # The beginning differs, so that nothing is left over from before.
            times[name].append(await until_all_speak(f"{name} {number}: {LONG_QUESTION}"))
    prompts.load = shared  # type: ignore[method-assign]
    async with prompts.use(Question.ask(f"shared prefill 0: {LONG_QUESTION}").messages) as prompt:
        print(f"\nuntil {TRACES} traces of a prompt of {prompt.tokens} tokens have begun")
    for name, seconds in times.items():
        print(f"{name:22}{median(seconds):>8.2f} s")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="path of a GGUF chat model")
    parser.add_argument("--tokens", type=int, default=40, help="tokens per trace")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    async with LocalEngine(options.model, context=1024, threads=options.threads) as engine:
        print(f"{engine.name}, {engine._threads} threads, load before: {load:.1f}")  # noqa: SLF001
        await throughput(engine, options.tokens, options.rounds)
        await after_cancel(engine)
        await start_times(engine, min(3, options.rounds))


if __name__ == "__main__":
    anyio.run(main)
