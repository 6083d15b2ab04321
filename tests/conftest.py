"""Fixtures: an idle host around every test, and tiny random Wan models."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

import hosting  # noqa: E402, F401  (first: it makes `import comfy` mean the host)

# isort: split
import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import helpers  # noqa: E402


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
