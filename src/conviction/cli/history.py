"""`conviction history`: the verdicts that `think` and `serve` kept."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from conviction.cli import ExitCode
from conviction.cli.lab_tables import table_console
from conviction.cli.progress import messages
from conviction.cli.terminal import WHOLE, print_json, shown
from conviction.core import require_whole
from conviction.display import one_line
from conviction.errors import InvalidSettingError
from conviction.history import History, PastVerdict
from conviction.server.page_file import whole_page

app = App(name="history", help="List, search, show, open and delete past verdicts.")

_QUESTION = 60
"""Characters of a question in the list."""

Json = Annotated[bool, Parameter(negative="")]


@app.default
@app.command(name="list")
def show_list(
    *, most: Annotated[int, Parameter(name="--max"), WHOLE] = 20, json: Json = False
) -> None:
    """List past verdicts, the newest first.

    Args:
        most: How many at most.
        json: Print the list as JSON on stdout.
    """
    _print(History().entries(most=_positive(most)), json=json)


@app.command
def search(
    text: str, /, *, most: Annotated[int, Parameter(name="--max"), WHOLE] = 20, json: Json = False
) -> int:
    """List the verdicts whose question or answer holds a text; exit code 1 if there are none.

    Args:
        text: What to look for, whatever its case.
        most: How many at most.
        json: Print the list as JSON on stdout.
    """
    found = History().entries(search=text, most=_positive(most))
    _print(found, json=json)
    return 0 if found else ExitCode.FAILED


@app.command
def show(number: Annotated[int, WHOLE], /, *, traces: Json = False, json: Json = False) -> None:
    """Show one verdict: question, answer, votes, cost.

    Args:
        number: Its number in the list.
        traces: Also print what every trace wrote.
        json: Print the whole verdict as JSON on stdout.
    """
    verdict = History().verdict(number)
    if json:
        print_json(verdict)
    else:
        _print_verdict(verdict, traces=traces)


@app.command(name="open")
def play(
    number: Annotated[int, WHOLE],
    /,
    *,
    html: Path | None = None,
    port: Annotated[int, WHOLE] = 0,
    quiet: Annotated[bool, Parameter(negative="", alias="-q")] = False,
) -> None:
    """Play a past run on the page, in a browser. Ctrl-C ends it.

    Args:
        number: Its number in the list.
        html: Write the page to this file instead: it needs no server.
        port: Port to serve the page on; any free one if not given.
        quiet: Nothing on stderr but errors.
    """
    require_whole("port", port, low=0)
    recorded = History().page(number)
    if not recorded:
        raise InvalidSettingError(
            tried=f"open verdict {number}",
            found="what the page needs of it was not kept",
            remedy=f"Show it instead: conviction history show {number}.",
        )
    from conviction.cli.viewing import show_page  # noqa: PLC0415  # brings the lab along

    show_page(whole_page(recorded), html, port, messages(quiet=quiet))


@app.command
def delete(
    *numbers: Annotated[int, WHOLE],
    everything: Annotated[bool, Parameter("--all", negative="")] = False,
) -> int:
    """Delete verdicts; exit code 1 if one of them was not there.

    Args:
        numbers: Their numbers in the list.
        everything: Delete all of them.
    """
    if bool(numbers) == everything:
        raise InvalidSettingError(
            tried="delete verdicts",
            found="none is named" if not numbers else "some are named, and --all is given",
            remedy="Name their numbers, or give --all.",
        )
    history = History()
    wanted = (
        [entry.id for entry in history.entries()] if everything else list(dict.fromkeys(numbers))
    )
    deleted = history.delete(wanted)
    messages(quiet=False).print(f"Deleted {deleted:,} of {len(wanted):,}.")
    return 0 if deleted == len(wanted) else ExitCode.FAILED


@app.command
def check() -> int:
    """Read the whole history and say what is damaged; exit code 1 if anything is."""
    history, console = History(), messages(quiet=False)
    problems = history.check()
    for problem in problems:
        console.print(f"[red]damaged:[/] {shown(problem)}")
    if not problems:
        console.print(f"{shown(history.path)} is whole.")
    return ExitCode.FAILED if problems else 0


def _positive(most: int) -> int:
    require_whole("max", most, low=1)
    return most


def _print(entries: list[PastVerdict], *, json: bool) -> None:
    if json:
        print_json([asdict(one) for one in entries])
        return
    if not entries:
        messages(quiet=False).print("No verdicts are kept here.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("No.", "Asked", "Question", "Answer", "Share", "Policy", "Tokens"):
        right = heading in ("No.", "Share", "Tokens")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for one in entries:
        table.add_row(
            str(one.id),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.asked)),
            shown(_cut(one.question)),
            shown(_cut(one.answer) if one.answer is not None else "none"),
            f"{one.share:.0%}",
            shown(one.policy),
            f"{one.tokens:,}",
        )
    table_console().print(table)


def _cut(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _QUESTION else line[: _QUESTION - 1] + "…"


def _print_verdict(verdict: dict[str, Any], *, traces: bool) -> None:
    console = table_console()
    answer = verdict["answer"]
    console.print(f"[bold]question[/]  {shown(verdict['question'])}", soft_wrap=True)
    console.print(
        f"[bold]answer[/]    {shown(answer) if answer is not None else 'none'}",
        soft_wrap=True,
    )
    for entry in verdict["tally"]:
        share = entry["weight"] / (sum(one["weight"] for one in verdict["tally"]) or 1)
        votes = f"{entry['count']} vote{'s' if entry['count'] != 1 else ''}"
        console.print(f"          {share:4.0%}  {votes:>9}  {shown(one_line(entry['answer']))}")
    cost = (
        f"{len(verdict['traces'])} of {verdict['budget']} traces, "
        f"{verdict['usage']['generated']:,} tokens, {verdict['seconds']:.1f} s; "
        f"policy {verdict['policy']['name']}, ended: {verdict['ended']}"
    )
    console.print(f"[bold]cost[/]      {shown(cost)}", soft_wrap=True)
    console.print(f"[bold]engine[/]    {shown(verdict['engine'])}", soft_wrap=True)
    for warning in verdict["warnings"]:
        console.print(f"[yellow]note:[/]     {shown(warning)}", soft_wrap=True)
    for trace in verdict["traces"] if traces else ():
        console.rule(
            f"trace {trace['id']} · {trace['finish']} · {trace['tokens']} tokens", align="left"
        )
        console.print(shown(trace["text"].strip()), soft_wrap=True)
