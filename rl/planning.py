"""How many environments, workers and decisions suit a machine: `launch.py doctor --plan`.

Seconds of processor time per environment step are what a run consists of: the simulator's, the policy's share of a
decision of E steps, the learner's. Simulators and policy share the cores; the learner takes turns with them on the
cores, or has accelerators. docs/scaling.md derives the formulas; all times are of one core.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from envs.build import build
from envs.types import EnvConfig
from envs.vector import SimVector
from rl.collect import Collector
from rl.learner import Learner
from rl.memory import IDLE, MIB, RAY, process
from rl.run import FinetuneRun, Start, make_learner, needs_of
from rl.types import Segment, join

PER_CORE = 2  # simulators: while one waits for the policy, another steps
PER_WORKER = 8  # environments that one copy of the policy serves
BATCH = 1024  # decisions that an iteration should learn from, at least
MINIBATCH = 256
ROWS = 8  # decisions measured at once,
COPIES = 16  # and learned from so many times over, in minibatches of a usual size
LAST = 10**6  # an iteration behind all stages
LONGEST = 128  # decisions of a segment
SHARE = 0.8  # of the memory may be planned with
ACCELERATOR = 50.0  # learning on an accelerator, times one core: a guess until benchmarks.learner_gpu has run on it


@dataclass(frozen=True)
class Machine:
    """What there is to use, of all nodes together."""

    cores: int
    memory: float  # bytes
    gpus: int = 0

    def line(self) -> str:
        """For people."""
        return f"{self.cores} cores, {self.memory / 2**30:.1f} GiB of memory, {self.gpus} GPUs"


@dataclass(frozen=True)
class Costs:
    """Seconds of one core, and bytes."""

    step_s: float  # of a control step of the simulator, pictures included as often as they are drawn
    decide_s: float  # of the policy, per decision, eight at a time
    learn_s: float  # of the learner, per decision, all epochs
    steps: int  # of a decision
    simulator: float
    decision: float  # in a segment
    worker: float  # a process with torch and the policy

    def line(self) -> str:
        """For people."""
        return (
            f"on one core: a step {1e3 * self.step_s:.2f} ms, a decision of {self.steps:.0f} steps "
            f"{1e3 * self.decide_s:.2f} ms, learning from it {1e3 * self.learn_s:.2f} ms; a simulator has "
            f"{self.simulator / MIB:.0f} MiB, a worker {self.worker / MIB:.0f} MiB, a decision "
            f"{self.decision / 1024:.0f} KiB"
        )


FIGURES: dict[str, tuple[str, float]] = {  # on the command line -> field and unit
    "step_ms": ("step_s", 1e-3),
    "decide_ms": ("decide_s", 1e-3),
    "learn_ms": ("learn_s", 1e-3),
    "steps": ("steps", 1),
    "sim_mib": ("simulator", MIB),
    "decision_kib": ("decision", 1024),
    "worker_mib": ("worker", MIB),
}
OF_MACHINE = ("cores", "memory_gib", "gpus")
assert {name for name, _ in FIGURES.values()} == {f.name for f in fields(Costs)}


@dataclass(frozen=True)
class Plan:
    """A proposal, and what the model expects of it."""

    num_workers: int
    envs_per_worker: int
    decisions: int
    minibatches: int
    steps_per_s: float
    shares: Mapping[str, float]  # of the time of a core: simulators, policy, learner
    memory: float
    limit: str  # what keeps it from being larger or faster

    def lines(self) -> list[str]:
        """For the command line of `finetune`, and for people."""
        spent = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.shares.items())
        return [
            f"num_workers={self.num_workers} envs_per_worker={self.envs_per_worker} decisions={self.decisions} "
            f"algo.minibatches={self.minibatches}",
            f"about {self.steps_per_s:.0f} environment steps per second; of the cores' time: {spent}",
            f"about {self.memory / 2**30:.1f} GiB of memory; limited by {self.limit}",
        ]


def propose(there: Machine, costs: Costs) -> Plan:
    """Raises ValueError if not even one simulator fits."""
    base = RAY + there.cores * IDLE + costs.worker  # Ray, and the driver with the learner
    free = SHARE * there.memory - base - costs.worker
    fit = int(free // (costs.simulator + costs.worker / PER_WORKER + 3 * costs.decision * 16))
    if fit < 1:
        raise ValueError(
            f"{there.memory / 2**30:.1f} GiB of memory hold no simulator of {costs.simulator / MIB:.0f} MiB beside "
            "Ray and the policy; use a machine with more, or engine=local"
        )
    wanted = PER_CORE * there.cores
    count, limit = (fit, "memory") if fit < wanted else (wanted, "cores")
    workers = max(1, math.ceil(count / PER_WORKER))
    each = max(1, count // workers)
    count = workers * each
    room = free - count * costs.simulator - (workers - 1) * costs.worker
    longest = int(room // (3 * count * costs.decision))  # filled, in the object store, joined
    decisions = max(1, min(LONGEST, longest, max(16, math.ceil(BATCH / count))))
    batch = count * decisions
    collect, learn = costs.step_s + costs.decide_s / costs.steps, costs.learn_s / costs.steps
    speed = ACCELERATOR * there.gpus if there.gpus else there.cores
    per_step = collect / min(there.cores, count) + learn / speed
    parts = {"simulators": costs.step_s, "policy": costs.decide_s / costs.steps}
    if not there.gpus:
        parts["learner"] = learn
    whole = sum(parts.values())
    return Plan(
        num_workers=workers,
        envs_per_worker=each,
        decisions=decisions,
        minibatches=max(1, round(batch / MINIBATCH)),
        steps_per_s=1 / per_step,
        shares={k: v / whole for k, v in parts.items()},
        memory=base + workers * costs.worker + count * costs.simulator + 3 * batch * costs.decision,
        limit=limit,
    )


def measure(env: EnvConfig, policy: Mapping[str, Any], run: Mapping[str, Any], *, seconds: float = 3.0) -> Costs:
    """Collect with one simulator for some seconds, learn from it. `policy` is a node, `run` has algo and rewards."""
    settings = FinetuneRun(checkpoint="", env=env, out="", iterations=1, learner_threads=1, **run)
    apart = replace(env, process="own")  # so that it can be weighed
    vector = SimVector([apart], max_chunk=int(policy.get("horizon", 16)))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = build(policy, env=vector.env_spec)
        learner = make_learner(settings, Start(Path(), {}, None, {}), made)
        collector = Collector(
            vector, made, decisions=ROWS, gamma=learner.algo.gamma, needs=frozenset(needs_of(settings))
        )
        segment = collector.collect(0)  # the first reset and first calls are not counted
        started, spent, steps = time.perf_counter(), 0.0, 0.0
        while not steps or time.perf_counter() - started < seconds:
            segment = collector.collect(0)
            spent += segment.stats["collect_s"] - segment.stats["policy_s"]  # resets and hand-over are in it
            steps += segment.stats["env_steps"]
        simulator = process(vector.pids()[0])
        x = {k: v[0] for k, v in segment.features.items()}  # as many environments, one decision each
        memory, rng = made.initial_memory(ROWS), torch.Generator().manual_seed(0)
        decide_s = min(_timed(lambda: made.act(x, memory, rng)) for _ in range(5)) / ROWS
        batch = join([segment] * COPIES)
        learn_s = min(_timed(lambda: _learn(learner, batch)) for _ in range(2)) / (ROWS * COPIES)
    finally:
        vector.close()
        torch.set_num_threads(before)
    return Costs(
        step_s=spent / steps,
        decide_s=decide_s,
        learn_s=learn_s,
        steps=made.spec.execute,
        simulator=simulator.own + simulator.shared,
        decision=sum(v.numel() * v.element_size() for v in segment.features.values()) / ROWS,
        worker=process().own,
    )


def split(words: Sequence[str]) -> tuple[dict[str, float], str, list[str]]:
    """Figures given on the command line, `ray_address`, and the other words. Raises ValueError on what is no number."""
    figures, address, rest = {}, "", []
    for word in words:
        name, _, value = word.partition("=")
        if name == "ray_address":
            address = value
        elif name in (*FIGURES, *OF_MACHINE):
            try:
                figures[name] = float(value)
            except ValueError as e:
                raise ValueError(f"'{word}': expected a number") from e
        else:
            rest.append(word)
    return figures, address, rest


def complete(figures: Mapping[str, float]) -> bool:
    """Whether nothing has to be measured."""
    return set(FIGURES) <= set(figures)


def machine(figures: Mapping[str, float], address: str = "") -> Machine:
    """This machine, or the cluster at `address`, with `cores`, `memory_gib` and `gpus` as given."""
    if address:
        from rl.plain import cluster  # needs Ray

        cores, memory, gpus = cluster(address)
    else:
        cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Machine(
        cores=int(figures.get("cores", cores)),
        memory=figures["memory_gib"] * 2**30 if "memory_gib" in figures else memory,
        gpus=int(figures.get("gpus", gpus)),
    )


def advise(there: Machine, costs: Costs | None, figures: Mapping[str, float]) -> list[str]:
    """What the machine has, what things cost, and the proposal. Without `costs`, `figures` must be complete."""
    known: dict[str, Any] = {field: figures[name] * unit for name, (field, unit) in FIGURES.items() if name in figures}
    costs = replace(costs, **known) if costs is not None else Costs(**known)
    return [there.line(), costs.line(), *propose(there, costs).lines()]


def _learn(learner: Learner, batch: Segment) -> None:
    """An update of the last stage, whatever comes before it."""
    learner.iteration = batch.version = LAST
    learner.update(batch)


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
