"""One run of a cached MODEL: makes the plan at the first model call, and skips the blocks of reused steps.

By then the noise levels that remain are known, and the model is loaded. At the end everything is freed.

A PREDICT_NOISE wrapper says which step a call belongs to, a DIFFUSION_MODEL wrapper takes the blocks' place for the
time of the call, around whatever others have put there.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, add_wrapper_with_key

from ..calls import PREDICT_NOISE
from ..steps import StepCounter
from . import cogvideox, wan
from .blocks import Adapter
from .plan import Plan, TeaCache, describe, fill

KEY = "srdiffusion_teacache"
# Others of Wan's family (VACE, S2V, HuMo, Animate, SCAIL ...) work between their blocks or after them.
ADAPTERS = {"WanModel": wan.ADAPTER, "CameraWanModel": wan.ADAPTER, "CogVideoXTransformer3DModel": cogvideox.ADAPTER}
COMPILED = (
    "TeaCache can skip nothing in a network that is compiled as a whole; it ran without. Compile the transformer "
    "blocks only, as KJNodes' TorchCompileModelAdvanced and TorchCompileModelWanVideoV2 can."
)


def adapter_of(network: Any) -> Adapter | None:
    """How a network is cached; None for one that is not known here."""
    return ADAPTERS.get(type(network).__name__)


@dataclass
class Residuals:
    """What the blocks added to their input at the last computed step, one tensor for each cond of a call."""

    on_cpu: bool = False  # keep them in main memory; they are copied over for every reuse
    _kept: dict[Hashable, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Free all of them."""
        self._kept.clear()

    def keep(self, keys: Sequence[Hashable], residual: torch.Tensor) -> None:
        """Split ``residual`` [len(keys) * b, tokens, dim] among its conds and keep the parts."""
        if self.on_cpu:
            residual = residual.cpu()
        self._kept.update(zip(keys, residual.chunk(len(keys))))

    def recall(self, keys: Sequence[Hashable], rows: int) -> torch.Tensor | None:
        """The residual [rows, tokens, dim] of these conds in order; None if one is missing or of another batch."""
        parts = [self._kept[key] for key in keys if key in self._kept]
        if len(parts) < len(keys) or sum(part.shape[0] for part in parts) != rows:
            return None
        if len({part.shape[1:] for part in parts}) > 1:
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass
class CachedRun:
    """State of one run of a cached model; dies with it."""

    settings: TeaCache
    counter: StepCounter
    host_callback: Callable[..., Any] | None
    compiled_whole: bool = False  # the network, see is_compiled_whole
    plan: Plan | None = None
    residuals: Residuals = field(default_factory=Residuals)
    _step: int = -2  # of the last call
    _reuse: bool = False  # the plan's word for the present call
    _call: dict[Hashable, int] = field(default_factory=dict)  # how often a cond came within the present call
    _recalled: set[int] = field(default_factory=set)  # steps of which a call was reused
    _computed: set[int] = field(default_factory=set)  # planned to be reused, but a call had nothing to reuse
    _failed: str = ""  # why a call could not be cached

    def __post_init__(self) -> None:
        self.residuals.on_cpu = self.settings.residual_on_cpu

    @property
    def reused(self) -> set[int]:
        """The steps (0-based) that ran no transformer block."""
        return self._recalled - self._computed

    def options_for(self, options: dict[str, Any]) -> dict[str, Any]:
        """A clone of the guider's options with this run's wrappers."""
        options = comfy.model_patcher.create_model_options_clone(options)
        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict, options, is_model_options=True)
        if not self.compiled_whole:  # it would be compiled in
            add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, self.forward, options, is_model_options=True)
        options["transformer_options"][KEY] = self
        return options

    def follow(self, sigmas: Sequence[float]) -> None:
        """The rest of the run has other steps: these levels, for all steps from the first."""
        self.counter.sigmas = list(sigmas)

    def callback(self, step: int, *args: Any, **kwargs: Any) -> Any:
        """The sampler's step callback."""
        self.counter.on_callback(step)
        return self.host_callback(step, *args, **kwargs) if self.host_callback else None

    def predict(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """PREDICT_NOISE wrapper: which step this call belongs to, and whether it is reused."""
        call = PREDICT_NOISE.bind(executor.class_obj, *args, **kwargs).arguments
        if self.plan is None:
            self._learn_schedule(call.get("model_options", {}))
        # Where every step is one call, the callbacks count the steps: no wait for the device to read the noise level.
        self.counter.on_call(float(call["timestep"][0]) if self.counter.needs_sigma else None)
        step = self.counter.step
        if self.plan is None:
            self.plan = self._make_plan(executor.class_obj.inner_model, step, call["x"])
        if step != self._step:
            # A residual is one of the step before; another model may have run in between.
            if step != self._step + 1 or not self.plan.reuses(step):
                self.residuals.clear()
            self._step = step
        self._reuse = self.plan.reuses(step)
        self._call.clear()
        try:
            return executor(*args, **kwargs)
        except Exception:  # short of memory it is made once more: one call all the same
            self.counter.forget_call()
            raise

    def forward(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """DIFFUSION_MODEL wrapper: one forward of the network, for one or more conds at once."""
        # What is compiled in holds for all calls: in a network that somebody compiled in a way not known here, nothing
        # is.
        if torch.compiler.is_compiling() or not self._is_planned():
            return executor(*args, **kwargs)
        call = inspect.signature(executor.original).bind(*args, **kwargs)
        options = call.arguments.get("transformer_options") or {}
        network = executor.class_obj
        adapter = adapter_of(network)
        if adapter is None or not self._is_cacheable(adapter, network, call.arguments, options):
            return executor(*args, **kwargs)
        keys = self._keys(options)
        residual = self.residuals.recall(keys, call.arguments["x"].shape[0]) if self._reuse else None
        (self._computed if residual is None else self._recalled).add(self._step)
        with adapter.in_place(network, call.arguments, residual, partial(self.residuals.keep, keys)):
            return executor(*call.args, **call.kwargs)

    def close(self) -> None:
        """Free the residuals and say what was saved."""
        self.residuals.clear()
        self.host_callback = None
        if self.plan and self._failed:
            self.plan.note = f"{self.plan.note} TeaCache: {self._failed}; such calls were computed.".lstrip()
        if self.plan and self.plan.table:  # else its note was logged when the plan was made
            logging.info("SRDiffusion: %s", describe(self.plan, self.reused))

    def _is_planned(self) -> bool:
        """Whether this call is reused, or the next step's will need what it computes."""
        return self.plan is not None and (self._reuse or self.plan.reuses(self._step + 1))

    def _learn_schedule(self, model_options: dict[str, Any]) -> None:
        """The noise levels as this model is called with them: those of the run, unless it has its own latent space."""
        levels = model_options.get("transformer_options", {}).get("sample_sigmas")
        if levels is not None and len(levels) == len(self.counter.sigmas):
            self.counter.sigmas = [*(float(s) for s in levels[:-1]), self.counter.sigmas[-1]]

    def _make_plan(self, inner_model: Any, first: int, x: torch.Tensor) -> Plan:
        """For steps ``first`` (0-based) ... last; ``x`` [B, C, T, H, W] the latent."""
        if self.compiled_whole:
            plan = Plan(self.settings.threshold, self.settings.form, first_step=first, note=COMPILED)
        else:
            plan = make_plan(inner_model, self.settings, self.counter.sigmas, first, x)
        if not plan.table:
            logging.warning("SRDiffusion: %s", plan.note)
        return plan

    def _is_cacheable(self, adapter: Adapter, network: Any, call: dict[str, Any], options: dict[str, Any]) -> bool:
        if call["timestep"].ndim > 1 and call["timestep"].shape[-1] > 1:
            self._failed = "every frame has its own timestep"
        elif options.get("patches", {}).get("double_block"):
            self._failed = "another node works between the transformer blocks"
        elif not options.get("uuids"):
            self._failed = "the host does not say which prompt a call is for"
        elif not adapter.is_ready(network):
            self._failed = "the blocks are another MODEL's with the same weights, or another node's"
        else:
            return True
        return False

    def _keys(self, options: dict[str, Any]) -> list[Hashable]:
        """One key a cond: uuid, context window, and which time in this step (guidance that skips layers asks again)."""
        window = getattr(options.get("context_window"), "index_list", None)
        keys: list[Hashable] = []
        for uuid in options["uuids"]:
            cond = (uuid, None if window is None else tuple(window))
            self._call[cond] = self._call.get(cond, 0) + 1
            keys.append((*cond, self._call[cond]))
        return keys


def make_plan(inner_model: Any, settings: TeaCache, sigmas: Sequence[float], first: int, x: torch.Tensor) -> Plan:
    """The skip plan for steps ``first`` (0-based) ... last over ``sigmas``; ``x`` [B, C, T, H, W] the latent."""
    plan = Plan(settings.threshold, settings.form, first_step=first)
    network, levels = inner_model.diffusion_model, list(sigmas[:-1])
    adapter = adapter_of(network)
    if adapter is None:
        plan.note = f"TeaCache does not know {type(network).__name__}; it ran without."
        return plan
    if any(b > a for a, b in pairwise(sigmas)):
        plan.note = "TeaCache needs a schedule whose noise level never rises; it ran without."
        return plan
    table, plan.note = adapter.table(network, x)
    plan.form = table.form(settings.form)
    timesteps = inner_model.model_sampling.timestep(torch.tensor(levels, device=x.device)).float()
    fill(plan, table, adapter.modulation(network, timesteps, plan.form).cpu())
    return plan
