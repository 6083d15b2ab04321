"""Presets of SR Sampler and Sketch-Render Model: names for tables of widget values.

The page writes them into the widgets (web/presets.js gets the table with the widget's options); here they count for
whoever queues a graph without the page.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

CUSTOM = "custom"  # the widgets as they are
PRESETS_KEY = "srdiffusion_presets"  # of the table in the widget's options, for the page

ADAPTIVE = {"switch_mode": "adaptive", "delta": 0.01, "fix_step": 5, "max_step": 0, "switch_sigma": 0.875}
STEP = {"switch_mode": "step", "switch_step": 10}
PLAIN = {"render_cfg": 0.0, "teacache": 0.0, "fade": 0.0, "sketch_steps": "", "render_steps": 0}
FADE = 1.1  # the fitted width. TeaCache stays off: with a fade, and at 20 steps, it has not been measured

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"steps": 50, **ADAPTIVE, **PLAIN},
    "quality": {"steps": 50, **ADAPTIVE, **PLAIN, "fade": FADE},
    "balanced": {"steps": 20, **ADAPTIVE, **PLAIN, "fade": FADE},
    "fast": {"steps": 20, **ADAPTIVE, **PLAIN, "fade": FADE, "render_cfg": 1.0},
    # As workflows/wan2.1_t2v_14B_few_step_render.json: the render is a few-step model, or has a few-step LoRA.
    "few-step render": {"steps": 50, **STEP, **PLAIN, "fade": FADE, "render_cfg": 1.0, "render_steps": 4},
}
NAMES = [CUSTOM, *PRESETS]


def chosen(values: dict[str, Any], linked: Collection[str] = ()) -> dict[str, Any]:
    """A node's ``values``, with its preset's in the place of all that are not ``linked``. Raises ValueError."""
    name = values.get("preset", CUSTOM)
    if name not in NAMES:
        raise ValueError(f"preset is {name!r:.100}; choose one of {', '.join(NAMES)}.")
    own = {key: value for key, value in PRESETS.get(name, {}).items() if key in values and key not in linked}
    return values | own
