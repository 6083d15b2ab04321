"""The real host in this process, and the pack loaded as a package beside it.

ComfyUI runs on the CPU, or, where the environment's SRD_TEST_GPU says how it shall manage the memory, on the GPU.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

DEMO = Path(__file__).resolve().parent.parent / "demo"
sys.path += [str(DEMO), str(DEMO / "family")]

import host as host_module  # noqa: E402
from host import REPOSITORY, load_by_path  # noqa: E402

PACK = "srdiffusion_pack"
CLASSIC, DYNAMIC = "classic", "dynamic"  # how the host manages a GPU's memory


def module(name: str) -> ModuleType:
    """A module of the pack by its dotted name, e.g. "srd_core.route"."""
    return importlib.import_module(f"{PACK}.{name}")


def start_host(gpu: str = "") -> None:
    """Make ``import comfy`` and ``import nodes`` mean the real host. gpu: "" for the CPU, CLASSIC or DYNAMIC."""
    host = host_module.find_or_make(os.environ.get("SRD_HOST_VERSION"))
    sys.path.insert(0, str(host.path))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu, args.disable_dynamic_vram = not gpu, gpu != DYNAMIC
    if gpu == DYNAMIC:
        _prepare_dynamic()
    import torch
    import utils.install_util  # noqa: F401  (as main.py does: later, comfy.utils could be taken for this package)

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings
    if gpu == DYNAMIC:
        _begin_dynamic()


def _prepare_dynamic() -> None:
    """What the host's main.py does for dynamic VRAM before torch is loaded."""
    import comfy_aimdo.control

    comfy_aimdo.control.init()


def _begin_dynamic() -> None:
    """What it does after that. Raises RuntimeError where dynamic VRAM does not work."""
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.control

    if not comfy_aimdo.control.init_devices(
        (device.index, 0) for device in comfy.model_management.get_all_torch_devices()
    ):
        raise RuntimeError("Dynamic VRAM does not work here: comfy-aimdo found no device. Set SRD_TEST_GPU to classic.")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


start_host(os.environ.get("SRD_TEST_GPU", ""))
pack = load_by_path(PACK, REPOSITORY / "__init__.py")
