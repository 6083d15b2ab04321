"""The attention backend of one MODEL, by the host's attention override."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention as attention
from comfy.model_patcher import ModelPatcher

AUTO = "auto"
OVERRIDE = "optimized_attention_override"
AROUND = "srdiffusion_around"  # on an override of ours: the one of another node that it is called by, or None

# How to get what the host only registers when it is installed.
PACKAGES = {"sage": "sageattention", "sage3": "sageattn3", "flash": "flash-attn", "xformers": "xformers"}


def backends() -> list[str]:
    """What can be chosen here: auto and the backends that the host has registered (those that it could import)."""
    return [AUTO, *sorted(attention.REGISTERED_ATTENTION_FUNCTIONS)]


def missing(backend: str) -> str:
    """A warning when ``backend`` can't be had here, else an empty string."""
    if backend in backends():
        return ""
    package = PACKAGES.get(backend) if isinstance(backend, str) else None
    how = f"Install {package} into ComfyUI's Python and restart" if package else "Choose another"
    return (
        f"Attention {backend!r} is not available here; the model runs with ComfyUI's default. {how}, or set attention "
        f"to auto. There are: {', '.join(backends())}."
    )


def with_attention(model: ModelPatcher, backend: str) -> ModelPatcher:
    """A clone of ``model`` that computes attention with ``backend``; auto, or one that is missing: the host's default.

    Another node's override that is there already is called with this backend in place of the host's default. One that
    this function set earlier is replaced: of two choices the later one holds.
    """
    if warning := missing(backend):
        logging.warning("SRDiffusion: %s", warning)
    present = model.model_options["transformer_options"].get(OVERRIDE)
    before = getattr(present, AROUND, present)
    if warning or backend == AUTO:
        return model if before is present else _with_override(model, before)
    function = attention.get_attention_function(backend)

    def override(_: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return before(function, *args, **kwargs) if before else function(*args, **kwargs)

    override.backend = backend  # type: ignore[attr-defined]
    setattr(override, AROUND, before)
    if before is None and hasattr(function, "container_function"):
        # Newer hosts: the backend's way to take over query, key and value, which it frees as soon as it has used them.
        override.container_function = function.container_function  # type: ignore[attr-defined]
    return _with_override(model, override)


def _with_override(model: ModelPatcher, override: Callable[..., Any] | None) -> ModelPatcher:
    """A clone of ``model`` with this attention override; None: with none."""
    model = model.clone()
    options = model.model_options["transformer_options"]
    options.pop(OVERRIDE, None)
    if override is not None:
        options[OVERRIDE] = override
    return model


def backend_of(model_options: dict[str, Any]) -> str:
    """How a message calls the attention that runs under these options."""
    override = model_options.get("transformer_options", {}).get(OVERRIDE)
    if override is None:
        return attention.optimized_attention.__name__.removeprefix("attention_")
    return getattr(override, "backend", "") or f"set by another node ({getattr(override, '__qualname__', override)})"
