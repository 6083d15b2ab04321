"""Two hundred runs of mixed settings and faults in one real server: what a server that is never restarted goes through."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hosting import host_module
from serving import census, common, cooperating, digest, digest_of, plain, serving, sketch_saved, wan_files

pytestmark = pytest.mark.long

RUNS, PLAIN_EVERY, WARM = 200, 20, 20
SAMPLERS = ("euler", "uni_pc", "dpmpp_2m", "res_multistep", "heun", "euler_ancestral", "euler_cfg_pp", "dpmpp_sde")
FLAT = 0.02  # of the memory after the first WARM runs
# What happens to a run, with how often.
FATES = {
    "done": 10,
    "call": 4,
    "load": 2,
    "clean-up": 1,
    "interrupt": 3,
    "out of memory": 1,
    "vae": 1,
    "broken file": 1,
    "sketch": 1,
}


def mixed(run: int, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """(what is to happen, graph) of a run."""
    (fate,) = rng.choices(list(FATES), FATES.values())
    steps = rng.randrange(3, 9)
    how: dict[str, Any] = {
        "node": rng.choice(["SRSampler", "SRModel"]),
        "stage": rng.choice(["sketch", "render"]),
        "frames": rng.choice([1, 5, 9]),
        "side": rng.choice([32, 64, 80]),
        "sampling": {"steps": steps, "sampler_name": rng.choice(SAMPLERS), "cfg": rng.choice([1.0, 3.0]), "seed": run},
        "switching": {
            "switch_mode": rng.choice(["adaptive", "step", "sigma"]),
            "switch_step": rng.randrange(steps),
            "teacache": rng.choice([0.0, 0.2]),
            "fade": rng.choice([0.0, 1.1]),
            "sketch_steps": rng.choice(["", "", f"1, {steps - 1}"]),
            "render_steps": rng.choice([0, 0, 2]),
        },
    }
    if fate == "sketch":
        return fate, sketch_saved(run)
    if fate == "broken file":
        return fate, cooperating(run, render_file="broken.safetensors", **how)
    if fate in ("call", "load", "clean-up"):
        how["fault"] = {"place": fate, "act": "error", "at": 1}
    elif fate in ("interrupt", "out of memory"):
        how["fault"] = {"place": rng.choice(["load", "call"]), "act": fate, "at": 1}
    graph = cooperating(run, **how)
    if fate == "vae":
        graph["vae"] = {"class_type": "SRTestFaultyVAE", "inputs": {"latent": ["sampler", 0], "act": "error"}}
        graph["sink"] = {"class_type": "SRTestSink", "inputs": {"image": ["vae", 0]}}
    return fate, graph


@pytest.mark.one_host
@pytest.mark.timeout(1500)
def test_a_server_survives_two_hundred_mixed_runs_with_flat_memory_and_the_same_pixels(tmp_path: Path) -> None:
    rng, fates, memory, digests = random.Random(0), Counter(), [], []
    with serving(tmp_path / "base", wan_files(tmp_path / "files"), "--cache-classic") as server:
        for run in range(RUNS):
            if run % PLAIN_EVERY == 0:
                digests.append(digest_of(server.run(plain(run), timeout=120)))
                fates["plain"] += 1
            else:
                fate, graph = mixed(run, rng)
                try:
                    server.run(graph, timeout=120)
                    fates["sketch" if fate == "sketch" else "done"] += 1
                except host_module.HostError as error:
                    assert fate != "done", f"run {run}: {error}"
                    fates[fate] += 1
            memory.append(census(server)["memory"])
        assert census(server)["models"] >= 2, "the census sees what is alive"
        server.post("/free", {"unload_models": True, "free_memory": True})
        for run in range(2):  # what the host keeps of the last run goes with the next ones, which load nothing
            server.run({k: v for k, v in common().items() if k == "empty"} | digest("empty", run), timeout=60)
        left = census(server)
    early, late = (statistics.median(part) for part in (memory[WARM : WARM + 20], memory[-20:]))
    print(
        f"\n{dict(fates)}; memory {early / 1e6:.1f} -> {late / 1e6:.1f} MB, {max(memory) / 1e6:.1f} at most; left: {left}"
    )
    assert len(set(digests)) == 1
    assert late <= early * (1 + FLAT)
    assert (left["models"], left["patchers"], left["runs"]) == (0, 0, 0)
    assert min(fates[fate] for fate in FATES) > 0, "a fate that was never met proves nothing"
