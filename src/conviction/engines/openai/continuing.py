"""Whether a server goes on with a message that it is given the beginning of."""

from collections.abc import Callable

from conviction.engines.openai.events import TraceReader
from conviction.engines.openai.http import HttpClient
from conviction.engines.openai.requests import Json, Route
from conviction.engines.openai.sse import EventParser
from conviction.errors import EngineError, EngineUnavailableError

_BEGUN = "one two three"
_BEGINNINGS = ("", _BEGUN, f"{_BEGUN} {_BEGUN}")


async def continues(http: HttpClient, route: Route, body: Callable[[str], Json]) -> bool | None:
    """Whether it goes on with a begun message, told by how its prompts grow.

    The same words add as many tokens the first time as the second, unless the message was closed
    and another one opened: the first time adds the marks of that, too. What the model writes tells
    less: a small one may start over, and a good one may go on with a closed message.

    Args:
        http: Speaks to the server.
        route: Where traces are asked for; plain completions always go on.
        body: The request for one token, streamed, after a given beginning.

    Returns:
        None if the server does not count its prompts' tokens.

    Raises:
        EngineUnavailableError: the server cannot be reached.
    """
    if route is Route.COMPLETIONS:
        return True
    try:
        found = [await _ask(http, route, body(begun)) for begun in _BEGINNINGS]
    except EngineUnavailableError:
        raise
    except EngineError:
        return False
    if any(text.startswith(_BEGUN) for _, text in found[1:]):
        return False  # The beginning came back as if it had been generated.
    none, once, twice = (tokens for tokens, _ in found)
    return once - none == twice - once if 0 < none < once < twice else None


async def _ask(http: HttpClient, route: Route, body: Json) -> tuple[int, str]:
    """Tokens of the prompt, 0 where they are not told, and what was generated."""
    reader, parser = TraceReader(top_k=0), EventParser()
    stream = await http.stream(route, body)
    text = ""
    try:
        async for piece in stream.pieces():
            chunk = reader.read(parser.feed(piece))
            text += chunk.text if chunk else ""
    finally:
        stream.close()
    chunk = reader.read(parser.finish())
    text += chunk.text if chunk else ""
    return reader.finish().prompt_tokens, text
