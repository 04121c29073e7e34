"""The reference driver: plain Ray actors, no RLlib. Proves that the core needs none, and is the way out if it ends."""

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from rl.border import Border
from rl.ledger import Flights
from rl.placement import seats
from rl.rollout import RolloutPlan, RolloutWorker, Weights, get_weights, to_numpy, to_torch
from rl.run import FinetuneRun, Iteration, Start, make_algo, make_learner, needs_of
from rl.throughput import segment_metrics
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
    for tries_left in (2, 1, 0):
        try:
            ray.init(
                address="local",  # not one that happens to run on this machine, or that RAY_ADDRESS names
                num_cpus=cpus,
                include_dashboard=run.dashboard,
                runtime_env=environment,
                log_to_driver=False,
                logging_level=logging.WARNING,
                configure_logging=False,
            )
            return
        except Exception as e:  # Ray gives its own processes 30 s; on a loaded machine that is too little
            if "timed out during startup" not in str(e) or not tries_left:
                raise
            ray.shutdown()


def cluster(address: str) -> tuple[int, float, int]:
    """Cores, bytes of memory and GPUs that the Ray cluster at `address` has in all."""
    _check_reachable(address)
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, configure_logging=False)
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


def collected(asked: Sequence[Any], timeout_s: float) -> list[Any]:
    """The answers to these references; None where there is none in time, or nobody was asked."""
    deadline, answers = time.monotonic() + timeout_s, []
    for reference in asked:
        try:
            wait = max(0.1, deadline - time.monotonic())
            answers.append(None if reference is None else ray.get(reference, timeout=wait))
        except RayError:
            answers.append(None)
    return answers


@ray.remote(num_cpus=1)
class _Worker:
    def __init__(self, plan: RolloutPlan, index: int, incarnation: int, border: Border | None) -> None:
        self.worker = RolloutWorker(plan, index, incarnation, border)

    def up(self) -> bool:
        return True

    def sample(self, weights: Weights, version: int) -> Segment:
        self.worker.set_weights(weights, version)
        return to_numpy(self.worker.sample())

    def border(self) -> Border:
        return self.worker.border()

    def stop(self) -> None:
        self.worker.stop()


@dataclass
class _Seat:
    """A place in the fleet: who sits there, and since when."""

    actor: Any  # None: empty, until `not_before`
    coming: Any  # reference to the answer that it is up; None once it is
    failures: int = 0  # in a row
    since: float = 0.0  # when it was asked to come
    worked: bool = False  # some worker of this seat was up before
    not_before: float = 0.0

    @property
    def up(self) -> bool:
        return self.actor is not None and self.coming is None


class PlainEngine:
    """Actors for the workers, the learner in the driver.

    The fleet is elastic: workers for which the cluster has no room wait until it has, and those of a node that is gone
    come back elsewhere. A round is collected by those that are up.
    """

    def __init__(self, run: FinetuneRun, start: Start) -> None:
        start_ray(run)
        self.run = run
        self.learner = make_learner(run, start)
        seed = run.seed + self.learner.iteration
        self.plan = run.plan(str(start.checkpoint.resolve()), needs_of(run), make_algo(run).gamma, seed)
        self.flights = Flights()
        self.seats: list[_Seat] = []
        self.hired: Counter[int] = Counter()  # workers that each seat has had
        self.events: list[dict[str, Any]] = []  # of workers that broke while they were coming
        for i in range(run.num_workers):
            self._seat(i, start.border(i))
        self.empty = 0
        self.ahead: dict[int, Any] = {}  # with max_lag: what is being collected while the learner learns
        self._wait_for(min(run.num_workers, max(1, seats(run))))

    @property
    def workers(self) -> list[Any]:
        """The actors."""
        return [seat.actor for seat in self.seats if seat.actor is not None]

    def resize(self, workers: int) -> None:
        """Change the size of the fleet between two rounds. The episodes of those that leave are lost."""
        while len(self.seats) > max(1, workers):
            i = len(self.seats) - 1
            lost = self.flights.lost(i)
            self.events.append({"kind": "worker_restart", "worker": i, "cause": "dismissed", "lost": lost})
            self.ahead.pop(i, None)
            _dismiss(self.seats.pop())
        for i in range(len(self.seats), workers):
            self._seat(i, None)

    def iterate(self) -> Iteration:
        """Collect on all workers, replace those that fail, learn from the rest."""
        ahead = self.ahead or self._ask()
        before = {f"worker {i}" for i in range(len(self.seats)) if i not in ahead and self.seats[i].worked}
        segments, events = self._gather(ahead)
        self.ahead = self._ask() if self.run.max_lag else {}
        self.empty = 0 if segments else self.empty + 1
        if self.empty >= EMPTY_ROUNDS:
            raise RuntimeError(f"no rollout worker delivered for {EMPTY_ROUNDS} rounds; last: {_last_cause(events)}")
        busy = {f"worker {i}": 0.0 for i in range(len(self.seats))} | {"driver": 0.0}
        busy |= {f"worker {i}": s.stats["collect_s"] for i, s in segments.items()}
        lost = before | {f"worker {e['worker']}" for e in events}
        if not segments:
            return Iteration({}, [], events, busy_s=busy, lost=lost)
        segment = join(list(segments.values()))
        metrics = segment_metrics(list(segments.values())) | self.learner.update(segment)
        busy["driver"] = metrics["time/learn_s"]
        started = sum(int(s.stats["started"]) for s in segments.values())
        return Iteration(metrics, segment.episodes, events, started, segment.names, busy, lost)

    def weights(self) -> Weights:
        return get_weights(self.learner.policy)

    def learner_state(self) -> dict[str, Any]:
        return self.learner.state()

    def borders(self) -> list[Border | None]:
        """None of workers that are ahead, starting, or do not answer."""
        if self.run.max_lag:
            return []
        asked = [seat.actor.border.remote() if seat.up else None for seat in self.seats]
        return collected(asked, self.run.sample_timeout_s)

    def stop(self) -> None:
        for seat in self.seats:
            _dismiss(seat)
        ray.shutdown()

    # --- inside --------------------------------------------------------------------------------------------------

    def _seat(self, i: int, border: Border | None) -> None:
        """Ask a worker to come to seat i."""
        old = self.seats[i] if i < len(self.seats) else None
        if border is not None:
            self.flights.carry(i, len(border["episodes"]))
        worker: Any = _Worker
        hire = worker.options(resources=dict(self.run.worker_resources))
        actor = hire.remote(self.plan, i, self.hired[i], border)
        self.hired[i] += 1
        seat = _Seat(actor, actor.up.remote(), since=time.monotonic())
        if old is None:
            self.seats.append(seat)
            return
        seat.failures, seat.worked = old.failures, old.worked
        self.seats[i] = seat

    def _wait_for(self, number: int) -> None:
        """Wait until so many workers are up; those that are not by the deadline join later."""
        deadline = time.monotonic() + self.run.env.open_deadline_s + self.run.sample_timeout_s
        self._muster()
        while sum(s.up for s in self.seats) < number and time.monotonic() < deadline and not self.events:
            coming = [s.coming for s in self.seats if s.coming is not None]
            if coming:
                ray.wait(coming, timeout=0.5)
            else:
                time.sleep(0.1)
            self._muster()

    def _muster(self) -> None:
        """Take note of who has come, and try again those that broke on the way."""
        now = time.monotonic()
        limit = self.run.env.open_deadline_s + self.run.sample_timeout_s
        for i, seat in enumerate(self.seats):
            if seat.actor is None and now >= seat.not_before:
                self._seat(i, None)
            if seat.coming is None:
                continue
            if not ray.wait([seat.coming], timeout=0)[0]:
                if now - seat.since > limit:  # it hangs; if there is no room for it, asking again does no harm
                    _dismiss(seat)
                    self._seat(i, None)
                continue
            try:
                ray.get(seat.coming)
                seat.coming, seat.worked = None, True
            except RayError as e:
                self._lose(i, e, self.events)

    def _lose(self, i: int, error: RayError, events: list[dict[str, Any]]) -> None:
        """The worker of seat i is gone: say so, and ask for another one; later and later if that keeps happening."""
        seat = self.seats[i]
        cause = f"{type(error).__name__}: {str(error).strip()[:300]}"
        events.append({"kind": "worker_restart", "worker": i, "cause": cause, "lost": self.flights.lost(i)})
        _dismiss(seat)
        seat.actor = seat.coming = None
        seat.failures += 1
        seat.not_before = time.monotonic() + (min(60.0, 2.0**seat.failures) if seat.failures > 1 else 0.0)
        if seat.failures == 1:
            self._seat(i, None)

    def _ask(self) -> dict[int, Any]:
        self._muster()
        if not any(s.up for s in self.seats):
            self._wait_for(1)
        weights = ray.put(get_weights(self.learner.policy))
        up = {i: s.actor for i, s in enumerate(self.seats) if s.up}
        return {i: a.sample.remote(weights, self.learner.iteration) for i, a in up.items()}

    def _gather(self, pending: dict[int, Any]) -> tuple[dict[int, Segment], list[dict[str, Any]]]:
        segments: dict[int, Segment] = {}
        events, self.events = self.events, []
        deadline = time.monotonic() + self.run.sample_timeout_s
        for i, reference in pending.items():
            try:
                segments[i] = to_torch(ray.get(reference, timeout=max(0.1, deadline - time.monotonic())))
                events += self.flights.landed(i, segments[i].stats)
                self.seats[i].failures = 0
            except RayError as e:
                self._lose(i, e, events)
        return segments, events


def _dismiss(seat: _Seat) -> None:
    if seat.actor is not None:
        ray.kill(seat.actor)


def _last_cause(events: list[dict[str, Any]]) -> str:
    return events[-1]["cause"] if events else "all rollout workers are still starting"
