"""A real browser, without a screen: Debian's Chromium, steered by Playwright."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def executable() -> str | None:
    """Where Chromium is; None where it is not installed."""
    return shutil.which("chromium")


@contextmanager
def running_browser() -> Generator[Browser]:
    """The browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(_FLAGS))
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and what it did that it should not: errors, and requests to elsewhere.

    Attributes:
        page: The page.
        home: Address that it may ask; None for none at all.
        errors: What it complained of.
        strayed: Addresses that it asked besides.
        asked: All addresses that it asked.
    """

    page: Page
    home: str | None
    errors: list[str] = field(default_factory=list[str])
    strayed: list[str] = field(default_factory=list[str])
    asked: list[str] = field(default_factory=list[str])

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _on_request(self, request: Request) -> None:
        self.asked.append(request.url)
        inside = request.url.startswith(("data:", "blob:", "file:"))
        if not inside and not (self.home and request.url.startswith(self.home)):
            self.strayed.append(request.url)

    @classmethod
    def of(cls, page: Page, home: str | None) -> "Watched":
        """Watch a page."""
        watched = cls(page, home)
        page.on("console", watched._on_console)
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.on("request", watched._on_request)
        return watched

    def keep(self, folder: Path | None, name: str, **options: Any) -> None:
        """Keep a picture of it, if there is a folder for pictures."""
        if folder is not None:
            self.page.screenshot(path=folder / f"{name}.png", animations="disabled", **options)
