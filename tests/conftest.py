"""Fixtures: an idle host around every test, tiny random models, a real server and a browser."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from hosting import REPOSITORY, load_by_path

# isort: split
import comfy.model_management
import comfy.sd
import folder_paths
import helpers
import pages
import server_files
import serving
from PIL import Image

PAGE = load_by_path("srd_page", REPOSITORY / "demo" / "page.py")
PAGE_TESTS = "browser"  # the fixture that all tests of the page use


def without_browser() -> bool:
    """Whether tests of the page are to be left out: no Chromium is there, and this is not CI, where they would fail."""
    return PAGE.chromium() is None and not (os.environ.get("SRD_CI") or os.environ.get("CI"))


def pytest_report_header() -> list[str]:
    page = os.environ.get("SRD_PAGE_VERSION")
    header = [f"The page is comfyui-frontend-package {page}."] if page else []
    return header + ([f"Tests of the page are left out. {PAGE.NO_CHROMIUM}"] if without_browser() else [])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of the page where no browser is: nothing else is ever left out here."""
    others = [item for item in items if PAGE_TESTS in getattr(item, "fixturenames", ()) and without_browser()]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def pytest_collection_finish() -> None:
    """What is imported stays: else each of the collections between tests walks through all of torch (0.3 s)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def idle_host() -> Iterator[None]:
    """Every test ends with nothing loaded and no interrupt pending."""
    yield
    comfy.model_management.interrupt_current_processing(False)
    comfy.model_management.unload_all_models()
    gc.collect()


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """By seed, layers and kind: a tiny random Wan DiT with the real key layout, written once."""
    folder = tmp_path_factory.mktemp("diffusion_models")
    return lambda **how: helpers.wan_file(folder, **how)


@pytest.fixture(scope="session")
def wan(tiny_file: Callable[..., Path]) -> Callable[..., Any]:
    """By seed, layers and kind: that file as a MODEL, by the host's own loader; every call loads anew."""
    return lambda **how: comfy.sd.load_diffusion_model(str(tiny_file(**how)))


@pytest.fixture(scope="session")
def networks() -> dict[str, Any]:
    """A tiny CogVideoX transformer of diffusers for each kind: 5b, 2b."""
    import cogvideox_oracle as oracle  # needs diffusers, which older hosts' other packages may not suit

    return {kind: oracle.transformer(kind, seed) for seed, kind in enumerate(("2b", "5b", "1.5"))}


@pytest.fixture(scope="session")
def folders(networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The official repositories' transformer folders, in tiny."""
    import cogvideox_oracle as oracle

    root = tmp_path_factory.mktemp("diffusion_models")
    return {kind: oracle.write(network, root / kind) for kind, network in networks.items()}


@pytest.fixture
def a_file(wan: Callable[..., Any], tmp_path: Path) -> Path:
    """A whole hand-over file."""
    import runs

    path = tmp_path / f"whole{runs.handover.SUFFIX}"
    runs.handover.write(runs.sketched(wan())[0], path)
    return path


@pytest.fixture
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty models/diffusion_models of the host."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


# --- a server and a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real server, one a worker, with the pack, the demo's and the tests' nodes and all of the tests' tiny files."""
    base = tmp_path_factory.mktemp("a server")
    PAGE.settings(base)
    (base / "input").mkdir()
    picture = Image.effect_noise((96, 64), 90).convert("RGB")
    picture.save(base / "input" / "example.png")  # every ComfyUI has one of this name
    # The host's default cache drops results where the machine has little memory left, whatever runs beside it.
    with serving.serving(base, server_files.all_files(tmp_path_factory.mktemp("files")), "--cache-classic") as running:
        yield running


@pytest.fixture(scope="session")
def info(server: Any) -> Mapping[str, Any]:
    """What the server says of its nodes."""
    return server.object_info()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = PAGE.launch(playwright)
        yield running
        running.close()


@pytest.fixture(scope="module")
def opened(server: Any, browser: Any) -> Iterator[Any]:
    """The server's page."""
    page = PAGE.open_page(browser, server.url)
    yield page
    page.close()


@pytest.fixture
def watched(opened: Any, server: Any) -> Iterator[Any]:
    """The same, where no error may be said until the test is over."""
    errors: list[str] = []

    def note(message: Any) -> None:
        if getattr(message, "type", "error") == "error":
            errors.append(getattr(message, "text", str(message)))

    for event in ("console", "pageerror"):
        opened.on(event, note)
    yield opened
    server.interrupt()
    pages.until_idle(server)
    for event in ("console", "pageerror"):
        opened.remove_listener(event, note)
    assert not [text for text in errors if not any(own in text for own in pages.ITS_OWN)]


@pytest.fixture
def page(watched: Any) -> Any:
    """The page with the demo's workflow in it, its charts in view."""
    pages.show(watched)
    return watched
