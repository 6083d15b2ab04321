"""The ComfyUI layer: schemas and a call into srd_core, one file per subject."""

from comfy_api.latest import ComfyExtension, io

from .cogvideox import SRCogVideoXFix
from .compare import SRCompare
from .inspector import SRSwitchInspector
from .loaders import SRLoadRenderDiT, SRLoadSketchDiT
from .sampler import SRModel, SRSampler
from .teacache import SRTeaCache


class SRDiffusionExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SRLoadSketchDiT, SRLoadRenderDiT, SRSampler, SRModel, SRTeaCache, SRSwitchInspector, SRCompare, SRCogVideoXFix]


async def comfy_entrypoint() -> SRDiffusionExtension:
    return SRDiffusionExtension()
