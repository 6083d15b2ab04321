"""Hosts that lack what the pack builds on: a sentence at their start that names the version needed, and all else works.

The real case is a host older than any that can be made here (by hand: 0.3.10, 0.3.59 and 0.3.64 said the sentence and
continued), so the server below is a copy of a real host without the one wrapper that hosts before 0.3.11 did not have.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hosting import REPOSITORY, host_module, module

host_check = module("srd_core.host_check")
ANEW = "That version has it, so this installation is changed or incomplete: install ComfyUI anew."
HOST_PACKAGES = ["comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfyui_version", "folder_paths"]
HOST_PACKAGES += ["latent_preview", "nodes", "server"]


def names_used(path: Path) -> Iterator[str]:
    """What of the host one file of the pack names, e.g. "comfy.samplers.KSampler.SAMPLERS"."""
    tree = ast.parse(path.read_text("utf-8"))
    bound: dict[str, str] = {}  # name in the file -> what it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {a.asname: a.name for a in node.names if a.asname}
            bound |= {a.name.split(".")[0]: a.name.split(".")[0] for a in node.names if not a.asname}
            yield from (f"{a.name}." for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            yield from (f"{node.module}.{a.name}" for a in node.names)
    for node in ast.walk(tree):
        chain: list[str] = []
        found: Any = node
        while isinstance(found, ast.Attribute):
            chain.insert(0, found.attr)
            found = found.value
        if chain and isinstance(found, ast.Name) and found.id in bound:
            yield ".".join([bound[found.id], *chain])


def hook_of(name: str) -> str | None:
    """What HOOKS should have for a name that a file uses; None if it is not the host's, or only a module.

    Of a module of comfy two levels ("WrappersMP.OUTER_SAMPLE"), of the nodes' API one, as its classes come together.
    """
    if name.split(".")[0] not in HOST_PACKAGES:
        return None
    if any(f"{module}.".startswith(f"{name.rstrip('.')}.") for module in host_check.HOOKS):
        return None
    module = max((m for m in host_check.HOOKS if name.startswith(f"{m}.")), key=len, default=None)
    if module is None:
        return name.rstrip(".")
    path = name.removeprefix(f"{module}.").split(".__")[0].split(".")
    return ".".join([module, *path[: 1 if module == "comfy_api.latest" else 2]])


def test_every_hook_that_is_asked_for_is_there_in_the_hosts_that_the_tests_run_on() -> None:
    assert host_check.complaint() is None


def test_all_that_the_pack_uses_of_the_host_is_asked_for_at_import() -> None:
    asked = [f"{name}.{path}." for name, paths in host_check.HOOKS.items() for path in paths.split()]
    files = [*REPOSITORY.glob("nodes/*.py"), *REPOSITORY.glob("srd_core/**/*.py")]
    needed = {need for file in files for need in map(hook_of, names_used(file)) if need}
    missing = {need for need in needed if not any(hook.startswith(f"{need}.") for hook in asked)}
    assert not sorted(missing), "add these to HOOKS in srd_core/host_check.py"


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("0.3.64", "This is ComfyUI 0.3.64; it lacks a.b. Update ComfyUI to 0.24.0 or newer."),
        ("", "This is ComfyUI of an unknown version; it lacks a.b. Update ComfyUI to 0.24.0 or newer."),
        ("0.18.2", "it lacks a.b. Update ComfyUI to 0.24.0 or newer."),
        ("0.24.0", f"it lacks a.b. {ANEW}"),
        ("0.30.0", f"it lacks a.b. {ANEW}"),
        ("1.2.0", "This is ComfyUI 1.2.0; it lacks a.b. Update ComfyUI-SRDiffusion."),
    ],
)
def test_the_sentence_names_the_version_what_is_missing_and_which_side_to_update(version: str, advice: str) -> None:
    said = host_check.sentence(version, ["a.b"])
    assert "needs ComfyUI 0.24.0 or newer" in said and advice in said


def test_a_host_that_lacks_much_is_not_told_all_of_it() -> None:
    assert "lacks a, b, c and 2 more." in host_check.sentence("0.3.1", list("abcde"))


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real server whose host has no PREDICT_NOISE wrapper, with the pack."""
    folder = tmp_path_factory.mktemp("host")
    host = host_module.find_or_make()
    copy = folder / "ComfyUI"
    shutil.copytree(host.path / "comfy", copy / "comfy", ignore=shutil.ignore_patterns("__pycache__"))
    for entry in host.path.iterdir():
        if entry.name != "comfy":
            (copy / entry.name).symlink_to(entry)
    wrappers = copy / "comfy" / "patcher_extension.py"
    without = re.sub(r"^    PREDICT_NOISE = .*\n", "", wrappers.read_text("utf-8"), flags=re.MULTILINE)
    assert without != wrappers.read_text("utf-8")
    wrappers.write_text(without, "utf-8")
    packs = {"ComfyUI-SRDiffusion": REPOSITORY}
    with host_module.serve(replace(host, path=copy), folder / "base", packs) as running:
        yield running


def test_a_host_that_lacks_a_hook_says_which_version_is_needed_without_a_traceback(lacking: Any) -> None:
    log = lacking.log.read_text("utf-8")
    assert "ComfyUI-SRDiffusion needs ComfyUI 0.24.0 or newer" in log
    assert "it lacks comfy.patcher_extension.WrappersMP.PREDICT_NOISE." in log
    assert "Traceback" not in log


def test_a_host_that_lacks_a_hook_starts_and_runs_all_but_the_packs_nodes(lacking: Any) -> None:
    info = lacking.object_info()
    assert "KSampler" in info and not [name for name in info if name.startswith("SR")]
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    assert lacking.run(graph, timeout=60)["outputs"]["2"]["images"]
