"""The shipped workflows: their names, and a file as the demo reads it."""

from __future__ import annotations

from typing import Any

import workflow
from hosting import REPOSITORY

FOLDER = REPOSITORY / "workflows"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.json"))
WAN21, WAN21_KSAMPLER = "wan2.1_t2v_14B_to_1.3B", "wan2.1_t2v_14B_to_1.3B_ksampler"
WAN22, DEMO = "wan2.2_high_noise_to_wan2.1_1.3B", "demo"
NAMES = [*TEMPLATES, DEMO]  # the demo's is not a template: its text node is not part of the pack
COG, COG_KSAMPLER = "cogvideox_5B_to_2B", "cogvideox_5B_to_2B_ksampler"
COMPARE, SWEEP, ONCE = "compare_wan2.1_t2v_14B_to_1.3B", "delta_sweep", "sketch_once_render_many"
FAST, FEW_STEP, THREE = f"{WAN21}_fast", "wan2.1_t2v_14B_few_step_render", "wan2.2_high_low_to_wan2.1_1.3B"
BALANCED, LONG, GGUF = f"{WAN21}_balanced", f"{WAN21}_long", "wan2.1_t2v_14B_gguf_to_1.3B"
MOE, MOE_LORA, MOE_IMAGE = (
    "wan2.2_t2v_14B_high_to_low",
    "wan2.2_t2v_14B_high_to_low_lightx2v",
    "wan2.2_i2v_14B_high_to_low",
)
IMAGE, VACE, FLUX = "wan2.1_i2v_14B_to_fun_inp_1.3B", "wan2.1_vace_14B_to_1.3B", "flux2_dev_to_klein_4B"
HD = f"{WAN21}_720p"


def shipped(name: str) -> dict[str, Any]:
    return dict(workflow.load((REPOSITORY / "demo" if name == DEMO else FOLDER) / f"{name}.json"))
