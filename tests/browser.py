"""A headless browser for the tests of the page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a Chromium is called where a system has one.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
# Root has no sandbox; the rest keeps the browser from asking its maker for anything.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip


def find_browser() -> Path | None:
    """Return the program of a Chromium: $CONVAI_BROWSER, the system's, or the one that playwright installed."""
    if given := os.environ.get("CONVAI_BROWSER"):
        return Path(given)
    if name := next(filter(shutil.which, NAMES), None):
        return Path(str(shutil.which(name)))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
    return own if own.is_file() else None


@contextmanager
def open_browser(program: Path) -> Iterator:
    """Yield playwright's browser. Until it is closed, nothing else in this thread can run an event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()
