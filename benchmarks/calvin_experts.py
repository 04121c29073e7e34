"""What CALVIN's scripted expert can do: `python -m benchmarks.calvin_experts [--seeds N] [--chains N]`.

Every single task from `seeds` starts of scene D, and the first `chains` of the benchmark's 1000, by its protocol: 360
steps for a task, and the first failure ends the chain. A task that the expert does not know counts as a failure;
the chains that consist of known tasks alone are listed once more by themselves. Nothing is drawn.
"""

import argparse
import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import hardware, table, write_results, write_section
from envs.calvin.chains import LENGTH, OFFICIAL, official_chain
from envs.calvin.states import single_tasks
from envs.child import interpreter
from envs.experts.calvin import PLANS
from envs.types import EnvConfig
from rl.chains import chain_tables
from rl.stats import wilson
from rl.types import EpisodeRecord

CONFIG = EnvConfig(sim={"_target_": "envs.calvin.env.Calvin"})
SINGLE = [task for task in PLANS if task in single_tasks()]
CODE = """
import json, sys
from envs.calvin.env import CHAIN, Calvin
from envs.experts import make_expert
from envs.types import EnvError
def play(env, task, seed):
    expert, obs, steps, solved = make_expert(env.spec.env_id, task), env.reset(task, seed), 0, 0.0
    expert.reset(obs)
    while True:
        try:
            action = expert.act(obs)
        except EnvError:  # a task that it does not know
            return round(solved), steps
        step = env.step(action, render=False)
        obs, steps, solved = step.obs, steps + 1, solved + step.reward
        if step.terminated or step.truncated:
            return round(solved), steps
seeds, first, last, *tasks = json.loads(sys.argv[1])
if tasks:
    env = Calvin(cameras={})
    for task in tasks:
        print(json.dumps([task, [play(env, task, seed) for seed in range(seeds)]]), flush=True)
if last > first:
    env = Calvin(cameras={}, protocol="chains")
    print(json.dumps([CHAIN, [play(env, CHAIN, seed) for seed in range(first, last)]]), flush=True)
"""
Played = dict[str, list[list[int]]]  # task or "chain" -> (tasks solved, steps) of each seed


def measure(seeds: int, chains: int, tasks: Sequence[str] = SINGLE) -> Played:
    """Let the expert play in the simulator's interpreter. Raises RuntimeError with its last words if it cannot."""
    command = [interpreter(CONFIG), "-c", CODE, json.dumps([seeds, 0, chains, *tasks])]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"CALVIN did not run: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def task_rows(played: Mapping[str, list[list[int]]]) -> list[list[str]]:
    """Task, successes, their interval, and the median steps of the successes."""
    rows = []
    for task, episodes in played.items():
        steps = [n for solved, n in episodes if solved]
        low, high = wilson(len(steps), len(episodes))
        median = f"{statistics.median(steps):g}" if steps else ""
        rows.append([task, f"{len(steps)} of {len(episodes)}", f"[{100 * low:.0f}, {100 * high:.0f}] %", median])
    return rows


def chain_rows(solved: Sequence[int]) -> tuple[list[list[str]], dict[str, Any]]:
    """At least k tasks in a row and the average, of all chains and of those of known tasks; and the tables of all."""
    records = [
        EpisodeRecord(env="calvin/D_chains", task="chain", seed=i, success=n == LENGTH, length=0, reward=float(n))
        for i, n in enumerate(solved)
    ]
    known = [r for r in records if set(official_chain(r.seed)[1]) <= set(PLANS)]
    rows, tables = [], {}
    for name, some in (("all", records), ("of known tasks", known)):
        if not some:
            continue
        found = tables[name] = chain_tables(some)
        parts = [f"{100 * found['in_a_row'][str(k)]['success']:.1f} %" for k in range(1, LENGTH + 1)]
        average = found["average_length"]
        rows.append(
            [name, str(len(some)), *parts, f"{average['value']:.2f} [{average['low']:.2f}, {average['high']:.2f}]"]
        )
    return rows, tables


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="of each task; 0 leaves the single tasks out")
    parser.add_argument("--chains", type=int, default=OFFICIAL)
    args = parser.parse_args()
    played = measure(args.seeds, args.chains, SINGLE if args.seeds else ())
    chains = [solved for solved, _ in played.pop("chain", [])]
    parts = []
    if played:
        parts.append(table(["task", "solved", "95 %", "median steps"], task_rows(played)))
    if chains:
        rows, tables = chain_rows(chains)
        counts = [f"at least {k}" for k in range(1, LENGTH + 1)]
        parts.append(table(["chains", "number", *counts, "average length"], rows))
        write_results({"calvin_experts/chains": {k: t["average_length"] | {"chains": t["in_a_row"]["1"]["trials"]}
                                                 for k, t in tables.items()}})  # fmt: skip
    print(*parts, sep="\n\n")
    command = f"Command: `python -m benchmarks.calvin_experts --seeds {args.seeds} --chains {args.chains}`."
    text = "\n\n".join(["## CALVIN's expert", hardware(), *parts, command])
    write_section("calvin_experts", text)


if __name__ == "__main__":
    main()
