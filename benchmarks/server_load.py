"""What `conviction serve` adds to thinking under load, and whether its memory stays flat.

python benchmarks/server_load.py

The server runs in a process of its own, on made-up traces, so that no model takes part. What it
adds to a request is what its client waited beyond the seconds that the verdict says it took.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "How many?"}]}
DELAY = "0.25"
"""Seconds between two tokens of a trace: 200 verdicts then keep one core half busy."""
SPREAD = 15.0
"""Seconds over which clients begin: about as long as a verdict takes, so they are out of step."""
WARM_UP = 500
STEPS = 10


@contextmanager
def serving(*options: str) -> Generator[tuple[str, int]]:
    """Address and process id of a server."""
    command = [sys.executable, "-m", "conviction", "serve", "-m", "scripted", "--port", "0"]
    bounds = ["--max-running", "1000", "--max-queued", "1000", "--max-queued-per-client", "1000"]
    process = subprocess.Popen(
        [*command, *bounds, *options], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr
    try:
        found = re.search(r"at (http://\S+)/v1", process.stderr.readline())
        assert found
        # What it logs goes nowhere, so that nothing here has to read it.
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait(60)
    drain.wait(60)


async def ask(http: aiohttp.ClientSession, url: str, *, stream: bool, policy: str) -> float:
    """Ask once; gives the seconds that the server added."""
    began = time.perf_counter()
    body = {**BODY, "model": f"scripted@{policy}", "stream": stream}
    async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
        text = await answer.text()
    waited = time.perf_counter() - began
    assert answer.status == 200, text
    verdict: Any = None
    if stream:
        for block in text.split("\n\n"):
            if '"conviction"' in block:
                verdict = json.loads(block.removeprefix("data: "))["conviction"]
    else:
        verdict = json.loads(text)["conviction"]
    return waited - verdict["seconds"]


async def many(
    url: str,
    requests: int,
    concurrency: int,
    *,
    stream: bool = False,
    policy: str = "settle",
    spread: float = 0.0,
) -> list[float]:
    """Ask many times, so many at once; gives what was added to each.

    Args:
        url: Of the server.
        requests: How many in all.
        concurrency: How many at once.
        stream: Whether answers are streamed.
        policy: Of each request.
        spread: Seconds over which the first ones begin.
    """
    left = iter(range(requests))
    added: list[float] = []
    connector = aiohttp.TCPConnector(limit=0)

    async with aiohttp.ClientSession(connector=connector) as http:

        async def work(number: int) -> None:
            await asyncio.sleep(spread * number / concurrency)
            for _ in left:
                one = await ask(http, url, stream=stream, policy=policy)
                added.append(one)

        await asyncio.gather(*(work(number) for number in range(concurrency)))
    return added


def resident(pid: int) -> float:
    """Memory of a process, in MB."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found
    return int(found[1]) / 1024


def cpu(pid: int) -> float:
    """Seconds of CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def latency(concurrency: int, rounds: int) -> None:
    """Print what the server adds where so many ask at once, each for a verdict of 16 traces."""
    options = ("--delay", DELAY, "--slots", str(16 * concurrency))
    with serving(*options) as (url, _):
        asyncio.run(many(url, 20, 20))
        for stream in (False, True):
            began = time.perf_counter()
            asked = rounds * concurrency
            added = asyncio.run(many(url, asked, concurrency, stream=stream, spread=SPREAD))
            seconds = time.perf_counter() - began
            p50, p99 = np.percentile(np.array(added) * 1000, [50, 99])
            how = "streamed" if stream else "whole"
            print(
                f"{concurrency} at once, {how}: {len(added)} verdicts in {seconds:.1f} s; "
                f"added by the server: p50 {p50:.1f} ms, p99 {p99:.1f} ms",
                flush=True,
            )


def memory(requests: int) -> None:
    """Print the server's memory while it answers many requests."""
    with serving("--delay", "0", "--slots", "64") as (url, pid):
        asyncio.run(many(url, WARM_UP, 50))
        print(f"after {WARM_UP:,} requests: {resident(pid):.1f} MB", flush=True)
        began, spent = time.perf_counter(), cpu(pid)
        for step in range(1, STEPS + 1):
            asyncio.run(many(url, requests // STEPS, 50, stream=step % 2 == 0, policy="single"))
            done = WARM_UP + step * (requests // STEPS)
            print(f"after {done:,} requests: {resident(pid):.1f} MB", flush=True)
        rate = requests / (time.perf_counter() - began)
        each = (cpu(pid) - spent) / requests * 1000
        print(f"{rate:.0f} requests per second; the server's CPU time: {each:.2f} ms each")


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    latency(options.concurrency, options.rounds)
    memory(options.requests)


if __name__ == "__main__":
    main()
