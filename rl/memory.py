"""How much memory a fine-tuning run will take, before it starts: `launch.py finetune ... --dry`.

Sizes are measured in a rehearsal in this process (one simulator, a few decisions, one update on them) and multiplied
by what the run has of each: simulators, workers, decisions, rows of a minibatch. What is predicted is the peak of the
whole process tree, each page counted once (the sum of Linux' "proportional set size"), as `used` measures it.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.vector import SimVector
from pretrained.checkpoint import find, load_policy, read_card
from rl.collect import Collector
from rl.learner import Learner
from rl.rollout import as_module
from rl.run import FinetuneRun, Start, make_algo, make_learner, needs_of
from rl.types import Batch, Segment

MIB = 2**20
DECISIONS = 4  # of the rehearsal
RAY = 375 * MIB  # Ray's own processes on a machine, and
IDLE = 45 * MIB  # each Python process that it keeps ready; measured with Ray 2.60
ENGINES = {"rllib": "rl.engine", "ray": "rl.plain", "local": "rl.local"}


@dataclass
class Memory:
    """Bytes of each part of a run at its peak."""

    parts: dict[str, float] = field(default_factory=dict)
    device: float = 0.0  # of the accelerator, not in the total

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """For people."""
        out = [f"peak memory, predicted: {_size(self.total)}"]
        out += [f"  {_size(v):>9}  {name}" for name, v in self.parts.items() if v >= MIB / 2]
        return out + ([f"  and {_size(self.device)} of the accelerator's"] if self.device else [])


@dataclass
class Process:
    """What a process holds, in bytes."""

    own: float = 0.0  # no other process can share it
    files: float = 0.0  # programs and libraries: counted once for all processes that have them
    shared: float = 0.0  # shared memory


@dataclass
class Rehearsal:
    """What one of each takes, in bytes."""

    start: Process  # this process with everything loaded, before it did anything
    learner: Process  # and after an update
    simulator: Process
    policy: float  # weights and buffers
    trained: float  # those that gradients change
    decision: float  # of a segment
    kept: float  # for the gradients of one row of a minibatch
    memoryless: bool  # then a row is a decision, else a stream of them


def predict(run: FinetuneRun) -> Memory:
    """Rehearse and multiply. Raises what the run would raise: no checkpoint, a simulator that does not start."""
    return multiply(run, rehearse(run))


def rehearse(run: FinetuneRun) -> Rehearsal:
    """Start one simulator, decide a few times, learn once."""
    checkpoint = find(Path(run.checkpoint))
    importlib.import_module(ENGINES[run.engine])
    if run.logger.get("tensorboard", True):
        importlib.import_module("torch.utils.tensorboard")
    torch.set_num_threads(run.threads)
    run = replace(run, device="cpu", compile=False)  # of which nothing is known before it is done
    learner = make_learner(run, Start(checkpoint, run.policy_overrides, None, {}))
    start = process()
    card, algo = read_card(checkpoint), make_algo(run)
    apart = replace(run.env, process="own")  # so that it can be weighed; shared ones take less
    vector = SimVector([apart], max_chunk=card.policy.horizon)
    try:
        policy = load_policy(checkpoint, env=vector.env_spec, overrides=dict(run.policy_overrides), spare_cameras=True)
        as_module(policy).eval()
        segment = Collector(
            vector, policy, decisions=DECISIONS, gamma=algo.gamma, needs=frozenset(needs_of(run))
        ).collect(0)
        simulator = process(vector.pids()[0])
    finally:
        vector.close()
    kept = _kept(learner, segment)
    learner.update(segment)
    weights = [*as_module(policy).parameters(), *as_module(policy).buffers()]
    return Rehearsal(
        start=start,
        learner=process(),
        simulator=simulator,
        policy=_bytes(weights),
        trained=_bytes([p for p in weights if p.requires_grad]),
        decision=_bytes(list(_tensors(vars(segment)))) / DECISIONS,
        kept=kept,
        memoryless=policy.spec.memoryless,
    )


def multiply(run: FinetuneRun, one: Rehearsal) -> Memory:
    """The parts of a run, from one of each."""
    workers = run.num_workers
    simulators = workers * run.envs_per_worker
    length = 1 if one.memoryless else run.decisions  # of a row
    learners = max(1, run.num_learners)
    rows = -(-simulators * run.decisions // length // learners)  # of one learner
    minibatch = -(-rows // min(make_algo(run).minibatches, rows))
    batch = one.decision * simulators * run.decisions
    gpu = run.device.startswith("cuda")
    out = Memory()
    out.parts["programs and libraries"] = max(one.start.files, one.learner.files)
    out.parts["driver"] = one.start.own + one.policy  # the loop has a copy of the policy besides the learner's
    learn = (
        max(0.0, one.learner.own - one.start.own - 3 * one.trained - one.policy)  # what libraries set up when used
        + 3 * one.trained  # gradients and Adam's moments
        + (batch / learners if workers > learners else 0.0)  # segments joined
        + minibatch * (one.decision * length + (0 if gpu else one.kept))
    )
    out.parts["learning"] = learners * learn + run.num_learners * (one.start.own + one.policy)
    out.parts["simulators"] = simulators * (one.simulator.own + one.simulator.shared) + one.simulator.files
    if run.engine == "local":
        out.parts["segments"] = batch
        out.parts["rollout workers"] = workers * one.policy
    else:
        out.parts["segments"] = batch * (2 + run.max_lag) + one.policy  # being filled, and in the object store
        out.parts["rollout workers"] = workers * (one.start.own + one.policy)
        out.parts["Ray"] = RAY + IDLE
    if gpu:
        out.device = learners * (one.policy + 3 * one.trained + minibatch * one.kept)
    return out


# --- measuring --------------------------------------------------------------------------------------------------------


def process(pid: int | str = "self") -> Process:
    """What a process holds now."""
    found = _rollup(pid)
    shared = found.get("Pss_Shmem", 0.0)
    return Process(own=found["Anonymous"], files=max(0.0, found["Rss"] - found["Anonymous"] - shared), shared=shared)


def used(pid: int) -> float:
    """Bytes of a process and all its descendants, each page counted once.

    Programs and libraries are those of the process that has most of them: their share (Pss) would be the less, the more
    strangers on the machine run the same ones.
    """
    all_found = [_rollup(p) for p in _tree(pid)]
    own = sum(found.get("Pss_Anon", 0.0) + found.get("Pss_Shmem", 0.0) for found in all_found)
    files = (found.get("Rss", 0.0) - found.get("Anonymous", 0.0) - found.get("Pss_Shmem", 0.0) for found in all_found)
    return own + max(files, default=0.0)


def _tree(pid: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for p in found:
        found += children.get(p, [])
    return found


def _rollup(pid: int | str) -> dict[str, float]:
    """The sums of /proc/PID/smaps_rollup in bytes; {} if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines}


def _kept(learner: Learner, segment: Segment) -> float:
    """Bytes held for the gradients of one row, in the stage of a run that holds most."""
    batch, _ = learner.targets(segment)
    rows = batch.valid.shape[0]
    return max(_kept_in(learner, batch, stage) for stage in learner.algo.stages) / rows


def _kept_in(learner: Learner, batch: Batch, stage: Any) -> float:
    weights = {p.untyped_storage().data_ptr() for p in learner.module.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # else memory would be used twice and counted once

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), learner.compute.autocast(learner.device):
        learner.algo.loss(learner.scorer, batch, stage)
    return float(sum(sizes.values()))


def _bytes(tensors: list[Tensor]) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / MIB:.0f} MiB"
