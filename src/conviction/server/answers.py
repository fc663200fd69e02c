"""Answers in OpenAI's formats, from verdicts: the text, why it ended, the tokens, the verdict."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from conviction.core import FinishReason, Trace
from conviction.errors import NothingGeneratedError
from conviction.server.settings import Content
from conviction.verdict import Verdict

_THOUGHT = re.compile(r"\A\s*<think>(.*?)(?:</think>\s*|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """What a client gets for a verdict.

    Attributes:
        text: What the message holds.
        reasoning: The reasoning of the shown trace, where its model marks it.
        finish: "stop", or "length" if the shown trace was cut.
        content: What the text is: a trace's, or the answer alone.
        trace: Id of the trace that is shown.
    """

    verdict: Verdict
    text: str
    reasoning: str
    finish: Literal["stop", "length"]
    content: Content
    trace: int

    @classmethod
    def of(cls, verdict: Verdict, content: Content) -> "ServedAnswer":
        """The answer for a verdict; NothingGeneratedError if there is not one token.

        It shows the most confident of the traces that voted for the answer; without an answer the
        most confident of those that are whole and have any text, else the longest. `content` is
        what the message is to hold; without an answer, it is a trace's text.
        """
        shown = verdict.best_trace or _without_answer(verdict.traces)
        if shown is None or not verdict.usage.generated:
            raise NothingGeneratedError(
                tried=f"answer with {len(verdict.traces)} traces",
                causes=[f"not one token had come when the run ended ({verdict.ended})"],
                remedy="Ask again, or allow more time.",
                ended=verdict.ended,
            )
        # The text after a prompt is given as it is, white space too.
        templated = verdict.question.templated
        reasoning, text = ("", shown.text) if templated else _split_reasoning(shown.text)
        finish = "stop" if shown.finish is FinishReason.STOP else "length"
        if content == "answer" and verdict.answer is not None:
            return cls(verdict, verdict.answer, reasoning, finish, "answer", shown.id)
        return cls(verdict, text, reasoning, finish, "trace", shown.id)

    def usage(self) -> dict[str, Any]:
        """All tokens of all traces, in OpenAI's format; those not shown count as reasoning."""
        tokens = self.verdict.usage
        visible = sum(trace.tokens for trace in self.verdict.traces if trace.id == self.trace)
        hidden = tokens.generated - (visible if self.content == "trace" else 0)
        return {
            "prompt_tokens": tokens.prompt,
            "completion_tokens": tokens.generated,
            "total_tokens": tokens.prompt + tokens.generated,
            "prompt_tokens_details": {"cached_tokens": tokens.cached_prompt},
            "completion_tokens_details": {
                "reasoning_tokens": hidden,
                "voted_tokens": tokens.voted,
                "unvoted_tokens": tokens.unvoted,
                "stopped_tokens": tokens.stopped,
                "cancelled_tokens": tokens.cancelled,
                "failed_tokens": tokens.failed,
            },
        }

    def conviction(self, run: str) -> dict[str, Any]:
        """The `conviction` object of an answer: the verdict without the texts of its traces."""
        verdict = self.verdict
        # Without the traces, which take longer than all else together.
        whole = replace(verdict, traces=()).to_dict()
        kept = (
            "schema_version", "answer", "share", "lead", "tied", "tally", "ended", "policy",
            "budget", "threshold", "window", "top_k", "usage", "seconds", "engine", "seed",
        )  # fmt: skip
        warnings = list(verdict.warnings)
        if verdict.answer is None:
            warnings.append("No answer was found to vote on; the text of one trace is shown.")
        return {
            "run": run,
            "content": self.content,
            "trace": self.trace,
            **{name: whole[name] for name in kept},
            "warnings": warnings,
            "traces": {str(reason): count for reason, count in verdict.finishes().items()},
        }


Fields = dict[str, Any]


@dataclass(frozen=True)
class CompletionFormat:
    """How OpenAI writes one kind of completion.

    `whole` and `chunk` name a whole answer and an event of a stream. `first` and `last` are fields
    of the choice: in a stream's first event, and in the one with the finish reason. `message`,
    `piece` and `reasoning` give those of a whole answer, of a piece of it, and of reasoning or
    progress. Where `reasoning` is None, there is no field for it, and only pings show progress.
    """

    id_prefix: str
    whole: str
    chunk: str
    first: Fields
    last: Fields
    message: Callable[[ServedAnswer], Fields]
    piece: Callable[[str], Fields]
    reasoning: Callable[[str], Fields] | None


def _both_names(reasoning: str) -> Fields:
    """Reasoning by the two names that clients look for."""
    return {"reasoning": reasoning, "reasoning_content": reasoning}


def _message(answer: ServedAnswer) -> Fields:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return {"message": message | (_both_names(answer.reasoning) if answer.reasoning else {})}


CHAT: Final = CompletionFormat(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    first={"delta": {"role": "assistant", "content": ""}},
    last={"delta": {}},
    message=_message,
    piece=lambda text: {"delta": {"content": text}},
    reasoning=lambda text: {"delta": _both_names(text)},
)
TEXT: Final = CompletionFormat(
    "cmpl",
    "text_completion",
    "text_completion",
    first={"text": ""},
    last={"text": ""},
    message=lambda answer: {"text": answer.text},
    piece=lambda text: {"text": text},
    reasoning=None,
)


def choice(fields: Fields, finish: str | None = None) -> Fields:
    """The only choice of an answer or an event."""
    return {"index": 0, **fields, "logprobs": None, "finish_reason": finish}


def _split_reasoning(text: str) -> tuple[str, str]:
    """The reasoning in `<think>` at the beginning of a text, and the rest.

    Some chat templates open the tag themselves, so that only its end is in the text.
    """
    if found := _THOUGHT.match(text):
        return found[1].strip(), text[found.end() :].strip()
    before, end, after = text.partition("</think>")
    return (before.strip(), after.strip()) if end else ("", text.strip())


def _without_answer(traces: Sequence[Trace]) -> Trace | None:
    written = [trace for trace in traces if trace.text.strip()]
    whole = [trace for trace in written if trace.finish is FinishReason.STOP]
    if whole:
        return max(whole, key=_confidence)
    return max(written or traces, key=lambda trace: trace.tokens, default=None)


def _confidence(trace: Trace) -> float:
    known = trace.confidences[np.isfinite(trace.confidences)]
    return float(known.mean(dtype=np.float64)) if known.size else 0.0
