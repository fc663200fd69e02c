"""Runs to watch on the page: made-up traces whose lines rise, fall and are cut off."""

import threading

import anyio
import numpy as np

from conviction.engines.base import TraceRequest
from conviction.engines.scripted import Script, ScriptedEngine

QUESTION = (
    "A baker makes 12 trays of 15 rolls, sells 9 bags of 14 rolls, and gives away a third of the "
    "rest. How many rolls are left?"
)
QUESTION_IN_KOREAN = (
    "빵집에서 롤빵 15개씩 12판을 굽고, 14개들이 9봉지를 판 다음, 남은 것의 3분의 1을 나누어 "
    "주었습니다. 몇 개가 남았을까요?"
)
_STEPS = (
    "First, the rolls that were made: 12 trays of 15 rolls are 180.",
    "Then those that were sold: 9 bags of 14 rolls are 126.",
    "That leaves 180 - 126 = 54 rolls on the shelf.",
    "A third of them is given away, so two thirds stay.",
    "Let me check this once more from the other side.",
    "If 126 are sold and 54 remain, the sum is 180 again, as it should be.",
)
_DOUBTS = (
    "Hmm, or is the third taken of all the rolls that were baked?",
    "Wait, maybe the bags hold 12 and the trays 15; I am mixing them up.",
    "Not sure; perhaps 180 - 60 - 126 is what is meant.",
)


class Held:
    """Lets traces come to a point of the run, and go on when it is told to.

    Args:
        after: Chunks of all traces before it holds; None never to hold.
        seconds: Before every chunk.

    Attributes:
        released: Set it to let them go on.
        holds: Whether that point was reached.
    """

    def __init__(self, after: int | None = None, seconds: float = 0.0) -> None:
        self.released = threading.Event()
        self.holds = False
        self._after = after
        self._seconds = seconds
        self._chunks = 0

    async def __call__(self, request: TraceRequest) -> None:
        del request
        self._chunks += 1
        await anyio.sleep(self._seconds)
        while self._after is not None and self._chunks > self._after:
            if self.released.is_set():
                return
            self.holds = True
            await anyio.sleep(0.005)


def engine(
    held: Held | None = None, *, concurrency: int = 16, chunk_tokens: int | None = None
) -> ScriptedEngine:
    """Sixteen traces, of which ten agree; in large pieces where nobody watches them come."""
    chunk_tokens = chunk_tokens or (4 if held else 8)
    scripts = [_script(number) for number in range(16)]
    return ScriptedEngine(
        scripts, concurrency=concurrency, chunk_tokens=chunk_tokens, pace=held or Held()
    )


def _script(number: int) -> Script:
    draw = np.random.default_rng(number + 3)
    weak = number in (4, 7, 9, 12, 14)
    answer = {2: "34", 4: "34", 7: "18", 9: "54", 12: "34", 14: "40"}.get(number, "36")
    sentences, sure = [], []
    for step in range(int(draw.integers(14, 30))):
        doubts = draw.random() < (0.5 if weak else 0.08) and step > 3
        sentences.append(str(draw.choice(_DOUBTS if doubts else _STEPS)))
        sure += [0.62 if doubts else 1.0] * (len(sentences[-1]) // 4)
    text = " ".join(sentences) + f"\n\nThe answer is \\boxed{{{answer}}}."
    shape = np.array(sure)
    drift = np.linspace(
        0.0,
        draw.uniform(-3.5, -2.0) if weak else draw.uniform(0.5, 3.0) + (number == 2),
        shape.size,
    )
    noise = draw.gamma(2.0, 1.0, shape.size) + np.cumsum(draw.normal(0.0, 0.12, shape.size))
    values = np.clip((10.0 + drift + noise) * shape, 0.5, 24.0)
    return Script(text, values.astype(np.float32), prompt_tokens=40)
