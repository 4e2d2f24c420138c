"""A page in Chromium, where there is one: what goes wrong in it is heard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def barriers(page: Any) -> list[str]:
    """What axe finds on a page that keeps people out, by rule and place."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [f"{rule['id']}: {node['target']}" for rule in found for node in rule["nodes"]]


@contextmanager
def opened(url: str, width: int, waits_for: str) -> Iterator[tuple[Any, list[str]]]:
    """The page, and all that went wrong in it: what its console says, and what it asked of others."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    wrong: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))

        def asks_us(dialog: Any) -> None:
            wrong.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", asks_us)
        ours = urlsplit(url).netloc

        def asks(asked: Any) -> None:
            if urlsplit(asked.url).netloc not in (ours, ""):
                wrong.append(asked.url)

        page.on("request", asks)
        page.goto(url)
        page.wait_for_selector(waits_for)
        yield page, wrong
        browser.close()
