"""Take the pictures of the shipped workflows in the real page: workflows/<name>.jpg.

    apt install chromium fonts-wqy-microhei
    pip install playwright pillow
    python demo/pictures.py [NAME ...]

The model files are empty stand-ins: the page only lists their names. It also compares what the page would queue with
what demo/workflow.py makes of the file.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import page
import workflow
from host import DEMO_PACKS, REPOSITORY, find_or_make, say, serve
from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = REPOSITORY / "workflows"
LOADERS = ("SRLoadSketchDiT", "SRLoadRenderDiT")
SCALE, MARGIN = 0.7, 20
NOT_THE_GRAPH = (
    ".comfy-menu, #graph-canvas-container > .z-999, .p-toast, #vue-app .fixed.top-0.right-0, #comfyui-body-top, "
    "#comfyui-body-left, #comfyui-body-right, #comfyui-body-bottom { display: none !important }"
)
# The node of ComfyUI-GGUF that a workflow uses, as the page sees it; it is never run here.
GGUF = """
class UnetLoaderGGUF:
    CATEGORY, FUNCTION, RETURN_TYPES = "bootleg", "load", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"unet_name": (["wan2.1-t2v-14b-Q4_K_M.gguf"],)}}

NODE_CLASS_MAPPINGS = {"UnetLoaderGGUF": UnetLoaderGGUF}
NODE_DISPLAY_NAME_MAPPINGS = {"UnetLoaderGGUF": "Unet Loader (GGUF)"}
"""
OPEN = """async (saved) => {
  await app.loadGraphData(saved);
  app.canvas.show_info = false;
  const {output} = await app.graphToPrompt();
  return JSON.stringify(output);
}"""
BOX = """() => {
  const nodes = app.graph._nodes.map(n => [...n.getBounding()]);
  const boxes = [...nodes, ...app.graph._groups.map(g => [...g.pos, ...g.size])];
  const low = i => Math.min(...boxes.map(b => b[i])), high = i => Math.max(...boxes.map(b => b[i] + b[i + 2]));
  return [low(0), low(1), high(0), high(1)];
}"""
FIT = "([x, y, scale]) => { const c = app.canvas; c.ds.scale = scale; c.ds.offset = [-x, -y]; c.setDirty(true, true) }"


def models(folder: Path) -> dict[str, list[Path]]:
    """Empty files under the names that the workflows ask for."""
    files: dict[str, list[Path]] = {}
    for path in FOLDER.glob("*.json"):
        for node in workflow.load(path)["nodes"]:
            for model in node["properties"].get("models", []):
                stand_in = folder / model["name"]
                if not stand_in.exists():
                    stand_in.write_bytes(b"")
                    files.setdefault(model["directory"], []).append(stand_in)
            if node["type"] in LOADERS and "/" in (name := node["widgets_values"][0]):  # the folder of a model
                stand_in = folder / name / "diffusion_pytorch_model.safetensors"
                if not stand_in.exists():
                    stand_in.parent.mkdir(parents=True)
                    stand_in.write_bytes(b"")
                    files.setdefault("diffusion_models", []).append(folder / name.partition("/")[0])
    return files


def take(page: Page, path: Path, info: workflow.ObjectInfo) -> bytes:
    """The workflow's picture as PNG."""
    queued = json.loads(page.evaluate(OPEN, workflow.load(path)))
    if plain(queued) != plain(workflow.to_api(workflow.load(path), info)):
        say(f"{path.name}: the page would queue something else than demo/workflow.py")
    left, top, right, bottom = page.evaluate(BOX)
    size = (right - left + 2 * MARGIN, bottom - top + 2 * MARGIN)
    page.set_viewport_size({"width": round(size[0] * SCALE), "height": round(size[1] * SCALE)})
    page.wait_for_timeout(1000)
    page.evaluate(FIT, [left - MARGIN, top - MARGIN, SCALE])
    page.wait_for_timeout(2000)
    return page.screenshot()


def plain(graph: dict[str, Any]) -> dict[str, Any]:
    """Node types and inputs, without the page's own nodes."""
    return {i: (n["class_type"], n["inputs"]) for i, n in graph.items() if n["class_type"] not in workflow.NOTES}


def main() -> None:
    """Take the pictures that the command line names, or all."""
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.json"))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        page.settings(folder / "base")
        gguf = folder / "gguf"
        gguf.mkdir()
        (gguf / "__init__.py").write_text(GGUF, "utf-8")
        (folder / "base" / "input").mkdir()
        shutil.copyfile(
            REPOSITORY / "web" / "icon.png", folder / "base" / "input" / "example.png"
        )  # which every ComfyUI has
        server = stack.enter_context(
            serve(find_or_make(), folder / "base", {**DEMO_PACKS, "gguf": gguf}, models(folder))
        )
        browser = page.launch(stack.enter_context(sync_playwright()))
        view = page.open_page(browser, server.url, 1900, 760)
        view.add_style_tag(content=NOT_THE_GRAPH)
        for name in names:
            picture = Image.open(io.BytesIO(take(view, FOLDER / f"{name}.json", server.object_info())))
            picture.convert("RGB").save(FOLDER / f"{name}.jpg", quality=85, optimize=True, progressive=True)
            say(f"workflows/{name}.jpg, {picture.width} x {picture.height}")
        browser.close()


if __name__ == "__main__":
    main()
