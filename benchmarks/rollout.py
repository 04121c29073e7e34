"""How much of the simulators' own speed is left: `python -m benchmarks.rollout [--env NAME] [--policy NAME]`.

    A  raw      P processes, each stepping its own simulator in chunks of 8, picture after the last; nothing else
    B  vector   SimVector with P rows, fed chunks
    C  policy   the same with a policy deciding (rl.collect.Collector): the demo's Gaussian, or a flow of four links
    T  in turn  collection and PPO updates in turn, in one process
    D  loop     a real run with max_lag=1: a Ray worker collects while the learner learns

Blocks of them alternate in one run, each as long as it takes to collect one segment, and the ratios to A are medians
over the rounds: whatever else the machine does meanwhile slows all alike. A and B draw their chunks from those that the
policy of C sent in a first segment: where an arm goes decides what its camera sees, and so what a picture costs. From C
on policy and learner share the processor with the simulators, so these ratios are those of a machine without an
accelerator.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.tables import hardware, table, write_results, write_section
from benchmarks.whole_run import WholeRun
from envs.build import build
from envs.check import sample_action
from envs.child import interpreter
from envs.types import Env, EnvConfig, EnvSpec
from envs.vector import SimVector
from pretrained.checkpoint import save
from rl.collect import Collector
from rl.learner import Learner
from rl.ppo import Ppo

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 8
TOY = {"_target_": "envs.toy.Toy", "name": "reach", "max_steps": 96, "hold": 1000, "cameras": {"top": [64, 64]}}
LIFT = {"_target_": "envs.robosuite.Robosuite", "name": "Lift", "cameras": {"robot0_eye_in_hand": [64, 64]}}
ENVS: dict[str, EnvConfig] = {
    "toy_5ms": EnvConfig(sim={**TOY, "step_ms": 5.0}),
    "toy_20ms": EnvConfig(sim={**TOY, "step_ms": 20.0}),
    "lift_stock": EnvConfig(sim={**LIFT, "core": "stock", "render_quality": "exact"}),
    "lift_fast": EnvConfig(sim={**LIFT, "core": "fast", "render_quality": "fast"}),
}
ENCODER = {"_target_": "pretrained.encoders.PixelEncoder", "width": 128}
POLICY: dict[str, Any] = {
    "_target_": "pretrained.chunk_policy.ChunkPolicy",
    "kernel": {"_target_": "pretrained.chain.FlowNoise", "steps": 4, "min_std": 0.05, "max_std": 0.2, "std": 0.1},
    "horizon": CHUNK,
    "encoder": ENCODER,
    "network": "mlp",
    "width": 256,
}
POLICIES: dict[str, dict[str, Any]] = {
    "gaussian": {  # as configs/run/demo.yaml has it
        **POLICY,
        "kernel": {"_target_": "pretrained.chain.Gaussian", "std": 0.2},
        "encoder": {**ENCODER, "channels": [32, 64, 64], "kernels": [8, 4, 3], "strides": [4, 2, 1], "pool": "flatten"},
    },
    "flow": POLICY,
}
ALGO = {"lr": 1e-5, "links": "sum", "reduction": "sum", "clip": 0.2, "epochs": 4, "minibatches": 4}
GOALS = {"vector": 0.95, "policy": 0.90, "loop": 0.85}


# --- A: in a process of its own ---------------------------------------------------------------------------------------


def serve_raw(config: EnvConfig, index: int, chunk: int, chunks: str) -> None:
    """Read a number of seconds per line, step for that long, answer with steps and seconds; until the input ends."""
    env: Env = build(config.sim)
    rng = np.random.default_rng(index)
    pool = np.load(chunks) if chunks else np.stack([_random(env.spec, rng, chunk) for _ in range(64)])
    seed = index * 1000
    env.reset(env.spec.tasks[0], seed)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        limit, started, steps = float(line), time.perf_counter(), 0
        while (spent := time.perf_counter() - started) < limit:
            for j, action in enumerate(pool[rng.integers(len(pool))]):
                step = env.step(action, render=j == chunk - 1)
                steps += 1
                if step.terminated or step.truncated:
                    if not step.obs.images:
                        env.render()
                    seed += 1
                    env.reset(env.spec.tasks[0], seed)
                    break
        print(json.dumps({"steps": steps, "seconds": spent}), flush=True)
    os._exit(0)  # some GL libraries crash in their own exit handlers


def _random(spec: EnvSpec, rng: np.random.Generator, chunk: int) -> np.ndarray:
    return np.stack([sample_action(spec, rng) for _ in range(chunk)])


class Raw:
    """P processes without any channel to the outside but the two lines of a block; `chunks` is a file [M, H, A] to draw
    from, and random legal ones are drawn without it."""

    def __init__(self, config: EnvConfig, count: int, chunk: int = CHUNK, chunks: str = "") -> None:
        command = [interpreter(config), "-m", "benchmarks.rollout", "--raw", json.dumps(asdict(config))]
        command += ["--chunk", str(chunk), "--chunks", chunks]
        one_thread = {k: "1" for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self.processes = [
            subprocess.Popen(
                [*command, "--index", str(i)],
                cwd=ROOT,
                env={**os.environ, **one_thread},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # as SimVector's children; sessions may be scheduled as groups
            )
            for i in range(count)
        ]
        for process in self.processes:
            self._answer(process)

    def block(self, seconds: float) -> float:
        """Steps per second of all processes together."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        answers = [self._answer(process) for process in self.processes]
        return sum(a["steps"] / a["seconds"] for a in answers)

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.wait()

    def _answer(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):  # simulators print things of their own
                return json.loads(line)
        raise RuntimeError(f"a raw simulator process ended with status {process.wait()}; try `launch.py doctor`")


# --- B, C, T ----------------------------------------------------------------------------------------------------------


class Vector:
    """Chunks of a pool [M, H, A] through SimVector; every row is asked again as soon as it has answered."""

    def __init__(self, vector: SimVector, pool: np.ndarray) -> None:
        self.vector, self.pool, self.rng, self.seed = vector, pool, np.random.default_rng(0), 0
        for i in range(vector.num_envs):
            self._reset(i)
        waiting = set(range(vector.num_envs))
        while waiting:
            for i in vector.wait():
                vector.take(i)
                waiting.discard(i)

    def block(self, seconds: float) -> float:
        """Steps per second of all rows together, each over its own time, as in `Raw`."""
        started = time.perf_counter()
        steps, resetting, busy, rate = [0] * self.vector.num_envs, set[int](), set(range(self.vector.num_envs)), 0.0
        for i in busy:
            self.vector.send_step(i, self._chunk())
        while busy:
            for i in self.vector.wait():
                arrival = self.vector.take(i)
                if arrival.kind == "failed":
                    raise RuntimeError(f"a simulator failed during the measurement: {arrival.failure}")
                resetting.discard(i)
                steps[i] += arrival.executed
                if arrival.terminated or arrival.truncated:
                    self._reset(i)
                    resetting.add(i)
                elif (spent := time.perf_counter() - started) >= seconds:
                    rate += steps[i] / spent
                    busy.discard(i)
                else:
                    self.vector.send_step(i, self._chunk())
        return rate

    def _reset(self, i: int) -> None:
        self.seed += 1
        self.vector.send_reset(i, self.vector.tasks[0], self.seed)

    def _chunk(self) -> np.ndarray:
        return self.pool[self.rng.integers(len(self.pool))]


class InTurn:
    """Collection, with or without an update after it."""

    def __init__(self, vector: SimVector, node: dict[str, Any], decisions: int) -> None:
        policy = build(node, env=vector.env_spec)
        terms = {"sparse": {"weight": 1.0, "term": build({"_target_": "rl.rewards.sparse.Sparse"})}}
        cores = len(os.sched_getaffinity(0))  # the simulators rest while it learns
        self.learner = Learner(policy, Ppo(**ALGO), terms, threads=cores)
        self.collector = Collector(vector, policy, decisions=decisions, gamma=self.learner.algo.gamma)

    def collect(self, *, learn: bool) -> tuple[float, float]:
        """(steps per second, seconds) of one segment and, if asked for, the update that uses it."""
        started = time.perf_counter()
        segment = self.collector.collect(self.learner.iteration)
        if learn:
            self.learner.update(segment)
        spent = time.perf_counter() - started
        return float(segment.duration.sum()) / spent, spent

    def chunks(self) -> np.ndarray:
        """All chunks [M, H, A] that the policy sends while one segment is collected."""
        sent: list[np.ndarray] = []
        vector = self.collector.vector
        send = vector.send_step

        def noting(i: int, chunk: np.ndarray, *args: Any, **kwargs: Any) -> None:
            sent.append(np.array(chunk))
            send(i, chunk, *args, **kwargs)

        vector.send_step = noting
        self.collect(learn=False)
        vector.send_step = send
        return np.stack(sent)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    name: str, policy: str, seconds: float, count: int, decisions: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Rounds of all five for about `seconds`; medians of the ratios and of the raw figures."""
    config, node = ENVS[name], POLICIES[policy]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        vectors = [SimVector([config] * count, max_chunk=CHUNK) for _ in range(2)]
        for v in vectors:
            stack.callback(v.close)
        turns = InTurn(vectors[1], node, decisions)
        pool = turns.chunks()
        np.save(folder / "chunks.npy", pool)
        raw, vector = Raw(config, count, chunks=str(folder / "chunks.npy")), Vector(vectors[0], pool)
        stack.callback(raw.stop)
        path, spec = folder / "policy", vectors[0].env_spec
        save(path, build(node, env=spec), node=node, env=spec)
        whole = WholeRun(path, config, ALGO, rows=count, decisions=decisions, max_lag=1)
        stack.callback(whole.stop)
        turns.collect(learn=True)  # warm-up
        _, block = turns.collect(learn=False)  # the length of a block
        vector.block(block / 4)
        raw.block(block / 4)
        rounds: list[dict[str, float]] = []
        ends = time.perf_counter() + seconds
        while len(rounds) < 2 or time.perf_counter() + 6 * block < ends:
            ways: list[tuple[str, Callable[[float], float]]] = [
                ("raw", raw.block),
                ("vector", vector.block),
                ("policy", lambda _: turns.collect(learn=False)[0]),
                ("in turn", lambda _: turns.collect(learn=True)[0]),
                ("loop", lambda s: whole.block(2 * s)[0]),
            ]
            found = {k: way(block) for k, way in (reversed(ways) if len(rounds) % 2 else ways)}  # a machine drifts
            row = {k: found[k] for k, _ in ways}
            rounds.append(row)
            say(f"{name}, {policy}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()))
    middle = {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}
    ratio = {k: statistics.median(r[k] / r["raw"] for r in rounds) for k in rounds[0]}
    return {"middle": middle, "ratio": ratio, "rounds": len(rounds), "processes": count, "decisions": decisions}


def as_results(name: str, policy: str, found: dict[str, Any]) -> dict[str, Any]:
    """name -> ratio, goal and both raw figures, as they are kept in results.json."""
    return {
        f"rollout/{name}/{policy}/{what}": {
            "ratio": round(found["ratio"][what], 4),
            "goal": goal,
            "steps_per_s": round(found["middle"][what], 2),
            "raw_steps_per_s": round(found["middle"]["raw"], 2),
            "rounds": found["rounds"],
            "processes": found["processes"],
        }
        for what, goal in GOALS.items()
    }


def as_table(all_found: dict[tuple[str, str], dict[str, Any]]) -> str:
    """One row per environment and policy."""
    head = ["environment", "policy", "P", "rounds", "A raw steps/s", "B/A vector (0.95)", "C/A policy (0.90)",
            "T/A in turn", "D/A loop (0.85)"]  # fmt: skip
    rows = []
    for (name, policy), found in all_found.items():
        shown = {k: f"{v:.3f}" + (" *" if v < GOALS.get(k, 0.0) else "") for k, v in found["ratio"].items()}
        rows.append([name, policy, str(found["processes"]), str(found["rounds"]), f"{found['middle']['raw']:.1f}",
                     shown["vector"], shown["policy"], shown["in turn"], shown["loop"]])  # fmt: skip
    return table(head, rows) + "\n\n`*` below its goal (in brackets)."


def main() -> None:
    """Measure, print the table, and write results.json and RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=[*ENVS, "all"], default="all")
    parser.add_argument("--policy", choices=[*POLICIES, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=120.0, help="per environment and policy")
    parser.add_argument("--envs-per-core", type=int, default=2)
    parser.add_argument("--decisions", type=int, default=32, help="per environment and segment")
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--raw", help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--chunks", default="", help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=int, default=CHUNK, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.raw:
        serve_raw(EnvConfig(**json.loads(args.raw)), args.index, args.chunk, args.chunks)
        return
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    torch.set_num_threads(1)
    count = args.envs_per_core * len(os.sched_getaffinity(0))
    found = {}
    for name in ENVS if args.env == "all" else [args.env]:
        for policy in POLICIES if args.policy == "all" else [args.policy]:
            found[name, policy] = measure(
                name, policy, args.seconds, count, args.decisions, lambda s: print(s, file=sys.stderr)
            )
    ray.shutdown()
    print(as_table(found))
    if args.no_write:
        return
    for (name, policy), result in found.items():
        write_results(as_results(name, policy, result))
    text = f"## Rollout efficiency\n\n{hardware()}\n\n{as_table(found)}\n\n"
    text += f"Command: `python -m benchmarks.rollout --env {args.env} --policy {args.policy} --seconds {args.seconds:g}"
    text += (
        f" --envs-per-core {args.envs_per_core} --decisions {args.decisions}`. The letters are those of its docstring."
    )
    write_section("rollout", text)


if __name__ == "__main__":
    main()
