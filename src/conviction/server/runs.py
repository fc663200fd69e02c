"""Every run of the server, by its id."""

from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING

from conviction.events import Event
from conviction.verdict import Verdict

if TYPE_CHECKING:
    from conviction.server.asked import Asked


@dataclass(eq=False)
class Run:
    """One run.

    Attributes:
        asked: What was asked.
        id: Its name, which nobody guesses.
    """

    asked: "Asked"
    id: str = field(default_factory=lambda: token_hex(12))

    def listener(self, event: Event) -> None:
        """Hear of an event of the driver."""

    def finished(self, outcome: Verdict | BaseException) -> None:
        """Hear how it ended: with a verdict, or with an error; `Cancelled` if nobody waits."""


class Runs:
    """The runs that are or were."""

    def begin(self, asked: "Asked") -> Run:
        """A new run."""
        return Run(asked)
