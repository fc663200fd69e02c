"""How smoothly the page moves, and how much it is sent: 512 traces of 20,000 tokens.

python benchmarks/page.py           needs Debian's Chromium (apt-get install chromium)

A made-up run is told to a tape event by event, on a clock of its own. `sent` is the size of the
frames that a page gets which follows it live. Then the run is played by the page in a headless
browser without a GPU, from one file, and the time from each picture to the next is taken; beside it
the time that a page without anything takes in the same browser, which is as fast as it goes.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from conviction.core import Answer, FinishReason, Question, Tally, TallyEntry, Trace
from conviction.engines.base import Capabilities, Chunk
from conviction.events import (
    Event,
    RunFinished,
    RunStarted,
    TraceAdvanced,
    TraceFinished,
    TraceStarted,
)
from conviction.policies.base import Standing
from conviction.server.page_file import whole_page
from conviction.server.tape import Tape, encode
from conviction.verdict import Usage, Verdict

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
PACE = 50.0
"""Tokens per second of each trace."""
CHUNK = 10
EVERY = 0.3
"""Seconds between two frames, as the server sends them of many traces."""
WINDOW = 2048

FRAMES = """async (seconds) => {
  const times = [];
  let last = performance.now();
  const end = last + 1000 * seconds;
  while (last < end) {
    const now = await new Promise(requestAnimationFrame);
    times.push(now - last);
    last = now;
  }
  return times.slice(2);
}"""

WORK = """async (seconds) => {
  const { stage } = window.conviction;
  const draw = stage.draw.bind(stage);
  const times = [];
  stage.draw = (now) => {
    const began = performance.now();
    draw(now);
    times.push(performance.now() - began);
  };
  await new Promise((done) => setTimeout(done, 1000 * seconds));
  stage.draw = draw;
  return times;
}"""


def happens(traces: int, tokens: int) -> Iterator[tuple[float, Event]]:
    """All traces at once, each a walk; every third falls and is stopped on the way."""
    draw = np.random.default_rng(1)
    question = Question.ask("How many?")
    policy = {"name": "deepconf-low", "window": WINDOW}
    yield 0.0, RunStarted(question, policy, traces, "made up", Capabilities("made up", 20, traces))
    trend = np.where(np.arange(traces) % 3 == 0, -3.0, 2.0)
    length = np.where(trend < 0, draw.integers(tokens // 3, tokens, traces), tokens)
    for number in range(traces):
        yield 0.0, TraceStarted(number, None)
    finished: list[Trace] = []
    for begin in range(0, tokens, CHUNK):
        at = (begin + CHUNK) / PACE
        base = 11.0 + trend * begin / tokens + np.sin(begin / 900 + np.arange(traces))
        values = (base[:, None] + draw.normal(0, 2, (traces, CHUNK))).astype(np.float32)
        for number in range(traces):
            if begin < length[number]:
                yield at, TraceAdvanced(number, Chunk("word " * CHUNK, values[number]))
            if begin < length[number] <= begin + CHUNK:
                finished.append(ended(number, begin + CHUNK, stopped=trend[number] < 0))
                yield at, TraceFinished(finished[-1], Standing(tally(finished), 10.0, WINDOW))
    votes = tally(finished)
    usage = Usage.of(finished, voters=votes.voters, budget=traces)
    verdict = Verdict(question, "41", votes, "budget", policy, tuple(finished), usage, traces)
    yield tokens / PACE, RunFinished(verdict)


def ended(number: int, tokens: int, *, stopped: bool) -> Trace:
    answer = str(41 + (number % 7 == 1))
    return Trace(
        id=number,
        finish=FinishReason.LOW_CONFIDENCE if stopped else FinishReason.STOP,
        tokens=tokens,
        answer=None if stopped else Answer(answer, answer),
    )


def tally(finished: list[Trace]) -> Tally:
    votes: dict[str, list[int]] = {}
    for trace in finished:
        if trace.answer:
            votes.setdefault(trace.answer.key, []).append(trace.id)
    entries = [TallyEntry(key, key, float(len(ids)), tuple(ids)) for key, ids in votes.items()]
    return Tally(tuple(sorted(entries, key=lambda entry: -entry.weight)))


def told(traces: int, tokens: int) -> Tape:
    """The tape of the run; prints what telling it took, and what a page would be sent."""
    tape, sizes, due = Tape(), [], EVERY
    took = framing = 0.0
    for at, event in happens(traces, tokens):
        began = time.perf_counter()
        tape.hear(event, at)
        took += time.perf_counter() - began
        if at >= due:
            due += EVERY
            began = time.perf_counter()
            frame = tape.frame()
            sizes.append(len(encode(frame)) if frame else 0)
            framing += time.perf_counter() - began
    tape.frame()
    seconds, generated = tokens / PACE, tokens * traces
    per_second = np.add.reduceat(sizes, np.arange(0, len(sizes), round(1 / EVERY)))
    print(f"run of {seconds:.0f} s, {traces} traces at once, {PACE:.0f} tokens/s each")
    print(
        f"sent: {sum(sizes) / seconds / 1000:.1f} kB/s on average, {sum(sizes) / 1e6:.2f} MB in all"
    )
    print(f"sent in the busiest second: {max(per_second) / 1000:.0f} kB")
    print(f"hearing: {1e6 * took / (generated / CHUNK):.2f} us a chunk of {CHUNK} tokens")
    print(f"framing: {1000 * framing / len(sizes):.1f} ms a frame, every {EVERY} s")
    snapshot = encode(tape.snapshot())
    print(f"snapshot: {len(snapshot) / 1e6:.2f} MB")
    return tape


def show(name: str, times: list[float]) -> None:
    values = np.array(times)
    median, high = np.median(values), np.percentile(values, 95)
    print(f"{name:44} median {median:6.1f} ms   p95 {high:6.1f} ms   {values.size} frames")


def measure(page: Page, path: Path, seconds: float) -> None:
    page.goto("about:blank")
    show("an empty page, picture to picture", page.evaluate(FRAMES, seconds))
    page.goto(path.as_uri())
    page.wait_for_selector("#run:not([hidden])")
    page.select_option("#speed", "8")
    for name, moment in (("the first third", 20), ("the last third", 650)):
        page.locator("#scrub").fill(str(moment))
        page.click("#play")
        show(f"{name} at 8x, picture to picture", page.evaluate(FRAMES, seconds))
        show(f"{name} at 8x, drawing alone", page.evaluate(WORK, seconds))
        page.click("#play")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--traces", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    tape = told(arguments.traces, arguments.tokens)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "run.html"
        path.write_text(whole_page(encode(tape.recorded(has_texts=False))), encoding="utf-8")
        print(f"as one file, without texts: {path.stat().st_size / 1e6:.2f} MB")
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        measure(page, path, arguments.seconds)
        page.screenshot(path=Path(tempfile.gettempdir()) / "benchmark-page.png")
        browser.close()


if __name__ == "__main__":
    main()
