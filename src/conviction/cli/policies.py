"""`conviction policies`: which policies there are, and their settings."""

import json as jsonlib
from dataclasses import asdict, dataclass
from inspect import getdoc
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conviction.cli.progress import messages
from conviction.display import safe
from conviction.errors import PluginError
from conviction.policies import policy, policy_names
from conviction.policies.named import written


@dataclass(frozen=True, slots=True)
class ListedPolicy:
    """One line of the list, and one object of its JSON."""

    name: str
    needs_confidence: bool
    needs_continuation: bool
    settings: dict[str, Any]
    what: str


def policies(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the policies, their settings and defaults.

    Settings are written behind the name, as in adaptive-consistency:wave=4,bar=0.99.

    Args:
        json: Print the list as JSON on stdout.
    """
    found: list[ListedPolicy] = []
    for name in policy_names():
        try:
            found.append(_listed(name))
        except PluginError as error:
            # One package that cannot be used hides no other policy.
            messages(quiet=False).print(f"[yellow]note:[/] {escape(safe(str(error)))}")
    if json:
        print(jsonlib.dumps([asdict(one) for one in found], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("Name", "What it does", "Settings and their defaults"):
        table.add_column(title)
    for one in found:
        settings = ", ".join(f"{name}={written(value)}" for name, value in one.settings.items())
        table.add_row(one.name, escape(f"{one.what} {_needs(one)}"), escape(settings))
    Console(highlight=False).print(table)


def _needs(one: ListedPolicy) -> str:
    if one.needs_continuation:
        return "Needs an engine that continues a given beginning; the lab cannot replay it."
    return "Needs log-probabilities." if one.needs_confidence else ""


def _listed(name: str) -> ListedPolicy:
    one = policy(name)
    settings = {key: value for key, value in one.settings().items() if key != "name"}
    what = (getdoc(type(one)) or "").partition("\n")[0]
    return ListedPolicy(name, one.needs_confidence, one.needs_continuation, settings, what)
