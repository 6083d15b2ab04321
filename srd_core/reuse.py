"""TeaCache in the host: a MODEL whose transformer blocks are skipped at the steps that the plan reuses.

One OUTER_SAMPLE wrapper begins a run: it counts steps, makes the plan at the first model call (the noise levels that
remain are known then, and the model is loaded) and frees everything at the end. A PREDICT_NOISE wrapper says which step
a call belongs to, a DIFFUSION_MODEL wrapper takes the blocks' place for the time of the call, around whatever others
have put there. The same works for a plain sampler node and for either stage of a Sketch-Render run.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.ldm.wan.model
import comfy.model_patcher
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP, add_wrapper_with_key

from .calls import OUTER_SAMPLE, PREDICT_NOISE
from .steps import StepCounter, counter_for
from .teacache import (
    FORMS,
    MIN_STEPS,
    RET_STEPS,
    Residuals,
    Table,
    cogvideox_table,
    distances,
    growth,
    skip_plan,
    wan_table,
)

KEY = "srdiffusion_teacache"
TORCH_COMPILE_KWARGS = "torch_compile_kwargs"  # the host's model option for how it compiles
NOT_FOR_BLOCKS = ("guard_filter_fn", "triton.cudagraphs")  # options of torch.compile
WITHOUT_CUDA_GRAPHS: dict[str | None, str | None] = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}  # its modes


@dataclass(frozen=True)
class TeaCache:
    """Settings of a cached MODEL."""

    threshold: float  # of the accumulated change; larger reuses more steps, 0 none
    form: str = "e"  # e: time embedding; e0: its projection, the first five steps of a run computed
    residual_on_cpu: bool = False  # keep what the blocks added in main memory instead of on the GPU

    def __post_init__(self) -> None:
        """Raises ValueError for settings that mean nothing."""
        if not self.threshold >= 0:
            raise ValueError(f"teacache is {self.threshold}; the threshold must be 0 (off) or more.")
        if self.form not in FORMS:
            raise ValueError(f"TeaCache's form is {self.form!r}; choose one of {', '.join(FORMS)}.")


def with_teacache(model: ModelPatcher, settings: TeaCache) -> ModelPatcher:
    """A clone of ``model`` that reuses steps when it samples; with threshold 0 a plain clone. The newest settings win."""
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    if settings.threshold > 0:
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_sample, settings=settings))
    return model


def is_cached(model: ModelPatcher) -> bool:
    """Whether ``with_teacache`` made this MODEL."""
    return KEY in model.wrappers.get(WrappersMP.OUTER_SAMPLE, {})


def run_of(model_options: dict[str, Any]) -> CachedRun | None:
    """The cached run that goes on under these options, if any."""
    return model_options.get("transformer_options", {}).get(KEY)


def _sample(executor: WrapperExecutor, *args: Any, settings: TeaCache, **kwargs: Any) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: one sampling run, or the part of it that this model runs."""
    guider = executor.class_obj
    call = OUTER_SAMPLE.bind(guider, *args, **kwargs)
    counter = counter_for(call.arguments["sampler"], call.arguments["sigmas"])
    run = CachedRun(settings, counter, call.arguments.get("callback"))
    call.arguments["callback"] = run.callback
    own_options = guider.model_options
    guider.model_options = run.options_for(own_options)
    try:
        return executor(*call.args[1:], **call.kwargs)
    finally:
        guider.model_options = own_options
        run.close()


@dataclass
class Plan:
    """What was decided before the first cached step; plain data, for the report."""

    threshold: float
    form: str  # as used: e where the family has no other
    table: str = ""  # whose coefficients; empty: nothing is reused, see note
    first_step: int = 0  # 0-based index in the run of the first planned step
    reuse: list[bool] = field(default_factory=list)  # for every step from the first to the run's last
    note: str = ""  # what the artist should know
    growth: list[float] = field(default_factory=list)  # what every step of the run adds to the sum; web/rule.js plans with it

    def reuses(self, step: int) -> bool:
        """Whether a step of the run (0-based) is to be reused."""
        i = step - self.first_step
        return 0 <= i < len(self.reuse) and self.reuse[i]


@dataclass
class CompiledBlocks:
    """The host compiles a network as a whole and does not look again at what stands in transformer_options: what was compiled
    without a cache would not see this one. So the blocks are compiled, one by one, and the way from one to the next is not."""

    settings: dict[str, Any] = field(default_factory=dict)  # of torch.compile, as the host keeps them with a compiled MODEL
    blocks: list[Any] = field(default_factory=list)

    @contextlib.contextmanager
    def by_block(self, model: Any) -> Iterator[None]:
        """For one call: where ``model`` (the host's BaseModel) has a compiled network, the network with compiled blocks."""
        whole = model.diffusion_model
        network = getattr(whole, "_orig_mod", None)  # torch's name for what a compiled module compiles
        if network is None or _adapter(network) is None:
            yield
            return
        plain = list(network.blocks)
        self.blocks = self.blocks or [torch.compile(block, **self._for_blocks()) for block in plain]
        model.diffusion_model = network
        _put(network.blocks, self.blocks)
        try:
            with _graphs_for(len(plain)):
                yield
        finally:
            _put(network.blocks, plain)
            model.diffusion_model = whole

    def _for_blocks(self) -> dict[str, Any]:
        """Of the settings those that hold for a block too. Every guard is asked: what tells one block from another, as its
        patches do, may not be compiled in. No CUDA graphs: each block's would write over what the one before has left."""
        options = {key: value for key, value in (self.settings.get("options") or {}).items() if key not in NOT_FOR_BLOCKS}
        backend, mode = (self.settings.get(name) for name in ("backend", "mode"))
        changed = {
            "options": options or None,
            "backend": "inductor" if backend == "cudagraphs" else backend,
            "mode": WITHOUT_CUDA_GRAPHS.get(mode, mode),
        }
        return {name: value for name, value in (self.settings | changed).items() if value is not None}


def _graphs_for(blocks: int) -> contextlib.AbstractContextManager[None]:
    """Torch stops compiling after 8 versions of the same code; blocks that differ (a LoRA that is applied as they run) need
    one each."""
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before torch 2.6
    return config.patch({name: getattr(config, name) + blocks})


def _put(blocks: torch.nn.ModuleList, others: Sequence[Any]) -> None:
    """In place: the list itself stays what it is."""
    for i, block in enumerate(others):
        blocks[i] = block


@dataclass
class CachedRun:
    """State of one run of a cached model; dies with it."""

    settings: TeaCache
    counter: StepCounter
    host_callback: Callable[..., Any] | None
    plan: Plan | None = None
    residuals: Residuals = field(default_factory=Residuals)
    _compiled: CompiledBlocks = field(default_factory=CompiledBlocks)
    _step: int = -2  # of the last call
    _reuse: bool = False  # the plan's word for the present call
    _call: dict[Hashable, int] = field(default_factory=dict)  # how often a cond came within the present call
    _recalled: set[int] = field(default_factory=set)  # steps of which a call was reused
    _computed: set[int] = field(default_factory=set)  # planned to be reused, but a call had nothing to reuse
    _failed: str = ""  # why a call could not be cached

    def __post_init__(self) -> None:
        self.residuals.on_cpu = self.settings.residual_on_cpu

    @property
    def reused(self) -> set[int]:
        """The steps (0-based) that ran no transformer block."""
        return self._recalled - self._computed

    def options_for(self, options: dict[str, Any]) -> dict[str, Any]:
        """A clone of the guider's options with this run's wrappers."""
        options = comfy.model_patcher.create_model_options_clone(options)
        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict, options, is_model_options=True)
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self.apply_model, options, is_model_options=True)
        add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, self.forward, options, is_model_options=True)
        options["transformer_options"][KEY] = self
        self._compiled = CompiledBlocks(options.get(TORCH_COMPILE_KWARGS, {}))
        return options

    def callback(self, step: int, *args: Any, **kwargs: Any) -> Any:
        """The sampler's step callback."""
        self.counter.on_callback(step)
        return self.host_callback(step, *args, **kwargs) if self.host_callback else None

    def predict(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """PREDICT_NOISE wrapper: which step this call belongs to, and whether it is reused."""
        call = PREDICT_NOISE.bind(executor.class_obj, *args, **kwargs).arguments
        if self.plan is None:
            self._learn_schedule(call.get("model_options", {}))
        # Where every step is one call, the callbacks count the steps: no wait for the device to read the noise level.
        self.counter.on_call(float(call["timestep"][0]) if self.counter.needs_sigma else None)
        step = self.counter.step
        if self.plan is None:
            self.plan = make_plan(executor.class_obj.inner_model, self.settings, self.counter.sigmas, step, call["x"])
        if step != self._step:
            # A residual is one of the step before; another model may have run in between.
            if step != self._step + 1 or not self.plan.reuses(step):
                self.residuals.clear()
            self._step = step
        self._reuse = self.plan.reuses(step)
        self._call.clear()
        return executor(*args, **kwargs)

    def apply_model(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """APPLY_MODEL wrapper, inside the host's own for torch.compile: what that has put in the network's place."""
        reuses = self.plan is not None and any(self.plan.reuse)
        with self._compiled.by_block(executor.class_obj) if reuses else contextlib.nullcontext():
            return executor(*args, **kwargs)

    def forward(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """DIFFUSION_MODEL wrapper: one forward of the network, for one or more conds at once."""
        if self.plan is None or not (self._reuse or self.plan.reuses(self._step + 1)):
            return executor(*args, **kwargs)
        call = inspect.signature(executor.original).bind(*args, **kwargs)
        options = call.arguments.get("transformer_options") or {}
        if not self._cacheable(call.arguments, options):
            return executor(*args, **kwargs)
        keys = self._keys(options)
        residual = self.residuals.recall(keys, call.arguments["x"].shape[0]) if self._reuse else None
        (self._computed if residual is None else self._recalled).add(self._step)
        model = executor.class_obj
        with _adapter(model).in_place(model, call.arguments, residual, partial(self.residuals.keep, keys)):
            return executor(*call.args, **call.kwargs)

    def close(self) -> None:
        """Free the residuals and say what was saved."""
        self.residuals.clear()
        self._compiled.blocks.clear()
        self.host_callback = None
        if self.plan and self._failed:
            self.plan.note = f"{self.plan.note} TeaCache: {self._failed}; such calls were computed.".lstrip()
        if self.plan and self.plan.table:  # else its note was logged when the plan was made
            logging.info("SRDiffusion: %s", describe(self.plan, self.reused))

    def _learn_schedule(self, model_options: dict[str, Any]) -> None:
        """The noise levels as this model is called with them: those of the run, unless it has a latent space of its own."""
        levels = model_options.get("transformer_options", {}).get("sample_sigmas")
        if levels is not None and len(levels) == len(self.counter.sigmas):
            self.counter.sigmas = [*(float(s) for s in levels[:-1]), self.counter.sigmas[-1]]

    def _cacheable(self, call: dict[str, Any], options: dict[str, Any]) -> bool:
        if call["timestep"].ndim > 1 and call["timestep"].shape[-1] > 1:
            self._failed = "every frame has a timestep of its own"
        elif options.get("patches", {}).get("double_block"):
            self._failed = "another node works between the transformer blocks"
        elif not options.get("uuids"):
            self._failed = "the host does not say which prompt a call is for"
        else:
            return True
        return False

    def _keys(self, options: dict[str, Any]) -> list[Hashable]:
        """One key a cond: the host's uuid, the context window, and how often that came in this step already (guidance
        that skips layers asks again for the same prompt)."""
        window = getattr(options.get("context_window"), "index_list", None)
        keys: list[Hashable] = []
        for uuid in options["uuids"]:
            cond = (uuid, None if window is None else tuple(window))
            self._call[cond] = self._call.get(cond, 0) + 1
            keys.append((*cond, self._call[cond]))
        return keys


def make_plan(inner_model: Any, settings: TeaCache, sigmas: Sequence[float], first: int, x: torch.Tensor) -> Plan:
    """The skip plan for steps ``first`` (0-based) ... last of a run over ``sigmas``; ``x`` [B, C, T, H, W] its latent."""
    plan = Plan(settings.threshold, settings.form, first_step=first)
    model, levels = inner_model.diffusion_model, list(sigmas[:-1])
    adapter = _adapter(model)
    if adapter is None:
        return _without(plan, f"TeaCache does not know {type(model).__name__}; it ran without.")
    if any(b > a for a, b in zip(sigmas, sigmas[1:])):
        return _without(plan, "TeaCache needs a schedule whose noise level never rises; it ran without.")
    table, note = adapter.table(model, x)
    plan.form = settings.form if table.e0 else "e"
    timesteps = inner_model.model_sampling.timestep(torch.tensor(levels, device=x.device)).float()
    d = distances(adapter.modulation(model, timesteps, plan.form).cpu())
    if not all(map(math.isfinite, d)):
        return _without(plan, "TeaCache: the time embedding has values that are not finite; nothing is reused.")
    coefficients = table.coefficients(plan.form)
    plan.growth = [0.0, *growth(d, coefficients)]
    if len(levels) - first < MIN_STEPS:
        return _without(plan, f"TeaCache: a stage of {len(levels) - first} steps is too short to reuse any.")
    computed_first = max(RET_STEPS - first, 1) if plan.form == "e0" else 1
    plan.reuse = skip_plan(d[first:], coefficients, settings.threshold, computed_first)
    plan.table, plan.note = table.name, note
    return plan


def _without(plan: Plan, note: str) -> Plan:
    """The plan that reuses nothing, and why."""
    logging.warning("SRDiffusion: %s", note)
    plan.note = note
    return plan


# --- the models ---------------------------------------------------------------------------------------------------------

Keep = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class Adapter:
    """How one family is cached. Its forward is: embed, blocks one after the other, head."""

    table: Callable[[Any, torch.Tensor], tuple[Table, str]]  # (model, x) -> coefficients and what to say of them
    modulation: Callable[[Any, torch.Tensor, str], torch.Tensor]  # (model, timesteps [n], form) -> [n, ...] float32
    # (model, the forward's arguments, residual or None to compute, what takes the new residual): for one forward
    in_place: Callable[[Any, dict[str, Any], torch.Tensor | None, Keep], contextlib.AbstractContextManager[None]]


def _adapter(model: Any) -> Any:
    """The adapter of a network, None for one that is not known here."""
    return ADAPTERS.get(type(model).__name__)


def _float32(layers: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """x [n, ...] float32 through the layers, in float32: half precision rounds by as much as two neighbouring steps differ.

    The host's layers cast their weights (with LoRA, from any storage) to the input's type by this method; those that
    multiply in fp8 (weight_dtype fp8_e4m3fn_fast) would cast the input instead, and get the plain layers' one.
    """
    for layer in layers:
        if isinstance(layer, comfy.ops.fp8_ops.Linear):
            x = comfy.ops.manual_cast.Linear.forward_comfy_cast_weights(layer, x)
        else:
            x = getattr(layer, "forward_comfy_cast_weights", layer)(x)
    return x


def _wan_table(model: Any, x: torch.Tensor) -> tuple[Table, str]:
    return wan_table(model.dim, model.in_dim > model.out_dim, x.shape[-1] * x.shape[-2])


@torch.no_grad()
def wan_modulation(model: Any, timesteps: torch.Tensor, form: str) -> torch.Tensor:
    """A Wan's time embedding (form e) or its projection (e0) for timesteps [n] -> [n, dim] or [n, 6 dim]."""
    x = comfy.ldm.wan.model.sinusoidal_embedding_1d(model.freq_dim, timesteps.flatten()).float()
    return _float32([*model.time_embedding, *(model.time_projection if form == "e0" else ())], x)


@contextlib.contextmanager
def _in_wan(model: Any, call: dict[str, Any], residual: torch.Tensor | None, keep: Keep) -> Iterator[None]:
    """By block replacements in the options of this one call."""
    options, blocks = call["transformer_options"], len(model.blocks)
    replaced = options.get("patches_replace", {})
    others = replaced.get("dit", {})
    replacements = _computing(blocks, others, keep) if residual is None else _reusing(blocks, residual)
    call["transformer_options"] = {**options, "patches_replace": {**replaced, "dit": {**others, **replacements}}}
    yield


Replacements = dict[tuple[str, int], Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]]


def _reusing(blocks: int, residual: torch.Tensor) -> Replacements:
    """No block runs; the last one's place adds the residual."""

    def skip(args: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
        return {"img": args["img"]}

    def add(args: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
        return {"img": args["img"] + residual.to(args["img"])}

    return {("double_block", i): skip if i < blocks - 1 else add for i in range(blocks)}


def _computing(blocks: int, others: dict[tuple[str, int], Any], keep: Keep) -> Replacements:
    """All blocks run, through the replacements that ``others`` have put there; what they add up to is kept."""
    before: list[torch.Tensor] = []

    def run(i: int, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        if i == 0:
            before.append(args["img"].clone())
        other = others.get(("double_block", i))
        out = other(args, extra) if other else extra["original_block"](args)
        if i == blocks - 1:
            keep(out["img"] - before.pop())
        return out

    return {("double_block", i): partial(run, i) for i in {0, blocks - 1}}


def _cogvideox_table(model: Any, _: torch.Tensor) -> tuple[Table, str]:
    return cogvideox_table(model.dim, model.patch_size_t or 1)


@torch.no_grad()
def cogvideox_modulation(model: Any, timesteps: torch.Tensor, _: str) -> torch.Tensor:
    """A CogVideoX's time embedding for timesteps [n] -> [n, time embedding's width]; it has one form."""
    import comfy.ldm.cogvideo.model  # not in hosts before 0.24.0

    x = comfy.ldm.cogvideo.model.get_timestep_embedding(
        timesteps, model.time_proj_dim, model.time_proj_flip, model.time_proj_shift
    )
    layers = [model.time_embedding_linear_1, model.time_embedding_act, model.time_embedding_linear_2]
    return _float32(layers, x.float())


@contextlib.contextmanager
def _in_cogvideox(model: Any, _: dict[str, Any], residual: torch.Tensor | None, keep: Keep) -> Iterator[None]:
    """This network asks no option before its blocks: for this one call something else stands in front of the list."""
    blocks = model.blocks

    def run(
        hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is not None:
            return hidden_states + residual.to(hidden_states), encoder_hidden_states
        before = hidden_states.clone()
        for block in blocks:
            hidden_states, encoder_hidden_states = block(
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs
            )
        keep(hidden_states - before)
        return hidden_states, encoder_hidden_states

    model.__dict__["blocks"] = [run]  # in front of the module of that name, which stays where it is
    try:
        yield
    finally:
        del model.__dict__["blocks"]


WAN = Adapter(_wan_table, wan_modulation, _in_wan)
# Others of the family (VACE, S2V, HuMo, Animate, SCAIL ...) work between their blocks or after them.
ADAPTERS = {
    "WanModel": WAN,
    "CameraWanModel": WAN,
    "CogVideoXTransformer3DModel": Adapter(_cogvideox_table, cogvideox_modulation, _in_cogvideox),
}


def describe(plan: Plan, reused: set[int]) -> str:
    """One line for the log."""
    line = (
        f"TeaCache reused {len(reused)} of {len(plan.reuse)} steps (threshold {plan.threshold:g}, coefficients of "
        f"{plan.table}, form {plan.form})."
    )
    return f"{line} {plan.note}".rstrip()

