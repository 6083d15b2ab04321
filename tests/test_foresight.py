"""Two models that do not fit are told before the run: by the files' headers, in the words that the run would use."""

from __future__ import annotations

import json
import shutil
import struct
import time
from functools import cache
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.ops
import comfy.sd
import comfy.utils
import helpers
import pytest
import serving
import torch
from hosting import host_module, module
from test_families import FAMILIES, weights

foresight, before_run, plan = module("srd_core.foresight"), module("nodes.before_run"), module("nodes.plan")
checks, stage, latent = module("srd_core.checks"), module("srd_core.stage"), module("srd_core.latent")
loaders = module("nodes.loaders")
SETTINGS = helpers.RULE | {"steps": 20, "switch_step": 10}
MISFIT = "ltxv.safetensors"  # of the server's files, for a Wan sketch
KINDS = ("LTX-Video", "Kandinsky 5", "SD3.5", "Flux.2", "Wan2.1 VACE")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of several families, by their name; Wan in two sizes."""
    folder = tmp_path_factory.mktemp("families")
    found = {"Wan large": helpers.wan_file(folder, seed=0, layers=2), "Wan small": helpers.wan_file(folder, seed=1)}
    for name in KINDS:
        for role in ("sketch", "render"):
            path = folder / f"{name} {role}.safetensors"
            comfy.utils.save_torch_file(weights(FAMILIES[name], role, 0), str(path))
            found[f"{name} {role}"] = path
    return found


@cache
def loaded(path: Path) -> Any:
    model = comfy.sd.load_diffusion_model(str(path))
    model.set_attachments(latent.FILE_NAME, path.name)
    return model


def what_a_run_says(sketch: Path, render: Path, own_prompts: bool = False) -> str:
    """Of the loaded models, by the run's own checks."""
    try:
        checks.check_together(
            loaded(sketch), loaded(render), stage.RenderSettings(positive=[] if own_prompts else None)
        )
    except ValueError as error:
        return str(error)
    return ""


def what_the_headers_say(sketch: Path, render: Path, own_prompts: bool = False) -> str:
    return str(foresight.verdict(foresight.ModelFile.at(sketch), foresight.ModelFile.at(render), own_prompts).problem)


@pytest.mark.parametrize("sketch", ["Wan large", *(f"{name} sketch" for name in KINDS)])
def test_headers_say_of_every_pair_what_the_run_would_say(sketch: str, files: dict[str, Path]) -> None:
    said = []
    for render in ("Wan small", *(f"{name} render" for name in KINDS)):
        own_prompts = render.startswith("Flux.2")
        said.append(what_a_run_says(files[sketch], files[render], own_prompts))
        assert what_the_headers_say(files[sketch], files[render], own_prompts) == said[-1], (sketch, render)
    assert any(said) and not all(said)


def test_another_text_encoder_is_told_unless_the_render_has_its_own_prompts(files: dict[str, Path]) -> None:
    pair = files["Flux.2 sketch"], files["Flux.2 render"]
    assert what_the_headers_say(*pair) == what_a_run_says(
        *pair
    ) and "read different text encoders" in what_the_headers_say(*pair)
    assert what_the_headers_say(*pair, own_prompts=True) == ""


def sparse_wan(path: Path, **size: int) -> Path:
    """A Wan of a real size: a whole header, and a hole in the file system where the weights would be."""
    how = {"device": "meta", "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}
    model = comfy.ldm.wan.model.WanModel(model_type="t2v", text_dim=4096, in_dim=16, **how, **size)
    header, end = {}, 0
    for key, value in model.state_dict().items():
        begin, end = end, end + 2 * value.numel()
        header[key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def test_the_real_sizes_are_judged_in_a_moment_without_memory_for_their_weights(tmp_path: Path) -> None:
    large = sparse_wan(tmp_path / "14B.safetensors", dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
    small = sparse_wan(tmp_path / "1.3B.safetensors", dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
    assert large.stat().st_size > 28e9
    begin = time.perf_counter()
    models = [foresight.empty_model(foresight.ModelFile.at(path)) for path in (large, small)]
    assert time.perf_counter() - begin < 2  # 0.12 s on two old cores
    assert [latent.name_of(model) for model in models] == [
        "14B.safetensors (14.3B parameters)",
        "1.3B.safetensors (1.4B parameters)",
    ]
    assert what_the_headers_say(large, small) == what_the_headers_say(small, large) == ""
    notes = [
        foresight.verdict(*map(foresight.ModelFile.at, pair), False).note for pair in ((large, small), (small, large))
    ]
    assert notes == ["", "The render is larger than the sketch. Are the two swapped?"]


CONTENTS = {"empty": b"", "zeros": b"\x00" * 64, "page": b"<!doctype html>", "no tensors": struct.pack("<Q", 2) + b"{}"}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_of_a_file_that_tells_nothing_nothing_is_said(content: bytes, tmp_path: Path, files: dict[str, Path]) -> None:
    odd = tmp_path / "odd.safetensors"
    odd.write_bytes(content)
    assert what_the_headers_say(odd, files["Wan small"]) == "" == what_the_headers_say(files["Wan small"], odd)
    (gguf := tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert what_the_headers_say(gguf, files["Wan small"]) == ""


def test_a_file_that_changes_is_read_again(tmp_path: Path, files: dict[str, Path]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(files["LTX-Video render"].read_bytes())
    assert what_the_headers_say(files["Wan large"], path)
    path.write_bytes(files["Wan small"].read_bytes())
    assert what_the_headers_say(files["Wan large"], path) == ""


# --- in the page's line -----------------------------------------------------------------------------------------------


def loader(kind: str, path: Path) -> dict[str, Any]:
    return {"type": kind, "values": {before_run.LOADERS[kind]: path.name}}


@pytest.fixture
def offered(models_folder: Path, files: dict[str, Path]) -> dict[str, Path]:
    """The same files in models/diffusion_models."""
    return {name: Path(shutil.copy(path, models_folder)) for name, path in files.items()}


SHIFT = {"type": "ModelSamplingSD3", "values": {"shift": 5.0}}
LORA = {"type": "LoraLoaderModelOnly", "values": {"lora_name": "a"}}


def answer(sketch: list[Any], render: list[Any], **more: Any) -> dict[str, Any]:
    return plan.answer({"settings": SETTINGS, "models": sketch, "render": render, **more})


@pytest.mark.parametrize("kind", ["SRLoadRenderDiT", "UNETLoader"])
def test_the_line_says_that_two_models_do_not_fit_once_both_are_chosen(kind: str, offered: dict[str, Path]) -> None:
    sketch = [SHIFT, LORA, loader("SRLoadSketchDiT", offered["Wan large"])]
    problem = answer(sketch, [loader(kind, offered["LTX-Video render"])])["problem"]
    assert (
        problem == what_a_run_says(offered["Wan large"], offered["LTX-Video render"])
        and "use different VAEs" in problem
    )
    fitting = answer(sketch, [{"type": "SRTeaCache", "values": {}}, loader(kind, offered["Wan small"])])
    assert fitting == {"mode": "step", "steps": 20, "latest": 10}
    swapped = answer([loader(kind, offered["Wan small"])], sketch)
    assert swapped == fitting | {"note": "The render is larger than the sketch. Are the two swapped?"}


def test_the_line_says_nothing_of_models_through_nodes_that_it_does_not_know(offered: dict[str, Path]) -> None:
    sketch, render = (
        loader("SRLoadSketchDiT", offered["Wan large"]),
        loader("SRLoadRenderDiT", offered["LTX-Video render"]),
    )
    other = {"type": "SomeOtherNode", "values": {}}
    for chains in (
        ([other, sketch], [render]),
        ([sketch], [other, render]),
        ([], [render]),
        ([sketch], []),
        ([sketch], [other]),
    ):
        assert "problem" not in answer(*chains)
    assert "problem" not in answer([sketch], [render | {"values": {}}]), "its file comes from another node"
    assert "problem" not in answer([sketch], [render | {"values": {"model_name": "gone.safetensors"}}])


# --- when it is queued ------------------------------------------------------------------------------------------------


def refused(server: Any, graph: dict[str, Any]) -> tuple[str, str]:
    """(node, what the server says): there must be one error."""
    with pytest.raises(host_module.HostError) as error:
        server.queue(graph)
    ((node, said),) = error.value.details["node_errors"].items()
    (fault,) = said["errors"]
    assert fault["extra_info"]["input_name"] in ("model_name", "unet_name")
    return node, fault["details"]


@pytest.mark.parametrize("node", ["SRSampler", "SRModel"])
def test_a_pair_that_does_not_fit_is_refused_when_queued_on_the_render_s_file(node: str, server: Any) -> None:
    where, said = refused(server, serving.cooperating(node=node, render_file=MISFIT))
    assert where == "render" and "Sketch sketch.safetensors (" in said and f"and render {MISFIT} (" in said
    assert "use different VAEs (16 and 128 channels), so they do not fit together. Pairs that fit this sketch:" in said


def test_where_another_loader_has_the_render_the_sketch_s_loader_says_it(server: Any) -> None:
    graph = serving.cooperating()
    graph["render"] = {"class_type": "UNETLoader", "inputs": {"unet_name": MISFIT, "weight_dtype": "default"}}
    where, said = refused(server, graph)
    assert where == "sketch" and "use different VAEs" in said


def test_what_is_not_needed_or_not_known_is_not_refused(server: Any) -> None:
    beside = serving.cooperating(run=1)
    beside["misfit"] = serving.loaded("render", MISFIT)
    beside["unused"] = {"class_type": "SRModel", "inputs": {"sketch": ["sketch", 0], "render": ["misfit", 0]}}
    assert server.run(beside, timeout=120)["status"]["status_str"] == "success"
    unknown = serving.cooperating(
        run=2, render_file=MISFIT, stage="render", fault={"place": "none", "act": "error", "at": 1}
    )
    with pytest.raises(host_module.HostError, match="use different VAEs"):  # by the run, as before
        server.run(unknown, timeout=120)


def test_a_prompt_that_the_check_can_t_read_is_left_to_the_host(server: Any) -> None:
    said_before = len(server.log.read_text("utf-8"))
    graphs: list[dict[str, Any]] = [
        {"1": {"class_type": "SRLoadRenderDiT", "inputs": {"model_name": "render.safetensors"}}},
        {"1": {}},
        {},
    ]
    for graph in graphs:
        with pytest.raises(host_module.HostError) as error:
            server.queue(graph)
        assert "no outputs" in str(error.value.details) or "class_type" in str(error.value.details)
    assert server.run(serving.cooperating(run=3), timeout=120)["status"]["status_str"] == "success"
    assert "are told when the sampler starts (" not in server.log.read_text("utf-8")[said_before:]


def test_a_fault_of_the_check_never_refuses_a_file(monkeypatch: pytest.MonkeyPatch, offered: dict[str, Path]) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("test")

    monkeypatch.setattr(before_run, "_pairs", broken)
    node = loaders.SRLoadRenderDiT.PREPARE_CLASS_CLONE({})
    node.hidden = type("Hidden", (), {"unique_id": "1"})()
    assert node.validate_inputs(offered["Wan small"].name) is True
    assert loaders.SRLoadRenderDiT.validate_inputs(offered["Wan small"].name) is True, (
        "without what the host hides in it"
    )


def test_prompts_that_are_queued_at_the_same_time_do_not_mix(server: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def queue(i: int) -> bool:
        bad = i % 2 == 0
        try:
            server.queue(
                serving.cooperating(
                    run=100 + i, sampling={"steps": 4}, render_file=MISFIT if bad else "render.safetensors"
                )
            )
        except host_module.HostError:
            return bad
        return not bad

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(queue, range(16)))
