"""Where noise levels lie in a model's own timesteps: what one setting of the rule means in every schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .latent import FLOW, FLOW_COSMOS, kind_of

SHIFT = 5.0  # of the schedule that the paper's settings are for (Wan)


def places_of(sampling: Any, sigmas: Sequence[float]) -> list[float]:
    """Where these levels lie in the uniform timesteps of the host's ``sampling``: 1 pure noise, 0 none.

    Flow models are measured on the paper's schedule, whatever their own shift: sigma = 5 u / (1 + 4 u). Others by their
    table of timesteps; without one, the run's steps are taken to be uniform.
    """
    levels, kind = torch.tensor(sigmas, dtype=torch.float64), kind_of(sampling)
    if kind == FLOW_COSMOS:
        levels = levels / (1 + levels)
    if kind in (FLOW, FLOW_COSMOS):
        levels = levels.clamp(max=1)  # a multiplied schedule begins above pure noise
        places = levels / (SHIFT - (SHIFT - 1) * levels)
    elif (table := getattr(sampling, "sigmas", None)) is not None and len(table) > 1:
        known = table.detach().double().cpu()  # rises with the timestep
        above = torch.searchsorted(known, levels).clamp(1, len(known) - 1)
        low, high = known[above - 1], known[above]
        places = (above - 1 + (levels - low) / (high - low)) / (len(known) - 1)
    else:
        places = torch.linspace(1, 0, len(levels), dtype=torch.float64)
    return [float(place) for place in places.clamp(0, 1)]
