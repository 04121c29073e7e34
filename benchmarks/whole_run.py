"""A real run to be measured: Ray rollout worker, learner, weights between them; nothing but the log is left out."""

import time
from pathlib import Path
from typing import Any

import ray

from envs.types import EnvConfig
from rl.plain import PlainEngine
from rl.run import FinetuneRun, Start
from rl.throughput import bottleneck

REWARDS = {"sparse": {"weight": 1.0, "term": {"_target_": "rl.rewards.sparse.Sparse"}}}


class WholeRun:
    """Two processes: a Ray worker with its simulators, and the learner here with one thread."""

    def __init__(
        self, checkpoint: Path, env: EnvConfig, algo: dict[str, Any], *, rows: int, decisions: int, max_lag: int
    ) -> None:
        run = FinetuneRun(
            checkpoint=str(checkpoint), env=env, out="", algo=algo, rewards=REWARDS, engine="ray", num_workers=1,
            envs_per_worker=rows, decisions=decisions, max_lag=max_lag, learner_threads=1, iterations=1, quiet=True,
        )  # fmt: skip
        self.engine = PlainEngine(run, Start(checkpoint, {}, None, {}))
        self.slowest: list[str] = []
        self.learn_s = 0.0  # of the last round
        self._round()

    def block(self, seconds: float) -> tuple[float, float]:
        """(steps per second, seconds) of whole rounds, the last one's collection ahead included."""
        self.slowest.clear()
        self._catch_up()  # what an earlier block began may not run beside whatever is measured in between
        started, steps = time.perf_counter(), 0.0
        while not steps or time.perf_counter() - started < seconds:
            steps += self._round()
        self._catch_up()  # what was collected before this block is counted in it, so what comes after is not
        spent = time.perf_counter() - started
        return steps / spent, spent

    def stop(self) -> None:
        """End the worker; Ray itself stays for the next one."""
        for worker in self.engine.workers:
            ray.get(worker.stop.remote())
            ray.kill(worker)

    def _catch_up(self) -> None:
        if asked := list(self.engine.ahead.values()):
            ray.wait(asked, num_returns=len(asked))

    def _round(self) -> float:
        metrics = self.engine.iterate().metrics
        self.slowest.append(bottleneck(metrics))
        self.learn_s = metrics["time/learn_s"]
        return metrics["rollout/env_steps"]
