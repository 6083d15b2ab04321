"""Reports of version 1, which knew two stages: what saved videos and copied reports of the first releases hold."""

from __future__ import annotations

from typing import Any

STAGES = ("sketch", "render")
RENAMED = {"derivative": "fall", "derivative_low": "fall_low"}
KEPT = ("status", "switch", "sampler", "shape", "sigmas", "total_seconds", "notes", "error")
OF_A_STAGE = ("calls", "seconds", "load_seconds")
FIELDS = {*KEPT, *STAGES, *OF_A_STAGE, "version", "delta", "fix_step", "limit", "steps", "hand_overs", "teacache"}


def upgraded(old: dict[str, Any]) -> dict[str, Any]:
    """The same run as version 2 writes it. Raises KeyError, TypeError or AttributeError for what was not a report."""
    if unknown := set(old) - FIELDS:
        raise KeyError(min(unknown))
    set_to, used = old.get("switch", {}).get("delta", 0.0), old.get("delta", 0.0)
    scale = used / set_to if set_to and used else 1.0  # version 1 scaled delta to the run, version 2 scales the fall
    stages = [
        {
            "name": name,
            "model": old.get(name, ""),
            "teacache": old.get("teacache", {}).get(name, {}),
            **{key: old.get(key, {}).get(name, 0) for key in OF_A_STAGE},
        }
        for name in STAGES
    ]
    return {
        **{name: old[name] for name in KEPT if name in old},
        "version": 2,
        "stages": stages,
        "earliest": old.get("fix_step", 0) + 1,
        "latest": old.get("limit", 0),
        "steps": [_renamed(step, scale) for step in old.get("steps", [])],
        "hand_overs": [_renamed(hand_over, scale) for hand_over in old.get("hand_overs", [])],
    }


def _renamed(part: dict[str, Any], scale: float) -> dict[str, Any]:
    new = {RENAMED.get(name, name): value for name, value in part.items()}
    for name in RENAMED.values():
        if new.get(name) is not None:
            new[name] /= scale
    if new.get("reason") == "max_step":
        new["reason"] = "latest"
    return new
