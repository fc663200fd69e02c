"""Server-sent events, as far as completions need them: the data of each event.

Works on bytes and leaves decoding to the JSON parser: a third of the cost of decoding text and
splitting it into lines first, and a character cut in two between reads needs no thought.

Source: the event stream format of the HTML standard, section 9.2. Names, ids and retry times
of events are skipped, as no server of completions gives them a meaning.
"""

from conviction.errors import StreamError

MOST_EVENT_BYTES = 1 << 24
"""A longer event is a fault: the largest honest ones have some hundred kilobytes."""


class EventParser:
    """Takes a stream of bytes in pieces of any size, and gives the data of complete events.

    Args:
        most_bytes: The most bytes that one event may have.
    """

    def __init__(self, most_bytes: int = MOST_EVENT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._carriage_return = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes, in order.

        Raises:
            StreamError: an event is larger than allowed.
        """
        if self._carriage_return:
            piece, self._carriage_return = b"\r" + piece, False
        if b"\r" in piece:
            if piece.endswith(b"\r"):
                # Perhaps half of a line end: the next piece tells.
                piece, self._carriage_return = piece[:-1], True
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = piece.split(b"\n")
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        self._line += rest
        events = self._read(lines)
        self._check_size()
        return events

    def finish(self) -> list[bytes]:
        """What the end of the stream completes; some servers leave out the last empty line."""
        lines = [bytes(self._line), b""]
        self._line.clear()
        return self._read(lines)

    def _read(self, lines: list[bytes]) -> list[bytes]:
        """The data of the events that whole lines complete."""
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._data_bytes += len(line)
            elif not line and data:
                events.append(b"\n".join(data))
                data.clear()
                self._data_bytes = 0
        return events

    def _check_size(self) -> None:
        if len(self._line) + self._data_bytes > self._most_bytes:
            raise StreamError(
                tried="read the server's stream",
                found=f"one event has more than {self._most_bytes:,} bytes",
                remedy="Check that the address is that of a server of completions.",
            )
