"""A MODEL that TeaCache works on: a clone with wrappers, which the host carries from clone to clone.

OUTER_SAMPLE begins a run (see run), whether a plain sampler node runs the MODEL or a Sketch-Render run does, as one of
its stages. PREPARE_SAMPLING asks the host for the memory that the run will take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection, WrapperExecutor, WrappersMP

from ..calls import OUTER_SAMPLE
from ..steps import counter_for
from .plan import TeaCache
from .run import KEY, CachedRun, adapter_of

COMPILE_KEY = "torch.compile"  # of the host's wrapper that puts compiled modules in their place for a call
COMPILE_MODULE = "comfy_api.torch_helpers.torch_compile"


# --- the MODEL ---


def with_teacache(model: ModelPatcher, settings: TeaCache) -> ModelPatcher:
    """A clone of ``model`` that reuses steps; with threshold 0 a plain clone. The newest settings win."""
    model = model.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING):
        model.remove_wrappers_with_key(kind, KEY)
    model.remove_injections(KEY)
    model.remove_attachments(KEY)
    if settings.threshold > 0:
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_sample, settings=settings))
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _prepare_sampling)
        model.set_attachments(KEY, settings)
        adapter = adapter_of(model.get_model_object("diffusion_model"))
        if adapter and adapter.prepare:
            model.set_injections(KEY, [PatcherInjection(inject=_inject, eject=_eject)])
    return model


def is_cached(model: ModelPatcher) -> bool:
    """Whether ``with_teacache`` made this MODEL."""
    return KEY in model.wrappers.get(WrappersMP.OUTER_SAMPLE, {})


def run_of(model_options: dict[str, Any]) -> CachedRun | None:
    """The cached run that continues under these options, if any."""
    return model_options.get("transformer_options", {}).get(KEY)


def is_compiled_whole(model: ModelPatcher) -> bool:
    """Whether ``model`` runs a network that torch compiled as a whole: nobody looks into it, call after call."""

    def looks_compiled(*_: Any, **__: Any) -> bool:
        return hasattr(model.model.diffusion_model, "_orig_mod")  # torch's name for what a compiled module compiles

    if hasattr(model.get_model_object("diffusion_model"), "_orig_mod"):
        return True
    # Only within the host's own wrapper does a network show as compiled. It does no more than to put it there and back.
    compiles = model.wrappers.get(WrappersMP.APPLY_MODEL, {}).get(COMPILE_KEY, [])
    compiles = [wrapper for wrapper in compiles if wrapper.__module__ == COMPILE_MODULE]
    return WrapperExecutor.new_class_executor(looks_compiled, model.model, compiles).execute()


def _inject(model: ModelPatcher) -> None:
    """The host has loaded ``model``, or its clone for another GPU."""
    adapter = adapter_of(model.model.diffusion_model)
    if adapter and adapter.prepare and not is_compiled_whole(model):
        adapter.prepare(model.model.diffusion_model)


def _eject(model: ModelPatcher) -> None:
    """Another MODEL with the same weights comes, or the weights leave."""
    adapter = adapter_of(model.model.diffusion_model)
    if adapter and adapter.restore:
        adapter.restore(model.model.diffusion_model)


# --- memory ---


def held_bytes(model: ModelPatcher, noise_shape: Sequence[int], conds: Mapping[str, Sized] | int) -> int:
    """What a run of ``model`` over a latent [B, C, T, H, W] keeps on the device besides.

    0 for a MODEL that is not cached, or keeps it in main memory. ``conds``: the host's by role, or how many there are.
    """
    settings, network = model.get_attachment(KEY), model.get_model_object("diffusion_model")
    adapter = adapter_of(network)
    if (
        settings is None
        or settings.residual_on_cpu
        or adapter is None
        or len(noise_shape) != 5
        or is_compiled_whole(model)
    ):
        return 0
    count = conds if isinstance(conds, int) else sum(map(len, conds.values()))
    size = comfy.model_management.dtype_size(model.model.get_dtype_inference())
    return count * noise_shape[0] * adapter.tokens(network, noise_shape) * network.dim * size


def _prepare_sampling(
    executor: WrapperExecutor, model: ModelPatcher, noise_shape: Sequence[int], conds: Any, *args: Any, **kwargs: Any
) -> Any:
    """PREPARE_SAMPLING wrapper: asks for what the run keeps, as rows of the noise's batch.

    For these families the host reckons in proportion to the batch: twice for what it would like to have.
    """
    of_one = model.model.memory_required([1, *noise_shape[1:]])
    if of_one > 0:
        rows = noise_shape[0] + held_bytes(model, noise_shape, conds) / (2 * of_one)
        noise_shape = [rows, *noise_shape[1:]]
    return executor(model, noise_shape, conds, *args, **kwargs)


# --- a run ---


def _sample(executor: WrapperExecutor, *args: Any, settings: TeaCache, **kwargs: Any) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: one sampling run, or the part of it that this model runs."""
    guider = executor.class_obj
    call = OUTER_SAMPLE.bind(guider, *args, **kwargs)
    counter = counter_for(call.arguments["sampler"], call.arguments["sigmas"])
    compiled_whole = is_compiled_whole(guider.model_patcher)
    run = CachedRun(settings, counter, call.arguments.get("callback"), compiled_whole)
    call.arguments["callback"] = run.callback
    own_options = guider.model_options
    guider.model_options = run.options_for(own_options)
    try:
        return executor(*call.args[1:], **call.kwargs)
    finally:
        guider.model_options = own_options
        run.close()
