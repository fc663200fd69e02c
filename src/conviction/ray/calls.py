"""Calls of actors: each comes to an answer, an error that the actor answered with, or a loss."""

from collections.abc import Awaitable
from typing import Any, TypeVar, cast

import anyio
from ray.exceptions import RayError, RaySystemError, RayTaskError

from conviction.errors import ConvictionError, EngineError
from conviction.ray.actor import Home

Result = TypeVar("Result")


class AnsweredError(Exception):
    """An actor lives, and its answer is an error, or cannot be read; says which."""

    def __init__(self, cause: object, why: str) -> None:
        self.cause = cause
        super().__init__(why)


class LostError(Exception):
    """An actor is gone, and what it was doing with it; says where it was and why."""


async def within(seconds: float, answer: Awaitable[Result]) -> Result:
    """What an actor answers.

    Raises:
        LostError: it does not answer in time, or is gone.
        AnsweredError: it answers with an error, or with what cannot be read here.
    """
    try:
        with anyio.fail_after(seconds):
            return await answer
    except RayTaskError as error:  # May be a TimeoutError, too.
        raise AnsweredError(cast("object", error.cause), _last_line(error)) from None
    except TimeoutError:
        raise LostError(f"no answer within {seconds:g} s") from None
    except RaySystemError as error:
        # With a traceback it is Ray's word for what came over, but could not be read here.
        answered = cast("Any", error)
        if answered.traceback_str is None:
            raise LostError(_why(error)) from None
        raise AnsweredError(answered.client_exc, _last_line(error)) from None
    except RayError as error:
        raise LostError(_why(error)) from None


def told(error: AnsweredError, home: Home) -> ConvictionError:
    """What an actor answered, as an error of ours: asking another actor would be of no use."""
    if isinstance(error.cause, ConvictionError):
        return error.cause
    return EngineError(
        tried=f"have something done by an actor ({home})",
        found=str(error),
        remedy="See that this machine and every node have the same versions of conviction, of what "
        "you added to it, and of what that imports.",
    )


def _why(error: RayError) -> str:
    """What Ray says of a loss, in one line."""
    text = str(error)
    if "OutOfMemory" in type(error).__name__ or "memory pressure" in text or "OOM" in text:
        return "Ray ended it because its node ran out of memory"
    line = _last_line(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _last_line(error: RayError) -> str:
    """Ray says last what it has to say, after what it is about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
