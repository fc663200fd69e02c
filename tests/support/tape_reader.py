"""Reads a tape as the page does, frame by frame."""

from typing import Any

from conviction.server.taped_trace import merged

Frame = dict[str, Any]


class TapeReader:
    """What a page knows after some frames."""

    def __init__(self, *frames: Frame) -> None:
        self.parts: Frame = {}
        self.traces: dict[int, Frame] = {}
        self.number = 0
        for frame in frames:
            self.apply(frame)

    def apply(self, frame: Frame) -> None:
        if frame.get("whole"):
            self.parts, self.traces = {}, {}
        else:
            assert frame["n"] == self.number + 1
        self.number = frame["n"]
        for name in ("gates", "answers", "votes"):
            self.parts.setdefault(name, []).extend(frame.get(name, []))
        for name in ("run", "verdict", "failed", "over"):
            if name in frame:
                assert name not in self.parts
                self.parts[name] = frame[name]
        for told in frame.get("traces", []):
            self._trace(told)

    def _trace(self, told: Frame) -> None:
        trace = self.traces.setdefault(told["id"], {"tokens": 0, "lost": 0})
        if "from" in told:
            trace |= {"from": told["from"], "gated": told["gated"]}
        if "window" in told:
            trace |= {
                "window": told["window"],
                "stride": 1,
                "points": [],
                "times": [],
                "partial": 0,
            }
        for _ in range(told.get("halved", 0)):
            _halve(trace)
        times = trace["times"]
        for point, gap in zip(told.get("points", []), told.get("gaps", []), strict=True):
            trace["points"].append(point)
            times.append((times[-1] if times else trace["from"]) + gap)
        for name in ("partial", "tokens", "lost", "end"):
            if name in told:
                trace[name] = told[name]

    @property
    def whole(self) -> Frame:
        """All of it, to compare."""
        return {"parts": self.parts, "traces": self.traces}


def _halve(trace: Frame) -> None:
    points, partial = trace["points"], trace["partial"]
    pairs = range(0, len(points) - 1, 2)
    trace["points"] = [merged(points[i], points[i + 1], later_counts=i < partial) for i in pairs]
    trace["times"] = [trace["times"][i + 1] for i in pairs]
    trace["partial"] = partial // 2
    trace["stride"] *= 2
