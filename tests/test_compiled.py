"""TeaCache beside torch.compile: compiled blocks are skipped; a network compiled as a whole runs as without a cache."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cogvideox_oracle as oracle
import helpers
import pytest
import runs
import torch
import torch._dynamo  # here, so that conftest.py's freeze has it
from comfy.patcher_extension import WrappersMP
from hosting import module
from runs import Report, cached, reuse, sr_model, wrapped

STEPS = 8


def compiled_whole(model: Any, backend: Any = "eager") -> Any:
    """As the host's node TorchCompileModel does it: all of the network, and no second look at transformer_options.

    The eager backend needs no compiler.
    """
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    model = model.clone()
    set_torch_compile_wrapper(model, backend=backend, options={"guard_filter_fn": skip_torch_compile_dict})
    return model


def patched_whole(model: Any, backend: Any = "eager") -> Any:
    """As older nodes do it: the compiled network in the place of the host's, by an object patch."""
    model = model.clone()
    model.add_object_patch("diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend=backend))
    return model


def compiled_blocks(model: Any, backend: Any = "eager") -> Any:
    """The host's own compile wrapper, block by block."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, blocks = model.clone(), len(model.model.diffusion_model.blocks)
    set_torch_compile_wrapper(model, backend=backend, keys=[f"diffusion_model.blocks.{i}" for i in range(blocks)])
    return model


def patched_blocks(model: Any, backend: Any = "eager") -> Any:
    """A compiled block in the place of each, by object patches."""
    model = model.clone()
    for i, block in enumerate(model.get_model_object("diffusion_model").blocks):
        model.add_object_patch(f"diffusion_model.blocks.{i}", torch.compile(block, backend=backend))
    return model


NAMES = ["the host's wrapper", "an object patch"]


@pytest.fixture(autouse=True)
def compiler() -> None:
    """Has compiled nothing yet."""
    torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="module")
def afterwards() -> Iterator[None]:
    """What the compiler keeps stays: else each of the collections after later tests walks through it (0.2 s)."""
    yield
    torch._dynamo.reset()
    gc.collect()
    gc.freeze()


def counting() -> tuple[Any, list[Any]]:
    """(a backend of torch.compile that runs what it is given, list that gets every graph)."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any, **__: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return backend, graphs


def plain_attention(model: Any) -> Any:
    """With the attention of GPUs the compiler has no reason to stop: the network is one graph."""
    return module("srd_core.attention").with_attention(model, "pytorch")


def reused_by(model: Any, **how: Any) -> tuple[torch.Tensor, set[int]]:
    """(latent, steps that ran no block) of a run of a cached MODEL."""
    seen: list[Any] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(reuse.run_of(args[2]))
        return executor(*args, **kwargs)

    return helpers.ksampler(wrapped(model, look, WrappersMP.PREDICT_NOISE), STEPS, cfg=1.0, **how), seen[-1].reused


def one_block() -> Any:
    """The compiler takes seconds for each. Not compiled, it reuses steps."""
    model = plain_attention(runs.slow_wan(layers=1))
    assert reused_by(cached(model))[1]
    return model


# Each way in another order: which of the two nodes comes first.
@pytest.mark.parametrize(("how", "first"), [(compiled_blocks, "compiled"), (patched_blocks, "cached")], ids=NAMES)
def test_blocks_that_are_compiled_one_by_one_are_skipped(how: Any, first: str) -> None:
    backend, graphs = counting()
    model = plain_attention(runs.slow_wan(layers=2))
    expected, steps = reused_by(cached(model))
    assert steps
    both = cached(how(model, backend)) if first == "compiled" else how(cached(model), backend)
    found, found_steps = reused_by(both)
    assert graphs and found_steps == steps and torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("how", "first"), [(compiled_whole, "compiled"), (patched_whole, "cached")], ids=NAMES)
def test_a_network_compiled_as_a_whole_runs_as_without_the_cache_and_says_so(
    how: Any, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend, graphs = counting()
    model = one_block()
    compiled = how(model, backend)
    plain = helpers.ksampler(compiled, STEPS, cfg=1.0)
    assert graphs
    both = cached(compiled) if first == "compiled" else how(cached(model), backend)
    with caplog.at_level(logging.INFO):
        found, steps = reused_by(both)
    assert torch.equal(found, plain) and not steps
    (said,) = {r.getMessage() for r in caplog.records if "TeaCache" in r.getMessage()}
    assert "compiled as a whole" in said and "blocks only" in said and "TorchCompileModelWanVideoV2" in said
    graphs.clear()
    report = Report()
    helpers.ksampler(sr_model(runs.slow_wan(1), both, 3, report), STEPS, cfg=1.0)
    assert not graphs, "nothing of a run is compiled in"
    assert report.reused("render") == 0 and any("compiled as a whole" in note for note in report.notes)


def test_a_network_compiled_in_another_way_never_has_a_decision_compiled_in() -> None:
    model = one_block()
    whole = torch.compile(model.model.diffusion_model, backend="eager")

    def another_nodes(executor: Any, *args: Any, **kwargs: Any) -> Any:
        network, executor.class_obj.diffusion_model = executor.class_obj.diffusion_model, whole
        try:
            return executor(*args, **kwargs)
        finally:
            executor.class_obj.diffusion_model = network

    model = wrapped(model, another_nodes, WrappersMP.APPLY_MODEL)
    plain = helpers.ksampler(model, STEPS, cfg=1.0)
    found, steps = reused_by(cached(model))
    assert torch.equal(found, plain) and not steps


@pytest.mark.parametrize("how", [compiled_blocks, compiled_whole], ids=["blocks", "whole"])
def test_a_compiled_cogvideox_does_the_same(how: Any, folders: dict[str, Path]) -> None:
    backend, graphs = counting()
    model = plain_attention(oracle.slow(module("srd_core.cogvideox").load(folders["2b"]))[0])
    latent = {"latent": {"samples": torch.zeros(1, 16, 2, 8, 12)}} | oracle.prompts()
    found, steps = reused_by(cached(how(model, backend), 0.3), **latent)
    if how is compiled_blocks:
        expected, expected_steps = reused_by(cached(model, 0.3), **latent)
        assert steps == expected_steps and steps
    else:
        expected = helpers.ksampler(model, STEPS, cfg=1.0, **latent)
        assert not steps
    assert graphs
    assert torch.allclose(found, expected, atol=1e-5)
