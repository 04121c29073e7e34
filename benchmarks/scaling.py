"""What the driver costs as rollout actors multiply: `python -m benchmarks.scaling [--counts 2 4 ...] [--rounds N]`.

The driver's own `training_step` (rl.engine.Temper, with RLlib's actor manager) runs with 2 to 64 light rollout actors:
real Ray actors that answer with a report of true size and a segment in the object store, but have neither simulator nor
policy, so that 64 of them fit on one machine. The learner is a stand-in that takes references and gives back weights.
What is counted is processor time of the driver process, all its threads, per environment step that the answers stand
for. The goal is a constant: with 64 actors at most 1.2 times what it is with 2. Counts alternate; figures are medians.

Besides, the constants of the model in docs/scaling.md, which is written too (benchmarks.fleet): what a decision and a
lesson cost on one core, how fast weights reach actors through the object store.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.fleet import constants, page, write
from benchmarks.tables import hardware, table, write_results, write_section

COUNTS = (2, 4, 8, 16, 32, 64)
STEPS = 8 * 32 * 8  # of one answer: 8 environments, 32 decisions, chunks of 8
SEGMENT = 2**20  # bytes of one answer
WEIGHTS = 2**20  # float32 numbers, 4 MiB: as the small policies of configs/policy have
PAUSE = 0.05  # seconds of an actor's "collection"
GOAL = 1.2  # per step with the most actors / with the fewest, at most


class LearnerStandIn:
    """Takes references to segments; its weights never change."""

    is_remote = False

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights, self.version = weights, 0

    def update(self, *, batch_refs: list[Any], timesteps: dict[str, int]) -> list[dict[str, Any]]:
        """As rl.engine.ShellLearner answers."""
        self.version += 1
        return [{"metrics": {"loss/policy": 0.0}, "weights": self.weights, "version": self.version,
                 "state": None, "learned": []}]  # fmt: skip


def make_driver(actors: Sequence[Any], weights: dict[str, np.ndarray]) -> Any:
    """rl.engine.Temper around given actors, without the rest of RLlib's Algorithm."""
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

    from rl.engine import Temper
    from rl.ledger import Flights

    driver: Any = object.__new__(Temper)
    env = SimpleNamespace(open_deadline_s=60.0)
    run = SimpleNamespace(max_lag=0, sample_timeout_s=120.0, num_learners=0, env=env)
    driver.config, driver.flights = SimpleNamespace(env_config={"run": run}), Flights()
    driver.env_runner_group = SimpleNamespace(_worker_manager=FaultTolerantActorManager(list(actors)))
    driver.learner_group = LearnerStandIn(weights)
    driver.metrics = MetricsLogger(root=True)
    driver.current = weights
    return driver


def measure(counts: Sequence[int], rounds: int, say: Callable[[str], None], *, steps: int = STEPS,
            pause: float = PAUSE, repeat: int = 5) -> dict[str, Any]:  # fmt: skip
    """Processor seconds of the driver per iteration, by number of actors. Ray must be running."""
    import ray

    from benchmarks.light import Light

    make = ray.remote(num_cpus=0)(Light)
    actors = []
    for start in range(0, max(counts), 8):  # a few at a time: starting processes is what takes memory and time
        more = [make.remote(steps, SEGMENT, pause) for _ in range(min(8, max(counts) - start))]
        ray.get([a.ping.remote() for a in more])
        actors += more
        say(f"{len(actors)} actors")
    weights = {"w": np.ones(WEIGHTS, np.float32)}
    drivers = {n: make_driver(actors[:n], weights) for n in counts}
    for driver in drivers.values():
        driver.training_step()
    spent: dict[int, list[float]] = {n: [] for n in counts}
    for i in range(rounds):
        for n in list(counts) if i % 2 else list(reversed(counts)):
            before = time.process_time()
            for _ in range(repeat):
                drivers[n].training_step()
            spent[n].append((time.process_time() - before) / repeat)
            if (got := drivers[n].last.metrics["rollout/env_steps"]) != n * steps:
                raise RuntimeError(f"{n} actors delivered {got:.0f} environment steps, expected {n * steps}")
        say(", ".join(f"{n}: {1e3 * v[-1]:.1f} ms" for n, v in spent.items()))
    few, many = min(counts), max(counts)
    middle = {n: statistics.median(v) for n, v in spent.items()}
    slope, fixed = np.polyfit(list(middle), list(middle.values()), 1)
    return {
        "cpu_s": middle,
        "us_per_step": {n: 1e6 * v / (n * steps) for n, v in middle.items()},
        "ratio": statistics.median((b / many) / (a / few) for a, b in zip(spent[few], spent[many], strict=True)),
        "ms_per_call": 1e3 * float(slope),
        "ms_per_iteration": 1e3 * float(fixed),
        "broadcast": broadcast(actors[: min(8, len(actors))]),
        "rounds": rounds,
    }


def broadcast(actors: Sequence[Any], mib: int = 256, rounds: int = 3) -> dict[str, float]:
    """Seconds until one copy of the weights is in the object store, and until all actors can read it."""
    import ray

    weights = {"w": np.ones(mib * 2**18, np.float32)}
    put, everywhere = [], []
    for _ in range(rounds + 1):  # the first touches fresh pages
        started = time.time()
        reference = ray.put(weights)
        put.append(time.time() - started)
        everywhere.append(max(ray.get([a.arrived.remote(reference) for a in actors])) - started)
        del reference
    return {"mib": mib, "receivers": len(actors), "put_s": statistics.median(put[1:]),
            "all_s": statistics.median(everywhere[1:])}  # fmt: skip


def as_results(found: dict[str, Any]) -> dict[str, Any]:
    """name -> ratio, goal and both raw figures, as they are kept in results.json."""
    few, many = min(found["us_per_step"]), max(found["us_per_step"])
    return {
        "scaling/driver": {
            "ratio": round(found["ratio"], 3),
            "goal": GOAL,
            "at_most": True,
            f"us_per_step_{many}": round(found["us_per_step"][many], 3),
            f"us_per_step_{few}": round(found["us_per_step"][few], 3),
            "ms_per_call": round(found["ms_per_call"], 3),
            "ms_per_iteration": round(found["ms_per_iteration"], 2),
            "put_gib_per_s": round(found["broadcast"]["mib"] / 1024 / found["broadcast"]["put_s"], 2),
            "rounds": found["rounds"],
        }
    }


def as_table(found: dict[str, Any]) -> str:
    """One row per number of actors, and the constants."""
    rows = [[str(n), f"{1e3 * s:.1f}", f"{found['us_per_step'][n]:.2f}"] for n, s in found["cpu_s"].items()]
    text = table(["actors", "driver CPU ms per iteration", "us per environment step"], rows)
    few, many, b = min(found["cpu_s"]), max(found["cpu_s"]), found["broadcast"]
    missed = " *" if found["ratio"] > GOAL else ""
    text += f"\n\n{many} / {few} actors, per step: {found['ratio']:.2f}{missed} (at most {GOAL:g}). "
    text += f"Driver: {found['ms_per_iteration']:.1f} ms per iteration and {found['ms_per_call']:.2f} ms per call. "
    return text + (f"Weights of {b['mib']} MiB: in the object store after {b['put_s']:.2f} s, readable by "
                   f"{b['receivers']} actors of the machine after {b['all_s']:.2f} s.")  # fmt: skip


def main() -> None:
    """Measure, print the table, and write results.json and RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-write", action="store_true", help="only print")
    args = parser.parse_args()
    import ray

    from rl.plain import start_ray

    start_ray(SimpleNamespace(ray_address="", num_workers=0, num_learners=0, dashboard=False))  # type: ignore[arg-type]
    try:
        found = measure(args.counts, args.rounds, lambda s: print(s, file=sys.stderr))
    finally:
        ray.shutdown()
    model = constants(found)
    print(f"{as_table(found)}\n\n{page(model)}")
    if not args.no_write:
        write(model)
        write_results(as_results(found))
        text = f"## Scaling of the driver\n\n{hardware()}\n\n{as_table(found)}\n\n"
        text += f"Command: `python -m benchmarks.scaling --counts {' '.join(map(str, args.counts))}"
        write_section("scaling", text + f" --rounds {args.rounds}`.")


if __name__ == "__main__":
    main()
