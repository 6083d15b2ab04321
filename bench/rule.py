"""Where the adaptive rule switches in other schedules: recorded on the tiny family, replayed by the pack's own rule.

python3 bench/rule.py --record    sample the sketch alone in every schedule (minutes), then the table
python3 bench/rule.py             the table in bench/results/rule.md again, from bench/results/rule_curves.json
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import common

if __name__ == "__main__":
    common.run_in_host()

import hosting
import quality_rows

# isort: split
import comfy.sample
import comfy.samplers
import torch

import data
import text

CURVES = common.RESULTS / "rule_curves.json"
MARKS = ("<!-- tables: made by python3 bench/rule.py -->", "<!-- end of the tables -->")
PROMPTS, SCENE_SEED, NOISE_SEED = 12, 15, 4  # prompts as in training: nothing is chosen on held-out ones
LOWEST = 0.3  # levels below it are not sampled: no rule is meant to wait so long
LAGS = 4  # a prediction is compared with the last four: the rule leaves out those that are near
DIGITS = 1e6  # changes are kept as whole numbers of millionths
PAPER_STEPS, WAN, NEAR = 50, 5.0, 3  # the schedule that the rule is set for; NEAR: steps that the promise allows
DEMO = {"delta": 0.003, "fix_step": 10, "switch_sigma": 0.82}  # the tiny family's workflow

criterion, route = (hosting.module(f"srd_core.{name}") for name in ("criterion", "route"))

Recorded = dict[str, Any]  # a schedule with its sigmas and changes[lag - 1][step][prompt]


@dataclass(frozen=True)
class Schedule:
    """The noise levels of one run: a scheduler's, or a part of them."""

    scheduler: str
    steps: int
    shift: float
    part: str = ""  # "": all; else the part that a KSampler Advanced, a denoise or a SplitSigmas leaves

    def levels(self, model_sampling: Any) -> torch.Tensor:
        """The sigmas [n + 1]: with denoise the host draws more of them than it runs."""
        drawn = int(self.steps / 0.8) if self.part == "denoise 0.8" else self.steps
        kept = {"0-20": slice(21), "denoise 0.8": slice(-(self.steps + 1), None), "from 5": slice(5, None)}
        return comfy.samplers.calculate_sigmas(model_sampling, self.scheduler, drawn)[kept.get(self.part, slice(None))]

    def __str__(self) -> str:
        return f"{self.scheduler} {self.steps}, shift {self.shift:g}" + (f", {self.part}" if self.part else "")


def schedules() -> list[Schedule]:
    """All that are compared. Parts that begin later start from finished samples of the whole 20 steps."""
    simple = [Schedule("simple", steps, shift) for shift in (2, 5, 8, 3) for steps in (50, 20, 8, 100)]
    others = [Schedule(kind, steps, shift) for kind in ("beta", "karras") for shift in (2, 5) for steps in (50, 20)]
    parts = [
        Schedule("simple", steps, shift, part)
        for shift in (2, 5)
        for steps, part in ((50, "0-20"), (20, "denoise 0.8"), (50, "from 5"))
    ]
    return simple + others + parts


# --- recording --------------------------------------------------------------------------------------------------------


def record() -> None:
    """Sample the sketch alone in every schedule, all prompts in one batch, and keep how its predictions change."""
    rng = random.Random(SCENE_SEED)
    captions = [text.caption(data.training_colours(data.random_scene(rng), rng)) for _ in range(PROMPTS)]
    positive = [[torch.stack([text.encode(caption) for caption in captions]), {}]]
    negative = [[text.encode("")[None], {}]]
    empty = torch.zeros(PROMPTS, 16, 3, 16, 16)
    noise = comfy.sample.prepare_noise(empty, NOISE_SEED)
    finished: dict[float, torch.Tensor] = {}  # by shift
    rows: list[Recorded] = []
    for schedule in schedules():
        begin = time.perf_counter()
        family = quality_rows.Family(shift=schedule.shift)
        model = quality_rows.Studio(family).models[quality_rows.SKETCH]
        sigmas = schedule.levels(model.get_model_object("model_sampling"))
        feeds = schedule == Schedule("simple", 20, schedule.shift)
        kept: list[torch.Tensor] = []
        changes: list[list[Any]] = [[] for _ in range(LAGS)]

        def note(step: int, x0: Any, x: Any, total: int, kept: Any = kept, changes: Any = changes) -> None:
            """The host's callback: x0 [B, C, T, H, W] is the guided prediction."""
            for lag, values in enumerate(changes, 1):
                values.append(change(x0, kept[-lag]) if len(kept) >= lag else None)
            kept.append(x0.clone())

        samples = comfy.sample.sample_custom(
            model,
            noise,
            family.cfg,
            comfy.samplers.sampler_object("euler"),
            sigmas if feeds else sigmas[: int((sigmas >= LOWEST).sum()) + 1],
            positive,
            negative,
            finished[schedule.shift] if schedule.part in ("denoise 0.8", "from 5") else empty,
            callback=note,
            disable_pbar=True,
            seed=NOISE_SEED,
        )
        if feeds:
            finished[schedule.shift] = samples
        levels = [round(float(sigma), 7) for sigma in sigmas]
        rows.append({**asdict(schedule), "sigmas": levels, "changes": changes})
        sys.stderr.write(f"{schedule}: {time.perf_counter() - begin:.0f} s\n")
    found = common.facts() | {"cfg": family.cfg, "schedules": rows}
    lines = json.dumps(found, separators=(",", ":")).replace('{"scheduler"', '\n{"scheduler"')
    CURVES.write_text(lines + "\n", "utf-8")


def change(p: torch.Tensor, previous: torch.Tensor) -> list[int]:
    """|p - previous|_1 / |previous|_1 of every sample of [B, ...], in millionths."""
    share = (p - previous).abs().flatten(1).sum(1) / previous.abs().flatten(1).sum(1)
    return [round(value * DIGITS) for value in share.tolist()]


# --- replaying --------------------------------------------------------------------------------------------------------


def timestep(sigma: float, shift: float = WAN) -> float:
    """Where a noise level of a flow lies in uniform timesteps of that shift, 1 to 0."""
    return sigma / (shift - (shift - 1) * sigma)


def switched_at(row: Recorded, prompt: int, **settings: Any) -> float:
    """Noise level at which the render takes over by the pack's rule; the last recorded one if it never does."""
    sigmas, changes = row["sigmas"], row["changes"]
    places = [timestep(sigma) for sigma in sigmas[:-1]]
    pair = route.Pair(route.SKETCH, route.RENDER, route.Switch(**{"switch_sigma": 0.0, **settings}))
    way, seen = route.Route(pair, sigmas[:-1], places), 0
    for step in range(len(sigmas) - 1):
        if way.turn(step):
            return float(sigmas[step])
        if step >= len(changes[0]):
            break
        if step and PAPER_STEPS * (places[seen] - places[step]) < criterion.NEAREST:
            continue  # the rule leaves it out, and compares the next with the one before
        known = 0 < step - seen <= len(changes)
        way.note(step, [math.tanh(changes[step - seen - 1][step][prompt] / DIGITS)] if known else None)
        seen = step
    return float(sigmas[-1])


def steps_of(row: Recorded, sigma: float) -> float:
    """That noise level in steps of the row's own schedule."""
    sigmas = row["sigmas"]
    after = next((i for i, level in enumerate(sigmas) if level <= sigma), len(sigmas) - 1)
    return after - (sigma - sigmas[after]) / (sigmas[after - 1] - sigmas[after]) if after else 0.0


def kept(row: Recorded, sigma: float, whole: Recorded, expected: float) -> bool:
    """Whether a switch lies within NEAR steps of where the 50 steps have it, in steps of either schedule."""
    expected = max(expected, row["sigmas"][-1])  # a part may end before it
    return min(abs(steps_of(each, sigma) - steps_of(each, expected)) for each in (row, whole)) <= NEAR + 1e-6


def report(recorded: Recorded) -> list[str]:
    """The table, as lines of Markdown."""
    rows = {
        str(Schedule(row["scheduler"], row["steps"], row["shift"], row["part"])): row for row in recorded["schedules"]
    }
    prompts = range(len(recorded["schedules"][0]["changes"][0][1]))
    levels = {name: sorted(switched_at(row, prompt) for prompt in prompts) for name, row in rows.items()}
    medians = {name: statistics.median(found) for name, found in levels.items()}
    lines, counts = [], [0, 0]
    for name, row in rows.items():
        wholes = [f"simple {PAPER_STEPS}, shift {shift:g}" for shift in (row["shift"], WAN)]
        hold = [kept(row, medians[name], rows[whole], medians[whole]) for whole in wholes]
        counts = [count + held for count, held in zip(counts, hold)]
        end = row["sigmas"][-1]
        low, high = (f"{sigma:.2f}" if sigma > end else "never" for sigma in (levels[name][1], levels[name][-2]))
        place = PAPER_STEPS * (1 - timestep(medians[name]))
        demo = statistics.fmean(switched_at(row, prompt, **DEMO) for prompt in prompts)
        cells = [name, f"{medians[name]:.3f} ({low}-{high})", f"{place:.1f}", *("yes" if h else "no" for h in hold)]
        lines.append([*cells, f"{demo:.3f}"])
    known = [recorded.get(name, "commit not recorded") for name in ("date", "machine", "host", "versions", "commit")]
    heads = ["schedule", "sigma at the switch", "in 50 steps of shift 5", "kept, own shift", "kept, shift 5"]
    heads += ["sigma, set as in the demo"]
    return [
        f"{', '.join(known)}, `{recorded['command']}`; cfg {recorded['cfg']:g}, {len(prompts)} prompts.",
        "",
        f"**Of {len(rows)} schedules {counts[0]} switch within three steps of where 50 steps of the same shift do, "
        f"{counts[1]} within three of where those of shift 5 do.**",
        "",
        *(f"| {' | '.join(line)} |" for line in (heads, ["---", *["---:"] * (len(heads) - 1)], *lines)),
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="sample anew")
    if parser.parse_args().record:
        record()
    tables = report(json.loads(CURVES.read_text("utf-8")))
    if not common.update_readme(common.RESULTS / "rule.md", MARKS, tables):
        print("\n".join(tables))


if __name__ == "__main__":
    main()
