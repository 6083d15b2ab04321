"""Names of models as loaders list them, and where they lie."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..srd_core.checkpoint import holds_a_model, model_names

FOLDER = "diffusion_models"  # of the host


def names() -> list[str]:
    """All that can be chosen."""
    return model_names(folder_paths.get_filename_list(FOLDER))


def listed(model_name: str) -> str | None:
    """The name as the list has it, also where a workflow of another system has the other separator; None: not there."""
    return next((name for name in names() if name.replace("\\", "/") == model_name.replace("\\", "/")), None)


def path_of(model_name: str) -> Path:
    """Where a name of the list lies: a file, or the folder of a model. Raises FileNotFoundError as the host does."""
    folders = [path for root in folder_paths.get_folder_paths(FOLDER) if (path := Path(root, model_name)).is_dir()]
    whole = next(filter(holds_a_model, folders), None)  # another models folder may have one of the same name
    return whole or Path(folder_paths.get_full_path_or_raise(FOLDER, model_name))
