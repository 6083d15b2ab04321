"""The pack's tests of what has to hold on a GPU, each a row. The tests' own conftest.py starts the host."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any

import common

FILES = ("tests/test_gpu.py", "tests/test_finite.py::test_a_gpu_is_asked_and_answers_without_anybody_waiting")


@dataclass(eq=False)
class Recorder:
    """A plugin of pytest that leaves out what passed before, and keeps each test's outcome as soon as it is there."""

    results: Any  # gpu.Results
    part: dict[str, Any]

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Pytest's hook."""
        items[:] = [item for item in items if not self.results.has(**self.part, row=item.nodeid)]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Pytest's hook."""
        if report.when == "call" or report.outcome != "passed":
            row = {**self.part, "row": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
            self.results.add(row | ({"error": report.longreprtext[-2000:]} if report.failed else {}))


def run(results: Any, part: dict[str, Any]) -> None:
    """Run them; a failed test is a row, not an error of this function. Raises RuntimeError where they can't be run."""
    if importlib.util.find_spec("pytest") is None:
        sys.path.append(str(common.host.tools(common.host.find_or_make())))
    import pytest

    os.chdir(common.REPOSITORY)
    options = ["-p", "no:cacheprovider", "--import-mode=importlib", "--confcutdir=tests", "-q", "--tb=short"]
    code = pytest.main([*options, *FILES], plugins=[Recorder(results, part)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"The tests could not be run: pytest ended with {code}.")
