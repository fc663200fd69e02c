"""`conviction view`: a policy at work on a recorded question, in a browser."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from conviction.api import DEFAULT_POLICY
from conviction.cli.terminal import WHOLE
from conviction.core import require, require_whole
from conviction.display import safe
from conviction.errors import InvalidSettingError
from conviction.lab.export import writable, write_page
from conviction.lab.playback import Playback
from conviction.policies.base import Policy
from conviction.policies.named import policy as named_policy
from conviction.policies.named import read_spec, setting_types
from conviction.recordings import Pool
from conviction.registry import unknown_name

_MOST = 64
"""Traces to start unless told otherwise, at most."""

_LONGEST = 60.0
"""Seconds that a run takes on the page at the speed that is chosen for it."""

_SPEEDS = (1, 2, 4, 8, 16, 32, 64)


def view(
    pool: Path,
    /,
    *,
    question: str | None = None,
    policy: str = DEFAULT_POLICY,
    budget: Annotated[int | None, WHOLE] = None,
    slots: Annotated[int, WHOLE] = 8,
    tokens_per_second: float | None = None,
    answer: str = "math",
    html: Path | None = None,
    port: Annotated[int, WHOLE] = 0,
    quiet: Annotated[bool, Parameter(negative="", alias="-q")] = False,
) -> None:
    """Play a policy on a recorded question, and watch it in a browser. Ctrl-C ends it.

    Args:
        pool: A pool, as `conviction record` made it, or any file that its --import reads.
        question: Id of the question; the first one if not given.
        policy: A name from `conviction policies`, with settings if wanted.
        budget: The most traces to start; as many as were recorded if not given, at most 64.
        slots: Traces at once.
        tokens_per_second: Pace of every trace; the recorded one if not given, or else 40.
        answer: Kind of answer, for files of other programs.
        html: Write the page with the recording to this file instead: it needs no server.
        port: Port to serve the page on; any free one if not given.
        quiet: Nothing on stderr but errors.
    """
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    require_whole("slots", slots, low=1)
    require_whole("port", port, low=0)
    if tokens_per_second is not None:
        require("tokens_per_second", tokens_per_second, low=1e-3)
    if html is not None:
        _check_target(html, pool)
    recording = Pool.open(pool, answers=answer)
    playback = Playback.of(
        recording, _chosen(recording, question), tokens_per_second=tokens_per_second
    )
    page = _page(playback, _steering(policy, budget, len(playback.traces)), slots)
    if html is not None:
        write_page(html, page)
        console.print(f"Written to {escape(safe(str(html)))}.")
        return
    from conviction.server.page_file import serve_page  # noqa: PLC0415  # seldom needed

    serve_page(
        page,
        port=port,
        on_ready=lambda address: console.print(f"Watch it: {address}   Ctrl-C ends it."),
    )


def _page(playback: Playback, steering: Policy, slots: int) -> str:
    from conviction.server.page_file import Recorded, whole_page  # noqa: PLC0415
    from conviction.server.tape import Tape  # noqa: PLC0415

    asked = playback.question
    tape = Tape(asked.text or f"{playback.pool} · {asked.id}", gold=asked.gold)
    at = 0.0
    for at, event in playback.events(steering, slots=slots):
        tape.hear(event, at)
    tape.frame()
    speed = next((one for one in _SPEEDS if at / one <= _LONGEST), _SPEEDS[-1])
    recorded = Recorded.of(tape, spread=True, speed=speed, has_texts=playback.has_texts)
    return whole_page(recorded.encode())


def _chosen(pool: Pool, question: str | None) -> str:
    ids = [one.id for one in pool.questions]
    if question is None:
        return ids[0]
    if question not in ids:
        raise unknown_name("question", question, ids)
    return question


def _steering(spec: str, budget: int | None, recorded: int) -> Policy:
    name, given = read_spec(spec)
    if "budget" not in setting_types(name) or ("budget" in given and budget is None):
        return named_policy(spec)
    return named_policy(spec, budget=min(recorded, _MOST) if budget is None else budget)


def _check_target(html: Path, pool: Path) -> None:
    """Refuse what cannot be written before anything is read."""
    target = writable(html)
    if pool.exists() and (target == pool.resolve() or pool.resolve() in target.parents):
        raise InvalidSettingError(
            tried=f"write {html}",
            found="it is the recording, or a part of it",
            remedy="Name another file.",
        )
