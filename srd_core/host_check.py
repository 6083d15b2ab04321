"""Does this ComfyUI have what the pack builds on?

Asked before anything of the pack imports it, so that an older (or a much newer) host gets a sentence in place of a
traceback.
"""

from __future__ import annotations

import importlib
import re

TESTED = ("0.24.0", "0.30.0")  # the oldest and the newest ComfyUI that the tests run on

# Module of the host -> what the pack uses of it. tests/test_host_versions.py compares this with the pack's own sources.
HOOKS = {
    "comfy.controlnet": "ControlNetSD35",
    "comfy.hooks": "EnumHookMode.MinVram",
    "comfy.latent_formats": "CogVideoX CogVideoX1_5 LatentFormat",
    "comfy.ldm.cogvideo.model": "get_timestep_embedding",
    "comfy.ldm.modules.attention": "REGISTERED_ATTENTION_FUNCTIONS get_attention_function optimized_attention",
    "comfy.ldm.wan.model": "sinusoidal_embedding_1d",
    "comfy.model_base": "BaseModel.apply_model",
    "comfy.model_detection": "model_config_from_unet unet_prefix_from_state_dict",
    "comfy.model_management": "InterruptProcessingException OOM_EXCEPTION cuda_device_context current_loaded_models "
    "dtype_size free_memory get_free_memory get_total_memory is_device_cpu is_oom loaded_models soft_empty_cache "
    "throw_exception_if_processing_interrupted",
    "comfy.model_patcher": "ModelPatcher create_model_options_clone",
    "comfy.model_prefetch": "__name__",  # newer hosts have functions there that are asked for when they are needed
    "comfy.model_sampling": "CONST ModelSamplingDiscrete ModelSamplingDiscreteFlow V_PREDICTION "
    "rescale_zero_terminal_snr_sigmas",
    "comfy.multigpu": "MultiGPUThreadPool",
    "comfy.ops": "fp8_ops.Linear manual_cast.Linear",
    "comfy.patcher_extension": "PatcherInjection WrapperExecutor.new_class_executor WrappersMP.APPLY_MODEL "
    "WrappersMP.CALC_COND_BATCH WrappersMP.DIFFUSION_MODEL WrappersMP.OUTER_SAMPLE WrappersMP.PREDICT_NOISE "
    "WrappersMP.PREPARE_SAMPLING WrappersMP.SAMPLER_SAMPLE add_wrapper_with_key get_all_wrappers",
    "comfy.sample": "prepare_noise sample_custom",
    "comfy.sampler_helpers": "cleanup_models convert_cond estimate_memory get_additional_models "
    "prepare_model_patcher prepare_model_patcher_multigpu_clones prepare_sampling",
    "comfy.samplers": "CFGGuider.outer_predict_noise CFGGuider.outer_sample CFGGuider.set_cfg KSAMPLER.sample "
    "KSampler.SAMPLERS KSampler.SCHEDULERS calculate_start_end_timesteps cast_to_load_options "
    "filter_registered_hooks_on_conds get_total_hook_groups_in_conds pre_run_control preprocess_conds_hooks "
    "process_conds sampler_object",
    "comfy.sd": "load_diffusion_model_state_dict",
    "comfy.utils": "PROGRESS_BAR_ENABLED ProgressBar get_attr load_torch_file reshape_mask state_dict_prefix_replace",
    "comfy_api.latest": "ComfyExtension io.Schema.search_aliases ui",
    "comfy_execution.utils": "get_executing_context",
    "comfyui_version": "__version__",
    "folder_paths": "annotated_filepath get_filename_list get_folder_paths get_full_path_or_raise get_input_directory "
    "get_output_directory get_save_image_path",
    "latent_preview": "prepare_callback",
    "nodes": "NODE_CLASS_MAPPINGS.get UNETLoader common_ksampler",
}


def complaint() -> str | None:
    """None if the host has everything; else a sentence that says what it lacks and what to update."""
    lacking = [f"{module}.{path}" for module, paths in HOOKS.items() for path in paths.split() if _lacks(module, path)]
    return sentence(_version(), lacking) if lacking else None


def sentence(version: str, lacking: list[str]) -> str:
    """What to tell the user of ComfyUI ``version`` (empty: unknown), which lacks these hooks."""
    oldest, newest = TESTED
    advice = f"Update ComfyUI to {oldest} or newer."
    if _numbers(version) > _numbers(newest):
        advice = "Update ComfyUI-SRDiffusion."
    elif _numbers(version) >= _numbers(oldest):
        advice = "That version has it, so this installation is changed or incomplete: install ComfyUI anew."
    some = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
    return (
        f"ComfyUI-SRDiffusion needs ComfyUI {oldest} or newer (tested up to {newest}). This is ComfyUI "
        f"{version or 'of an unknown version'}; it lacks {some}. {advice} Until then the pack's nodes are not there; "
        "nothing else is affected."
    )


def _lacks(module: str, path: str) -> bool:
    """Whether the host has not this module, or in it not this attribute or field, such as "KSampler.SAMPLERS"."""
    try:
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, "__dataclass_fields__", {}).get(name) or getattr(found, name)
    except (ImportError, AttributeError):
        return True
    return False


def _version() -> str:
    """The host's version; empty on hosts that do not tell."""
    try:
        return str(importlib.import_module("comfyui_version").__version__)
    except (ImportError, AttributeError):
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """Of "0.24.0": (0, 24, 0); an unknown version counts as an old one."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
