"""A made-up server of completions that generates nonsense, with the manners of real ones."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from completion_events import json_answer
from scripted_server import Peer, Received, Step, chunk, chunked, complete

_ORIGINAL = {"model", "messages", "prompt", "stream", "seed", "temperature", "top_p", "logprobs"}
_METRICS = {
    "vllm": ('vllm:num_requests_running{engine="0"}', 'vllm:generation_tokens_total{engine="0"}'),
    "llamacpp": ("llamacpp:requests_processing", "llamacpp:tokens_predicted_total"),
}


@dataclass
class PlayedModel:
    """What it does, each setting as in a common server; by default as vLLM does.

    Attributes:
        software: Who it says it is, and whose metrics it has; "" for none.
        most_top_k: Log-probabilities a token that it gives.
        beyond: What it does when asked for more: "refuse", or "give" what it has.
        fields: Fields that it knows besides those of the original protocol; None for any.
        processed: Whether log-probabilities change with the temperature.
        seeded: When seeds count: "always", "alone" (without other traces beside) or "never".
        counts: Where its events carry counts if asked to.
        token_ids: Whether it names candidates by number if asked to.
        ends_after: Tokens after which its traces end by themselves.
        holds_back: Whether it sends streams only once they are complete; or how many of the first.
        goes_on: Whether it goes on generating for those who have left.
        continues: Whether it goes on with a begun message if asked to, or closes it.
        listed: Its models; None for no such list.
    """

    software: str = "vllm"
    most_top_k: int = 20
    beyond: str = "refuse"
    fields: set[str] | None = None
    processed: bool = False
    seeded: str = "always"
    counts: str = "usage"
    token_ids: bool = True
    ends_after: int = 10_000
    holds_back: bool | int = False
    goes_on: bool = False
    continues: bool = True
    listed: list[dict[str, Any]] | None = field(
        default_factory=lambda: [{"id": "m", "owned_by": "vllm", "max_model_len": 2048}]
    )
    running: int = 0
    generated: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    draws: int = 0
    streams: int = 0

    def play(self, received: Received) -> Sequence[Step]:
        if received.path.endswith("/models"):
            if self.listed is None:
                return [json_answer({"detail": "Not Found"}, "404 Not Found")]
            return [json_answer({"data": self.listed})]
        if received.path == "/metrics":
            return [self._metrics()]
        self.asked.append(received.body)
        if refusal := self._refusal(received.body):
            return [json_answer({"error": {"message": refusal}}, "400 Bad Request")]
        return [self._generation(received)]

    def _metrics(self) -> bytes:
        if not self.software:
            return json_answer({}, "404 Not Found")
        running, generated = _METRICS[self.software]
        page = f"# TYPE x gauge\n{running} {self.running}\n{generated} {self.generated:.1f}\n"
        return complete(page.encode(), "text/plain")

    def _refusal(self, body: dict[str, Any]) -> str:
        if self.fields is not None:
            options = set(body.get("stream_options", ())) - {"include_usage"}
            unknown = {*body, *options} - _ORIGINAL - self.fields - {"stream_options"}
            if unknown:
                return f"Unsupported parameter: {min(unknown)}"
        if self._wanted(body) > self.most_top_k and self.beyond == "refuse":
            return f"top_logprobs must be at most {self.most_top_k}"
        return ""

    @staticmethod
    def _wanted(body: dict[str, Any]) -> int:
        return body.get("top_logprobs") or (
            0 if body.get("logprobs") is True else body.get("logprobs", 0)
        )

    def _generation(self, received: Received) -> Step:
        body = received.body
        chat = received.path.endswith("/chat/completions")
        limit = body.get("max_tokens", body.get("max_completion_tokens"))
        self.draws += 1
        unseeded = 1000 + self.draws

        async def generate(peer: Peer) -> None:
            self.running += 1
            await asyncio.sleep(0.001)
            draw = body["seed"]
            if self.seeded == "never" or (self.seeded == "alone" and self.running > 1):
                draw = unseeded
            tokens = self._length(body, min(limit, self.ends_after))
            try:
                if body["stream"]:
                    await self._stream(peer, body, draw, tokens, chat=chat)
                else:
                    self.generated += tokens
                    for place in range(tokens):
                        self._report(body, place)
                    words = [f"{draw}.{place} " for place in range(tokens)]
                    choice = self._choice(
                        "".join(words), self._logprobs(words, body, chat=chat), chat=chat
                    )
                    self._end(choice, body, tokens)
                    peer[1].write(json_answer({"choices": [choice]}))
            finally:
                self.running -= 1

        return generate

    async def _stream(
        self, peer: Peer, body: dict[str, Any], draw: int, tokens: int, *, chat: bool
    ) -> None:
        writer = peer[1]
        sent = [chunked()]
        held = self.holds_back is True or self.streams < self.holds_back
        self.streams += 1
        for place in range(tokens):
            self.generated += 1
            self._report(body, place)
            word = f"{draw}.{place} "
            choice = self._choice(
                word, self._logprobs([word], body, chat=chat), chat=chat, delta=True
            )
            if place == tokens - 1:
                self._end(choice, body, tokens)
            event = {"choices": [choice], **self._count(body, place + 1)}
            sent.append(chunk(b"data: " + json.dumps(event).encode() + b"\n\n"))
            if not held:
                try:
                    writer.write(b"".join(sent))
                    await writer.drain()
                except OSError:
                    if not self.goes_on:
                        raise
                sent.clear()
            await asyncio.sleep(0.001)
        usage = {"prompt_tokens": self._prompt_tokens(body), "completion_tokens": tokens}
        last = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        writer.write(b"".join([*sent, chunk(last), chunk(b"data: [DONE]\n\n"), chunk(b"")]))

    def _length(self, body: dict[str, Any], tokens: int) -> int:  # noqa: ARG002  # for others
        """Tokens of a trace that would have so many."""
        return tokens

    def _report(self, body: dict[str, Any], place: int) -> None:
        """A token has been generated."""

    def _end(self, choice: dict[str, Any], body: dict[str, Any], tokens: int) -> None:  # noqa: ARG002
        """Say why a trace ended after so many tokens."""
        choice["finish_reason"] = "stop" if tokens == self.ends_after else "length"

    def _prompt_tokens(self, body: dict[str, Any]) -> int:
        """A token for each word, and five around each message, the one to come among them."""
        messages = body.get("messages", [{"content": body.get("prompt", "")}])
        words = sum(len(message["content"].split()) for message in messages)
        going_on = self.continues and body.get("continue_final_message", False)
        return words + 5 * (len(messages) + (not going_on))

    def _count(self, body: dict[str, Any], tokens: int) -> dict[str, Any]:
        if self.counts == "usage" and body["stream_options"].get("continuous_usage_stats"):
            return {"usage": {"completion_tokens": tokens}}
        if self.counts == "timings" and body.get("timings_per_token"):
            return {"timings": {"predicted_n": tokens}}
        return {}

    def _choice(
        self, text: str, logprobs: object, *, chat: bool, delta: bool = False
    ) -> dict[str, Any]:
        words = {"delta" if delta else "message": {"content": text}} if chat else {"text": text}
        return {"index": 0, **words, "logprobs": logprobs, "finish_reason": None}

    def _logprobs(self, words: list[str], body: dict[str, Any], *, chat: bool) -> object:
        k = min(self._wanted(body), self.most_top_k)
        if not k:
            return None
        scale = body["temperature"] if self.processed else 1.0
        numbered = self.token_ids and body.get("return_tokens_as_token_ids")
        names = [f"token_id:{rank}" if numbered else f"t{rank}" for rank in range(k)]
        values = [-(0.1 + rank) / scale for rank in range(k)]
        if chat:
            place = [{"token": n, "logprob": v} for n, v in zip(names, values, strict=True)]
            return {"content": [{"token": word, "top_logprobs": place} for word in words]}
        mapping = dict(zip(names, values, strict=True))
        return {"tokens": words, "top_logprobs": [mapping] * len(words)}
