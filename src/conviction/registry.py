"""Things that are chosen by name and that packages can add: policies, answer kinds, engines.

Built-in members stand in a table of names and import paths. Other packages add theirs as entry
points under the registry's group. Either is imported when it is first asked for.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from inspect import isclass
from pkgutil import resolve_name
from typing import TypeVar

from conviction.errors import ConvictionError, PluginError, UnknownNameError

Member = TypeVar("Member")


class Registry:
    """Named members of one sort.

    Args:
        group: Entry point group of packages that add members, as in "conviction.policies".
        noun: Name of a member in messages, as in "policy".
        builtin: Import path ("module:attribute") of each built-in member, by name.
    """

    def __init__(self, group: str, noun: str, builtin: Mapping[str, str]) -> None:
        self.group = group
        self.noun = noun
        self.builtin = dict(builtin)

    def names(self) -> tuple[str, ...]:
        """Names of all members, sorted. Nothing is imported."""
        return tuple(sorted({*self.builtin, *self.plugins()}))

    def plugins(self) -> tuple[str, ...]:
        """Names that other packages bring, sorted."""
        return tuple(sorted(_plugins(self.group).names))

    def get(self, name: str) -> object:
        """The member of that name, imported.

        Raises:
            UnknownNameError: no member has this name; the nearest name is suggested.
            PluginError: two packages bring this name, or the one that does fails to import.
        """
        points = tuple(_plugins(self.group).select(name=name))
        if not points and name in self.builtin:
            try:
                return resolve_name(self.builtin[name])
            except (ImportError, AttributeError) as error:
                raise PluginError(
                    tried=f"cannot import the {self.noun} {name!r} from {self.builtin[name]}",
                    found=f"{type(error).__name__}: {error}",
                    remedy="Correct its line in the table of built-in names.",
                ) from error
        packages = [_package(point) for point in points]
        if name in self.builtin:
            packages.insert(0, "conviction")
        if not packages:
            raise unknown_name(self.noun, name, self.names())
        if len(packages) > 1:
            raise PluginError(
                tried=f"several packages bring the {self.noun} {name!r}",
                found=", ".join(packages),
                remedy="Rename the entry point in one, or uninstall that package.",
            )
        try:
            return points[0].load()
        except ConvictionError:
            raise
        except Exception as error:
            raise PluginError(
                tried=f"cannot import the {self.noun} {name!r} of the package {packages[0]!r}",
                found=f"{type(error).__name__}: {error}",
                remedy=f"Repair, update or uninstall {packages[0]!r}.",
            ) from error

    def subclass(self, name: str, base: type[Member]) -> type[Member]:
        """The member of that name, which must be a subclass of `base`.

        Raises:
            UnknownNameError: no member has this name; the nearest name is suggested.
            PluginError: it cannot be imported, or is something else.
        """
        member = self.get(name)
        if isclass(member) and issubclass(member, base):
            return member
        raise PluginError(
            tried=f"cannot use the {self.noun} {name!r}",
            found=f"{member!r} is not a subclass of {base.__module__}.{base.__qualname__}",
            remedy=f"Correct the entry point under {self.group!r} in the package that brings it.",
        )


@cache
def _plugins(group: str) -> EntryPoints:
    # Metadata of an older installation of conviction itself may list what is built in.
    points = entry_points(group=group)
    return EntryPoints(point for point in points if _package(point) != "conviction")


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def unknown_name(noun: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a `noun` (such as "policy") whose name is not among `known`."""
    choices = sorted(known)
    near = get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return UnknownNameError(
        tried=f"unknown {noun} {name!r}",
        found="",
        remedy=f"{hint}Known: {', '.join(choices) or 'none'}.",
    )
