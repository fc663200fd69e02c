"""`POST /v1/completions`: a prompt that has its template already."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from conviction.server.answering import Reply
from conviction.server.choosing import ask_prompt
from conviction.server.completing import Streamed, answer_at_once
from conviction.server.keys import client_of
from conviction.server.openai_answers import COMPLETION_ANSWERS
from conviction.server.openai_schema import CompletionRequest
from conviction.server.service import Service


class TextShape:
    """How the completion of a prompt is written; there is no place for progress in it."""

    prefix = "cmpl"

    def whole(self, shown: Reply) -> dict[str, Any]:
        """The choice of a whole answer."""
        return _choice(shown.text, finish=shown.finish)

    def first(self) -> dict[str, Any]:
        """An empty piece, at once."""
        return _choice("")

    def thought(self, text: str) -> None:
        """Nothing: only pings tell that it lives."""
        del text

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of the answer."""
        return _choice(text)

    def last(self, shown: Reply) -> dict[str, Any]:
        """Why it ended."""
        return _choice("", finish=shown.finish)


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post("/v1/completions", responses=COMPLETION_ANSWERS, response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Think about a prompt that is sent to the model as it is, vote, and answer."""
        asked = ask_prompt(
            service,
            body.text,
            model=body.model,
            wishes=body.wishes,
            generation=body.generation,
            client=client_of(request),
        )
        if body.stream:
            return Streamed(
                service, asked, TextShape(), "text_completion", with_usage=body.with_usage
            )
        return await answer_at_once(service, asked, request, TextShape(), "text_completion")

    return routes


def _choice(text: str, *, finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
