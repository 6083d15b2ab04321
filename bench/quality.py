"""What the hand-over does to quality and speed: every row of the evaluation on many prompts, scored, beside the peers.

    python3 bench/quality.py                        all of it; a killed or interrupted run continues where it stopped
    python3 bench/quality.py --minutes 20           as much as fits into 20 minutes, and the report of what there is
    python3 bench/quality.py --rows adaptive --run 8:euler --prompts 8
    python3 bench/quality.py --report-only          tables and figures from the results again
    python3 bench/quality.py --gpu --batch 1 --sketch wan2.1_t2v_14B_fp8_scaled.safetensors \\
        --render wan2.1_t2v_1.3B_fp16.safetensors --vae wan_2.1_vae.safetensors \\
        --text umt5_xxl_fp8_e4m3fn_scaled.safetensors --shift 5 --cfg 5 --size 832x480x81 --prompts-file prompts.txt

A line per row, prompt and seed goes to bench/results/quality.jsonl; table, decisions and figures lie beside it. A cell's
key holds the weights, the settings and what was sampled, so results of other weights are neither used nor mixed in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import common

if __name__ == "__main__":
    common.run_in_host()

import quality_host
from quality_rows import RENDER, SHEET_PROMPTS, SKETCH, Family, Plan, Row, all_rows, graph_of, plan_of

SCENE_SEED = 2026  # of the held-out prompts, as in the family's card
SHEET_FRAMES = 3  # of a video in the contact sheet
OTHER_SHARE = 2  # rows that are not main: one of so many prompts, and the first seed
TINY = {
    "sketch": "tiny_wan_sketch.safetensors",
    "render": "tiny_wan_render.safetensors",
    "vae": "tiny_wan_vae.safetensors",
}

Line = dict[str, Any]
Curves = dict[str, list[float | None]]


@dataclass(frozen=True)
class Cell:
    """A row on a prompt with a seed. number: the prompt's place in the list, which its noise goes by."""

    row: Row
    number: int
    prompt: str
    seed: int


@dataclass
class Store:
    """The results: lines appended to a file, each written whole, and what is needed to find them."""

    path: Path
    weights: str
    lines: list[Line] = field(default_factory=list)  # of these weights only

    def __post_init__(self) -> None:
        """Read what is there. A line that a killed run left unfinished is cut off."""
        self.by_key: dict[str, Line] = {}
        self.done: set[tuple[str, str, str]] = set()
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self.path.write_bytes(whole)
        for text in whole.decode("utf-8").splitlines():
            line = json.loads(text)
            if line["weights"] == self.weights:
                self._take(line)

    def _take(self, line: Line) -> None:
        self.lines.append(line)
        self.done.add((line["kind"], line["row"], line["key"]))
        if line["kind"] == "score":
            self.by_key.setdefault(line["key"], line)

    def add(self, line: Line) -> None:
        """Keep a line, in the file first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(json.dumps(line, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        self._take(line)


class Clock:
    """The bar, and the end of the time that was asked for."""

    def __init__(self, cells: int, minutes: float | None) -> None:
        self.cells, self.done, self.begun = cells, 0, time.monotonic()
        self.end = None if minutes is None else self.begun + 60 * minutes
        self._live, self._row = sys.stderr.isatty(), ""

    def over(self) -> bool:
        """Whether the minutes are used up."""
        return self.end is not None and time.monotonic() > self.end

    def advance(self, count: int, row: str) -> None:
        """Show that so many more cells are there. row: what is on the way."""
        self.done += count
        passed = time.monotonic() - self.begun
        left = passed / max(self.done, 1) * (self.cells - self.done)
        filled = round(24 * self.done / max(self.cells, 1))
        text = (
            f"[{'#' * filled}{'-' * (24 - filled)}] {self.done}/{self.cells} cells, {passed / 60:.1f} min, "
            f"about {left / 60:.0f} min left  {row}"
        )
        if self._live:
            sys.stderr.write("\r\x1b[K" + text[:150])
        elif row != self._row or self.done == self.cells:
            sys.stderr.write(text + "\n")
        self._row = row
        sys.stderr.flush()


@dataclass
class Evaluation:
    """Samples and scores what the store does not hold yet."""

    family: Family
    prompts: Sequence[str]
    store: Store
    videos: Path  # where sketch only's videos and the contact sheet's frames are kept
    net: str | None  # LPIPS network; None: can't be measured here
    batch: int = 16
    scenes: Sequence[Any] | None = None  # what the oracle scores by; None: no oracle for these prompts
    executor: Any = None

    def __post_init__(self) -> None:
        self.executor = self.executor or quality_host.Executor()
        self.videos.mkdir(parents=True, exist_ok=True)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def key(self, plan: Plan, cell: Cell) -> str:
        """What a result depends on, as a short name."""
        facts = [
            self.store.weights,
            self._family_settings(),
            plan.facts(),
            cell.prompt,
            cell.number,
            cell.seed,
            self.net,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def settings(self) -> str:
        """Short name of what all cells of one table share."""
        shared = [self._family_settings(), self.net]
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:12]

    def _family_settings(self) -> dict[str, Any]:
        """The family without its files, which go by their contents."""
        return {k: v for k, v in asdict(self.family).items() if k not in ("sketch", "render", "vae", "text")}

    def own_lines(self) -> list[Line]:
        """The results of these settings and prompts, without what other commands left in the file."""
        count, settings = len(self.prompts), self.settings()
        return [
            line
            for line in self.store.lines
            if line.get("settings") == settings
            and (line["number"] >= count or line["prompt"] == self.prompts[line["number"]])
        ]

    def reference(self, cell: Cell) -> Line | None:
        """Sketch only's line for that cell's prompt, seed and run; None if it, or its video, is not there."""
        row = cell.row
        key = self.key(Plan("plain", row.steps, row.sampler, row.scheduler), cell)
        return self.store.by_key.get(key) if (self.videos / f"{key}.npz").is_file() else None

    def planned(self, cell: Cell) -> tuple[Plan, str]:
        """The cell's plan; raises ValueError when sketch only has not been sampled for it."""
        line = self.reference(cell) if cell.row.kind in ("adaptive", "renoised") else None
        return plan_of(cell.row, line and line["curves"], line["sigmas"] if line else ())

    # --- sampling -----------------------------------------------------------------------------------------------------

    def evaluate(self, cells: Sequence[Cell], clock: Clock) -> None:
        """All cells of one row that are not there, batch by batch, until the clock says stop. Sketch only comes first."""
        missing: dict[tuple[Plan, int], list[tuple[Cell, str]]] = {}
        for cell in cells:
            if cell.row.kind in ("adaptive", "renoised") and self.reference(cell) is None:
                continue  # the time was over before its sketch
            plan, reason = self.planned(cell)
            if not self.finished(cell, plan):
                missing.setdefault((plan, cell.seed), []).append((cell, reason))
        clock.advance(len(cells) - sum(map(len, missing.values())), label(cells[0].row))
        for (plan, _), group in missing.items():
            size = self.batch if plan.together else 1
            for start in range(0, len(group), size):
                if clock.over():
                    return
                self.sample(plan, group[start : start + size])
                clock.advance(len(group[start : start + size]), label(cells[0].row))

    def finished(self, cell: Cell, plan: Plan) -> bool:
        """Whether the cell's line is there; writes it where another row has sampled the same."""
        key = self.key(plan, cell)
        if is_sketch_only(plan) and not (self.videos / f"{key}.npz").is_file():
            return False
        if on_sheet(cell) and not (self.videos / f"{key}.png").is_file():
            return False  # the picture for the contact sheet was on another machine
        if ("score", cell.row.name, key) in self.store.done:
            return True
        same = self.store.by_key.get(key)
        if same is None:
            return False
        reason = self.planned(cell)[1]
        self.store.add({**same, "row": cell.row.name, "reason": reason, "curves": None, "sigmas": None})
        return True

    def sample(self, plan: Plan, group: Sequence[tuple[Cell, str]]) -> None:
        """Sample one batch, score it, keep its lines."""
        cells = [cell for cell, _ in group]
        kept = self.executor.run(
            graph_of(
                plan,
                self.family,
                [c.prompt for c in cells],
                [c.number for c in cells],
                cells[0].seed,
                curves=is_sketch_only(plan),
            )
        )
        for i, ((cell, reason), video) in enumerate(zip(group, self.split(kept["images"], len(group)))):
            line = self.line(plan, cell, reason, kept, len(group))
            if is_sketch_only(plan):
                self.keep_video(line["key"], video)
                line["curves"], line["sigmas"] = kept["first"].curve(i), schedule(kept["hold_sketch"], plan)
            line.update(self.scores(cell, plan, video))
            self.keep_frames(cell, line["key"], video)
            self.store.add(line)

    def split(self, images: Any, count: int) -> list[Any]:
        """IMAGE [count * frames, h, w, 3] -> uint8 arrays [frames, h, w, 3]."""
        values = (images.clamp(0, 1) * 255).round().byte().cpu().numpy()
        return list(values.reshape(count, -1, *values.shape[1:]))

    def line(self, plan: Plan, cell: Cell, reason: str, kept: dict[str, Any], size: int) -> Line:
        """What is known of a cell before its video is looked at. Seconds are the cell's share of its batch."""
        calls, seconds, switch_step = {SKETCH: 0, RENDER: 0}, {SKETCH: 0.0, RENDER: 0.0}, None
        if report := kept.get("report"):
            names = (SKETCH, RENDER) if plan.model == SKETCH else (RENDER, SKETCH)
            for name, own in zip(names, (SKETCH, RENDER)):
                calls[name], seconds[name] = report.stage(own).calls, report.stage(own).seconds / size
            switch_step = report.hand_overs[0].after_step if report.hand_overs else None
        for watched in (kept.get("first"), kept.get("second")):
            if watched:
                calls[watched.stage] += watched.calls
                seconds[watched.stage] += watched.seconds / size
        if plan.kind in ("chained", "renoised"):
            switch_step = plan.switch_step
        return {
            "kind": "score",
            "key": self.key(plan, cell),
            "row": cell.row.name,
            "steps": plan.steps,
            "sampler": plan.sampler,
            "number": cell.number,
            "seed": cell.seed,
            "prompt": cell.prompt,
            "weights": self.store.weights,
            "settings": self.settings(),
            "switch_step": switch_step,
            "reason": reason,
            "calls": calls,
            "seconds": {k: round(v, 4) for k, v in seconds.items()},
            "batch": size,
            "curves": None,
            "sigmas": None,
        }

    # --- looking ------------------------------------------------------------------------------------------------------

    def scores(self, cell: Cell, plan: Plan, video: Any) -> Line:
        """Prompt scores, likeness to sketch only, flicker. A PSNR of None: no difference at all."""
        metrics = quality_metrics()
        found: Line = {"scores": None, "flicker": metrics.flicker(video), "psnr": None, "ssim": None, "lpips": None}
        if self.scenes is not None:
            quality_host.family()
            from oracle import score

            read = score(video / 255, self.scenes[cell.number])
            found["scores"] = {name: round(float(value), 6) for name, value in read.items()}
        line = None if is_sketch_only(plan) else self.reference(cell)
        if line:
            sketch = self.video(line["key"])
            psnr = metrics.psnr(video, sketch)
            found |= {
                "psnr": None if psnr == float("inf") else round(psnr, 4),
                "ssim": round(metrics.ssim(video, sketch), 6),
            }
            found["lpips"] = None if self.net is None else round(metrics.lpips(video, sketch, self.net), 6)
        return found

    def keep_video(self, key: str, video: Any) -> None:
        """Keep sketch only's video; under its name when it is whole."""
        import numpy as np

        partial = self.videos / f"{key}.partial.npz"
        np.savez_compressed(partial, video=video)
        partial.replace(self.videos / f"{key}.npz")

    def video(self, key: str) -> Any:
        """A kept video, uint8 [frames, h, w, 3]."""
        import numpy as np

        with np.load(self.videos / f"{key}.npz") as file:
            return file["video"]

    def keep_frames(self, cell: Cell, key: str, video: Any) -> None:
        """Some frames side by side for the contact sheet, of its prompts only."""
        if on_sheet(cell):
            import numpy as np
            from PIL import Image

            shown = [video[round(i * (len(video) - 1) / (SHEET_FRAMES - 1))] for i in range(SHEET_FRAMES)]
            Image.fromarray(np.concatenate(shown, 1)).save(self.videos / f"{key}.png")

    # --- time ---------------------------------------------------------------------------------------------------------

    def time_rows(self, rows: Sequence[Row], count: int, clock: Clock) -> None:
        """Seconds of the rows as an artist runs them, one prompt at a time: all rows of the first run, and of the others
        the two models alone. Adaptive rows decide by themselves where the pack can.
        """
        first = rows[0].run
        chosen = [row for row in rows if row.run == first or row.kind == "plain"]
        count = min(count, len(self.prompts))
        clock.cells += len(chosen) * count
        for number in range(count):
            for row in chosen:
                cell = Cell(row, number, self.prompts[number], 0)
                if clock.over() or self.reference(cell) is None:
                    continue
                self.time_cell(cell)
                clock.advance(1, f"timing {label(row)}")

    def time_cell(self, cell: Cell) -> None:
        """One timed run, unless it is there."""
        plan, reason = self.planned(cell)
        key = self.key(plan, cell)
        if ("time", cell.row.name, key) in self.store.done:
            return
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        kept = self.executor.run(graph_of(plan, self.family, [cell.prompt], [cell.number], cell.seed))
        self.store.add({**self.line(plan, cell, reason, kept, 1), "kind": "time", "load": load})


def on_sheet(cell: Cell) -> bool:
    """Whether the contact sheet shows frames of this cell."""
    return cell.number < SHEET_PROMPTS and cell.seed == 0


def is_sketch_only(plan: Plan) -> bool:
    """Whether this plan is the sketch alone, which all others are compared with."""
    return plan.kind == "plain" and plan.model == SKETCH


def quality_metrics() -> Any:
    """demo/metrics.py."""
    folder = str(common.REPOSITORY / "demo")
    if folder not in sys.path:
        sys.path.append(folder)
    import metrics

    return metrics


def schedule(model: Any, plan: Plan) -> list[float]:
    """The noise levels that the host's KSampler gives this run."""
    import comfy.samplers

    sampler = comfy.samplers.KSampler(model, plan.steps, "cpu", plan.sampler, plan.scheduler)
    return [quality_host.rounded(float(sigma)) for sigma in sampler.sigmas]


def label(row: Row) -> str:
    """A row with its run."""
    return f"{row.name} ({row.steps} steps, {row.sampler})"


def cells_of(row: Row, prompts: Sequence[str], seeds: int) -> list[Cell]:
    """The cells of a row: all prompts and seeds if it is a main one."""
    count = len(prompts) if row.main else max(len(prompts) // OTHER_SHARE, min(len(prompts), SHEET_PROMPTS))
    return [Cell(row, i, prompts[i], seed) for seed in range(seeds if row.main else 1) for i in range(count)]


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
    quality_host.start(cpu=not options.gpu, threads=options.threads)
    evaluation, why_no_lpips = prepared(options)
    rows = chosen_rows(options)
    cells = [cells_of(row, evaluation.prompts, options.seeds) for row in rows]
    clock = Clock(sum(map(len, cells)), 0 if options.report_only else options.minutes)
    try:
        for group in cells if not options.report_only else []:
            if not clock.over():
                evaluation.evaluate(group, clock)
        if not options.report_only:
            evaluation.time_rows(rows, options.timed, clock)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; what is finished is kept, the same command continues\n")
    if not options.no_report and evaluation.store.lines:
        report(evaluation, options, why_no_lpips)
    return 0


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="stop after so many (between batches); default: no limit")
    parser.add_argument("--rows", default="", help="only rows whose name has this regular expression, and sketch only")
    parser.add_argument("--run", action="append", metavar="STEPS:SAMPLER", help="only these runs, e.g. 50:euler")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of the main rows; the others get half")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the main rows; the others get one")
    parser.add_argument("--batch", type=int, default=16, help="prompts in one latent batch")
    parser.add_argument("--timed", type=int, default=3, help="prompts that every row is timed on, one at a time")
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the results")
    parser.add_argument("--videos", type=Path, help="folder for sketch only's videos (default: in the host's cache)")
    parser.add_argument("--report-only", action="store_true", help="sample nothing")
    parser.add_argument("--no-report", action="store_true", help="only sample")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)))
    parser.add_argument("--lpips", default="alex", choices=("alex", "vgg", "squeeze"), help="network of LPIPS")
    family = parser.add_argument_group("another family (file names as ComfyUI's loaders list them, or paths)")
    family.add_argument("--gpu", action="store_true", help="let ComfyUI choose the device; default: the CPU")
    for name in ("sketch", "render", "vae"):
        family.add_argument(f"--{name}", default=TINY[name])
    family.add_argument("--text", default="", help="text encoder; empty: the tiny family's own encoding")
    family.add_argument("--text-type", default="wan", help="as in CLIPLoader")
    family.add_argument("--shift", type=float, default=2.0, help="of ModelSamplingSD3 on both models; 0: none")
    family.add_argument("--cfg", type=float, default=3.0)
    family.add_argument("--size", default="128x128x9", metavar="WIDTHxHEIGHTxFRAMES")
    family.add_argument("--negative", default="")
    family.add_argument(
        "--prompts-file", type=Path, help="one prompt a line; default: the tiny family's held-out prompts"
    )
    return parser.parse_args(words)


def prepared(options: argparse.Namespace) -> tuple[Evaluation, str]:
    """(the evaluation that the command line asks for, why LPIPS can't be measured or "")."""
    files, names = [], {}
    for name, kind in (
        ("sketch", "diffusion_models"),
        ("render", "diffusion_models"),
        ("vae", "vae"),
        ("text", "text_encoders"),
    ):
        if getattr(options, name):
            path, names[name] = quality_host.file_of(kind, getattr(options, name))
            files.append(path)
    width, height, length = map(int, options.size.split("x"))
    family = Family(
        **names,
        text_type=options.text_type,
        shift=options.shift or None,
        cfg=options.cfg,
        width=width,
        height=height,
        length=length,
        negative=options.negative,
    )
    prompts, scenes = prompts_of(options)
    net, why = lpips_net(options.lpips)
    store = Store(options.results / "quality.jsonl", weights_hash(files))
    videos = options.videos or common.host.cache_folder() / "bench" / store.weights
    return Evaluation(family, prompts, store, videos, net, options.batch, scenes), why


def prompts_of(options: argparse.Namespace) -> tuple[list[str], list[Any] | None]:
    """The prompts, and the scenes that the oracle judges by where they are the tiny family's own."""
    if options.prompts_file:
        lines = [line.strip() for line in options.prompts_file.read_text("utf-8").splitlines()]
        return [line for line in lines if line][: options.prompts], None
    quality_host.family()
    from data import held_out_scenes
    from text import caption

    scenes = held_out_scenes(options.prompts, seed=SCENE_SEED)
    return [caption(scene) for scene in scenes], scenes


def lpips_net(net: str) -> tuple[str | None, str]:
    """(the network if LPIPS can be measured here, else None; why not)."""
    likeness = quality_metrics().likeness
    sys.path += [folder for folder in extras() if folder not in sys.path]
    try:
        likeness.lpips_weights(net)
    except likeness.Unavailable as error:
        return None, str(error)
    return net, ""


def extras() -> Iterator[str]:
    """The folder with what only the benches need (bench/requirements.txt), made in the host's cache if it can be.

    Without the packages' own requirements, which the host has: they would bring a second torch.
    """
    wanted = (Path(__file__).parent / "requirements.txt").read_text("utf-8")
    folder = common.host.cache_folder() / "tools" / f"bench-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        partial = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial)]
        if subprocess.run([*command, "-r", str(Path(__file__).parent / "requirements.txt")], check=False).returncode:
            return
        partial.rename(folder)
    yield str(folder)


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    """The rows that the command line asks for; sketch only always, since all are compared with it."""
    runs = None
    if options.run:
        runs = [(int(steps), sampler) for steps, _, sampler in (run.partition(":") for run in options.run)]
    rows = [row for row in all_rows() if runs is None or row.run in runs]
    wanted = [row for row in rows if row.name == "sketch only" or re.search(options.rows, row.name)]
    return wanted or rows


def report(evaluation: Evaluation, options: argparse.Namespace, why_no_lpips: str) -> None:
    """Table, decisions and figures beside the results."""
    import quality_decide
    import quality_figures
    import quality_readme
    import quality_table

    lines = evaluation.own_lines()
    facts = quality_table.facts(evaluation, options, why_no_lpips)
    sections = [quality_table.markdown(lines, facts), quality_decide.markdown(lines)]
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "quality.md").write_text("\n".join(sections), "utf-8")
    written = quality_figures.write(lines, options.results, evaluation.videos)
    if options.results == common.RESULTS and evaluation.family.sketch == TINY["sketch"]:
        common.update_readme(common.EVIDENCE, quality_readme.MARKS, quality_readme.section(lines))
    sys.stderr.write(f"\n{options.results / 'quality.md'}, {', '.join(path.name for path in written)}\n")


if __name__ == "__main__":
    sys.exit(main())
