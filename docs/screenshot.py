"""Draws docs/think.svg: what a terminal shows at the end of a real run on a harder question.

python docs/screenshot.py
"""

from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

import conviction
from conviction.cli.progress import summary
from conviction.cli.view import LiveView

QUESTION = (
    "A baker makes 12 trays of 15 rolls, sells 9 bags of 14 rolls, and gives away a third of the "
    "rest. How many rolls are left?"
)


def main() -> None:
    console = Console(width=104, height=40, file=StringIO(), force_terminal=True)
    view = LiveView(console)
    verdict = conviction.think(QUESTION, on_event=view.on_event)
    picture = Console(record=True, width=104, file=StringIO(), force_terminal=True)
    picture.print(Text(f'$ conviction think "{QUESTION}"', style="bold"))
    picture.print(view.picture())
    picture.print(verdict.answer, style="bold", highlight=False)
    picture.print(summary(verdict), style="dim", highlight=False)
    picture.save_svg(str(Path(__file__).with_name("think.svg")), title="conviction think")


if __name__ == "__main__":
    main()
