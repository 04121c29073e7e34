"""Memory over resets: `python -m benchmarks.resets [NAME ...] [--resets N]`.

One child per simulator, as a rollout worker keeps it, is reset again and again, with the next seed and its tasks in
turn; its resident memory, with that of processes it has started, is told after 200 resets and at the end. Pictures are
small, and the bound at which a rollout worker replaces a child is switched off.
"""

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.tables import HERE, hardware, table, write_results, write_section
from envs.types import EnvConfig
from envs.vector import SimVector

MARKS = (200, 1000, 2000)  # resets
SIMS: dict[str, dict[str, Any]] = {
    "robosuite_lift": {"_target_": "envs.robosuite.Robosuite", "name": "Lift", "core": "fast",
                       "cameras": {"agentview": [32, 32]}},
    "libero_spatial": {"_target_": "envs.libero.Libero", "name": "libero_spatial", "core": "fast",
                       "render_quality": "lite", "cameras": {"agentview": [32, 32]}},
    "calvin": {"_target_": "envs.calvin.env.Calvin", "name": "D", "renderer": "fast",
               "cameras": {"rgb_static": [32, 32], "rgb_gripper": None}},
    "thor_mini": {"_target_": "envs.ai2thor.Ai2thor", "rooms": 1,
                  "cameras": {"raw_navigation_camera": [28, 48], "raw_manipulation_camera": [28, 48]}},
}  # fmt: skip


def measure(name: str, resets: int) -> dict[str, Any]:
    """MiB after some of so many resets. Raises RuntimeError if one fails."""
    config = EnvConfig(SIMS[name], open_deadline_s=3600.0, step_deadline_s=3600.0, memory_mib=10**6)
    vector, began = SimVector([config]), time.monotonic()
    found: dict[str, float] = {}
    try:
        for seed in range(resets):
            vector.send_reset(0, vector.tasks[seed % len(vector.tasks)], seed)
            vector.wait()
            event = vector.take(0)
            if event.kind != "reset":
                raise RuntimeError(f"{name}: reset {seed} failed: {event}")
            if seed + 1 in MARKS or seed + 1 == resets:
                found[str(seed + 1)] = round(vector._rows[0].child.resident_mib, 1)
                print(f"{name}: {found} MiB, {time.monotonic() - began:.0f} s", flush=True)
    finally:
        vector.close()
    first, last = next(iter(found.values())), found[str(resets)]
    return {
        "mib": found,
        "grown": round(last - first, 1),
        "seconds": round(time.monotonic() - began),
        "hardware": hardware(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SIMS)}; all if none is named")
    parser.add_argument("--resets", type=int, default=MARKS[-1], help="another number is only printed")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(SIMS)):
        parser.error(f"unknown simulators {unknown}; expected some of {', '.join(SIMS)}")
    found = {name: measure(name, args.resets) for name in args.names or SIMS}
    if args.resets != MARKS[-1]:
        return
    write_results({f"resets/{name}": r for name, r in found.items()})
    known = json.loads((HERE / "results.json").read_text())
    text = as_table({name: known[f"resets/{name}"] for name in SIMS if f"resets/{name}" in known})
    print(text)
    write_section(
        "resets", f"## Memory over resets\n\n{hardware()}\n\n{text}\n\nCommand: `python -m benchmarks.resets`."
    )


def as_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per simulator."""
    rows = [[name, *(f"{r['mib'][k]:.1f}" for k in map(str, MARKS)), f"{r['grown']:+.1f}"] for name, r in found.items()]
    return table(["simulator", *(f"MiB after {k} resets" for k in MARKS), "grown"], rows)


if __name__ == "__main__":
    main()
