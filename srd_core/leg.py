"""What a stage's network is told of the schedule: the levels of its leg, as in a sampler that runs it alone.

Step caches of other packs (MagCache) begin anew when the first level of ``sample_sigmas`` comes. What the host itself
reads there (context windows, keyframes of hooks) counts the steps of the whole run, so only the network's own calls are
told.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP

from .calls import APPLY_MODEL, KEY

FUNCTION = "model_function_wrapper"  # model option: one function around the network
TOLD = "sample_sigmas"  # transformer option: the levels


class LegsLevels:
    """The last ``count`` levels of the run are those of the present leg; 0: all of them."""

    def __init__(self) -> None:
        self.count = 0

    def tell(self, options: dict[str, Any]) -> None:
        """Put this into the options of a stage, around what stands at its network."""
        wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
        wrappers[WrappersMP.APPLY_MODEL] = {KEY: [self._apply_model], **wrappers.get(WrappersMP.APPLY_MODEL, {})}
        if FUNCTION in options:
            options[FUNCTION] = partial(self._call, options[FUNCTION])

    def _apply_model(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        call = APPLY_MODEL.bind(executor.class_obj, *args, **kwargs)
        call.arguments["transformer_options"] = self._own(call.arguments.get("transformer_options", {}))
        return executor(*call.args[1:], **call.kwargs)

    def _call(self, function: Callable[..., Any], apply_model: Any, args: dict[str, Any]) -> Any:
        conds = args["c"]
        own = {**conds, "transformer_options": self._own(conds.get("transformer_options", {}))}
        return function(apply_model, {**args, "c": own})

    def _own(self, told: dict[str, Any]) -> dict[str, Any]:
        if not self.count or TOLD not in told:
            return told
        return {**told, TOLD: told[TOLD][-self.count :]}
