"""All ratios of this machine: `make bench`, or `python -m benchmarks [NAME ...] [--quick] [--only-table]`.

Runs the programs one after another, each with its own defaults (over an hour in all) or, with --quick, with fewer
rounds (half an hour). Then prints one table of what this run has measured and one of every other ratio in results.json,
and puts them on top of RESULTS.md; `--only-table` collects alone. A program that fails is named, and the others go on.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.tables import HERE, hardware, table, write_section

PROGRAMS = ("rollout", "loop", "sims", "learner", "vs_rllib", "scaling", "targets", "thor_render")
QUICK = {"rollout": "--policy gaussian --seconds 45", "loop": "--seconds 8", "sims": "--rounds 2 --steps 48",
         "learner": "--seconds 20", "vs_rllib": "--rounds 3", "scaling": "--rounds 3"}  # fmt: skip
NOT_RAW = {"ratio", "goal", "at_most", "rounds", "processes", "unit"}


def run(name: str, options: str = "") -> str:
    """Run one program; what went wrong, or ""."""
    started = time.monotonic()
    print(f"--- {name} {options}", file=sys.stderr)
    command = [sys.executable, "-m", f"benchmarks.{name}", *options.split()]
    status = subprocess.run(command, cwd=HERE.parent).returncode
    print(f"--- {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return f"{name} ended with status {status}" if status else ""


def missed(result: Mapping[str, Any]) -> bool:
    """Whether a result is on the wrong side of its goal."""
    if result.get("goal") is None:
        return False
    return result["ratio"] > result["goal"] if result.get("at_most") else result["ratio"] < result["goal"]


def as_text(results: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """A table of the ratios that are new or other than those `known` before this run, and one of the others."""
    now = {k: v for k, v in results.items() if v != known.get(k)}
    before = {k: v for k, v in results.items() if k not in now}
    earlier = "From earlier runs, whose sections below have their dates; nothing was measured for these rows:"
    parts = [as_table(now)] if now else []
    return "\n\n".join(parts + ([earlier, as_table(before)] if before else []))


def as_table(results: Mapping[str, Any]) -> str:
    """One row per ratio: its goal, and the figures behind it."""
    rows = []
    for name, r in results.items():
        if not isinstance(r, Mapping) or "ratio" not in r:
            continue
        goal = "" if r.get("goal") is None else ("<= " if r.get("at_most") else ">= ") + f"{r['goal']:.2f}"
        mark = " *" if missed(r) else ""
        rows.append([name, f"{r['ratio']:.3g}{mark}", goal, _raw(r)])
    return table(["ratio of", "is", "goal", "raw figures"], rows) + "\n\n`*` beside its goal."


def _raw(result: Mapping[str, Any]) -> str:
    flat: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, Mapping):
            flat |= {f"{k} {key}": v for k, v in value.items()}
        elif key not in NOT_RAW:
            flat[key] = value
    unit = f" {result['unit']}" if "unit" in result else ""
    return ", ".join(f"{k} {v:g}{unit}" for k, v in flat.items() if isinstance(v, int | float))


def main() -> int:
    """Run, print, write; 1 if a program failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROGRAMS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer rounds of each program")
    parser.add_argument("--only-table", action="store_true", help="measure nothing, collect what results.json has")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(PROGRAMS)):
        parser.error(f"unknown programs {unknown}; expected some of {', '.join(PROGRAMS)}")
    names, path = [] if args.only_table else args.names or PROGRAMS, HERE / "results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    wrong = [w for w in (run(name, QUICK.get(name, "") if args.quick else "") for name in names) if w]
    text = as_text(json.loads(path.read_text()) if path.exists() else {}, known)
    print(text)
    note = "".join(f"\n\n{w}: its rows are from an earlier run, if there was one." for w in wrong)
    options = [o for o, given in (("--quick", args.quick), ("--only-table", args.only_table)) if given]
    command = " ".join(["python -m benchmarks", *args.names, *options])
    write_section("all", f"## All ratios\n\n{hardware()}\n\n{text}{note}\n\nCommand: `{command}`.", first=True)
    for w in wrong:
        print(w, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
