"""Drawn cases: the same in every run; a few of each in `make test`, many in `make test-long`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, configuration, settings

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "srdiffusion-hypothesis"))

MANY = os.environ.get("SRD_CASES") == "many"
LONG = [pytest.mark.long] if MANY else []  # for pytestmark: with many cases a file is one of `make test-long`

wild = st.floats(allow_nan=True, allow_infinity=True)


def finite(low: float = -1e6, high: float = 1e6) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, width=32)


def cases(count: int, slow: bool = False) -> Callable[[Any], Any]:
    """``count`` examples where there are many. ``slow``: a case that fails is shown as it is, not a smaller one."""
    return settings(
        max_examples=count if MANY else max(count // 50, 5),
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate] if slow else list(Phase),
        suppress_health_check=list(HealthCheck),
    )
