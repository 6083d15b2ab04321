"""The host's own web page in a headless Chromium: settings for it, opening it, and words for what is done there.

Needs the playwright package (requirements-dev.txt has it) and a Chromium of the system, which `chromium` finds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
NO_CHROMIUM = f"No Chromium is there (looked for {', '.join(NAMES)}): apt-get install chromium."
READY = "!!(window.LiteGraph && LiteGraph.registered_node_types['SRSampler'] && window.app && window.app.canvas)"
# As for somebody who has seen the first-start dialog; and nothing that draws all the time, for machines without a GPU.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}


def chromium() -> str | None:
    """The path of the system's Chromium, None if it has none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def settings(base: Path, **more: Any) -> None:
    """Put the page's settings into a server's base folder before it starts; ``more`` with _ for the dots of a name."""
    path = base / "user" / "default" / "comfy.settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(SETTINGS | {name.replace("_", "."): value for name, value in more.items()}), "utf-8")


def launch(playwright: Playwright) -> Browser:
    """The system's Chromium, headless. Raises RuntimeError with what to install where there is none."""
    path = chromium()
    if path is None:
        raise RuntimeError(NO_CHROMIUM)
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--use-gl=swiftshader"])


def open_page(browser: Browser | BrowserContext, url: str, width: int = 1300, height: int = 900) -> Page:
    """The server's page, ready for work."""
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": height})
    page.goto(url)
    page.wait_for_function(READY, timeout=180_000)
    page.wait_for_timeout(1500)  # it opens the workflow of last time, or its default
    return page
