"""What the cooperation itself costs: time of a sketch-render run over k t_sketch + (N - k) t_render.

t_sketch and t_render come from plain runs of the host's KSampler right before and right after the mixed run of a round
(their mean), so a slow drift of the machine cancels; each round keeps how far the two differed. The models are random
Wan DiTs, large enough that a sketch step takes 0.2 s or more on a CPU. One thread and processor time, which a neighbour
on the machine does not stretch as it does wall time; wall_ratio is the same by wall time. Target: at most 1.02.

guard_share is the look at every prediction for values that are not finite, over a render step. Target: at most 0.001.

    python3 bench/overhead.py [--rounds 5] [--steps 10] [--switch-step 4]
"""

from __future__ import annotations

import argparse
import time

import common

common.run_in_host()

import hosting  # noqa: E402  (first: it makes `import comfy` mean the host)

# isort: split
import comfy.sd  # noqa: E402
import helpers  # noqa: E402
import numpy  # noqa: E402
import torch  # noqa: E402

SKETCH = {"dim": 768, "layers": 8, "seed": 0}
RENDER = {"dim": 384, "layers": 4, "seed": 1}
LATENT = {"frames": 3, "side": 32}  # 768 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--switch-step", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sketch, render = (
        comfy.sd.load_diffusion_model_state_dict(helpers.wan_state_dict(**how)) for how in (SKETCH, RENDER)
    )
    cooperation, criterion = hosting.module("srd_core.pair"), hosting.module("srd_core.route")
    switch = criterion.Switch(mode="step", switch_step=options.switch_step)
    report = hosting.module("srd_core.report.data").Report()
    model = cooperation.cooperate(sketch, render, switch, cooperation.RenderSettings(), report)
    for warm in (sketch, render, model):
        seconds(warm, 2)
    rounds = [one_round(sketch, render, model, options.steps, options.switch_step) for _ in range(options.rounds)]
    common.keep(
        "overhead",
        {
            "steps": options.steps,
            "switch_step": options.switch_step,
            "tokens": LATENT["frames"] * (LATENT["side"] // 2) ** 2,
            "threads": torch.get_num_threads(),
            "rounds": options.rounds,
            "guard_share": guard_seconds() / common.spread([r["render_step"] for r in rounds])["median"],
            **{key: common.spread([r[key] for r in rounds]) for key in rounds[0]},
        },
    )


def one_round(sketch: object, render: object, model: object, steps: int, switch_step: int) -> dict[str, float]:
    """What a mixed run took beside the plain ones around it; seconds are processor time."""
    order = (sketch, render, model, render, sketch)
    before_sketch, before_render, mixed, after_render, after_sketch = (seconds(m, steps) for m in order)
    t_sketch, t_render = (before_sketch + after_sketch) / 2, (before_render + after_render) / 2
    share = switch_step / steps
    ratio, wall_ratio = mixed / (share * t_sketch + (1 - share) * t_render)
    drift, _ = after_sketch / before_sketch
    return {
        "ratio": ratio,
        "wall_ratio": wall_ratio,
        "drift": drift,
        "sketch_step": t_sketch[0] / steps,
        "render_step": t_render[0] / steps,
    }


def guard_seconds(times: int = 200) -> float:
    """The mean cost of the check that every prediction of a run gets, at this bench's latent size."""
    prediction = torch.randn(1, 16, LATENT["frames"], LATENT["side"], LATENT["side"])
    guard = hosting.module("srd_core.finite").FiniteGuard()
    begin = time.perf_counter()
    for _ in range(times):
        guard.watch(prediction, str)
        guard.check()
    return (time.perf_counter() - begin) / times


def seconds(model: object, steps: int) -> numpy.ndarray:
    """Processor time and wall time of one run of the host's KSampler."""
    begin = time.process_time(), time.perf_counter()
    helpers.ksampler(model, steps, latent=helpers.empty_latent(**LATENT))
    return numpy.array([time.process_time(), time.perf_counter()]) - begin


if __name__ == "__main__":
    main()
