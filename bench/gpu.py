"""Measured on a GPU, by one command: stage after stage, each with a time limit. Every row is kept as soon as it is measured.

    python3 bench/gpu.py                 all stages; the same command again measures what is missing
    python3 bench/gpu.py --stages bc     only these, each with its whole time limit
    python3 bench/gpu.py --minutes 9     stop after so many minutes
    python3 bench/gpu.py --rehearse      from start to table on the CPU, with tiny shapes
    python3 bench/gpu.py --table         the table of the newest results again; it goes into docs/evidence.md too

Networks have their true shapes and random weights: no file is needed, and speed does not depend on what weights say. Every part
of a stage is a process, so a crash or a time limit ends that part alone. Results: bench/results/gpu-<card>-<date>.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

if __name__ == "__main__":
    common.run_in_host()
import gpu_table

Line = dict[str, Any]
CLASSIC, DYNAMIC = "classic", "dynamic"  # how the host manages the GPU's memory, see tests/hosting.py
END = "end"  # row that tells how a part ended
WHOLE = "whole"  # it ended because all its rows are there
# What must be the same of two sessions before rows of the one count as there in the other.
SETTING = ("card", "host", "versions", "commit", "rehearsal")
SHORTEST = 15  # seconds that a stage must have left for a part


@dataclass(frozen=True)
class Stage:
    """A part of the measurements with a time limit."""

    letter: str
    what: str
    minutes: float  # for all its parts together
    parts: tuple[tuple[str, str], ...]  # (function of gpu_rows, or "tests"; memory manager), each a process


STAGES = (
    Stage(
        "a",
        "the pack's tests, and little memory",
        4,
        (("tests", CLASSIC), ("tests", DYNAMIC), ("limits", CLASSIC), ("limits", DYNAMIC)),
    ),
    Stage("b", "Wan 480p, steps", 5, (("wan_steps", CLASSIC),)),
    Stage("c", "Wan 480p, whole runs", 8.5, (("wan_runs", CLASSIC),)),
    Stage("d", "a profile of one render step", 2.5, (("profiles", CLASSIC),)),
    Stage("e", "CogVideoX", 3, (("cogvideox", CLASSIC),)),
    Stage("f", "Wan 720p, steps", 4, (("wan_720p", CLASSIC),)),
    Stage("g", "Wan 480p with dynamic VRAM", 4, (("wan_one_run", DYNAMIC),)),
)


# --- results ------------------------------------------------------------------------------------------------------------


class Results:
    """A results file, read and written anew for each row: it is always whole, and every process sees what is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, list[Line]]:
        """{"sessions": ..., "rows": ...}. Raises ValueError for a file with anything else."""
        if not self.path.exists():
            return {"sessions": [], "rows": []}
        try:
            data = json.loads(self.path.read_text("utf-8"))
            sound = data.keys() == {"sessions", "rows"} and all(
                row["session"] < len(data["sessions"]) for row in data["rows"]
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise ValueError(f"{self.path.name} does not hold results of bench/gpu.py. Name another file by --results.")
        return data

    def begin(self, facts: Line) -> None:
        """A new session: the rows that follow are its own."""
        data = self.read()
        data["sessions"].append(facts)
        self._write(data)

    def add(self, row: Line) -> None:
        """A row of the newest session."""
        data = self.read()
        data["rows"].append({"session": len(data["sessions"]) - 1, **row})
        self._write(data)

    def rows(self) -> list[Line]:
        """Those of all sessions that are like the newest one."""
        data = self.read()
        if not data["sessions"]:
            return []
        *_, newest = data["sessions"]
        alike = [all(session.get(name) == newest.get(name) for name in SETTING) for session in data["sessions"]]
        return [row for row in data["rows"] if alike[row["session"]]]

    def has(self, **wanted: Any) -> bool:
        """Whether such a row is there. One that failed is not: it is measured again."""
        return any(wanted.items() <= row.items() and "error" not in row for row in self.rows())

    def _write(self, data: dict[str, list[Line]]) -> None:
        blocks = [
            f' "{name}": [\n' + ",\n".join("  " + json.dumps(line) for line in lines) + "\n ]"
            for name, lines in data.items()
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text("{\n" + ",\n".join(blocks) + "\n}\n", "utf-8")
        partial.replace(self.path)


def newest(folder: Path) -> Path | None:
    """The newest results file of a GPU in the folder."""
    files = [path for path in folder.glob("gpu-*.json") if not path.stem.startswith("gpu-rehearsal")]
    dated = {found[0]: path for path in files if (found := re.findall(r"\d{4}-\d\d-\d\d$", path.stem))}
    return dated[max(dated)] if dated else None


def default_path(folder: Path, card: str, rehearsal: bool) -> Path:
    """Where today's results of a card go. A rehearsal's are nothing to keep."""
    name = "rehearsal" if rehearsal else re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    return folder / f"gpu-{name}-{datetime.date.today().isoformat()}.json"


def commit() -> str:
    """The pack's, with a + where something was changed since; SRD_COMMIT where git does not know it."""
    try:
        found = [
            subprocess.check_output(
                ["git", *words], cwd=common.REPOSITORY, text=True, stderr=subprocess.DEVNULL
            ).strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SRD_COMMIT", "unknown")
    return found[0] + "+" * bool(found[1])


# --- stages -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One start of the command."""

    results: Results
    ends: float  # time.monotonic
    rehearsal: bool
    fresh: bool  # whether stages have their whole time limits, whatever earlier starts used of them
    factor: float = 1.0  # of the time limits

    def run(self, stage: Stage) -> None:
        """The parts of a stage that are not there yet, within what is left of its time limit."""
        used = 0.0 if self.fresh else sum(row["seconds"] for row in self.results.rows() if self._ends(row, stage))
        stage_ends = time.monotonic() + 60 * stage.minutes * self.factor - used
        for number, (what, manager) in enumerate(stage.parts):
            part = {"stage": stage.letter, "part": f"{what}, {manager}"}
            if self.results.has(**part, row=END, why=WHOLE):
                continue
            begin = time.monotonic()
            of_stage, of_command = stage_ends - begin, self.ends - begin
            if self.rehearsal and manager == DYNAMIC:
                why = "left out: dynamic VRAM needs a GPU"
            elif of_command < of_stage / 2:  # its networks would be built for little
                why = "not begun: the minutes of the command were used up"
            elif of_stage < min(SHORTEST, 30 * stage.minutes * self.factor):
                why = "not begun: the stage's time limit was used up"
            else:
                limit = min(of_stage, of_command)
                print(f"== {stage.letter}, {stage.what}: {what}, {manager} memory, {limit:.0f} s at most", flush=True)
                why = self._process(stage, number, limit)
            self.results.add({**part, "row": END, "why": why, "seconds": round(time.monotonic() - begin, 1)})
            print(f"   {why}", flush=True)

    def _ends(self, row: Line, stage: Stage) -> bool:
        return row["row"] == END and row["stage"] == stage.letter

    def _process(self, stage: Stage, number: int, limit: float) -> str:
        """A part in a process with all that it starts; how it ended."""
        words = [sys.executable, __file__, "--work", f"{stage.letter}{number}", "--results", str(self.results.path)]
        process = start([*words, *["--rehearse"] * self.rehearsal], "" if self.rehearsal else stage.parts[number][1])
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return f"ended by the time limit, after {limit:.0f} s"
        finally:
            end(process)
        return WHOLE if code == 0 else f"failed: the process ended with {code}"


def start(words: list[str], manager: str, **how: Any) -> subprocess.Popen[str]:
    """A process of the host's Python; manager: of the GPU's memory, "" for the CPU. It leads a group, so that it ends with all that
    it started, but stays in our session: machines that are lent end that with the command.
    """
    environment = {**os.environ, common.IN_HOST: "1", "SRD_TEST_GPU": manager, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(words, env=environment, text=True, preexec_fn=getattr(os, "setpgrp", None), **how)


def end(process: subprocess.Popen[str]) -> None:
    """Now, with what it started."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def facts(rehearsal: bool) -> Line:
    """Of the machine, told by a process that ends before the first stage. Raises RuntimeError with what it said where it can't."""
    words = [sys.executable, __file__, "--work", "facts", *["--rehearse"] * rehearsal]
    process = start(words, "" if rehearsal else CLASSIC, stdout=subprocess.PIPE)
    said, _ = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError("Nothing was measured. Without a GPU, --rehearse goes from start to table on the CPU.")
    return {
        **json.loads(said.splitlines()[-1]),
        "commit": commit(),
        "command": common.command(),
        "rehearsal": rehearsal,
    }


def work(options: argparse.Namespace) -> None:
    """One part of a stage, or the facts, in this process."""
    if options.work == "facts":
        import torch

        if not (options.rehearse or torch.cuda.is_available()):  # before the host, which can't be loaded for a GPU then
            raise SystemExit("There is no GPU here that torch can use.")
        import gpu_bench

        print(json.dumps(gpu_bench.facts()))
        return
    stage = next(stage for stage in STAGES if stage.letter == options.work[0])
    what, manager = stage.parts[int(options.work[1:])]
    part = {"stage": stage.letter, "part": f"{what}, {manager}"}
    if what == "tests":
        import gpu_tests

        gpu_tests.run(Results(options.results), part)
        return
    import gpu_rows

    gpu_rows.run(what, gpu_rows.Work(Results(options.results), part, "tiny" if options.rehearse else "real"))


# --- the command --------------------------------------------------------------------------------------------------------


def table(path: Path) -> list[str]:
    """The closing table of a results file."""
    results = Results(path)
    return gpu_table.table(results.read()["sessions"][-1], results.rows())


def write_evidence(path: Path | None) -> None:
    """Put the section on speed into docs/evidence.md: what was measured, or that nothing was."""
    if not common.update_readme(common.EVIDENCE, gpu_table.MARKS, gpu_table.NOTHING if path is None else table(path)):
        raise SystemExit(
            f"docs/evidence.md has no place for the table. Put these lines into it: {' and '.join(gpu_table.MARKS)}"
        )


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    begin, options = time.monotonic(), arguments(words)
    if options.work:
        work(options)
        return 0
    if options.table:
        path = options.results or newest(common.RESULTS)
        print("\n".join(table(path) if path else gpu_table.NOTHING))
        write_evidence(path)
        return 0
    try:
        session = facts(options.rehearse)
        folder = options.results if options.results and options.results.is_dir() else common.RESULTS
        named = options.results and options.results != folder
        results = Results(options.results if named else default_path(folder, session["card"], options.rehearse))
        if options.rehearse and not named:
            results.path.unlink(missing_ok=True)
        results.begin(session)
    except (RuntimeError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    ends = begin + 60 * options.minutes if options.minutes else float("inf")
    command = Command(results, ends, options.rehearse, bool(options.stages), options.factor)
    for stage in STAGES:
        if stage.letter in (options.stages or "abcdefg"):
            command.run(stage)
    print("\n".join(["", *table(results.path), "", f"Results: {results.path.name}, {time.monotonic() - begin:.0f} s."]))
    return 0


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = "; ".join(f"{stage.letter}: {stage.what} ({stage.minutes:g} min)" for stage in STAGES)
    parser.add_argument("--stages", default="", metavar="LETTERS", help=f"{listed}. Default: all")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: when all is measured")
    parser.add_argument("--factor", type=float, default=1, help="of all time limits: more on a slower card")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument(
        "--results", type=Path, help="a file, or a folder for today's file of this card; default: bench/results"
    )
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if not set(options.stages) <= {stage.letter for stage in STAGES}:
        parser.error(f"--stages {options.stages}: the stages are {''.join(stage.letter for stage in STAGES)}")
    if options.minutes < 0 or options.factor <= 0:
        parser.error("--minutes must be 0 or more, --factor more than 0")
    return options


if __name__ == "__main__":
    sys.exit(main())
