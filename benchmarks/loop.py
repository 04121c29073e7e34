"""How busy a whole run keeps its simulators: `python -m benchmarks.loop [--seconds S] [--no-write]`.

The simulators are toys whose step sleeps, as if their physics ran on cores of their own; policy and learner have this
machine. So a ratio of 1 means that no simulator ever waited, whatever this machine's size. Per cell of

    time of a step (0.5, 5, 50 ms)  x  simulators per worker (2, 8)  x  chunk (1, 8)

    raw      as many processes as simulators, each stepping its own; nothing else
    lag 0    one Ray worker collects, then the learner learns, in turn
    lag 1    the worker collects with the last weights while the learner learns

Blocks of the three alternate and each ratio is the median over the rounds. `slowest` says what most of the time of
`lag 1` went to: the goal holds where that is the simulators.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.rollout import POLICY, Raw
from benchmarks.tables import hardware, table, write_results, write_section
from benchmarks.whole_run import WholeRun
from envs.build import build
from envs.toy import Toy
from envs.types import EnvConfig
from pretrained.checkpoint import save

TOY: dict[str, Any] = {"name": "reach", "max_steps": 10**6, "hold": 10**6, "cameras": {"top": [64, 64]}}
CELLS = [(ms, rows, chunk) for ms in (0.5, 5.0, 50.0) for rows in (2, 8) for chunk in (1, 8)]
SEGMENT_S = 2.0  # simulated seconds of a segment, as far as MOST_DECISIONS allow
FEWEST_DECISIONS, MOST_DECISIONS = 8, 32
ALGO = {"lr": {"": 1e-5}, "links": "sum", "reduction": "sum", "clip": 0.2, "epochs": 2, "minibatches": 4}
GOAL = 0.85


def measure(ms: float, rows: int, chunk: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """One cell, for about `seconds`."""
    sim = {**TOY, "wait_ms": ms}
    env = EnvConfig(sim={"_target_": "envs.toy.Toy", **sim})
    decisions = min(MOST_DECISIONS, max(FEWEST_DECISIONS, round(SEGMENT_S / (chunk * ms / 1e3))))
    parts: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        node = {**POLICY, "horizon": chunk}
        spec = Toy(**sim).spec
        path = Path(folder) / "policy"
        save(path, build(node, env=spec), node=node, env=spec)
        try:
            parts.append(Raw(env, rows, chunk))
            parts += [WholeRun(path, env, ALGO, rows=rows, decisions=decisions, max_lag=lag) for lag in (0, 1)]
            rounds = _rounds(parts[0], parts[1], parts[2], seconds)
        finally:
            for part in parts:
                part.stop()
    middle = {k: statistics.median(r[k] for r in rounds) for k in ("raw", "lag 0", "lag 1")}
    ratio = {k: statistics.median(r[k] / r["raw"] for r in rounds) for k in ("lag 0", "lag 1")}
    slowest = statistics.mode(parts[2].slowest)
    say(f"{ms:g} ms, {rows} rows, chunk {chunk}: {ratio}, slowest: {slowest}")
    return {"middle": middle, "ratio": ratio, "rounds": len(rounds), "slowest": slowest, "decisions": decisions}


def _rounds(raw: Raw, one: WholeRun, two: WholeRun, seconds: float) -> list[dict[str, float]]:
    _, block = one.block(0.0)
    block = max(block, seconds / 8)
    rounds: list[dict[str, float]] = []
    ends = time.perf_counter() + seconds
    while len(rounds) < 2 or time.perf_counter() + 3 * block < ends:
        rounds.append({"raw": raw.block(block), "lag 0": one.block(block)[0], "lag 1": two.block(block)[0]})
    return rounds


def name_of(cell: tuple[float, int, int]) -> str:
    """As in results.json."""
    return f"loop/{cell[0]:g}ms_{cell[1]}rows_chunk{cell[2]}"


def as_results(found: Mapping[tuple[float, int, int], Mapping[str, Any]]) -> dict[str, Any]:
    """name -> ratio with lag 1, goal and raw figures, as kept in results.json."""
    return {
        name_of(cell): {
            "ratio": round(f["ratio"]["lag 1"], 4),
            "goal": GOAL if f["slowest"] == "simulators" else None,
            "steps_per_s": round(f["middle"]["lag 1"], 2),
            "raw_steps_per_s": round(f["middle"]["raw"], 2),
            "lag_0_ratio": round(f["ratio"]["lag 0"], 4),
            "slowest": f["slowest"],
            "rounds": f["rounds"],
        }
        for cell, f in found.items()
    }


def as_table(found: Mapping[tuple[float, int, int], Mapping[str, Any]]) -> str:
    """One row per cell."""
    head = ["step", "rows", "chunk", "decisions", "rounds", "raw steps/s", "lag 0", f"lag 1 ({GOAL})", "slowest"]
    rows = []
    for (ms, n, chunk), f in found.items():
        mark = " *" if f["ratio"]["lag 1"] < GOAL and f["slowest"] == "simulators" else ""
        rows.append([f"{ms:g} ms", str(n), str(chunk), str(f["decisions"]), str(f["rounds"]),
                     f"{f['middle']['raw']:.0f}", f"{f['ratio']['lag 0']:.3f}", f"{f['ratio']['lag 1']:.3f}{mark}",
                     f["slowest"]])  # fmt: skip
    return table(head, rows) + "\n\n`*` below its goal (in brackets) though the simulators are the slowest part."


def main() -> None:
    """Measure, print the table, and write results.json and RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="per cell")
    parser.add_argument("--no-write", action="store_true", help="only print")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {cell: measure(*cell, args.seconds, lambda s: print(s, file=sys.stderr, flush=True)) for cell in CELLS}
    ray.shutdown()
    print(as_table(found))
    if args.no_write:
        return
    write_results(as_results(found))
    text = (
        f"## How busy a run keeps its simulators\n\n{hardware()}; the simulators' steps sleep\n\n{as_table(found)}\n\n"
    )
    text += (
        f"Command: `python -m benchmarks.loop --seconds {args.seconds:g}`. What the columns are, says its docstring."
    )
    write_section("loop", text)


if __name__ == "__main__":
    main()
