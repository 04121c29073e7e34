"""The full set: `python -m tests.chaos [--scale 0.1] [--seed 0] [--no-write]`; `make chaos` keeps its result."""

import argparse
import contextlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.tables import hardware
from tests.chaos.harness import BUDGET_S, ROOT, Chaos
from tests.chaos.processes import commands, harm
from tests.chaos.scenarios import disks, drivers, fleets, judges, learners, nodes, simulators

TIMES = {
    "simulators 0": 22,
    "simulators 1": 22,
    "simulators 2": 22,
    "simulators 3": 22,
    "drivers": 26,
    "ray": 20,
    "rllib": 14,
    "learners": 10,
    "judges": 8,
    "disks": 6,
    "nodes": 10,
}


def main() -> int:
    """Run every scenario, print what came of it, and say by the status whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(TIMES))
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which a scenario strikes no more")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--raw", type=Path, help="keep every strike in this file, and go on where it ends")
    arguments = parser.parse_args()
    Chaos.limit_s = 60 * arguments.minutes
    seed, began = arguments.seed, time.monotonic()
    earlier = json.loads(arguments.raw.read_text()) if arguments.raw and arguments.raw.exists() else {}
    runs, fleet, before = earlier.get("runs", {}), earlier.get("fleet", []), earlier.get("minutes", 0.0)
    times = {k: max(1, round(v * arguments.scale)) for k, v in TIMES.items()}
    made: dict[str, Callable[[Path], Any]] = {
        **{
            f"simulators {i}": lambda base, i=i: simulators(base, seed + 10 + i, times[f"simulators {i}"])
            for i in range(4)
        },
        "drivers": lambda base: drivers(base, seed + 1, times["drivers"]),
        "ray": lambda base: fleets(base, seed + 2, times["ray"], "ray"),
        "rllib": lambda base: fleets(base, seed + 3, times["rllib"], "rllib"),
        "learners": lambda base: learners(base, seed + 4, times["learners"]),
        "judges": lambda base: judges(base, seed + 7, times["judges"]),
        "disks": lambda base: disks(base, seed + 5, times["disks"]),
        "nodes": lambda base: nodes(base, seed + 6, times["nodes"]),
    }
    for name in [n for n in arguments.only if n not in runs]:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder, nothing_left():
            chaos = made[name](Path(folder))
            if isinstance(chaos, tuple):
                chaos, fleet = chaos
            if chaos is None:
                print(f"{name}: left out, no disk could be mounted", flush=True)
                continue
            runs[name] = finished(chaos)
        line = {k: v for k, v in runs[name].items() if k != "strikes"}
        print(f"{name}: {len(runs[name]['strikes'])} strikes, {line}", flush=True)
        minutes = round(before + (time.monotonic() - began) / 60, 1)
        if arguments.raw:
            arguments.raw.write_text(json.dumps({"runs": runs, "fleet": fleet, "minutes": minutes}))
    minutes = round(before + (time.monotonic() - began) / 60, 1)
    result = summary(runs) | {"fleet": fleet, "seed": seed, "minutes": minutes}
    result["left_out"] = [n for n in TIMES if n not in runs]
    result |= {"hardware": hardware(), "date": time.strftime("%Y-%m-%d")}
    print(json.dumps(result, indent=1))
    if not arguments.no_write:
        (ROOT / "benchmarks" / "chaos.json").write_text(json.dumps(result, indent=1) + "\n")
    well = result["recovered"] == result["strikes"]
    return 0 if well and not any(result[k] for k in ("late", "wrong", "orphans")) else 1


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """A scenario that breaks off would leave a run without an end behind."""
    try:
        yield
    finally:
        for pid in commands(os.getpid()):
            harm(pid, "kill")


def finished(chaos: Chaos) -> dict[str, Any]:
    """What a run adds up to; it is brought to its end unless it was."""
    return chaos.finished or chaos.finish()


def summary(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Per kind of process: strikes, recoveries and their times; and what the audits found."""
    strikes = [s for r in runs.values() for s in r["strikes"]]
    kinds = {}
    for kind in BUDGET_S:
        for how in ("kill", "stop", "full"):
            mine = [s for s in strikes if (s["kind"], s["how"]) == (kind, how)]
            if not mine:
                continue
            took = [s["recovery_s"] for s in mine if s["recovery_s"] is not None]
            kinds[f"{kind} {how}"] = {
                "strikes": len(mine), "recovered": len(took), "by_the_same_command": sum(s["by_command"] for s in mine),
                "budget_s": BUDGET_S[kind], "late": sum(t > BUDGET_S[kind] for t in took),
                "median_s": round(statistics.median(took), 2) if took else None, "max_s": max(took, default=None),
            }  # fmt: skip
    wrong = sorted({w for s in strikes for w in s["wrong"]} | {w for r in runs.values() for w in r["wrong"]})
    sums = {k: sum(r[k] for r in runs.values()) for k in
            ("started", "finished", "failed", "in_flight", "rounds")}  # fmt: skip
    return {
        "strikes": len(strikes),
        "recovered": sum(s["recovery_s"] is not None for s in strikes),
        "late": sum(s["recovery_s"] is not None and s["recovery_s"] > BUDGET_S[s["kind"]] for s in strikes),
        "kinds": kinds,
        "episodes": {k: sums[k] for k in ("started", "finished", "failed", "in_flight")},
        "unaccounted_episodes": sums["started"] - sums["finished"] - sums["failed"] - sums["in_flight"],
        "doubled_episodes": sum("ended" in w for w in wrong),
        "segments_learned_twice": sum("learned" in w for w in wrong),
        "rounds": sums["rounds"],
        "orphans": [o for r in runs.values() for o in r["orphans"]],
        "wrong": wrong,
        "seconds": {k: round(sum(r[k] for r in runs.values()), 1) for k in ("busy_s", "idle_s", "lost_s", "device_s")},
    }


if __name__ == "__main__":
    raise SystemExit(main())
