"""CPU time until a command answers, next to that of Python and of the parser's own import.

    python benchmarks/startup.py

Median of several runs, taken in turn so that a busy machine slows all of them alike.
"""

import os
import statistics
import subprocess
import sys

RUNS = 9
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import cyclopts": ["-c", "import cyclopts"],
    "conviction --version": ["-m", "conviction", "--version"],
    "conviction policies": ["-m", "conviction", "policies"],
    "conviction --help (imports every command)": ["-m", "conviction", "--help"],
    "import everything the package offers": [
        "-c",
        "import conviction; [getattr(conviction, name) for name in conviction.__all__]",
    ],
}


def cpu_seconds(arguments: list[str]) -> float:
    """CPU seconds, user and system, of one process of Python."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def main() -> None:
    """Print a line per command."""
    runs: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, arguments in COMMANDS.items():
            runs[name].append(cpu_seconds(arguments))
    for name, seconds in runs.items():
        print(f"{statistics.median(seconds):6.2f} s (least {min(seconds):.2f})  {name}")


if __name__ == "__main__":
    main()
