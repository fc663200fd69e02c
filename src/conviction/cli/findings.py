"""What a doctor found: lines with a mark, for people or as JSON."""

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conviction.cli.terminal import escaped, safe

_MARKS = {True: "[green]ok[/]", False: "[red]no[/]", None: ""}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        what: What was looked at.
        found: What was seen.
        ok: Whether it works; None for plain facts.
        remedy: What to do if it does not.
        value: What was seen, for programs; None where words alone tell.
    """

    what: str
    found: str
    ok: bool | None = None
    remedy: str = ""
    value: bool | float | str | None = None


def report(findings: Sequence[Finding], *, json: bool) -> int:
    """Print the findings on stdout; gives the exit code."""
    if json:
        print(escaped(jsonlib.dumps([asdict(finding) for finding in findings], indent=2)))
    else:
        table = Table(box=None, show_header=False, padding=(0, 1))
        for finding in findings:
            remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
            table.add_row(finding.what, _MARKS[finding.ok], escape(safe(finding.found) + remedy))
        Console(highlight=False).print(table)
    return 1 if any(finding.ok is False for finding in findings) else 0
