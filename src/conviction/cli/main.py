"""Which commands there are, how one is called, and how its errors are shown."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import cyclopts
from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnusedCliTokensError
from rich.console import Console

from conviction.cli import ExitCode
from conviction.cli.terminal import dash_as_file, repeated, shown
from conviction.errors import ConvictionError
from conviction.settings import command_settings, settings_path

COMMANDS = {
    "think": "think:think",
    "vote": "vote:vote",
    "answers": "answers:answers",
    "serve": "serve:serve",
    "models": "models:app",
    "policies": "policies:policies",
    "lab": "lab:app",
    "eval": "evaluation:app",
    "doctor": "doctor:doctor",
    "check": "checking:check",
    "history": "history:app",
    "record": "record:record",
    "view": "viewing:view",
}
"""Where each command is. It is imported when it is called, so that one does not wait for others."""


def _settings_file(
    app: App, commands: tuple[str, ...], arguments: cyclopts.ArgumentCollection
) -> None:
    """Set options from the settings file; read when a command runs, so that help always works."""
    told = cyclopts.config.Dict(command_settings(), source=str(settings_path()))
    told(app, commands, arguments)


def build() -> App:
    """The command line as an application."""
    app = App(
        name="conviction",
        help="Ask an open language model once; it thinks many times and says how sure it is.",
        help_epilogue=(
            "Every option can also be set in the environment (CONVICTION_THINK_BUDGET=32) or in "
            "a settings file; flags come first, then the environment, then the file."
        ),
        version=version("conviction"),
        version_format="plaintext",  # the default reads Markdown, which takes long to import
        config=[cyclopts.config.Env("CONVICTION_", show=False), _settings_file],
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, place in COMMANDS.items():
        app.command(f"conviction.cli.{place}", name=name)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are printed, never raised."""
    try:
        code = _called(dash_as_file(sys.argv[1:] if arguments is None else arguments))
    except (CycloptsError, ConvictionError, OSError, KeyboardInterrupt) as error:
        return _explain(error)
    return code if isinstance(code, int) else 0


def _explain(error: CycloptsError | ConvictionError | OSError | KeyboardInterrupt) -> int:
    """Say on stderr what went wrong and what to do; gives the exit code."""
    code, remedy = int(ExitCode.FAILED), ""
    match error:
        case KeyboardInterrupt():
            Console(stderr=True, highlight=False).print("Interrupted.")
            return ExitCode.INTERRUPTED
        case BrokenPipeError():
            # The reader of the answer is gone, so nothing is left to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return code
        case ConvictionError():
            code, remedy = error.exit_code, error.remedy
            found = f"{error.problem}."
        case UnusedCliTokensError():
            code = ExitCode.USAGE
            found = f"unexpected argument: {' '.join(error.unused_tokens or ())}"
            remedy = f"Try {' '.join(('conviction', *(error.command_chain or ())))} --help."
        case CycloptsError():
            code, found, remedy = ExitCode.USAGE, str(error), "Try conviction --help."
        case OSError():
            # A full disk, a settings file that is a folder, a closed stream: not our bug.
            where = f" ({error.filename})" if error.filename else ""
            found = f"{error.strerror or error}{where}."
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    errors.print(f"[bold red]error:[/] {shown(found)}")
    if remedy:
        errors.print(shown(remedy))
    return code


def _called(arguments: Sequence[str]) -> object:
    """What the command returns that is called by these arguments."""
    app = build()
    if not arguments or arguments[0] in ("--help", "-h"):
        for name in COMMANDS:
            app[name]  # Imports it: the list of commands says what each does.
    try:
        return app(arguments)
    except UnusedCliTokensError as error:
        spelled = repeated(arguments, error)
        if spelled is None:
            raise
        return app(spelled)


def main() -> None:
    """Entry point of the `conviction` command."""
    sys.exit(run())
