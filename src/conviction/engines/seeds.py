"""Whether seeds count on an engine, found out by drawing."""

from collections.abc import Awaitable, Callable

import anyio

from conviction.errors import EngineError

_SEEDS = (1, 2, 1, 3, 1)


async def seeds_count(draw: Callable[[int], Awaitable[str]]) -> bool | None:
    """Whether a seed reproduces a trace, and another seed does not.

    Also beside other traces: what is computed together may be rounded differently.

    Args:
        draw: The text of a short trace that is drawn with a seed.

    Returns:
        None if all draws were alike.

    Raises:
        EngineError: one of the draws failed.
    """
    together = [""] * len(_SEEDS)
    failures: list[EngineError] = []

    async def one(number: int, seed: int) -> None:
        try:
            together[number] = await draw(seed)
        except EngineError as error:
            failures.append(error)

    alone = await draw(1)
    async with anyio.create_task_group() as tasks:
        for number, seed in enumerate(_SEEDS):
            tasks.start_soon(one, number, seed)
    if failures:
        raise failures[0]
    same = {alone, *(text for text, seed in zip(together, _SEEDS, strict=True) if seed == 1)}
    if len(same) > 1:
        return False
    return None if set(together) == same else True
