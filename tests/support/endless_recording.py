"""Records made-up traces until it is ended, and reads them.

python endless_recording.py FILE
"""

import sys
import time
from itertools import count

from recorded import META, made_up

from conviction.lab.sources import TraceSource
from conviction.recordings import PoolWriter

QUESTIONS = ("a", "b", "c", "d")


def main() -> None:
    """Append, in turns to every question, as fast as somebody else can read along."""
    with PoolWriter(sys.argv[1], META) as writer:
        for number in count():
            for question in QUESTIONS:
                writer.append(made_up(question, number, tokens=1 + number % 50))
                time.sleep(0.002)


def everything(source: TraceSource, question_id: str) -> list[tuple[object, ...]]:
    """All that is read of a question, slowly enough that meanwhile more is recorded."""
    time.sleep(0.2)
    found: list[tuple[object, ...]] = []
    for trace in source.traces(question_id):
        assert trace.confidences is not None
        values = trace.confidences.tobytes()
        found.append((trace.tokens, trace.answer, trace.correct, trace.finish, values))
    return found


if __name__ == "__main__":
    main()
