"""The server's page in Chromium."""

import shutil
from contextlib import contextmanager

import pytest

api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

MARKS = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    # Playwright's loop belongs to its thread, and is closed with it.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@contextmanager
def chromium(*switches):
    """Run Chromium with further switches."""
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *switches])
        yield found
        found.close()


@contextmanager
def opened(browser, server, width=1280, height=900, **context):
    """Open the page of a server, and fail if its scripts do."""
    problems = []
    page = browser.new_context(viewport={"width": width, "height": height}, **context).new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(server.url)
    yield page
    page.context.close()
    assert problems == []
