"""The ComfyUI layer: schemas and a call into srd_core, one file per subject."""

from comfy_api.latest import ComfyExtension, io

from . import before_run, live, plan
from .attention import SRAttention
from .cogvideox import SRCogVideoXFix
from .compare import SRCompare
from .handover import SRLoadHandOver, SRRender, SRSaveHandOver, SRSketch
from .inspector import SRSwitchInspector
from .loaders import SRLoadRenderDiT, SRLoadSketchDiT
from .measure import SRMeasurePair
from .sampler import SRModel, SRSampler
from .teacache import SRTeaCache


class SRDiffusionExtension(ComfyExtension):
    async def on_load(self) -> None:
        live.add_route()
        plan.add_route()
        before_run.listen()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            SRLoadSketchDiT,
            SRLoadRenderDiT,
            SRSampler,
            SRModel,
            SRSketch,
            SRRender,
            SRSaveHandOver,
            SRLoadHandOver,
            SRTeaCache,
            SRAttention,
            SRSwitchInspector,
            SRCompare,
            SRCogVideoXFix,
            SRMeasurePair,
        ]


async def comfy_entrypoint() -> SRDiffusionExtension:
    """What the host asks the pack for."""
    return SRDiffusionExtension()
