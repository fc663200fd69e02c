"""The contract of an answer kind: find an answer in text, and tell equal answers apart."""

from abc import ABC, abstractmethod
from typing import ClassVar


class AnswerKind(ABC):
    """One kind of answer (a number, a choice, …).

    Canonical forms decide first, on the event loop: extracting and canonicalising take well under
    a millisecond, are pure, and are cached by the caller. `equivalent` may wait; it is asked in
    another thread, and only about pairs of different canonical forms that `decided` leaves open.
    """

    name: ClassVar[str]

    @abstractmethod
    def extract(self, text: str) -> str | None:
        """The last answer in a finished trace's text; None if there is none. Never raises."""

    @abstractmethod
    def canonical(self, answer: str) -> str:
        """A normal form: equal forms mean equal answers. Never raises, never empty."""

    def decided(self, first: str, second: str) -> bool:
        """Whether two different canonical forms are certainly different answers."""
        del first, second
        return True

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two canonical forms that are not `decided` mean the same; may take a while."""
        del first, second
        return False

    @property
    def limits(self) -> tuple[str, ...]:
        """What it could not do so far, in sentences for the reader of a verdict."""
        return ()

    def close(self) -> None:
        """End helper processes, if there are any. The kind can be used again afterwards."""
