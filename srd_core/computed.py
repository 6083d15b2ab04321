"""Which predictions the stages' networks really made: a cache, this pack's or another's, repeats what it has."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP, add_wrapper_with_key

from .calls import KEY
from .report.data import Step
from .teacache.host import COMPILE_KEY, CachedRun, run_of
from .teacache.plan import Plan
from .teacache.run import KEY as TEACACHE


@dataclass
class Computed:
    """Of one run; stages by their names."""

    _forwards: Counter[str] = field(default_factory=Counter)  # where another pack may answer in the network's place
    _seen: Counter[str] = field(default_factory=Counter)  # of the forwards, at the last callback
    _made: Counter[int] = field(default_factory=Counter)  # forwards in a step (0-based)
    _caches: dict[str, CachedRun] = field(default_factory=dict)  # of the stages that TeaCache works on

    def watch(self, stage: str, options: dict[str, Any]) -> None:
        """Count the forwards of the stage with these options, if something of another pack may answer in its place."""
        if _has_cache(options):
            count = partial(self._count, stage)
            add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, count, options, is_model_options=True)

    def _count(self, stage: str, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        """DIFFUSION_MODEL wrapper, inside all others: this call reached the network."""
        self._forwards[stage] += 1
        return executor(*args, **kwargs)

    def new_plan(self, stage: str, options: dict[str, Any]) -> Plan | None:
        """TeaCache's skip plan, once it is made."""
        cached = run_of(options)
        if cached is None or cached.plan is None or stage in self._caches:
            return None
        self._caches[stage] = cached
        return cached.plan

    def forwards(self, stage: str) -> int:
        """How many were counted."""
        return self._forwards[stage]

    def is_new(self, stage: str, step: int, forwards_before: int) -> bool:
        """Whether the stage's newest prediction, in ``step`` (0-based), is one that the network made."""
        cached, forwards = self._caches.get(stage), self._forwards[stage]
        return (cached is None or step not in cached.reused) and (forwards == 0 or forwards > forwards_before)

    def end_step(self, stage: str, step: int) -> None:
        """The sampler called back in ``step`` (0-based); it may do so more than once."""
        self._made[step] += self._forwards[stage] - self._seen[stage]
        self._seen[stage] = self._forwards[stage]

    def is_reused(self, step: Step) -> bool:
        """Whether a cache answered in it: TeaCache ran no block, or another one did not call the network."""
        cached, index = self._caches.get(step.stage), step.step - 1
        repeated = self._forwards[step.stage] > 0 and self._made.get(index) == 0
        return repeated or (cached is not None and index in cached.reused)

    def notes(self) -> list[str]:
        """What TeaCache has to say."""
        return [cached.plan.note for cached in self._caches.values() if cached.plan and cached.plan.note]

    def forget(self) -> None:
        """The run is over."""
        self._caches.clear()


def _has_cache(options: dict[str, Any]) -> bool:
    """Whether something of another pack stands between the sampler and the network that may answer in its place."""
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    kinds = (WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
    known = (KEY, TEACACHE, COMPILE_KEY)
    return "model_function_wrapper" in options or any(
        key not in known and found for kind in kinds for key, found in wrappers.get(kind, {}).items()
    )
