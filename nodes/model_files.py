"""Names of models as loaders list them, and where they lie."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..srd_core.checkpoint import model_names

FOLDER = "diffusion_models"  # of the host


def names() -> list[str]:
    """All that can be chosen."""
    return model_names(folder_paths.get_filename_list(FOLDER))


def listed(model_name: str) -> str | None:
    """The name as the list has it, also where a workflow of another system has the other separator; None: not there."""
    return next((name for name in names() if name.replace("\\", "/") == model_name.replace("\\", "/")), None)


def path_of(model_name: str) -> Path:
    """Where a name of the list lies: a file, or the folder of a model. Raises FileNotFoundError as the host does."""
    for folder in folder_paths.get_folder_paths(FOLDER):
        if (path := Path(folder, model_name)).is_dir():
            return path
    return Path(folder_paths.get_full_path_or_raise(FOLDER, model_name))
