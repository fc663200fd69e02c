"""How thinking scales over engines: simulated on recorded lengths, on a virtual clock.

    python benchmarks/many_engines.py FOLDER
    python benchmarks/many_engines.py FOLDER --engines 1 8 64 --questions 2000 --policy settle

FOLDER holds recorded answers as JSON lines, with the tokens of each. Every question is drawn from
them, and so are its traces, without replacement. An engine runs 64 traces at once, each a token per
tick; the first trace of a question on an engine waits for its prompt, later ones find it in the
cache. The policies are the real ones.

Three ways to share the work: whole questions to an engine, which takes as many at once as
`conviction eval` gives it, or twice as many; or traces of as many questions as the first way has at
once, each to the least busy engine. Prints
a Markdown table, and with --figures FOLDER draws it.
"""

import argparse
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from many_pools import pools

from conviction.core import FinishReason, Trace
from conviction.lab.replay import PlayedTrace
from conviction.policies import policy
from conviction.policies.base import Action, Conditions, Done, Forget, Policy, Start

NOTHING = np.empty(0, np.float32)
WHOLE, MORE, SPREAD = "whole questions", "twice as many at once", "traces anywhere"


@dataclass(eq=False)
class Asked:
    """A question while it is played."""

    policy: Policy
    traces: Sequence[PlayedTrace]
    began: float
    home: int | None
    waiting: int = 0
    started: int = 0
    over: bool = False
    queued: bool = False
    running: dict[int, tuple[int, float]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)

    def act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start(count):
                    self.waiting += count
                case Forget():
                    self.waiting = 0
                case Done():
                    self.waiting, self.over = 0, True
                case _:
                    raise TypeError(f"a recording cannot {action}")


@dataclass
class Played:
    """What came of a simulation; times in ticks."""

    makespan: float = 0.0
    busy: float = 0.0
    tokens: int = 0
    traces: int = 0
    prompts: int = 0
    tail: float = 0.0
    verdicts: list[float] = field(default_factory=list)


class Cluster:
    """Engines and the questions that they think about."""

    def __init__(
        self,
        prototype: Policy,
        draws: Iterator[Sequence[PlayedTrace]],
        *,
        engines: int,
        slots: int,
        prefill: float,
        way: str,
    ) -> None:
        spread = way == SPREAD
        self.prototype, self.draws, self.spread, self.prefill = prototype, draws, spread, prefill
        self.at = Conditions(slots, 1 << 20, 0)
        first = sum(one.count for one in prototype.fresh().begin(self.at) if isinstance(one, Start))
        self.each = (ceil(slots / max(first, 1)) + 1) * (2 if way == MORE else 1)
        self.free = [slots] * engines
        self.queues = [deque[Asked]() for _ in range(1 if spread else engines)]
        # The least busy first, where traces go anywhere; entries of the past stay behind.
        self.idle = [(0, engine) for engine in range(engines)]
        self.slots = slots
        self.ends: list[tuple[float, int, Asked, int]] = []
        self.now, self.begun, self.last = 0.0, 0, 0.0
        self.played = Played()

    def play(self) -> Played:
        for number in range(self.each * len(self.free)):
            self.next_question(number % len(self.free))
        while self.ends:
            end, _, asked, trace = heappop(self.ends)
            if trace in asked.running:
                self.now = end
                self.conclude(asked, trace)
        self.played.makespan = self.now
        self.played.tail = self.now - self.last
        return self.played

    def next_question(self, engine: int) -> None:
        traces = next(self.draws, None)
        if traces is None:
            return
        asked = Asked(self.prototype.fresh(), traces, self.now, None if self.spread else engine)
        self.last = self.now
        asked.act(asked.policy.begin(self.at))
        self.line_up(asked)

    def line_up(self, asked: Asked) -> None:
        queue = self.queues[asked.home or 0]
        if asked.waiting and not asked.queued:
            asked.queued = True
            queue.append(asked)
        self.fill(queue, asked.home)

    def fill(self, queue: deque[Asked], home: int | None) -> None:
        """Let traces begin in order of asking, as long as there is a slot."""
        while queue:
            asked = queue[0]
            if not asked.waiting:
                queue.popleft().queued = False
                continue
            engine = self.room(home)
            if engine is None:
                return
            self.start(asked, engine)

    def room(self, home: int | None) -> int | None:
        if home is not None:
            return home if self.free[home] else None
        while self.idle:
            busy, engine = self.idle[0]
            if busy == self.slots - self.free[engine] and busy < self.slots:
                return engine
            heappop(self.idle)
        return None

    def take(self, engine: int, slots: int) -> None:
        self.free[engine] -= slots
        if self.spread:
            heappush(self.idle, (self.slots - self.free[engine], engine))

    def start(self, asked: Asked, engine: int) -> None:
        asked.waiting -= 1
        trace = asked.started
        asked.started += 1
        prompt = 0.0 if engine in asked.seen else self.prefill
        asked.seen.add(engine)
        self.take(engine, 1)
        asked.running[trace] = engine, self.now + prompt
        self.begun += 1
        self.played.traces += 1
        self.played.prompts += prompt > 0
        end = self.now + prompt + asked.traces[trace].tokens
        heappush(self.ends, (end, self.begun, asked, trace))

    def release(self, asked: Asked, trace: int) -> int:
        """Free the slot of a trace; its tokens."""
        engine, began = asked.running.pop(trace)
        tokens = max(0, int(self.now - began + 1e-9))
        self.played.busy += max(0.0, self.now - began)
        self.played.tokens += tokens
        self.take(engine, -1)
        return tokens

    def conclude(self, asked: Asked, trace: int) -> None:
        tokens = self.release(asked, trace)
        recorded = asked.traces[trace]
        ended = Trace(trace, FinishReason.STOP, tokens, confidences=NOTHING, answer=recorded.answer)
        asked.act(asked.policy.on_finished(ended))
        if asked.over:
            for left in list(asked.running):
                self.release(asked, left)
        if not asked.running and not asked.waiting:
            self.played.verdicts.append(self.now - asked.began)
            self.next_question(asked.home or 0)
        self.line_up(asked)


def drawn(
    questions: Sequence[Sequence[PlayedTrace]], count: int, budget: int, seed: int
) -> Iterator[Sequence[PlayedTrace]]:
    """So many questions drawn with their traces; the same for the same seed."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        traces = questions[random.integers(len(questions))]
        yield [traces[i] for i in random.permutation(len(traces))[:budget].tolist()]


def row(engines: int, slots: int, played: Played, speed: float, questions: int) -> dict[str, Any]:
    """Figures of one simulation, in seconds and shares."""
    verdicts = np.array(played.verdicts)
    room = engines * slots * played.makespan
    return {
        "engines": engines,
        "hours": played.makespan / speed / 3600,
        "questions an hour": questions / (played.makespan / speed / 3600),
        "p50": float(np.percentile(verdicts, 50)) / speed,
        "p99": float(np.percentile(verdicts, 99)) / speed,
        "idle": 1 - played.busy / room,
        "tail": played.tail / played.makespan,
        "prompts": played.prompts / questions,
        "traces": played.traces / questions,
        "tokens": played.tokens / questions,
    }


HEAD = (
    "| policy | shared by | engines | questions an hour | against one engine | p50 s | p99 s | "
    "idle | after the last began | prompts a question |"
)


def line(name: str, way: str, found: dict[str, Any], one: float) -> str:
    gain = found["questions an hour"] / one
    return (
        f"| `{name}` | {way} | {found['engines']} | {found['questions an hour']:,.0f} | "
        f"{gain:.1f} | {found['p50']:,.0f} | {found['p99']:,.0f} | {found['idle']:.1%} | "
        f"{found['tail']:.1%} | {found['prompts']:.1f} |"
    )


def figure(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw what the table says; light and dark alike."""
    import altair as alt  # noqa: PLC0415  # only where figures are wanted
    import vl_convert  # noqa: PLC0415

    def panel(values: str, title: str, scale: str, pattern: str) -> Any:
        base = alt.Chart(alt.Data(values=list(rows))).encode(
            x=alt.X("engines:O", title="engines", axis=alt.Axis(labelAngle=0)),
            y=alt.Y(f"{values}:Q", title=title, scale=alt.Scale(type=scale)).axis(format=pattern),
            color=alt.Color("policy:N", title="policy"),
        )
        # Lines of their own: in a legend of lines with points the dashes are lost.
        lines = base.mark_line().encode(
            strokeDash=alt.StrokeDash(
                "way:N",
                title="shared by",
                scale=alt.Scale(domain=[WHOLE, MORE, SPREAD], range=[[1, 0], [6, 3], [2, 2]]),
                legend=alt.Legend(symbolType="stroke", symbolSize=900),
            )
        )
        points = base.mark_point(filled=True, opacity=1).encode(detail="way:N")
        return (lines + points).properties(width=250, height=200)

    chart = alt.hconcat(
        panel("per_engine", "questions an hour and engine", "linear", ",.0f"),
        panel("idle", "idle share of all slots", "linear", "%"),
        panel("p99", "p99 time to verdict, s", "log", ",.0f"),
    ).configure(background="white")
    folder.mkdir(parents=True, exist_ok=True)
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    (folder / "past-one-machine.svg").write_text(svg, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--policy", nargs="+", default=["majority", "settle"])
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--prefill", type=float, default=20.0, help="ticks that a prompt takes")
    parser.add_argument("--speed", type=float, default=40.0, help="tokens a second of one trace")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path)
    given = parser.parse_args()
    questions: list[Sequence[PlayedTrace]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for _, source in pools(given.folder, Path(temporary)):
            questions += [source.traces(one) for one in source.question_ids]
    questions = [traces for traces in questions if len(traces) >= given.budget]
    lengths = np.array([trace.tokens for traces in questions for trace in traces])
    print(
        f"{len(questions)} recorded questions; tokens of a trace: mean {lengths.mean():,.0f}, "
        f"median {np.median(lengths):,.0f}, 99th percentile {np.percentile(lengths, 99):,.0f}.\n"
    )
    print(HEAD + "\n|" + " --- |" * (HEAD.count("|") - 1))
    drawn_rows: list[dict[str, Any]] = []
    for name in given.policy:
        prototype = policy(name, budget=given.budget)
        for way in (WHOLE, MORE, SPREAD):
            one: float | None = None
            for engines in given.engines:
                cluster = Cluster(
                    prototype,
                    drawn(questions, given.questions, given.budget, given.seed),
                    engines=engines,
                    slots=given.slots,
                    prefill=given.prefill,
                    way=way,
                )
                found = row(engines, given.slots, cluster.play(), given.speed, given.questions)
                rate = found["questions an hour"]
                one = one or rate / engines
                print(line(name, way, found, one), flush=True)
                per_engine = rate / engines
                drawn_rows.append({**found, "policy": name, "way": way, "per_engine": per_engine})
    if given.figures:
        figure(drawn_rows, given.figures)


if __name__ == "__main__":
    main()
