"""Own steps for the stage that takes over: the rest of a schedule, walked in another number of steps.

Where it is known beforehand after which step that begins, the run's levels are set before it. Where the rule decides,
the sampler ends at the hand-over and begins anew on the rest, from the same x.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .calls import SAMPLER_SAMPLE, freeing_by
from .checks import check_switch
from .route import Pair, Part, Route, pairs_of


class Rest(BaseException):
    """Ends the sampler at a hand-over, to begin it anew. No Exception: nobody on the way takes it for an error."""

    def __init__(self, x: torch.Tensor, step: int, call: inspect.BoundArguments | None = None) -> None:
        super().__init__()
        self.x, self.step = x, step  # the latent [B, ...] at which step (0-based) begins
        self.call = call  # the SAMPLER_SAMPLE call of the run, where x has another size from here on


def resampled(sigmas: Sequence[float], steps: int) -> list[float]:
    """Levels [n + 1] walked in ``steps`` steps, even in index: between two levels on the line between them."""
    last = len(sigmas) - 1
    places = [i * last / steps for i in range(steps + 1)]
    return [_at(sigmas, place, last) for place in places]


def _at(sigmas: Sequence[float], place: float, last: int) -> float:
    i = min(int(place), last)
    return sigmas[i] if i == last else sigmas[i] + (place - i) * (sigmas[i + 1] - sigmas[i])


def known(
    whole: Part, sigmas: Sequence[float], places_of: Callable[[Sequence[float]], list[float]]
) -> tuple[list[float], set[Pair]]:
    """(a run's levels, with the rests that are known before it walked as their pairs say; those pairs)."""
    levels, done = list(sigmas), set[Pair]()
    if not any(pair.render_steps for pair in pairs_of(whole)):
        return levels, done
    route = Route(whole, levels[:-1], places_of(levels)[:-1])
    step = 0
    while step < len(levels) - 1 and not route.waits(step):
        turn = route.turn(step)
        if turn and turn.walker:
            adaptive = step > 0 and turn.walker.switch.mode == "adaptive"  # also where max_step leaves it no choice
            if turn.walker.anew or adaptive:
                break
            check_switch(turn.walker, places_of(levels)[:-1])
            levels = levels[:step] + resampled(levels[step:], turn.walker.render_steps)
            done.add(turn.walker)
            route.follow(levels[:-1], places_of(levels)[:-1])
        step += 1
    return levels, done


def begun_anew(call: inspect.BoundArguments, rest: Rest, levels: Sequence[float]) -> inspect.BoundArguments:
    """A SAMPLER_SAMPLE call that continues ``call`` at ``rest``; ``levels``: the run's, all from the first.

    The sampler scales noise and latent to x by itself; the noise is the one that gives x. Its own has another seed.
    """
    again = SAMPLER_SAMPLE.bind(*call.args, **call.kwargs)
    given = again.arguments
    sigmas = torch.tensor(levels, dtype=given["sigmas"].dtype, device=given["sigmas"].device)
    options = dict(given["extra_args"]["model_options"])
    options["transformer_options"] = {**options.get("transformer_options", {}), "sample_sigmas": sigmas}
    extra = {**given["extra_args"], "model_options": freeing_by(options, lambda sigma: (sigma, sigmas))}
    if extra.get("seed") is not None:
        extra["seed"] = (extra["seed"] + 1) % (2**64 - 1)  # the host takes seeds below that everywhere
    given["noise"] = _noise_of(call, rest.x, sigmas[rest.step])
    given["sigmas"], given["extra_args"] = sigmas[rest.step :], extra
    given["callback"] = _shifted(given["callback"], rest.step)
    return again


def _noise_of(call: inspect.BoundArguments, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The noise from which the host makes x at ``sigma``: its scaling is linear in the noise."""
    latent = call.arguments["latent_image"]
    scaling = call.arguments["model_wrap"].inner_model.model_sampling.noise_scaling
    without = scaling(sigma, torch.zeros_like(x), latent, False)
    return (x - without) / (scaling(sigma, torch.ones_like(x), latent, False) - without)


def _shifted(callback: Callable[..., Any] | None, steps: int) -> Callable[..., Any] | None:
    """A step callback that counts from the run's first step on."""
    if callback is None:
        return None
    return lambda step, denoised, x, total: callback(step + steps, denoised, x, total + steps)
