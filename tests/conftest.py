"""Fixtures: an idle host around every test, and tiny random Wan models."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from hosting import REPOSITORY, load_by_path

# isort: split
import comfy.model_management
import comfy.sd
import helpers

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
    """Tests of what an older host or another platform does not have are left out there, and those of the page where no
    browser is. Nothing is skipped: a skip is a failure in CI.
    """
    no_page = without_browser()
    wanted, others = [], []
    for item in items:
        left_out = no_page and PAGE_TESTS in getattr(item, "fixturenames", ())
        (others if left_out or not all(map(host_has, needs_of(item))) else wanted).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = wanted


def pytest_collection_finish() -> None:
    """The host and torch are half a million objects that stay: no garbage collection looks at them again."""
    gc.collect()
    gc.freeze()


def needs_of(item: pytest.Item) -> list[tuple[str, ...]]:
    """The (module, attribute ...) paths that a test needs of the host and its Python, by its marker host_has."""
    return [mark.args for mark in item.iter_markers("host_has")]


def host_has(path: tuple[str, ...]) -> bool:
    """Whether the module, of the host or its Python, has that attribute."""
    found: Any = importlib.import_module(path[0])
    for name in path[1:]:
        found = getattr(found, name, None)
    return found is not None


@pytest.fixture(autouse=True)
def idle_host() -> Iterator[None]:
    """Every test ends with nothing loaded and no interrupt pending."""
    yield
    comfy.model_management.interrupt_current_processing(False)
    comfy.model_management.unload_all_models()
    gc.collect()


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_file(seed=..., layers=..., kind=...): a tiny random Wan DiT with the real key layout, written once."""
    folder = tmp_path_factory.mktemp("diffusion_models")
    return lambda **how: helpers.wan_file(folder, **how)


@pytest.fixture(scope="session")
def wan(tiny_file: Callable[..., Path]) -> Callable[..., Any]:
    """wan(seed=..., layers=..., kind=...): that file as a MODEL, by the host's own loader; every call loads anew."""
    return lambda **how: comfy.sd.load_diffusion_model(str(tiny_file(**how)))
