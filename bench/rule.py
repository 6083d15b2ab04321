"""Where the adaptive rule hands over in other schedules: recorded once on the tiny family, replayed for each form of it.

python3 bench/rule.py --record    sample the sketch alone in every schedule (minutes), then the report
python3 bench/rule.py             the report again, from bench/results/rule_curves.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import asdict
from typing import Any

import common

if __name__ == "__main__":
    common.run_in_host()

import quality_host
import rule_table
from rule_table import DIGITS, LAGS, Schedule

CURVES = common.RESULTS / "rule_curves.json"
PROMPTS, SCENE_SEED, NOISE_SEED, CFG = 12, 15, 4, 3.0  # prompts as in training: nothing is chosen on held-out ones
LOWEST = 0.3  # levels below it are not sampled: no form is meant to wait so long


def schedules() -> list[Schedule]:
    """All that are compared; finished samples of the whole 20 steps are what the parts start from."""
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
    quality_host.start(threads=1)
    import comfy.sample
    import comfy.samplers
    import nodes
    import torch
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    (sketch,) = nodes.UNETLoader().load_unet("tiny_wan_sketch.safetensors", "default")
    positive, negative = (quality_host.Prompts().run(json.dumps(texts))[0] for texts in (training_prompts(), [""]))
    empty = torch.zeros(PROMPTS, 16, 3, 16, 16)
    noise = comfy.sample.prepare_noise(empty, NOISE_SEED)
    finished: dict[float, Any] = {}  # by shift
    rows: list[dict[str, Any]] = []
    for schedule in schedules():
        begin = time.perf_counter()
        (model,) = ModelSamplingSD3().patch(sketch, schedule.shift)
        whole = comfy.samplers.calculate_sigmas(
            model.get_model_object("model_sampling"), schedule.scheduler, schedule.drawn()
        )
        sigmas = schedule.levels(whole)
        feeds = (schedule.scheduler, schedule.steps, schedule.part) == ("simple", 20, "")  # its samples start parts
        sampled = sigmas if feeds else sigmas[: int((sigmas >= LOWEST).sum()) + 1]
        kept: list[Any] = []
        changes: list[list[Any]] = [[] for _ in range(LAGS)]

        def note(step: int, x0: Any, x: Any, total: int, kept: Any = kept, changes: Any = changes) -> None:
            """The host's callback: x0 [B, C, T, H, W] is the guided prediction."""
            for lag, values in enumerate(changes, 1):
                known = len(kept) >= lag
                values.append(change(x0, kept[-lag]) if known else None)
            kept.append(x0.clone())

        begun = schedule.part in ("denoise 0.8", "from 5")
        samples = comfy.sample.sample_custom(
            model,
            noise,
            CFG,
            comfy.samplers.sampler_object("euler"),
            sampled,
            positive,
            negative,
            finished[schedule.shift] if begun else empty,
            callback=note,
            disable_pbar=True,
            seed=NOISE_SEED,
        )
        if feeds:
            finished[schedule.shift] = samples
        levels = [round(float(sigma), 7) for sigma in sigmas]
        rows.append({**asdict(schedule), "sigmas": levels, "changes": changes})
        sys.stderr.write(f"{schedule}: {time.perf_counter() - begin:.0f} s\n")
        found = common.facts() | {"cfg": CFG, "schedules": rows}
        text = json.dumps(found, separators=(",", ":")).replace('{"scheduler"', '\n{"scheduler"')
        CURVES.write_text(text + "\n", "utf-8")


def change(p: Any, previous: Any) -> list[int]:
    """|p - previous|_1 / |previous|_1 of every sample of [B, ...], in millionths."""
    share = (p - previous).abs().flatten(1).sum(1) / previous.abs().flatten(1).sum(1)
    return [round(value * DIGITS) for value in share.tolist()]


def training_prompts() -> list[str]:
    """Prompts of different scenes that the family was trained on."""
    quality_host.family()
    from data import random_scene, training_colours
    from text import caption

    rng = random.Random(SCENE_SEED)
    return [caption(training_colours(random_scene(rng), rng)) for _ in range(PROMPTS)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="sample anew")
    if parser.parse_args().record:
        record()
    tables = rule_table.report(json.loads(CURVES.read_text("utf-8")))
    if not common.update_readme(common.RESULTS / "rule.md", rule_table.MARKS, tables):
        print("\n".join(tables))


if __name__ == "__main__":
    main()
