"""What the pack adds to the host's start: seconds to import it and list its nodes, in a process where the host has
imported its own modules. Each measurement is a fresh process. Target: at most 0.1 s.

    python3 bench/import_time.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import common

common.run_in_host()


ONE = """
import sys, time, asyncio, json
sys.argv = sys.argv[:1]
import importlib.util
spec = importlib.util.spec_from_file_location("srd_host", {demo!r} + "/host.py")
host_module = sys.modules["srd_host"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(host_module)
sys.path.insert(0, str(host_module.find_or_make().path))
from comfy.cli_args import args
args.cpu = True
import nodes, server, comfy_api.latest  # what the host's start has imported before its custom nodes
before = set(sys.modules)
begin = time.perf_counter()
spec = importlib.util.spec_from_file_location("pack", {pack!r}, submodule_search_locations=[{root!r}])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
async def schemas():
    for node in await (await pack.comfy_entrypoint()).get_node_list():
        node.GET_SCHEMA()
asyncio.run(schemas())
seconds = time.perf_counter() - begin
foreign = sorted({{m.split(".")[0] for m in set(sys.modules) - before}} - {{"pack"}})
print(json.dumps({{"seconds": seconds, "modules_imported_first_by_the_pack": foreign}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    root = common.REPOSITORY
    program = ONE.format(demo=str(root / "demo"), pack=str(root / "__init__.py"), root=str(root))
    measured = []
    for _ in range(options.rounds):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
    sys.path.insert(0, str(sys.modules["srd_host"].find_or_make().path))
    common.keep(
        "import_time",
        {
            "rounds": options.rounds,
            "seconds": common.spread([m["seconds"] for m in measured]),
            "modules_imported_first_by_the_pack": measured[-1]["modules_imported_first_by_the_pack"],
        },
    )


if __name__ == "__main__":
    main()
