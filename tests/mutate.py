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


FAULT = "test_faults.py::test_after_a_fault_in_either_stage_plain_runs_are_as_before"
REFUSED = "test_faults.py::test_models_that_do_not_share_a_latent_are_refused_with_the_difference"
MERGED = "test_every_sampler.py::test_the_switch_itself_changes_nothing[euler_cfg_pp]"
FADED = "test_fade.py::test_a_flow_model_fades_as_a_loop_by_hand"
WINDOWS = "test_reuse.py::test_windows_that_move_from_step_to_step_do_not_get_each_others_residuals"
LEAVES = "test_memory.py::test_only_always_takes_the_sketch_away_where_it_has_another_place"
BREAKS = [
    Break("rule sign", "criterion", "(b - now) / (", "(now - b) / (", "test_criterion.py"),
    Break("step counter", "steps", "_begin(self._completed + 1)", "_begin(self._completed)", "test_steps.py"),
    Break("clean-up", "stage", "self.model.hook_mode = self._hook_mode", "pass", FAULT),
    Break("options merge", "additions", "value[len(own or []) :]", "value[len(own or []) + 1 :]", MERGED),
    Break("fade weight", "fade", "(lambdas - lambda_j) / fade) ** 2", "(lambdas - lambda_j) / fade) ** 4", FADED),
    Break("scale map", "latent", "(1 - sigma + self.ratio * sigma)", "(1 - sigma + sigma)", "test_properties.py"),
    Break("residual key", "teacache/run", "None if window is None else tuple(window)", "None", WINDOWS),
    Break("offload condition", "memory", "policy == ALWAYS and not", "policy != NEVER and not", LEAVES),
    Break("report median", "report/figures", "import median", "import mean as median", "test_report.py"),
    Break("refusal", "latent", "    if different:", "    if False:", REFUSED),
]


def passes(checkout: Path, *tests: str) -> bool:
    """Whether tests pass there. Raises RuntimeError when they do not run."""
    command = [sys.executable, "demo/host.py", *PYTEST, *(f"tests/{name}" for name in sorted(set(tests)))]
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
