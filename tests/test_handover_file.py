"""The file between SR Sketch and SR Render, and the nodes that save and load it."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import safetensors
import safetensors.torch
import torch
from hosting import module
from runs import a_video, distance, half_render, handover, rendered, sampler_nodes, sketched, sr_sampler, through_a_file
from runs import handover_nodes as node

record_module = module("srd_core.handover.record")
FIRST_RELEASE = Path(__file__).parent / "data" / f"hand_over_version_1{handover.SUFFIX}"


# --- the file ---------------------------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """The file with its facts and tensors changed."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = json.loads(metadata[handover.FACTS])
    change(facts, tensors)
    metadata[handover.FACTS] = json.dumps(facts)
    changed = path.with_name(f"changed{handover.SUFFIX}")
    safetensors.torch.save_file(tensors, changed, metadata)
    return changed


def test_a_file_of_the_first_release_renders_as_a_run_of_today(wan: Any) -> None:
    """Written by SR Sketch of commit fd58ddf (0.1.0): three of six uni_pc steps."""
    latent, report = rendered(half_render.load(FIRST_RELEASE), wan(seed=1))
    assert distance(latent["samples"], sr_sampler(wan(), wan(seed=1), sampler_name="uni_pc")) < 1e-5
    assert [step.stage for step in report.steps] == ["sketch"] * 3 + ["render"] * 3


def test_a_file_gives_back_every_value_bit_for_bit(wan: Any, tmp_path: Path) -> None:
    record = sketched(wan(), sampler_name="euler_cfg_pp", latent={"samples": a_video()}, denoise=0.8)[0]
    back = through_a_file(record, tmp_path)
    assert back.settings == record.settings and back.report.to_json() == record.report.to_json()
    assert back.latent_facts == record.latent_facts and back.host == record.host and back.steps == 3
    for name in ("latent_image", "sigmas", "x"):
        assert torch.equal(getattr(back, name), getattr(record, name)), name
    for ours, theirs in zip(back.calls, record.calls, strict=True):
        assert ours.sigma == theirs.sigma and torch.equal(ours.prediction, theirs.prediction)
        assert set(ours.noted) == set(theirs.noted) == set(record_module.NOTED)
        assert all(torch.equal(ours.noted[name], theirs.noted[name]) for name in ours.noted)
    assert back.schedule.values == record.schedule.values
    assert [p.name for p in tmp_path.iterdir()] == [f"a{handover.SUFFIX}"]


def test_a_file_holds_one_latent_a_call_and_little_else(a_file: Path, wan: Any) -> None:
    record, one = handover.read(a_file), 16 * 2 * 8 * 8 * 4
    assert a_file.stat().st_size < (len(record.calls) + 1) * one + 20_000


def set_fact(*keys: str | int, value: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(facts: Any, tensors: Any) -> None:
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value

    return change


def set_tensor(name: str, of: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Any, Any], None]:
    def change(facts: Any, tensors: dict[str, torch.Tensor]) -> None:
        tensor = of(tensors.pop(name))
        if tensor is not None:
            tensors[name] = tensor.contiguous()

    return change


def spoiled(tensor: torch.Tensor) -> torch.Tensor:
    tensor.flatten()[0] = float("nan")
    return tensor


# One of each kind of check; test_damage.py draws more.
WRONG = {
    "a seed in words": set_fact("settings", "seed", value="7"),
    "a batch index in words": set_fact("settings", "batch_index", value=["a"]),
    "a batch index that no host draws in hours": set_fact("settings", "batch_index", value=[10**12]),
    "no settings": set_fact("settings", value=[]),
    "a scale of 0": set_fact("latent", "scale", value=0),
    "a schedule in words": set_fact("schedule", "values", value={"shift": "8"}),
    "a host of another kind": set_fact("host", value=1),
    "no report": set_fact("report", value={}),
    "no hand-over": set_fact("report", "hand_overs", value=[]),
    "levels not finite": set_tensor("sigmas", spoiled),
    "levels that rise": set_tensor("sigmas", lambda t: t.flip(0)),
    "levels of integers": set_tensor("sigmas", lambda t: t.to(torch.int32)),
    "a call without its level": set_tensor("call_sigmas", lambda t: t[:-1]),
    "no second prediction": set_tensor("prediction.1", lambda t: None),
    "a prediction of another shape": set_tensor("prediction.1", lambda t: t[:, :3]),
    "a prediction of another type": set_tensor("prediction.0", lambda t: t.half().view(torch.uint8)),
    "no latent": set_tensor("x", lambda t: None),
    "a tensor more": lambda facts, tensors: tensors.update(more=torch.zeros(1)),
    "noise of another shape": lambda facts, tensors: tensors.update(noise=torch.zeros(1, 16, 3, 8, 8)),
}
DAMAGED = r"^changed\.sketch\.safetensors is damaged: .*{}.*\. Copy it again, or sketch again\.$"


@pytest.mark.parametrize("name", WRONG)
def test_a_file_with_a_wrong_value_is_refused_with_a_sentence_that_names_it(name: str, a_file: Path) -> None:
    with pytest.raises(ValueError, match=DAMAGED.format("")):
        handover.read(rewritten(a_file, WRONG[name]))


def drop_last_call(facts: Any, tensors: dict[str, torch.Tensor]) -> None:
    del tensors["prediction.2"]
    for name in ("call_x", "call_sigmas"):
        tensors[name] = tensors[name][:2].contiguous()


OF_ANOTHER_RUN = {
    "channels": (set_fact("latent", "channels", value=48), "latent format"),
    "dimensions": (set_fact("latent", "dimensions", value=None), "latent format"),
    "batch": (set_fact("settings", "batch_index", value=[1, 2, 3]), "batch_index"),
    "switch": (set_fact("report", "hand_overs", 0, "after_step", value=5), "hand-over is not at"),
    "calls": (set_fact("report", "stages", 0, "calls", value=2), "report"),
    "last call": (drop_last_call, "report"),
    "call levels": (set_tensor("call_sigmas", lambda t: t * 1.01), "noise levels"),
    "levels": (set_tensor("sigmas", lambda t: t * 0 + 0.5), "noise levels"),
    "huge levels": (set_tensor("sigmas", lambda t: t * 1e30), "hand-over is not at"),
    "schedule": (set_tensor("schedule.sigmas", lambda t: t * 0), "noise schedule"),
}


@pytest.mark.parametrize("name", OF_ANOTHER_RUN)
def test_a_file_whose_parts_are_not_of_one_run_is_refused_as_damaged(
    name: str, a_file: Path, host_folders: Path
) -> None:
    change, words = OF_ANOTHER_RUN[name]
    changed = rewritten(a_file, change)
    (host_folders / "input" / changed.name).write_bytes(changed.read_bytes())
    with pytest.raises(ValueError, match=DAMAGED.format(words)):
        node.SRLoadHandOver.execute(changed.name)


def test_files_of_another_version_foreign_and_cut_files_are_refused_with_a_sentence(
    a_file: Path, tmp_path: Path
) -> None:
    whole = a_file.read_bytes()
    cases: dict[str, tuple[bytes, str]] = {
        "version": (whole.replace(b'hand_over":"2"', b'hand_over":"9"'), "version '9'"),
        "cut": (whole[:-100], "cut short"),
        "header": (whole[:60], "not a safetensors file"),
        "empty": (b"", "not a safetensors file"),
        "huge header": (struct.pack("<Q", 1 << 40) + whole[8:], "not a safetensors file"),
        "pickle": (b"\x80\x04\x95" + bytes(100), "not a safetensors file"),
    }
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, foreign)
    cases["foreign"] = (foreign.read_bytes(), "not a hand-over")
    for name, (content, words) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            handover.read(path)
        assert words in str(error.value) and path.name in str(error.value), name


def test_a_file_is_whole_or_not_there(wan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, path = sketched(wan())[0], tmp_path / f"a{handover.SUFFIX}"
    seen: list[str] = []

    def full_disk(tensors: Any, target: Path, metadata: Any) -> None:
        Path(target).write_bytes(b"half")
        seen.extend(p.name for p in tmp_path.iterdir())
        raise OSError("No space left on device")

    def killed(self: Path, target: Path) -> None:
        raise OSError("killed before the file got its name")

    for owner, name, fault in ((safetensors.torch, "save_file", full_disk), (Path, "replace", killed)):
        with monkeypatch.context() as broken, pytest.raises(OSError, match="No space|killed"):
            broken.setattr(owner, name, fault)
            handover.write(record, path)
        assert not list(tmp_path.iterdir())
    assert path.name not in seen and len(seen) == 1


def test_the_next_hand_over_removes_what_a_killed_server_left_there_and_nothing_else(wan: Any, tmp_path: Path) -> None:
    record, old = sketched(wan())[0], time.time() - 2 * 24 * 3600
    left, being_written, others = (
        tmp_path / name
        for name in (f".left{handover.SUFFIX}.partial", f".b{handover.SUFFIX}.partial", ".other.safetensors.partial")
    )
    for path in (left, being_written, others):
        path.write_bytes(b"half")
    for path in (left, others):
        os.utime(path, (old, old))
    through_a_file(record, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {being_written.name, others.name, f"a{handover.SUFFIX}"}


# --- the nodes that save and load -------------------------------------------------------------------------------------


@pytest.fixture
def host_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's input and output folder, empty."""
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


def offered() -> list[str]:
    return node.SRLoadHandOver.define_schema().inputs[0].options


def test_a_saved_hand_over_is_offered_and_loads_with_its_preview_and_report(host_folders: Path, wan: Any) -> None:
    record, preview, report = sketched(wan())
    names = [node.SRSaveHandOver.execute(record, "srdiffusion/idea").ui["hand_overs"][0] for _ in range(2)]
    assert [n["filename"] for n in names] == [f"idea_0000{i}_{handover.SUFFIX}" for i in (1, 2)]
    assert offered() == [f"srdiffusion/idea_0000{i}_{handover.SUFFIX} [output]" for i in (1, 2)]
    _, shown, its_report = node.SRLoadHandOver.execute(offered()[0]).args
    assert node.SRLoadHandOver.validate_inputs(offered()[0]) is True
    assert torch.equal(shown["samples"], preview["samples"]) and its_report.to_json() == report.to_json()
    (host_folders / "input" / f"moved{handover.SUFFIX}").write_bytes(
        (host_folders / "output" / "srdiffusion" / names[0]["filename"]).read_bytes()
    )
    assert offered()[0] == f"moved{handover.SUFFIX}"


def test_a_changed_file_is_seen_at_the_next_queue_without_reading_it(
    host_folders: Path, a_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = host_folders / "input" / f"a{handover.SUFFIX}"
    path.write_bytes(a_file.read_bytes())
    os.utime(path, ns=(10**18, 10**18))
    fingerprint = node.SRLoadHandOver.fingerprint_inputs
    with monkeypatch.context() as patched:
        for module_name in ("io", "builtins"):
            patched.setattr(f"{module_name}.open", lambda *args, **how: pytest.fail("the file is opened"))
        first = fingerprint(path.name)
        assert fingerprint(path.name) == first
    os.utime(path, ns=(10**18, 10**18 + 1000))  # the same size, another content
    later = fingerprint(path.name)
    path.write_bytes(a_file.read_bytes() + b"x")
    os.utime(path, ns=(10**18, 10**18 + 1000))
    other = host_folders / "input" / f"b{handover.SUFFIX}"
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(10**18, 10**18 + 1000))
    assert len({first, later, fingerprint(path.name), fingerprint(other.name)}) == 4


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "gone", "../output/x [input]", "", "a\0b", "srdiffusion", 3, ["a"]], ids=repr
)
def test_names_outside_the_hosts_folders_and_missing_files_are_refused_at_queue_time(
    name: Any, host_folders: Path
) -> None:
    (host_folders / "secret").write_bytes(b"x")
    (host_folders / "output" / "x").write_bytes(b"x")
    (host_folders / "input" / "srdiffusion").mkdir()
    assert "There is no hand-over file" in str(node.SRLoadHandOver.validate_inputs(name))


@pytest.mark.parametrize("prefix", ["../../x", "../x", "/etc/x", "a/../../x"])
def test_a_place_outside_the_output_folder_is_refused_before_the_sketch(prefix: str, host_folders: Path) -> None:
    said = node.SRSaveHandOver.validate_inputs(prefix)
    assert prefix in said and "Name a folder and a file inside ComfyUI's output folder" in said
    assert str(host_folders) not in said


def test_a_place_inside_the_output_folder_or_from_another_node_is_taken(host_folders: Path) -> None:
    assert node.SRSaveHandOver.validate_inputs("srdiffusion/%year%/idea") is True
    assert node.SRSaveHandOver.validate_inputs() is True


def test_a_damaged_file_is_refused_at_queue_time(host_folders: Path, a_file: Path) -> None:
    name = f"half{handover.SUFFIX}"
    (host_folders / "input" / name).write_bytes(a_file.read_bytes()[:-9])
    assert "cut short" in str(node.SRLoadHandOver.validate_inputs(name))


def test_the_inputs_of_both_halves_are_those_of_sr_sampler_under_the_same_names() -> None:
    whole = {i.id: i.as_dict() for i in sampler_nodes.SRSampler.define_schema().inputs}
    halves = [*node.SRSketch.define_schema().inputs, *node.SRRender.define_schema().inputs]
    for i in halves:
        assert i.id == "hand_over" or i.as_dict() == whole[i.id], i.id
