"""A made-up vLLM with the gate loaded: it stops traces, and writes into channels as workers do."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from played_model import PlayedModel

from conviction.gate import Gate
from conviction_gate.channel import Writer
from conviction_gate.names import REPORT, STOP_TOKEN, THRESHOLD, WINDOW

FITTING = 49151


@dataclass
class GatedModel(PlayedModel):
    """What it does besides; by default all that it should.

    Attributes:
        folder: Where it finds channels; None where it sees none, as on another machine.
        works: Whether its gates stop traces.
        refuses: Why it takes no gate at all; empty if it does.
        gone: Whether it was started anew without its gate.
        traces: Arguments of each gated or measured request.
    """

    folder: Path | None = None
    works: bool = True
    refuses: str = ""
    gone: bool = False
    traces: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    writers: dict[str, Writer] = field(default_factory=dict[str, Writer])

    @staticmethod
    def confidence(place: int) -> float:
        """Of the token at a place, in every trace: ever less sure."""
        return max(0.5, 20.0 - place)

    def _refusal(self, body: dict[str, Any]) -> str:
        arguments = body.get("vllm_xargs", {})
        if self.gone or not arguments:
            return super()._refusal(body)
        if self.refuses:
            return self.refuses
        if WINDOW in arguments and arguments.get(STOP_TOKEN) not in body.get("stop_token_ids", ()):
            return f"The gate cannot take this: {WINDOW} needs {STOP_TOKEN}={FITTING}, and so on."
        self.traces.append(arguments)
        return super()._refusal(body)

    def _length(self, body: dict[str, Any], tokens: int) -> int:
        return self._stop(body, tokens) or tokens

    def _stop(self, body: dict[str, Any], tokens: int) -> int | None:
        arguments = body.get("vllm_xargs", {})
        if self.gone or not self.works or WINDOW not in arguments:
            return None
        confidences = np.array([self.confidence(place) for place in range(tokens)], np.float32)
        gate = Gate(arguments[WINDOW], arguments[THRESHOLD])
        return gate.stop_position(confidences)

    def _report(self, body: dict[str, Any], place: int) -> None:
        name = body.get("vllm_xargs", {}).get(REPORT)
        if name is None or self.folder is None or self.gone:
            return
        with suppress(OSError):
            if name not in self.writers:
                self.writers[name] = Writer(name, self.folder)
            self.writers[name].put(place, self.confidence(place))

    def _end(self, choice: dict[str, Any], body: dict[str, Any], tokens: int) -> None:
        super()._end(choice, body, tokens)
        if self._stop(body, tokens) == tokens:
            said = choice.get("delta") or choice.get("message") or choice
            said["content" if "content" in said else "text"] = ""
            choice |= {"finish_reason": "stop", "stop_reason": body["vllm_xargs"][STOP_TOKEN]}
