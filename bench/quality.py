r"""What the switch does to quality and speed: rows on many prompts, scored, beside what others do.

    python3 bench/quality.py                       the tiny family's table; the same command continues a stopped run
    python3 bench/quality.py small_sketch --size 192x192x9 --prompts 12       a sketch of fewer pixels
    python3 bench/quality.py --rows fade --prompts 2                          some rows, and the sketch alone
    python3 bench/quality.py --report-only         table and figures from the results again
    SRD_TEST_GPU=classic python3 bench/quality.py --results FOLDER --prompts-file prompts.txt --size 832x480x81 \
        --sketch wan2.1_t2v_14B_fp8_scaled.safetensors --render wan2.1_t2v_1.3B_fp16.safetensors \
        --vae wan_2.1_vae.safetensors --text umt5_xxl_fp8_e4m3fn_scaled.safetensors --shift 5 --cfg 5

A cell, a row on a prompt with a seed, is a line of bench/results/quality.jsonl. Lines of other weights or settings are
neither used nor mixed in.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import common

if __name__ == "__main__":
    common.run_in_host()

import hosting
import numpy as np
import quality_metrics
from PIL import Image
from quality_rows import ALONE, PAPER_STEPS, TABLES, Family, Row, Sampled, Studio

# isort: split
from tqdm import tqdm

import data
import oracle
import text

SCENE_SEED = 2026  # of the held-out prompts, as in the family's card
FEWER = 12  # prompts of the rows of other runs than 50 steps with euler
SHEET_PROMPTS, SHEET_FRAMES = 8, 3  # of the contact sheet: prompts, frames of each video

Line = dict[str, Any]


@dataclass
class Store:
    """The results: a file of lines, of which those of these weights and this setup are read."""

    path: Path
    weights: str
    setup: str

    def __post_init__(self) -> None:
        """Read what is there. A line that a killed run left unfinished is cut off."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self.path.write_bytes(whole)
        found = map(json.loads, whole.decode("utf-8").splitlines())
        self.lines: list[Line] = [x for x in found if (x["weights"], x["setup"]) == (self.weights, self.setup)]
        self.done = {cell_of(line) for line in self.lines if "flicker" in line}

    def add(self, line: Line) -> None:
        """Keep a line, in the file first."""
        line = {**line, "weights": self.weights, "setup": self.setup}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(json.dumps(line, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        self.lines.append(line)
        self.done.add(cell_of(line))


def cell_of(line: Line) -> tuple[Any, ...]:
    """What tells a cell from all others of these weights and this setup."""
    return line["row"], line["steps"], line["sampler"], line["prompt"], line["number"], line["seed"]


@dataclass
class Evaluation:
    """Samples and scores the cells that the store does not hold yet, prompt by prompt."""

    studio: Studio
    store: Store
    prompts: Sequence[str]
    scenes: Sequence[Any] | None  # what the oracle scores by; None: no oracle for these prompts
    frames: Path  # folder for the contact sheet's frames

    def run(self, rows: Sequence[Row], seeds: int) -> None:
        """All missing cells. What is stopped between two lines continues there."""
        missing = list(self.missing(rows, seeds))
        with tqdm(total=sum(len(cells) for *_, cells in missing), unit="cell") as bar:
            for number, seed, cells in missing:
                reference = self.sample(sketch_only(cells[0]), number, seed)
                for row in cells:
                    bar.set_postfix_str(str(row))
                    alone = row.name == ALONE[0].name
                    sampled = reference if alone else self.sample(row, number, seed, reference)
                    self.store.add(self.line(row, number, seed, sampled, None if alone else reference))
                    self.keep_frames(row, number, seed, sampled)
                    bar.update()

    def missing(self, rows: Sequence[Row], seeds: int) -> Iterator[tuple[int, int, list[Row]]]:
        """(prompt's number, seed, rows of one run that are not there)."""
        for run, group in itertools.groupby(rows, lambda row: row.run):
            own = list(group)
            main = run == (PAPER_STEPS, ALONE[0].sampler)
            count = len(self.prompts) if main else min(len(self.prompts), FEWER)
            for seed, number in itertools.product(range(seeds), range(count)):
                place = (self.prompts[number], number, seed)
                if cells := [row for row in own if (row.name, *row.run, *place) not in self.store.done]:
                    yield number, seed, cells

    def sample(self, row: Row, number: int, seed: int, reference: Sampled | None = None) -> Sampled:
        """One cell's video."""
        curve = (reference.curve or []) if reference else []
        return self.studio.sample(row, self.prompts[number], number, seed, curve)

    def line(self, row: Row, number: int, seed: int, sampled: Sampled, reference: Sampled | None) -> Line:
        """What is kept of a cell. Seconds are of sampling; scores are None where no oracle reads the prompts."""
        facts = common.facts()
        line: Line = {
            "row": row.name,
            "steps": row.steps,
            "sampler": row.sampler,
            "number": number,
            "seed": seed,
            "prompt": self.prompts[number],
            **{name: facts[name] for name in ("date", "commit", "host", "machine")},
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "switch_step": sampled.switch_step,
            "reason": sampled.reason,
            "calls": sampled.calls,
            "seconds": {model: round(value, 4) for model, value in sampled.seconds.items()},
            "scores": None,
        }
        if self.scenes is not None:
            read = oracle.score(sampled.video.numpy(), self.scenes[number])
            line["scores"] = {name: round(float(value), 6) for name, value in read.items()}
        line["flicker"] = round(quality_metrics.flicker(sampled.video), 8)
        if reference is None:
            return line | {"curve": sampled.curve}
        return line | quality_metrics.compared(sampled.video, reference.video)

    def keep_frames(self, row: Row, number: int, seed: int, sampled: Sampled) -> None:
        """Some frames side by side for the contact sheet, of its prompts only."""
        if number < SHEET_PROMPTS and seed == 0:
            self.frames.mkdir(parents=True, exist_ok=True)
            places = np.linspace(0, len(sampled.video) - 1, SHEET_FRAMES).round().astype(int)
            strip = np.concatenate([(sampled.video[i].numpy() * 255).round().astype(np.uint8) for i in places], 1)
            Image.fromarray(strip).save(self.frames / f"{row}, {number}.png")


def sketch_only(row: Row) -> Row:
    """The sketch alone in a row's run, which all rows of it are compared with."""
    return Row(ALONE[0].name, "alone", steps=row.steps, sampler=row.sampler)


def weights_hash(files: Iterable[Path]) -> str:
    """A short name for the contents of files: of large ones, 64 parts of a megabyte each and the size."""
    digest, part = hashlib.sha256(), 1 << 20
    for path in files:
        size = path.stat().st_size
        digest.update(f"{size};".encode())
        with open(path, "rb") as file:
            for i in range(64):
                file.seek(i * part if size <= 64 * part else i * (size - part) // 63)
                digest.update(file.read(part))
    return digest.hexdigest()[:12]


# --- the command ------------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = arguments(words)
    family = Family(**{one.name: getattr(options, one.name) for one in fields(Family)})
    store = Store(options.results / f"{options.table}.jsonl", weights_hash(family.files()), family.setup())
    frames = options.frames or hosting.host_module.cache_folder() / "bench" / store.weights
    if not options.report_only:
        rows = [r for r in TABLES[options.table]() if r.name == ALONE[0].name or re.search(options.rows, str(r))]
        prompts, scenes = prompts_of(options)
        try:
            Evaluation(Studio(family), store, prompts, scenes, frames).run(rows, options.seeds)
        except KeyboardInterrupt:
            sys.stderr.write("\nstopped; what is finished is kept, the same command continues\n")
    if store.lines:
        report(options, store, frames)
    return 0


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", default="quality", choices=TABLES)
    parser.add_argument("--rows", default="", help="only rows whose name or run has this regular expression")
    parser.add_argument("--prompts", type=int, default=32, help=f"at 50 steps with euler; other runs: at most {FEWER}")
    parser.add_argument("--seeds", type=int, default=1, help="of each prompt")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results")
    parser.add_argument("--frames", type=Path, help="folder for the contact sheet's frames; default: the host's cache")
    parser.add_argument("--report-only", action="store_true", help="sample nothing")
    parser.add_argument(
        "--prompts-file", type=Path, help="one prompt a line; default: held-out ones of the tiny family"
    )
    family = parser.add_argument_group("another family (file names as ComfyUI's loaders list them, or paths)")
    for one in fields(Family):
        family.add_argument(f"--{one.name.replace('_', '-')}", default=one.default, type=type(one.default))
    return parser.parse_args(words)


def prompts_of(options: argparse.Namespace) -> tuple[list[str], list[Any] | None]:
    """The prompts, and the scenes that the oracle judges by where they are the tiny family's own."""
    if options.prompts_file:
        lines = [line.strip() for line in options.prompts_file.read_text("utf-8").splitlines()]
        return [line for line in lines if line][: options.prompts], None
    scenes = data.held_out_scenes(options.prompts, seed=SCENE_SEED)
    return [text.caption(scene) for scene in scenes], scenes


def report(options: argparse.Namespace, store: Store, frames: Path) -> None:
    """The table, between its marks beside the results; of the published results also figures and what the docs say."""
    import quality_figures
    import quality_table

    page = options.results / f"{options.table}.md"
    marks = quality_table.MARKS
    if not page.is_file():
        page.write_text("\n".join([*marks, ""]), "utf-8")
    common.update_readme(page, marks, quality_table.markdown(store.lines, quality_metrics.no_lpips()))
    if options.table == "quality":
        quality_figures.write(store.lines, options.results, frames)
        if options.results == common.RESULTS:
            common.update_readme(common.EVIDENCE, quality_table.EVIDENCE_MARKS, quality_table.evidence(store.lines))
            common.update_readme(common.CARD, quality_table.CARD_MARKS, quality_table.card(store.lines))
    sys.stderr.write(f"{page}\n")


if __name__ == "__main__":
    sys.exit(main())
