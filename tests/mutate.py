"""Breaks a central line of the pack at a time, in a copy of the checkout, and shows that its tests see each.

python3 tests/mutate.py runs all; with words, those whose name has one of them. It ends with 1 when a break is not seen.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
PYTEST = ["run-module", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib", "--confcutdir=tests", "-xq"]


class Break(NamedTuple):
    """``old`` stands once in srd_core/``file``.py; with ``new`` in its place, the tests in ``tests`` have to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


BREAKS = [
    Break("rule sign", "criterion", "(b - now) / (", "(now - b) / (", "test_criterion"),
    Break("step counter", "steps", "_begin(self._completed + 1)", "_begin(self._completed)", "test_steps"),
    Break("clean-up", "stage", "self.model.hook_mode = self._hook_mode", "pass", "test_faults"),
    Break("options merge", "additions", "value[len(own or []) :]", "value[len(own or []) + 1 :]", "test_every_sampler"),
    Break("fade weight", "fade", "(lambdas - lambda_j) / fade) ** 2", "(lambdas - lambda_j) / fade) ** 4", "test_fade"),
    Break("scale map", "latent", "(1 - sigma + self.ratio * sigma)", "(1 - sigma + sigma)", "test_properties"),
    Break("residual key", "teacache/run", "None if window is None else tuple(window)", "None", "test_reuse"),
    Break("offload condition", "memory", "policy == ALWAYS and not", "policy != NEVER and not", "test_memory"),
    Break("report median", "report/figures", "import median", "import mean as median", "test_report"),
    Break("refusal", "latent", "    if different:", "    if False:", "test_faults"),
]


def passes(checkout: Path, *tests: str) -> bool:
    """Whether tests pass there. Raises RuntimeError when they do not run."""
    command = [sys.executable, "demo/host.py", *PYTEST, *(f"tests/{name}.py" for name in sorted(set(tests)))]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{tests} did not run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def is_seen(checkout: Path, each: Break) -> bool:
    """Whether its tests fail with the break. Raises ValueError when the line is not there once."""
    path = checkout / "srd_core" / f"{each.file}.py"
    whole = path.read_text("utf-8")
    if whole.count(each.old) != 1:
        raise ValueError(f"{each.name}: {each.old!r} stands {whole.count(each.old)} times in {path.name}, not once.")
    path.write_text(whole.replace(each.old, each.new), "utf-8")
    try:
        return not passes(checkout, each.tests)
    finally:
        path.write_text(whole, "utf-8")


def main(words: list[str]) -> int:
    """The exit code."""
    chosen = [each for each in BREAKS if not words or any(word in each.name for word in words)]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    unseen = []
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder, REPOSITORY.name)
        for name in filter(None, listed.stdout.split("\0")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, checkout / name)
        if not passes(checkout, *(each.tests for each in chosen)):
            raise RuntimeError("The tests fail without any break.")
        for each in chosen:
            seen = is_seen(checkout, each)
            unseen += [] if seen else [each.name]
            print(f"{each.name:18} {'seen by' if seen else 'NOT SEEN by'} {each.tests}", flush=True)
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
