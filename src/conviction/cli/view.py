"""What a terminal shows while traces grow: a live table."""

from collections import deque
from dataclasses import dataclass, field
from typing import Self, TypedDict

import numpy as np
from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conviction.cli.progress import STATES
from conviction.confidence import Floats, GroupWindow
from conviction.core import Trace
from conviction.display import one_line, safe
from conviction.events import (
    Event,
    RunFinished,
    RunStarted,
    TraceAdvanced,
    TraceFinished,
    TraceRestarted,
    TraceStarted,
)
from conviction.policies.base import Standing
from conviction.verdict import lead_in_words
from conviction.voting import lead_of


class _Layout(TypedDict):
    no_wrap: bool
    overflow: OverflowMethod


_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 32
_SMOOTHING = 8
"""Tokens in a group of the picture until the policy has chosen its window."""

_LEADERS = 3
"""Answers whose votes are drawn."""

_WIDE = 80
"""Columns from which a trace's state is told in full."""

_WIDEST = 110
"""Columns from which the vote also tells how safe the lead is."""

_ONE_LINE: _Layout = {"no_wrap": True, "overflow": "ellipsis"}


class Curve:
    """A trace's group confidence over its whole life, in at most `_POINTS` points."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._groups = GroupWindow(window)
        self._points: list[float] = []
        self._stride = 1
        self._since = 0

    def push(self, confidences: Floats) -> None:
        """Take the next tokens."""
        for position in range(confidences.size):
            self._groups.push(confidences[position : position + 1])
            self._since += 1
            if self._since >= self._stride:
                self._since = 0
                self._points.append(self._groups.current)
        if len(self._points) > _POINTS:
            # Halve the resolution rather than forget the beginning.
            self._points = self._points[1::2]
            self._stride *= 2

    def draw(self, low: float, high: float, width: int = _POINTS) -> str:
        """The curve as a line of at most `width` bars between two confidences."""
        span = max(high - low, 1e-9)
        top = len(_BARS) - 1
        known = [point for point in self._points if np.isfinite(point)]
        return "".join(
            _BARS[min(max(int((point - low) / span * top + 0.5), 0), top)]
            for point in known[:: -(-len(known) // width) or 1]
        )

    @property
    def extent(self) -> tuple[float, float]:
        """Lowest and highest point; (inf, -inf) without any."""
        known = [point for point in self._points if np.isfinite(point)]
        return min(known, default=np.inf), max(known, default=-np.inf)


@dataclass
class _TraceRow:
    trace: int
    curve: Curve
    tokens: int = 0
    ended: Trace | None = None


@dataclass
class _State:
    """All that the view has heard so far."""

    started: RunStarted | None = None
    rows: dict[int, _TraceRow] = field(default_factory=dict[int, _TraceRow])
    standing: Standing | None = None
    tokens: int = 0
    complete: deque[int] = field(default_factory=lambda: deque[int](maxlen=256))

    def hear(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.started = event
            case TraceStarted(trace, gate):
                window = gate.window if gate else _SMOOTHING
                self.rows[trace] = _TraceRow(trace, Curve(window))
            case TraceAdvanced(trace, chunk):
                row = self.rows[trace]
                row.curve.push(chunk.confidences)
                row.tokens += chunk.confidences.size
                self.tokens += chunk.confidences.size
            case TraceRestarted(trace):
                self.rows[trace] = _TraceRow(trace, Curve(self.rows[trace].curve.window))
            case TraceFinished(trace, standing):
                self.rows[trace.id].ended = trace
                self.standing = standing
                if trace.complete and trace.continues is None:
                    self.complete.append(trace.tokens)
            case RunFinished():
                pass

    @property
    def full_budget(self) -> int | None:
        """Estimate of the tokens that the whole budget would take without stopping."""
        if self.started is None or not self.complete:
            return None
        return round(self.started.budget * sum(self.complete) / len(self.complete))


class LiveView:
    """A table that moves: a line per trace, the vote, and the tokens. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = _State()
        self._live = Live(
            console=console,
            get_renderable=self.picture,
            refresh_per_second=8,
            transient=False,
            vertical_overflow="crop",
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Draw once more and stop."""
        self._live.stop()

    def on_event(self, event: Event) -> None:
        """Take note; drawing happens at its own pace."""
        self._state.hear(event)

    def picture(self) -> RenderableType:
        """What is to be seen now."""
        if self._state.started is None:
            return Text("starting the engine …", style="dim")
        return Group(self._header(), self._traces(), self._vote(), self._cost())

    def _header(self) -> Text:
        state = self._state
        assert state.started is not None  # noqa: S101  # picture() has looked
        started, standing = state.started, state.standing
        text = Text.assemble(
            (str(started.policy["name"]), "bold"), f" · budget {started.budget}", **_ONE_LINE
        )
        if standing and standing.window:
            text.append(f" · window {standing.window}")
        if standing and standing.threshold is not None:
            text.append(f" · threshold {standing.threshold:.2f}", style="red")
        return text.append(f" · {safe(started.engine)}", style="dim")

    def _traces(self) -> Table:
        rows = list(self._state.rows.values())
        # Besides the rows: header, headings, the line of hidden rows, the vote, the cost, and
        # one line for the cursor. A taller picture would scroll, and no longer move in place.
        hidden = len(rows) - max(self._console.height - 5 - self._vote_lines(), 1)
        narrow = self._console.width < _WIDE
        width = min(_POINTS, max(8, self._console.width - (34 if narrow else 58)))
        if hidden > 0:
            # Traces that still run are what people watch; of the others the latest are kept.
            rows = sorted(rows, key=lambda row: (row.ended is None, row.trace))[hidden:]
            rows.sort(key=lambda row: row.trace)
        table = Table(box=None, padding=(0, 1), show_edge=False, header_style="dim")
        table.add_column("trace", justify="right")
        table.add_column("group confidence"[:width], width=width, no_wrap=True)
        table.add_column("tokens", justify="right")
        table.add_column("state", no_wrap=True)
        table.add_column("answer", no_wrap=True, overflow="ellipsis", max_width=24)
        low, high = self._extent()
        votes = self._state.standing.tally.voters if self._state.standing else frozenset[int]()
        for row in rows:
            word, style = STATES[row.ended.finish] if row.ended else ("thinking", "cyan")
            answer = one_line(row.ended.answer.text) if row.ended and row.ended.answer else ""
            table.add_row(
                str(row.trace),
                Text(row.curve.draw(low, high, width), style=style),
                str(row.tokens),
                Text(word.partition(":")[0] if narrow else word, style=style),
                Text(answer, style="bold" if row.trace in votes else "dim"),
            )
        if hidden > 0:
            table.add_row("", Text(f"… and {hidden} more", style="dim"))
        return table

    def _extent(self) -> tuple[float, float]:
        extents = [row.curve.extent for row in self._state.rows.values()]
        low = min((extent[0] for extent in extents), default=0.0)
        high = max((extent[1] for extent in extents), default=1.0)
        return low, high

    def _vote(self) -> RenderableType:
        standing = self._state.standing
        if standing is None or standing.tally.leader is None:
            return Text("no votes yet", style="dim")
        table = Table(box=None, padding=(0, 1), show_header=False, show_edge=False)
        lead = lead_of(standing.tally) if self._console.width >= _WIDEST else None
        for place, entry in enumerate(standing.tally.entries[:_LEADERS]):
            part = entry.weight / standing.tally.total if standing.tally.total else 0.0
            safety = lead_in_words(lead) if lead is not None and not place else ""
            table.add_row(
                Text(one_line(entry.text), style="bold", **_ONE_LINE),
                Text("█" * max(round(part * 16), 1), style="green", **_ONE_LINE),
                f"{part:.0%}",
                f"{entry.count} vote{'s' if entry.count != 1 else ''}",
                Text(safety, style="dim", **_ONE_LINE),
            )
        others = len(standing.tally.entries) - _LEADERS
        if others > 0:
            table.add_row(Text(f"{others} more", style="dim"))
        return table

    def _vote_lines(self) -> int:
        standing = self._state.standing
        return max(1, min(len(standing.tally.entries), _LEADERS + 1)) if standing else 1

    def _cost(self) -> Text:
        full = self._state.full_budget
        spent = f"{self._state.tokens:,} tokens"
        of = f" of about {full:,} for the full budget" if full else ""
        return Text(f"{spent}{of}", "dim", **_ONE_LINE)
