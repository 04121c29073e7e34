"""The reference driver: plain Ray actors, no RLlib. Proves that the core needs none, and is the way out if it ends."""

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from rl.finetune import FinetuneRun, Iteration, Start, make_algo, make_learner, needs_of, segment_metrics
from rl.ledger import Flights
from rl.rollout import RolloutPlan, RolloutWorker, Weights, get_weights, to_numpy, to_torch
from rl.types import Segment, join

ROOT = Path(__file__).resolve().parent.parent
QUIET = ("ray.rllib", "ray.tune", "ray._common.deprecation")  # advice to RLlib's developers
EMPTY_ROUNDS = 3  # rounds without any data before giving up


def start_ray(run: FinetuneRun) -> None:
    """Connect to the cluster at `ray_address`, or start a local one that binds to loopback."""
    if ray.is_initialized():
        return
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a worker without GPUs leaves the variable alone
    os.environ.setdefault("RAY_worker_niceness", "0")  # the default, 15, lets anything else starve the simulators
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    if run.ray_address:
        _check_reachable(run.ray_address)
        ray.init(address=run.ray_address, runtime_env=environment, log_to_driver=False)
        return
    cpus = max(os.cpu_count() or 1, run.num_workers + run.num_learners + 1)
    ray.init(
        num_cpus=cpus,
        include_dashboard=run.dashboard,
        runtime_env=environment,
        log_to_driver=False,
        logging_level="warning",
        configure_logging=False,
    )


def cluster(address: str) -> tuple[int, float, int]:
    """Cores, bytes of memory and GPUs that the Ray cluster at `address` has in all."""
    _check_reachable(address)
    ray.init(address=address, log_to_driver=False, logging_level="warning", configure_logging=False)
    try:
        found = ray.cluster_resources()
    finally:
        ray.shutdown()
    memory = found.get("memory", 0.0) + found.get("object_store_memory", 0.0)
    return int(found.get("CPU", 0)), memory, int(found.get("GPU", 0))


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes and then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto" and the like
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
    except OSError as e:
        raise ValueError(
            f"no Ray cluster answers at ray_address = '{address}' ({e}); start one there with "
            f"`ray start --head --port={port}`, or leave ray_address empty to start Ray here"
        ) from e


@ray.remote(num_cpus=1)
class _Worker:
    def __init__(self, plan: RolloutPlan, index: int, incarnation: int) -> None:
        self.worker = RolloutWorker(plan, index, incarnation)

    def sample(self, weights: Weights, version: int) -> Segment:
        self.worker.set_weights(weights, version)
        return to_numpy(self.worker.sample())

    def stop(self) -> None:
        self.worker.stop()


class PlainEngine:
    """Actors for the workers, the learner in the driver."""

    def __init__(self, run: FinetuneRun, start: Start) -> None:
        start_ray(run)
        self.run = run
        self.learner = make_learner(run, start)
        seed = run.seed + self.learner.iteration
        self.plan = run.plan(str(start.checkpoint.resolve()), needs_of(run), make_algo(run).gamma, seed)
        self.workers = [_Worker.remote(self.plan, i, 0) for i in range(run.num_workers)]
        self.incarnations = [0] * run.num_workers
        self.flights = Flights()
        self.empty = 0
        self.ahead: list[Any] = []  # with max_lag: what is being collected while the learner learns

    def iterate(self) -> Iteration:
        """Collect on all workers, replace those that fail, learn from the rest."""
        segments, events = self._gather(self.ahead or self._ask())
        self.ahead = self._ask() if self.run.max_lag else []
        self.empty = 0 if segments else self.empty + 1
        if self.empty >= EMPTY_ROUNDS:
            raise RuntimeError(f"no rollout worker delivered for {EMPTY_ROUNDS} rounds; last: {events[-1]['cause']}")
        if not segments:
            return Iteration({}, [], events)
        metrics = segment_metrics(segments) | self.learner.update(join(segments))
        started = sum(int(s.stats["started"]) for s in segments)
        return Iteration(metrics, [e for s in segments for e in s.episodes], events, started)

    def _ask(self) -> list[Any]:
        weights = ray.put(get_weights(self.learner.policy))
        return [w.sample.remote(weights, self.learner.iteration) for w in self.workers]

    def _gather(self, pending: list[Any]) -> tuple[list[Segment], list[dict[str, Any]]]:
        segments: list[Segment] = []
        events: list[dict[str, Any]] = []
        deadline = time.monotonic() + self.run.sample_timeout_s
        for i, reference in enumerate(pending):
            try:
                segments.append(to_torch(ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))))
                events += self.flights.landed(i, segments[-1].stats)
            except (RayActorError, RayTaskError, GetTimeoutError) as e:
                cause = f"{type(e).__name__}: {str(e)[:300]}"
                lost = self.flights.lost(i)
                events.append({"kind": "worker_restart", "worker": i, "cause": cause, "lost": lost})
                ray.kill(self.workers[i])
                self.incarnations[i] += 1
                self.workers[i] = _Worker.remote(self.plan, i, self.incarnations[i])
        return segments, events

    def weights(self) -> Weights:
        return get_weights(self.learner.policy)

    def learner_state(self) -> dict[str, Any]:
        return self.learner.state()

    def stop(self) -> None:
        for worker in self.workers:
            ray.kill(worker)
        ray.shutdown()
