"""The command line: answers on stdout, everything else on stderr.

Exit codes: 0 answered, 1 failed, 2 wrong use, 3 abstained, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import cyclopts
from cyclopts import App, CycloptsError
from rich.console import Console
from rich.markup import escape

from conviction.cli.doctor import doctor
from conviction.cli.evaluation import app as evaluation
from conviction.cli.lab import app as lab
from conviction.cli.models import app as models
from conviction.cli.policies import policies
from conviction.cli.record import record
from conviction.cli.serve import serve
from conviction.cli.terminal import safe
from conviction.cli.think import think
from conviction.cli.viewing import view
from conviction.errors import ConvictionError
from conviction.settings import command_settings, settings_path

USAGE = 2
INTERRUPTED = 130


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
        config=[
            cyclopts.config.Env("CONVICTION_", show=False),
            _settings_file,
        ],
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    app.command(think)
    app.command(serve)
    app.command(models, name="models")
    app.command(policies)
    app.command(lab, name="lab")
    app.command(evaluation, name="eval")
    app.command(doctor)
    app.command(record)
    app.command(view)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are printed, never raised."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        code = build()(_dash_as_file(sys.argv[1:] if arguments is None else arguments))
    except CycloptsError as error:
        errors.print(f"[bold red]error:[/] {_plain(str(error))}")
        errors.print("Try [bold]conviction --help[/].")
        return USAGE
    except ConvictionError as error:
        errors.print(f"[bold red]error:[/] {_plain(error.problem)}.")
        errors.print(_plain(error.remedy))
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the answer has gone; nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A full disk, a settings file that is a folder, a stream that was closed: not our bug.
        where = f" ({error.filename})" if error.filename else ""
        errors.print(f"[bold red]error:[/] {_plain(f'{error.strerror or error}{where}')}.")
        return 1
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _dash_as_file(arguments: Sequence[str]) -> list[str]:
    """Spell a lone "-" (standard input) so that the parser does not take it for an option."""
    spelled: list[str] = []
    for argument in arguments:
        if argument == "-":
            if spelled and spelled[-1] in ("-f", "--file"):
                spelled.pop()
            spelled.append("--file=-")
        else:
            spelled.append(argument)
    return spelled


def _plain(text: str) -> str:
    return escape(safe(text))


def main() -> None:
    """Entry point of the `conviction` command."""
    sys.exit(run())
