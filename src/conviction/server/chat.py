"""`POST /v1/chat/completions`."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from conviction.core import Message
from conviction.server.answering import Reply
from conviction.server.choosing import ask_chat
from conviction.server.completing import Streamed, answer_at_once
from conviction.server.keys import client_of
from conviction.server.openai_answers import CHAT_ANSWERS
from conviction.server.openai_schema import ChatRequest
from conviction.server.service import Service


class ChatShape:
    """How a chat's completion is written."""

    prefix = "chatcmpl"

    def whole(self, shown: Reply) -> dict[str, Any]:
        """The choice of a whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": shown.text, "refusal": None}
        if shown.reasoning:
            message |= _both(shown.reasoning)
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": shown.finish}

    def first(self) -> dict[str, Any]:
        """The role, at once."""
        return _choice({"role": "assistant", "content": ""})

    def thought(self, text: str) -> dict[str, Any]:
        """Progress as reasoning, under both names that clients look for."""
        return _choice(_both(text))

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of the answer."""
        return _choice({"content": text})

    def last(self, shown: Reply) -> dict[str, Any]:
        """Why it ended."""
        return _choice({}, finish=shown.finish)


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post("/v1/chat/completions", responses=CHAT_ANSWERS, response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Think about a chat many times in parallel, vote, and answer.

        The policy is picked by the model's name (`NAME@policy`), by the `conviction` object, or as
        the server was told. With `stream`, progress comes as reasoning until the answer does.
        """
        asked = ask_chat(
            service,
            [_message(one.role, one.text) for one in body.messages],
            model=body.model,
            wishes=body.wishes,
            generation=body.generation,
            client=client_of(request),
        )
        if body.stream:
            return Streamed(
                service,
                asked,
                ChatShape(),
                "chat.completion.chunk",
                with_usage=body.with_usage,
            )
        return await answer_at_once(service, asked, request, ChatShape(), "chat.completion")

    return routes


def _message(role: str, text: str) -> Message:
    match role:
        case "system" | "developer":
            return Message("system", text)
        case "assistant":
            return Message("assistant", text)
        case _:
            return Message("user", text)


def _choice(delta: dict[str, Any], *, finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _both(text: str) -> dict[str, Any]:
    return {"reasoning": text, "reasoning_content": text}
