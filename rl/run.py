"""A fine-tuning run, what an engine reports of it, and its learner at the start: what loop and engines share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from envs.build import build
from envs.types import EnvConfig
from pretrained.checkpoint import load_policy
from pretrained.types import Metrics, Policy
from rl.border import Border
from rl.compute import Compute
from rl.learner import Learner
from rl.ppo import Ppo
from rl.rollout import RolloutPlan, Weights
from rl.types import EpisodeRecord


@dataclass(frozen=True)
class FinetuneRun:
    """One fine-tuning run; the `finetune` configuration."""

    checkpoint: str
    env: EnvConfig
    out: str
    algo: Mapping[str, Any]  # node of rl.ppo.Ppo
    rewards: Mapping[str, Any]  # name -> {weight, term: node}
    proposal: Mapping[str, Any] | None = None  # node
    policy_overrides: Mapping[str, Any] = field(default_factory=dict)
    engine: Literal["rllib", "ray", "local"] = "rllib"
    num_workers: int = 1
    envs_per_worker: int = 8
    num_learners: int = 0  # 0: the learner lives in the driver
    worker_resources: Mapping[str, float] = field(default_factory=dict)  # custom ones of Ray, of each rollout worker
    learner_resources: Mapping[str, float] = field(default_factory=dict)  # likewise; of a learner that is an actor
    decisions: int = 32  # T
    iterations: int | None = None
    max_env_steps: int | None = None
    max_wall_s: float | None = None
    save_every: int = 10
    seed: int = 0
    device: str = "cpu"  # of the learners, e.g. cuda; rollout workers stay on the CPU
    threads: int = 1  # of torch, in every process while simulators run
    learner_threads: int = 0  # of torch while learning; 0: all cores, shared among learners, or 1 with max_lag
    bf16: bool = False  # of the learner, as are the next three; see rl.compute
    compile: bool = False
    fused: bool = True
    recompute: bool = False
    lockstep: bool = False
    max_lag: int = 0  # 1: workers collect with the last weights while the learner makes the next ones
    sample_timeout_s: float = 600.0  # a worker that takes longer is replaced
    learn_timeout_s: float = 240.0  # learners that take longer are rebuilt; where they are processes of their own
    ray_address: str = ""  # "" starts Ray here
    dashboard: bool = False  # show the Ray dashboard of a local Ray
    logger: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)  # the resolved configuration, kept with checkpoints
    command: str = ""  # what was typed, for the ledger and the report
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.iterations is None and self.max_env_steps is None and self.max_wall_s is None:
            raise ValueError("nothing would end this run: set iterations, max_env_steps or max_wall_s")
        if self.num_workers < 1 or self.envs_per_worker < 1 or self.decisions < 1:
            raise ValueError("num_workers, envs_per_worker and decisions must be at least 1")
        if self.max_lag not in (0, 1) or (self.max_lag and self.engine == "local"):
            raise ValueError(
                f"max_lag = {self.max_lag} with engine '{self.engine}': expected 0, or 1 with engine rllib or ray"
            )
        if self.device.startswith("cuda") and not torch.cuda.is_available() and not self.ray_address:
            raise ValueError(f"device = '{self.device}', but this machine has no CUDA device; set device=cpu")

    def plan(self, checkpoint: str, needs: tuple[str, ...], gamma: float, seed: int) -> RolloutPlan:
        """What every rollout worker is told."""
        return RolloutPlan(
            checkpoint=checkpoint,
            env=self.env,
            num_envs=self.envs_per_worker,
            decisions=self.decisions,
            gamma=gamma,
            seed=seed,
            policy_overrides=self.policy_overrides,
            needs=needs,
            proposal=self.proposal,
            lockstep=self.lockstep,
            threads=self.threads,
        )


@dataclass
class Iteration:
    """What an engine reports of one round."""

    metrics: Metrics
    episodes: list[EpisodeRecord]
    events: list[dict[str, Any]] = field(default_factory=list)  # restarts of workers or learners, for the ledger
    started: int = 0  # episodes begun
    learned: list[str] = field(default_factory=list)  # names of the segments that the learner has learned from
    busy_s: dict[str, float] = field(default_factory=dict)  # of every device that was there: what it worked
    lost: set[str] = field(default_factory=set)  # devices that were gone or starting again


class Engine(Protocol):
    """Where the rollout workers and the learner live."""

    def iterate(self) -> Iteration: ...

    def weights(self) -> Weights: ...

    def learner_state(self) -> dict[str, Any]: ...

    def borders(self) -> list[Border | None]:
        """Where each rollout worker stands, None for one that cannot tell."""
        ...

    def stop(self) -> None: ...


@dataclass
class Start:
    """Where a run begins: from the imitation checkpoint, or from its own newest one."""

    checkpoint: Path
    overrides: Mapping[str, Any]
    learner: dict[str, Any] | None
    loop: dict[str, Any]
    borders: list[Border | None] = field(default_factory=list)  # of the rollout workers

    def border(self, worker: int) -> Border | None:
        """Where this worker goes on."""
        return self.borders[worker] if worker < len(self.borders) else None


def make_learner(run: FinetuneRun, start: Start, policy: Policy | None = None) -> Learner:
    """The learner at the start of this run, wherever it lives."""
    if policy is None:
        policy = load_policy(start.checkpoint, overrides=dict(start.overrides))
    terms = {
        name: {"weight": node["weight"], "term": build(node["term"])}
        for name, node in run.rewards.items()
        if node["weight"]
    }
    free = 1 if run.max_lag else (os.cpu_count() or 1)  # with a lag the simulators never rest
    threads = run.learner_threads or max(1, free // max(1, run.num_learners))
    compute = Compute(bf16=run.bf16, compile=run.compile, fused=run.fused, recompute=run.recompute)
    learner = Learner(policy, make_algo(run), terms, seed=run.seed, device=run.device, threads=threads, compute=compute)
    if start.learner:
        learner.load(start.learner)
    return learner


def make_algo(run: FinetuneRun) -> Ppo:
    """The hyper-parameters as the frozen dataclass they are."""
    return build({"_target_": "rl.ppo.Ppo", **run.algo})


def needs_of(run: FinetuneRun) -> tuple[str, ...]:
    """What the reward terms want to have stored in segments."""
    return tuple(sorted({n for v in run.rewards.values() if v["weight"] for n in build(v["term"]).needs}))
