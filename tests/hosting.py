"""The real host in this process: ComfyUI on the CPU, and the pack loaded as a package beside it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parent.parent
PACK = "srdiffusion_pack"


def load_by_path(name: str, path: Path) -> ModuleType:
    """Import a file, or a package by its __init__.py, under ``name``. The repository root stays off sys.path, where its
    folder ``nodes`` would hide the host's module of that name."""
    if name in sys.modules:
        return sys.modules[name]
    folders = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def module(name: str) -> ModuleType:
    """A module of the pack, e.g. module("srd_core.route")."""
    return importlib.import_module(f"{PACK}.{name}")


def start_host() -> None:
    """Make ``import comfy`` and ``import nodes`` mean the real host, on the CPU."""
    host = host_module.find_or_make(os.environ.get("SRD_HOST_VERSION"))
    sys.path.insert(0, str(host.path))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import torch
    import utils.install_util  # noqa: F401  (as main.py does: later, comfy.utils could be taken for this package)

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings


host_module = load_by_path("srd_host", REPOSITORY / "demo" / "host.py")
start_host()
pack = load_by_path(PACK, REPOSITORY / "__init__.py")
