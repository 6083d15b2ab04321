"""The attention backend of a MODEL: chosen per model, chained, and never a reason for a workflow to fail."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention as host
import helpers
import nodes
import pytest
import torch
from hosting import module
from runs import load, sr_model

attention, loaders = module("srd_core.attention"), module("nodes.loaders")
node = module("nodes.attention").SRAttention
STEPS = 4


def count_calls_of(name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Register ``name`` with the host as a backend that counts its calls; needs the kwargs that the host passes."""
    calls: list[int] = []

    @host.wrap_attn
    def backend(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return host.attention_pytorch(*args, **kwargs)

    monkeypatch.setitem(host.REGISTERED_ATTENTION_FUNCTIONS, name, backend)
    return calls


def overridden(model: Any) -> list[int]:
    """Put another node's override on a MODEL; returns a list that gets one entry a call of it."""
    before: list[int] = []

    def other_nodes(function: Any, *args: Any, **kwargs: Any) -> Any:
        before.append(1)
        return function(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = other_nodes
    return before


def test_the_list_is_auto_and_what_the_host_has_registered() -> None:
    options = {i.id: i for i in loaders.SRLoadSketchDiT.GET_SCHEMA().inputs}["attention"].options
    assert options == ["auto", *sorted(host.REGISTERED_ATTENTION_FUNCTIONS)]
    assert {"pytorch", "split", "sub_quad"} <= set(options)


def test_auto_leaves_the_hosts_choice(wan: Any) -> None:
    model = wan()
    assert attention.with_attention(model, "auto") is model
    assert attention.backend_of(model.model_options) == host.optimized_attention.__name__.removeprefix("attention_")


@pytest.mark.parametrize("backend", ["pytorch", "split", "sub_quad"])
def test_every_backend_of_this_host_computes_the_same_picture(backend: str, wan: Any) -> None:
    model = wan()
    out = helpers.ksampler(attention.with_attention(model, backend), STEPS)
    assert torch.allclose(out, helpers.ksampler(model, STEPS), atol=1e-3)


def test_each_stage_has_its_own_backend(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = helpers.wan_file(models_folder, seed=0, layers=2).name
    sketch_calls, render_calls = count_calls_of("one", monkeypatch), count_calls_of("two", monkeypatch)
    sketch = load(name, loaders.SRLoadSketchDiT, attention="one")
    render = load(name, loaders.SRLoadRenderDiT, attention="two")
    out = helpers.ksampler(sr_model(sketch, render, 1), STEPS)
    a_call = 2 * 2  # layers, self and cross attention
    assert (len(sketch_calls), len(render_calls)) == (1 * a_call, (STEPS - 1) * a_call)
    assert torch.equal(out, helpers.ksampler(load(name, attention="pytorch"), STEPS))


def test_a_backend_that_takes_containers_still_does(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer hosts look for this attribute on the override; with another node's in front, that one would be left out."""

    def backend(*args: Any, **kwargs: Any) -> torch.Tensor:
        return host.attention_pytorch(*args, **kwargs)

    def takes_containers(*_: Any) -> None: ...

    backend.container_function = takes_containers  # type: ignore[attr-defined]
    monkeypatch.setitem(host.REGISTERED_ATTENTION_FUNCTIONS, "one", backend)
    monkeypatch.setitem(
        host.REGISTERED_ATTENTION_FUNCTIONS, "another", lambda *args, **kwargs: backend(*args, **kwargs)
    )

    def override_of(model: Any) -> Any:
        return model.model_options["transformer_options"]["optimized_attention_override"]

    model = wan()
    assert override_of(attention.with_attention(model, "one")).container_function is takes_containers
    assert not hasattr(override_of(attention.with_attention(model, "another")), "container_function")
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(*a, **k)
    assert not hasattr(override_of(attention.with_attention(model, "one")), "container_function")


def test_a_backend_that_is_missing_here_warns_and_runs_with_the_default(
    models_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = helpers.wan_file(models_folder, seed=0).name
    with caplog.at_level(logging.WARNING):
        model = load(name, attention="sage3")
    (said,) = [r.getMessage() for r in caplog.records if "sage3" in r.getMessage()]
    assert "not available here" in said and "Install sageattn3" in said and "default" in said
    assert torch.equal(helpers.ksampler(model, STEPS), helpers.ksampler(load(name), STEPS))


@pytest.mark.parametrize("value", [["sage"], {"a": 1}, None, 3])
def test_a_saved_value_of_any_kind_gets_the_warning(value: Any) -> None:
    assert "is not available here" in attention.missing(value)


def test_the_warning_is_shown_on_the_node(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the host's own message for texts on nodes; the page itself is not part of this test."""
    from server import PromptServer

    sent: list[tuple[str, str]] = []

    class Page:
        def send_progress_text(self, text: str, node_id: str) -> None:
            sent.append((node_id, text))

    monkeypatch.setattr(PromptServer, "instance", Page(), raising=False)
    name = helpers.wan_file(models_folder, seed=0).name
    node = loaders.SRLoadSketchDiT.PREPARE_CLASS_CLONE({"hidden_inputs": {"unique_id": "12"}})
    node.hidden = type("Hidden", (), {"unique_id": "12"})()
    load(name, node, attention="sage3")
    load(name, node)
    ((node_id, text),) = sent
    assert node_id == "12" and "sage3" in text


def test_a_node_that_sets_attention_itself_is_named_as_such(wan: Any) -> None:
    model = wan()
    model.model_options["transformer_options"]["optimized_attention_override"] = test_auto_leaves_the_hosts_choice
    assert "set by another node (test_auto_leaves" in attention.backend_of(model.model_options)


# --- Set Attention: for a MODEL of any loader -------------------------------------------------------------------------


def of_the_host(path: Path) -> Any:
    """A MODEL by the host's own Load Diffusion Model."""
    (model,) = nodes.UNETLoader().load_unet(path.name, "default")
    return model


def test_set_attention_has_the_loaders_choice() -> None:
    ours, theirs = (
        {i.id: i for i in each.GET_SCHEMA().inputs}["attention"] for each in (node, loaders.SRLoadSketchDiT)
    )
    assert (ours.options, ours.default, ours.tooltip) == (theirs.options, theirs.default, theirs.tooltip)
    assert "not there" in ours.options, "a workflow may name a backend that is missing here"


def test_the_chosen_attention_runs_on_a_model_of_the_hosts_loader(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_the_host(helpers.wan_file(models_folder, seed=0, layers=2))
    calls = count_calls_of("one", monkeypatch)
    (changed,) = node.execute(model, attention="one").args
    out = helpers.ksampler(changed, STEPS)
    assert len(calls) == STEPS * 2 * 2  # layers, self and cross attention
    calls.clear()
    assert torch.equal(out, helpers.ksampler(node.execute(model, attention="pytorch").args[0], STEPS))
    helpers.ksampler(model, STEPS)
    assert not calls, "the MODEL that came in is as it was"


def test_set_attention_after_our_loader_is_what_runs_and_an_override_is_chained(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two choices the later one holds; another node's override stays around it."""
    one, two = count_calls_of("one", monkeypatch), count_calls_of("two", monkeypatch)
    name = helpers.wan_file(models_folder, seed=0, layers=2).name
    (model,) = node.execute(load(name, attention="one"), attention="two").args
    helpers.ksampler(model, STEPS)
    assert two and not one
    two.clear()
    model = of_the_host(models_folder / name)
    before = overridden(model)
    helpers.ksampler(node.execute(model, attention="two").args[0], STEPS)
    assert len(two) == len(before) > 0
    model = node.execute(node.execute(model, attention="one").args[0], attention="two").args[0]
    two.clear()
    before.clear()
    helpers.ksampler(model, STEPS)
    assert len(two) == len(before) > 0 and not one


def test_a_sketch_render_model_is_refused_by_set_attention(wan: Any) -> None:
    with pytest.raises(ValueError, match="Set Attention already is a Sketch-Render Model; connect a plain MODEL"):
        node.execute(sr_model(wan(seed=0), wan(seed=1), 1), attention="pytorch")


def test_auto_and_a_missing_backend_leave_a_model_without_a_choice_as_it_is(wan: Any) -> None:
    model = wan()
    assert node.execute(model).args[0] is model
    assert node.execute(model, attention="sage3").args[0] is model


@pytest.mark.parametrize("later", ["auto", "sage3"])
def test_auto_and_a_missing_backend_take_an_earlier_choice_back(
    later: str, wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls_of("one", monkeypatch)
    chosen = attention.with_attention(wan(), "one")
    helpers.ksampler(node.execute(chosen, attention=later).args[0], STEPS)
    assert not calls
    model = wan()
    before = overridden(model)
    helpers.ksampler(node.execute(attention.with_attention(model, "one"), attention=later).args[0], STEPS)
    assert before and not calls, "another node's override stays"
    helpers.ksampler(chosen, STEPS)
    assert calls, "the MODEL that came in is as it was"
