"""Two hundred runs of mixed settings and faults in one real server that is never restarted."""

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
# What is planted in a run, with how often; and what the server says of it, if it is not the test's own error.
FATES = {"done": 10, "call": 4, "load": 2, "clean-up": 1, "interrupt": 3, "out of memory": 1, "vae": 1}
FATES |= {"broken file": 1, "sketch": 1}
SAYS = {"interrupt": "The run was interrupted", "broken file": "broken.safetensors"}


def mixed(run: int, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """(what is to happen, graph) of a run."""
    (fate,) = rng.choices(list(FATES), list(FATES.values()))
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


def outcome(server: Any, fate: str, graph: dict[str, Any], faults: int) -> tuple[str, dict[str, Any]]:
    """Run it after so many faults: "done" or the planted fate, which it must be and say so; and the census after it."""
    try:
        server.run(graph, timeout=120)
    except host_module.HostError as error:
        found = census(server)
        assert SAYS.get(fate, "test: ") in str(error) and found["faults"] - faults == (fate != "broken file")
        return fate, found
    found = census(server)
    struck = found["faults"] - faults
    assert fate not in ("broken file", "vae") and (fate == "out of memory" or not struck), f"{fate} came to nothing"
    return fate if struck or fate == "sketch" else "done", found  # after lack of memory the step is tried once more


@pytest.mark.one_host
@pytest.mark.timeout(1500)
def test_a_server_survives_200_mixed_runs_with_flat_memory_and_the_same_pixels(tmp_path: Path) -> None:
    rng, fates, memory, digests = random.Random(0), Counter[str](), [], []
    with serving(tmp_path / "base", wan_files(tmp_path / "files"), "--cache-classic") as server:
        found = census(server)
        for run in range(RUNS):
            if run % PLAIN_EVERY == 0:
                digests.append(digest_of(server.run(plain(run), timeout=120)))
                found = census(server)
            else:
                fate, found = outcome(server, *mixed(run, rng), found["faults"])
                fates[fate] += 1
            memory.append(found["memory"])
        assert found["models"] >= 2, "the census sees what is alive"
        server.post("/free", {"unload_models": True, "free_memory": True})
        for run in range(2):  # what the host keeps of the last run goes with the next ones, which load nothing
            server.run({"empty": common()["empty"]} | digest("empty", run), timeout=60)
        left = census(server)
    early, late = (statistics.median(part) for part in (memory[WARM : WARM + 20], memory[-20:]))
    megabytes = [round(value / 1e6, 1) for value in (early, late, max(memory))]
    print(f"\n{dict(fates)}; MB early, late and at most: {megabytes}; left: {left}")
    assert len(set(digests)) == 1
    assert late <= early * (1 + FLAT)
    assert (left["models"], left["patchers"], left["runs"]) == (0, 0, 0)
    assert not FATES.keys() - fates.keys(), "a fate that was never met proves nothing"
