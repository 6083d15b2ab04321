"""What the pack costs: the time of a run beyond its models' steps, and the time that it adds to the host's start.

    python3 bench/overhead.py [--rounds 3]

Line "run": a sketch-render run over k t_sketch + (N - k) t_render; the target is at most 1.02. The step times come from
plain runs of the host's KSampler right before and right after (their mean), so a slow drift of the machine cancels; how
far the two differ is kept as drift. The models are random Wan DiTs. Line "import": seconds to import the pack and list
its nodes where the host has imported its own modules, in a fresh process; the target is at most 0.1. All in processor
time of one thread, which a neighbour on the machine does not stretch. Results: bench/results/overhead.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import common

common.run_in_host()

import gpu_bench  # noqa: E402  (first: it makes `import comfy` mean the host)

# isort: split
import comfy.sd  # noqa: E402
import helpers  # noqa: E402

SKETCH: dict[str, Any] = {"dim": 768, "layers": 8, "seed": 0}
RENDER: dict[str, Any] = {"dim": 384, "layers": 4, "seed": 1}
LATENT = {"frames": 3, "side": 16}  # 192 tokens
STEPS, SWITCH_STEP = 10, 4
IMPORT = """
import asyncio, sys, time
sys.path[:0] = sys.argv[1:]
from comfy.cli_args import args
args.cpu = True
import nodes, server, comfy_api.latest  # what the host's start has imported before its custom nodes
import common
begin = time.process_time()
pack = common.host.load_by_path("pack", common.REPOSITORY / "__init__.py")
async def schemas():
    for node in await (await pack.comfy_entrypoint()).get_node_list():
        node.GET_SCHEMA()
asyncio.run(schemas())
print(time.process_time() - begin)
"""


def main() -> None:
    """Measure both and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    facts = common.facts() | {"rounds": rounds}
    import_seconds()  # compiles
    kept = [{"what": "import", "seconds": spread([import_seconds() for _ in range(rounds)])}]
    models = load_models()
    for warm in models:
        seconds(warm, 2)
    runs = [one_round(*models) for _ in range(rounds)]
    kept.append({"what": "run", **{key: spread([run[key] for run in runs]) for key in runs[0]}})
    lines = [json.dumps(facts | line) for line in kept]
    (common.RESULTS / "overhead.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {name: round(of(values), 5) for name, of in (("min", min), ("median", statistics.median), ("max", max))}


def import_seconds() -> float:
    """Of a fresh process that may compile, as the host's may."""
    folders = str(common.host.find_or_make().path), str(common.REPOSITORY / "bench")
    may_compile = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    words = [sys.executable, "-c", IMPORT, *folders]
    said = subprocess.check_output(words, text=True, env=may_compile, stderr=subprocess.DEVNULL)
    return float(said.splitlines()[-1])


def load_models() -> tuple[Any, Any, Any]:
    """Sketch, render, and both as one MODEL that switches after SWITCH_STEP steps."""
    sketch, render = (
        comfy.sd.load_diffusion_model_state_dict(helpers.wan_state_dict(**how)) for how in (SKETCH, RENDER)
    )
    return sketch, render, gpu_bench.cooperating(sketch, render, SWITCH_STEP)[0]


def one_round(sketch: Any, render: Any, both: Any) -> dict[str, float]:
    """A mixed run beside the plain ones around it."""
    before_sketch, before_render, mixed, after_render, after_sketch = (
        seconds(model, STEPS) for model in (sketch, render, both, render, sketch)
    )
    sketch_step = (before_sketch + after_sketch) / 2 / STEPS
    render_step = (before_render + after_render) / 2 / STEPS
    return {
        "ratio": mixed / (SWITCH_STEP * sketch_step + (STEPS - SWITCH_STEP) * render_step),
        "drift": after_sketch / before_sketch,
        "sketch_step": sketch_step,
        "render_step": render_step,
    }


def seconds(model: Any, steps: int) -> float:
    """Processor time of one run of the host's KSampler; hosting.py has set one thread."""
    begin = time.process_time()
    helpers.ksampler(model, steps, latent=helpers.empty_latent(**LATENT))
    return time.process_time() - begin


if __name__ == "__main__":
    main()
