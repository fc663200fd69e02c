"""Named things that others may add: policies, answer kinds and engines.

A registry is an entry point group. Built-in members are declared in this package's own
`pyproject.toml`, so a plug-in and a built-in are found in the same way: a file and a line.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from conviction.errors import UnknownNameError


@cache
def _members(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> tuple[str, ...]:
    """Names registered under `group` (such as "conviction.policies"), sorted."""
    return tuple(sorted(_members(group)))


def load(group: str, name: str) -> object:
    """The object registered as `name` under `group`.

    Raises:
        UnknownNameError: with the nearest registered name as a suggestion.
    """
    members = _members(group)
    if name not in members:
        raise unknown_name(group.rpartition(".")[2], name, members)
    return members[name].load()


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `known`."""
    choices = sorted(known)
    near = get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(
        tried=f"find {name!r} among {what}",
        found="there is none of that name",
        remedy=f"{hint}Known: {', '.join(choices) or 'none'}.",
    )
