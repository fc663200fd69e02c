"""What a run does, in lines for people who wait."""

from conviction.core import FinishReason
from conviction.events import Event, RunStarted, TraceAdvanced, TraceFinished, TraceStarted
from conviction.policies.base import Standing

_STOPPED = (FinishReason.LOW_CONFIDENCE, FinishReason.CANCELLED)
_MOST_SHOWN = 60


class Progress:
    """Hears the driver, and tells where the run stands.

    Attributes:
        tokens: Tokens generated so far.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._budget = 0
        self._policy = ""
        self._begun = 0
        self._ended = 0
        self._stopped = 0
        self._standing: Standing | None = None

    def on_event(self, event: Event) -> None:
        """Hear of an event of the driver."""
        match event:
            case RunStarted():
                self._budget, self._policy = event.budget, str(event.policy.get("name", ""))
            case TraceStarted():
                self._begun += 1
            case TraceAdvanced():
                self.tokens += event.chunk.confidences.size
            case TraceFinished():
                self._ended += 1
                self._stopped += event.trace.finish in _STOPPED
                self._standing = event.standing
            case _:
                pass

    @property
    def milestone(self) -> tuple[int, int]:
        """Changes with everything that is worth a line, tokens apart."""
        return self._begun, self._ended

    @property
    def line(self) -> str:
        """Where the run stands; empty before its first trace."""
        if not self._begun:
            return ""
        counts = f"{self._begun} of up to {self._budget} traces begun, {self._ended} ended"
        if self._stopped:
            counts += f" ({self._stopped} stopped early)"
        parts = [f"{self._policy}: {counts}", *self._lead(), f"{self.tokens:,} tokens"]
        return "; ".join(parts) + "."

    def _lead(self) -> list[str]:
        tally = self._standing.tally if self._standing else None
        if tally is None or tally.leader is None:
            return []
        answer = " ".join(tally.leader.text.split())
        if len(answer) > _MOST_SHOWN:
            answer = answer[: _MOST_SHOWN - 1] + "…"
        return [f"{answer} leads with {tally.share:.0%} of the vote"]
