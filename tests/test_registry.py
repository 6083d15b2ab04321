"""What the Comfy registry gets, and what a user gets from it.

The archive as its command line makes it, unpacked by the Manager's steps into a real ComfyUI that has nothing else, and
seen over HTTP as the page sees it.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_config.config_parser import extract_node_configuration  # the host's own reader of pyproject.toml
from hosting import REPOSITORY, host_module, module
from PIL import Image
from test_nodes import node_classes

NODES = sorted(node.GET_SCHEMA().node_id for node in node_classes())
NEEDED = ("__init__.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")  # beside the folders
FOLDERS = ("nodes", "srd_core", "web", "locales", "subgraphs", "workflows")
TEMPLATES = sorted(path.stem for path in (REPOSITORY / "workflows").glob("*.json"))
LANGUAGES = ("en", "zh")


def listed(*options: str) -> set[str]:
    """Files of the repository as git lists them: what it keeps, and what it would keep if it were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", *options]
    found = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True).stdout.decode("utf-8")
    return {name for name in found.split("\0") if name and (REPOSITORY / name).is_file()}


def packaged() -> list[str]:
    """What `comfy node publish` packs: what git keeps, without what .comfyignore names."""
    return sorted(listed("--exclude-standard") - listed("--ignored", "--exclude-from=.comfyignore"))


def archive() -> bytes:
    """These files as the zip file that the registry serves."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in packaged():
            file.write(REPOSITORY / name, name)
    return packed.getvalue()


def install(packed: bytes, custom_nodes: Path) -> Path:
    """The Manager's steps: unpack into a folder of the project's name, then requirements.txt, then install.py."""
    folder = custom_nodes / extract_node_configuration(str(REPOSITORY)).project.name
    with zipfile.ZipFile(io.BytesIO(packed)) as file:
        file.extractall(folder)
    assert not (folder / "requirements.txt").exists() and not (folder / "install.py").exists(), "nothing to install"
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real server with nothing but the unpacked archive."""
    base = tmp_path_factory.mktemp("empty")
    install(archive(), base / "custom_nodes")
    with host_module.serve(host_module.find_or_make(), base) as running:
        yield running


# --- the files --------------------------------------------------------------------------------------------------------


def test_the_archive_has_all_that_the_pack_needs() -> None:
    names = set(packaged())
    assert set(NEEDED) <= names
    for folder in FOLDERS:
        kept = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / folder).rglob("*") if path.is_file()}
        assert {name for name in kept if "__pycache__" not in name} <= names and kept


def test_the_archive_has_neither_demo_nor_benches_nor_tests_nor_anything_else() -> None:
    assert {name.split("/")[0] for name in packaged()} == {*NEEDED, *FOLDERS}


def test_the_registry_can_read_what_pyproject_says() -> None:
    said = extract_node_configuration(str(REPOSITORY))
    project, comfy = said.project, said.tool_comfy
    assert re.fullmatch(r"[a-z](?:[._-]?[a-z0-9])*", project.name) and len(project.name) < 100
    assert "comfy" not in project.name  # the registry's advice
    assert re.fullmatch(r"\d+\.\d+\.\d+", project.version) and project.description and comfy.display_name
    assert project.license.file == "LICENSE" and project.dependencies == []
    assert project.supported_os == ["OS Independent"]
    assert "GPU :: NVIDIA CUDA" in project.supported_accelerators
    owner, name = project.urls.repository.split("/")[-2:]
    assert name == "ComfyUI-SRDiffusion" and f"/{owner}/{name}/" in comfy.icon
    assert comfy.web is None, "WEB_DIRECTORY says it already: the scripts would load twice"


def test_the_version_of_comfyui_that_is_required_is_the_oldest_that_is_tested() -> None:
    oldest, newest = module("srd_core.host_check").TESTED
    assert extract_node_configuration(str(REPOSITORY)).project.supported_comfyui_version == f">={oldest}"
    first, *_, last = host_module.KNOWN
    assert (first, last) == (oldest, newest) and last == host_module.DEFAULT_VERSION
    versions = re.search(r"^VERSIONS = (.*)$", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert versions and versions[1].split() == list(host_module.KNOWN)


def test_the_icon_is_where_pyproject_says_and_of_a_size_that_the_registry_takes() -> None:
    path = extract_node_configuration(str(REPOSITORY)).tool_comfy.icon.split("/main/")[1]
    with Image.open(REPOSITORY / path) as icon:
        assert icon.format == "PNG" and icon.width == icon.height <= 400
    assert path in packaged()


# --- installed --------------------------------------------------------------------------------------------------------


def test_an_empty_comfyui_loads_the_unpacked_archive(server: Any) -> None:
    ours = {name for name, node in server.object_info().items() if node["python_module"] == "custom_nodes.srdiffusion"}
    assert ours == set(NODES)
    log = server.log.read_text("utf-8")
    assert "IMPORT FAILED" not in log and "Traceback" not in log


@pytest.mark.parametrize("node_id", NODES)
def test_every_node_has_its_help_page_and_the_pictures_in_it(node_id: str, server: Any) -> None:
    for page in (f"{node_id}.md", *(f"{node_id}/{path.name}" for path in translated(node_id))):
        folder = "/extensions/srdiffusion/docs/"
        text = server.request(folder + page).decode("utf-8")
        assert text.startswith("# ")
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            assert server.request(f"{folder}{picture}")


def translated(node_id: str) -> list[Path]:
    """Help pages of that node in other languages."""
    return sorted((REPOSITORY / "web" / "docs" / node_id).glob("*.md"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_gets_our_texts_in_both_languages(language: str, server: Any) -> None:
    served = server.get("/i18n")[language]
    for name in ("nodeDefs", "main"):
        ours = json.loads((REPOSITORY / "locales" / language / f"{name}.json").read_text("utf-8"))
        assert ours and (served[name] if name == "nodeDefs" else served).items() >= ours.items()


def test_the_template_browser_lists_our_workflows(server: Any) -> None:
    assert sorted(server.get("/workflow_templates")["srdiffusion"]) == TEMPLATES


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_browser_gets_each_workflow_with_its_picture(name: str, server: Any) -> None:
    folder = "/api/workflow_templates/srdiffusion/"
    assert server.get(f"{folder}{name}.json")["nodes"]
    with Image.open(io.BytesIO(server.request(f"{folder}{name}.jpg"))) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 400


def test_every_script_of_the_page_is_listed_and_served(server: Any) -> None:
    ours = sorted(name for name in server.get("/extensions") if name.startswith("/extensions/srdiffusion/"))
    assert [Path(name).name for name in ours] == sorted(path.name for path in (REPOSITORY / "web").rglob("*.js"))
    assert all(server.request(name) for name in ours)
