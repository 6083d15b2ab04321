"""Measure on a GPU by one command: stage after stage, each with a time limit. Every row is kept as soon as it is there.

    python3 bench/gpu.py                 all stages; the same command again measures what is missing
    python3 bench/gpu.py --stages bc     only these, each with its whole time limit
    python3 bench/gpu.py --minutes 9     stop after so many minutes
    python3 bench/gpu.py --rehearse      from start to table on the CPU, with tiny shapes
    python3 bench/gpu.py --table         the table of the newest results again; it goes into docs/evidence.md too

Networks have their true shapes and random weights: no file is needed, and speed does not depend on what weights say.
Every part of a stage is a process, so a crash or a time limit ends that part alone. Results: bench/results/gpu-*.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common

if __name__ == "__main__":
    common.run_in_host()
import gpu_table
import psutil

Line = dict[str, Any]
CLASSIC, DYNAMIC = "classic", "dynamic"  # how the host manages the GPU's memory, see tests/hosting.py
END = "end"  # row that tells how a part ended
WHOLE = "whole"  # it ended because all its rows are there
# What must be the same of two starts before rows of the one count as there in the other.
SETTING = ("card", "host", "versions", "commit", "rehearsal")
SHORTEST = 15  # seconds that a stage must have left for a part


@dataclass(frozen=True)
class Stage:
    """A part of the measurements with a time limit."""

    what: str
    minutes: float  # for all its parts together, meant for an H100
    parts: tuple[tuple[str, str], ...]  # (function of gpu_rows, or "tests"; memory manager), each a process


STAGES = {
    "a": Stage(
        "the pack's tests, and little memory",
        4,
        (("tests", CLASSIC), ("tests", DYNAMIC), ("limits", CLASSIC), ("limits", DYNAMIC)),
    ),
    "b": Stage("Wan 480p, steps", 5, (("wan_steps", CLASSIC),)),
    "c": Stage("Wan 480p, whole runs", 8.5, (("wan_runs", CLASSIC),)),
    "d": Stage("a profile of one render step", 2.5, (("profiles", CLASSIC),)),
    "e": Stage("CogVideoX", 3, (("cogvideox", CLASSIC),)),
    "f": Stage("Wan 720p, steps", 4, (("wan_720p", CLASSIC),)),
    "g": Stage("Wan 480p with dynamic VRAM", 4, (("wan_one_run", DYNAMIC),)),
}


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """A file with a line for each row, which starts and processes share: every line says with what it was measured."""

    path: Path
    facts: Line = field(default_factory=dict)  # of the rows that are added, and of those that count

    @classmethod
    def of_newest(cls, path: Path) -> Results:
        """Those that are like the file's last line."""
        return cls(path, cls(path).lines()[-1])

    def lines(self) -> list[Line]:
        """All lines. Raises ValueError for a file with anything else."""
        try:
            lines = list(map(json.loads, self.path.read_text("utf-8").splitlines())) if self.path.exists() else []
            if all(set(SETTING) <= line.keys() for line in lines):
                return lines
        except (ValueError, AttributeError):
            pass
        raise ValueError(f"{self.path.name} does not hold results of bench/gpu.py. Name another file by --results.")

    def rows(self) -> list[Line]:
        """Those measured with the same card, host, versions and commit."""
        return [line for line in self.lines() if all(line[name] == self.facts[name] for name in SETTING)]

    def add(self, row: Line) -> None:
        """Keep a row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.facts | row) + "\n")

    def has(self, **wanted: Any) -> bool:
        """Whether such a row is there. One that failed is not: it is measured again."""
        return any(wanted.items() <= row.items() and "error" not in row for row in self.rows())


def newest(folder: Path) -> Path | None:
    """The newest results file of a GPU in the folder."""
    files = [path for path in folder.glob("gpu-*.jsonl") if path.stem != "gpu-rehearsal"]
    return max(files, key=lambda path: str(Results(path).lines()[-1]["date"]), default=None)


def default_path(folder: Path, facts: Line) -> Path:
    """Where a card's results go. A rehearsal's are nothing to keep."""
    card = "rehearsal" if facts["rehearsal"] else re.sub(r"[^a-z0-9]+", "-", facts["card"].lower()).strip("-")
    return folder / f"gpu-{card}.jsonl"


# --- stages -----------------------------------------------------------------------------------------------------------


def run_stage(letter: str, results: Results, ends: float, fresh: bool) -> None:
    """The parts of a stage that are not there yet, within what is left of its time limit.

    ends: of the command, by time.monotonic. fresh: with the whole limit, whatever earlier starts used of it.
    """
    stage, rehearsal = STAGES[letter], results.facts["rehearsal"]
    earlier = [row["seconds"] for row in results.rows() if row["stage"] == letter and row["row"] == END]
    stage_ends = time.monotonic() + 60 * stage.minutes - (0 if fresh else sum(earlier))
    for number, (what, manager) in enumerate(stage.parts):
        part = {"stage": letter, "part": f"{what}, {manager}"}
        if results.has(**part, row=END, why=WHOLE):
            continue
        begin = time.monotonic()
        of_stage, of_command = stage_ends - begin, ends - begin
        if rehearsal and manager == DYNAMIC:
            why = "left out: dynamic VRAM needs a GPU"
        elif of_command < of_stage / 2:  # its networks would be built for little
            why = "not begun: the minutes of the command were used up"
        elif of_stage < min(SHORTEST, 30 * stage.minutes):
            why = "not begun: the stage's time limit was used up"
        else:
            limit = min(of_stage, of_command)
            print(f"== {letter}, {stage.what}: {what}, {manager} memory, {limit:.0f} s at most", flush=True)
            why = run_part(f"{letter}{number}", manager, results, limit)
        results.add({**part, "row": END, "why": why, "seconds": round(time.monotonic() - begin, 1)})
        print(f"   {why}", flush=True)


def run_part(name: str, manager: str, results: Results, limit: float) -> str:
    """A part in a process of ``limit`` seconds at most; how it ended."""
    process = start(name, manager, results.facts["rehearsal"], results)
    try:
        code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return f"ended by the time limit, after {limit:.0f} s"
    finally:
        end(process)
    return WHOLE if code == 0 else f"failed: the process ended with {code}"


def start(name: str, manager: str, rehearsal: bool, results: Results | None = None, **how: Any) -> Any:
    """A process of this file that does a part of a stage, or tells the facts; ``manager`` of the GPU's memory."""
    words = [sys.executable, __file__, "--work", name, *["--rehearse"] * rehearsal]
    words += ["--results", str(results.path), "--facts", json.dumps(results.facts)] if results else []
    environment = {**os.environ, "SRD_TEST_GPU": "" if rehearsal else manager, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(words, env=environment | {common.IN_HOST: "1"}, text=True, **how)


def end(process: Any) -> None:
    """Now, with what it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def facts(rehearsal: bool) -> Line:
    """Of the machine, told by a process that ends before the first stage. Raises RuntimeError where it can't."""
    process = start("facts", CLASSIC, rehearsal, stdout=subprocess.PIPE)
    said, _ = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError("Nothing was measured. Without a GPU, --rehearse goes from start to table on the CPU.")
    return json.loads(said.splitlines()[-1]) | {"command": common.command(), "rehearsal": rehearsal}


def work(options: argparse.Namespace) -> None:
    """One part of a stage, or the facts, in this process."""
    if options.work == "facts":
        import torch

        found = common.facts() | {"card": f"{os.cpu_count()} CPU cores"}
        if not options.rehearse:
            if not torch.cuda.is_available():
                raise SystemExit("There is no GPU here that torch can use.")
            found["card"] = torch.cuda.get_device_name()
            found["versions"] += f", CUDA {torch.version.cuda}"
        print(json.dumps(found))
        return
    letter, number = options.work
    what, manager = STAGES[letter].parts[int(number)]
    results, part = Results(options.results, json.loads(options.facts)), {"stage": letter, "part": f"{what}, {manager}"}
    if what == "tests":  # whose conftest.py starts the host
        import gpu_tests

        gpu_tests.run(results, part)
        return
    import gpu_rows

    gpu_rows.run(what, gpu_rows.Work(results, part, "tiny" if options.rehearse else "real"))


# --- the command ------------------------------------------------------------------------------------------------------


def table(path: Path | None) -> list[str]:
    """The closing table of a results file, or that there is none."""
    if path is None:
        return gpu_table.NOTHING
    results = Results.of_newest(path)
    return gpu_table.table(results.facts, results.rows())


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    begin, options = time.monotonic(), arguments(words)
    if options.work:
        work(options)
        return 0
    if options.table:
        text = table(options.results or newest(common.RESULTS))
        print("\n".join(text))
        if not common.update_readme(common.EVIDENCE, gpu_table.MARKS, text):
            raise SystemExit(f"docs/evidence.md has no place for the table. Put these lines into it: {gpu_table.MARKS}")
        return 0
    try:
        told = facts(options.rehearse)
        folder = options.results if options.results and options.results.is_dir() else common.RESULTS
        path = default_path(folder, told) if options.results in (None, folder) else options.results
        if options.rehearse and options.results is None:
            path.unlink(missing_ok=True)
        results = Results(path, told)
        results.rows()
    except (RuntimeError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    ends = begin + 60 * options.minutes if options.minutes else float("inf")
    for letter in STAGES:
        if letter in (options.stages or STAGES):
            run_stage(letter, results, ends, bool(options.stages))
    print("\n".join(["", *table(path), "", f"Results: {path.name}, {time.monotonic() - begin:.0f} s."]))
    return 0


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = "; ".join(f"{letter}: {stage.what} ({stage.minutes:g} min)" for letter, stage in STAGES.items())
    parser.add_argument("--stages", default="", metavar="LETTERS", help=f"{listed}. Default: all")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: when all is measured")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--results", type=Path, help="a file, or a folder; default: bench/results")
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--facts", default="{}", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if not set(options.stages) <= STAGES.keys():
        parser.error(f"--stages {options.stages}: the stages are {''.join(STAGES)}")
    if options.minutes < 0:
        parser.error("--minutes must be 0 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
