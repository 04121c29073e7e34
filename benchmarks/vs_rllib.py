"""Our iteration against RLlib's own PPO, as it comes: `python -m benchmarks.vs_rllib [--env NAME] [--rounds N]`.

Both train the same network (a CNN for each of two cameras, a Gaussian of one action) on the same toy with the same
numbers of workers, environments, samples, epochs and minibatches, the learner in the driver, on the same machine. RLlib
runs its default path: its EnvRunner with environments in the runner's own process, episodes, connectors, its PPO
learner. Ours is the engine `rllib` that `launch.py finetune` takes by default.

    free    a step of the toy costs what two pictures cost to draw; environments in the worker's process on both sides
            (`env.process=shared`)
    lean    the same with pictures drawn beforehand, the smallest network, two epochs and one thread per process, as the
            gap was first measured: next to nothing but what surrounds them is left
    apart   `free`, but ours in supervised processes of their own, as is our default
    slow    a step takes 10 ms of processor time; ours in processes of their own
    heavy   `apart` with about ten times the convolutions: the networks take most of the time on either side

The CNN is small but in `heavy`, so that what surrounds the networks shows.

Each side is a process with a Ray of its own, told in turn to do one iteration, so that whatever else the machine does
slows both. Figures are medians over the rounds:

    iteration   samples per second, ours / theirs (more is better)
    learner     seconds inside LearnerGroup.update per sample, ours / theirs (less is better)
    memory      growth of the driver's peak resident memory, which holds the learner, over what it was before the first
                iteration, ours / theirs (less is better); asked of `free` alone, whose batch is large

In `free` and `lean` a third side takes its turn, `bare`: the same toy, network and gradients with nothing around them
(`benchmarks.bare_ppo`). Its ratio to RLlib is about what a platform that costs nothing would reach.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import hardware, table, write_results, write_section

ROOT = Path(__file__).resolve().parents[1]
WORKERS, ENVS = 2, 4
PIXELS = 128
TOY = {"_target_": "envs.toy.Toy", "name": "reach", "max_steps": 50, "hold": 1000, "tasks": ["red"],
       "cameras": {"top": [PIXELS, PIXELS], "hand": [PIXELS, PIXELS]}}  # fmt: skip
ENCODER = {"_target_": "pretrained.encoders.PixelEncoder", "width": 64}
POLICY: dict[str, Any] = {
    "_target_": "pretrained.chunk_policy.ChunkPolicy",
    "kernel": {"_target_": "pretrained.chain.Gaussian", "std": 0.3},
    "horizon": 1,
    "encoder": {**ENCODER, "channels": [8, 16, 16], "kernels": [8, 4, 3], "strides": [8, 4, 2]},
    "width": 64,
    "critic_width": 64,
    "critic_detach": False,  # one backward through everything, as RLlib's loss does
}
LEAN = {**POLICY, "network": {"_target_": "pretrained.networks.VelocityMlp", "layers": 1},
        "encoder": {**POLICY["encoder"], "pool": "flatten"}}  # fmt: skip
HEAVY = {**POLICY, "encoder": {**ENCODER, "channels": [16, 32, 32], "kernels": [8, 4, 3], "strides": [4, 2, 2]}}
ALGO = {"lr": 1e-4, "clip": 0.2, "links": "sum", "reduction": "sum", "epochs": 4, "minibatches": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "free": {"sim": TOY, "decisions": 256, "policy": POLICY, "process": "shared"},  # decisions: of a row, per iteration
    "lean": {
        "sim": {**TOY, "stills": 32},
        "decisions": 64,
        "policy": LEAN,
        "process": "shared",
        "algo": {**ALGO, "epochs": 2, "minibatches": 4},
        "threads": 1,
    },
    "apart": {"sim": TOY, "decisions": 256, "policy": POLICY},
    "slow": {"sim": {**TOY, "step_ms": 10.0}, "decisions": 32, "policy": POLICY},
    "heavy": {"sim": TOY, "decisions": 64, "policy": HEAVY},
}
GOALS = {"free/iteration": 2.0, "free/learner": 0.55, "free/memory": 1 / 3, "slow/iteration": 1.0}
LESS = ("learner", "memory")  # figures of which less is better
SIDES = ("ours", "rllib")
BARE = ("free", "lean")  # settings that are also measured with nothing around the network: `benchmarks.bare_ppo`


# --- in a process of its own ------------------------------------------------------------------------------------------


def serve(side: str, setting: dict[str, Any]) -> None:
    """One iteration per line of input; answers are lines of JSON."""
    import torch

    torch.set_num_threads(setting["threads"])
    with tempfile.TemporaryDirectory() as folder:
        iterate, stop = {"ours": _ours, "rllib": _theirs, "bare": _bare}[side](setting, Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _memory("VmRSS")
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            started = time.perf_counter()
            steps, learned = iterate()
            spent = time.perf_counter() - started
            grown = _memory("VmHWM") - before
            print(json.dumps({"rate": steps / spent, "learn_s": learned / steps, "grown_mib": grown}), flush=True)
        stop()


def _run(setting: dict[str, Any], folder: Path) -> Any:
    """Settings of our run, with a checkpoint to begin with."""
    from envs.build import build
    from envs.types import EnvConfig
    from pretrained.checkpoint import save
    from rl.run import FinetuneRun

    sim = setting["sim"]
    spec = build(sim).spec
    save(folder / "step_000000", build(setting["policy"], env=spec), node=setting["policy"], env=spec)
    return FinetuneRun(
        checkpoint=str(folder / "step_000000"),
        env=EnvConfig(sim=sim, process=setting.get("process", "own")),
        out=str(folder / "out"),
        algo=setting["algo"],
        rewards={"sparse": {"weight": 1.0, "term": {"_target_": "rl.rewards.sparse.Sparse"}}},
        engine="rllib",
        num_workers=setting["workers"],
        envs_per_worker=setting["envs"],
        decisions=setting["decisions"],
        learner_threads=setting["threads"],
        iterations=1,
    )


def _ours(setting: dict[str, Any], folder: Path) -> tuple[Callable[[], tuple[float, float]], Callable[[], None]]:
    from rl.engine import RllibEngine
    from rl.run import Start

    run = _run(setting, folder)
    engine = RllibEngine(run, Start(Path(run.checkpoint), {}, None, {}))
    learned = _timed(engine.algorithm.learner_group)

    def iterate() -> tuple[float, float]:
        metrics = engine.iterate().metrics
        return metrics["rollout/env_steps"], learned[-1]

    return iterate, engine.stop


def _theirs(setting: dict[str, Any], folder: Path) -> tuple[Callable[[], tuple[float, float]], Callable[[], None]]:
    import ray

    from benchmarks.rllib_ppo import make_config
    from rl.plain import start_ray
    from rl.ppo import Ppo

    start_ray(_run(setting, folder))
    sizes = {"workers": setting["workers"], "envs": setting["envs"], "decisions": setting["decisions"]}
    config = make_config(setting["sim"], setting["policy"], Ppo(**setting["algo"]), **sizes)
    algorithm: Any = config.build_algo()
    learned, counted = _timed(algorithm.learner_group), [0.0]

    def iterate() -> tuple[float, float]:
        total = float(algorithm.train()["num_env_steps_sampled_lifetime"])
        steps, counted[0] = total - counted[0], total
        return steps, learned[-1]

    def stop() -> None:
        algorithm.stop()
        ray.shutdown()

    return iterate, stop


def _bare(setting: dict[str, Any], folder: Path) -> tuple[Callable[[], tuple[float, float]], Callable[[], None]]:
    from benchmarks.bare_ppo import make_loop

    sample, learn, stop = make_loop(setting)

    def iterate() -> tuple[float, float]:
        steps = sample()
        started = time.perf_counter()
        learn()
        return steps, time.perf_counter() - started

    return iterate, stop


def _timed(group: Any) -> list[float]:
    """Let a learner group note the seconds of each of its updates."""
    seconds: list[float] = []
    update = group.update

    def noted(**kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return update(**kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    group.update = noted
    return seconds


def _memory(name: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}; this measurement needs Linux")


# --- in ours ----------------------------------------------------------------------------------------------------------


class Side:
    """One of the two processes."""

    def __init__(self, name: str, setting: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "benchmarks.vs_rllib", "--serve", name, "--setting", json.dumps(setting)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `stop`)
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, text=True, start_new_session=True,
                                        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})  # fmt: skip
        self.name = name

    def answer(self) -> dict[str, float]:
        """The next line of JSON; libraries print other things."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        status = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()[-1:] or ["nothing"]
        raise RuntimeError(f"the process of '{self.name}' ended with status {status}; its last words: {said[0]}")

    def iterate(self) -> dict[str, float]:
        """One iteration."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """Let it stop its Ray, and end it if it does not."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.errors.close()


def measure(setting: dict[str, Any], rounds: int, say: Callable[[str], None], *, bare: bool = False) -> dict[str, Any]:
    """Iterations of all sides in turn; medians of them and of their ratios."""
    names = (*SIDES, "bare") if bare else SIDES
    setting = {"workers": WORKERS, "envs": ENVS, "threads": len(os.sched_getaffinity(0)), "algo": ALGO, **setting}
    sides = []
    try:
        for name in names:  # one after the other: starting is the noisiest part
            sides.append(Side(name, setting))
            sides[-1].answer()
        for side in sides:
            side.iterate()
        found: list[dict[str, dict[str, float]]] = []
        for i in range(rounds):
            found.append({side.name: side.iterate() for side in (sides if i % 2 else reversed(sides))})
            say(", ".join(f"{k} {found[-1][k]['rate']:.0f}/s" for k in names))
    finally:
        for side in sides:
            side.stop()

    def middle(key: str, name: str = "ours") -> dict[str, float]:
        return {k: statistics.median(row[k][key] for row in found) for k in (name, "rllib")}

    def ratio(key: str, name: str = "ours") -> float:
        return statistics.median(row[name][key] / row["rllib"][key] for row in found)

    last = {k: found[-1][k]["grown_mib"] for k in SIDES}  # a peak only grows
    floor = {}
    if bare:
        learner = {k: 1e6 * v for k, v in middle("learn_s", "bare").items()}
        floor = {"bare/iteration": {"ratio": ratio("rate", "bare"), **middle("rate", "bare"), "unit": "samples/s"},
                 "bare/learner": {"ratio": ratio("learn_s", "bare"), **learner, "unit": "us/sample"}}  # fmt: skip
    return {
        "iteration": {"ratio": ratio("rate"), **middle("rate"), "unit": "samples/s"},
        "learner": {"ratio": ratio("learn_s"), **{k: 1e6 * v for k, v in middle("learn_s").items()},
                    "unit": "us/sample"},
        "memory": {"ratio": last["ours"] / last["rllib"], **last, "unit": "MiB"},
        **floor,
        "rounds": rounds,
    }  # fmt: skip


def as_results(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """name -> ratio, goal and both raw figures, as they are kept in results.json."""
    return {
        f"vs_rllib/{name}/{figure}": {
            "ratio": round(v["ratio"], 4),
            "goal": GOALS.get(f"{name}/{figure}"),
            "at_most": figure in LESS,
            **{k: round(v[k], 2) for k in ("ours", "bare", "rllib") if k in v},
            "unit": v["unit"],
            "rounds": found["rounds"],
        }
        for figure, v in found.items()
        if figure != "rounds"
    }


def as_table(results: dict[str, Any]) -> str:
    """One row per figure."""
    rows = []
    for name, r in results.items():
        missed = r["goal"] is not None and (r["ratio"] > r["goal"] if r["at_most"] else r["ratio"] < r["goal"])
        goal = "" if r["goal"] is None else ("<= " if r["at_most"] else ">= ") + f"{r['goal']:.2f}"
        first = r["ours"] if "ours" in r else r["bare"]
        rows.append([name.removeprefix("vs_rllib/"), f"{first:.1f}", f"{r['rllib']:.1f}", r["unit"],
                     f"{r['ratio']:.2f}" + (" *" if missed else ""), goal])  # fmt: skip
    head = ["figure", "ours or bare", "RLlib", "unit", "ratio to RLlib", "goal"]
    return table(head, rows) + "\n\n`*` beside its goal."


def main() -> None:
    """Measure, print the table, and write results.json and RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=[*SETTINGS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--serve", choices=(*SIDES, "bare"), help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, json.loads(args.setting))
        return
    results: dict[str, Any] = {}
    for name in SETTINGS if args.env == "all" else [args.env]:
        found = measure(SETTINGS[name], args.rounds, lambda s, n=name: print(n, s, file=sys.stderr), bare=name in BARE)
        results |= as_results(name, found)
    print(as_table(results))
    if not args.no_write:
        write_results(results)
        text = f"## Against RLlib's own PPO\n\n{hardware()}, {WORKERS} workers of {ENVS} environments\n\n"
        text += (
            f"{as_table(results)}\n\nCommand: `python -m benchmarks.vs_rllib --env {args.env} --rounds {args.rounds}`."
        )
        write_section("vs_rllib", text)


if __name__ == "__main__":
    main()
