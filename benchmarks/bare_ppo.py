"""PPO with nothing around it: what is left of an iteration when only toy, network and gradients are. See vs_rllib.

Two processes sample, each its rows in turn, straight into memory that the learner reads; the weights are shared, too.
There is no supervision, no log, no check, no episode record, no copy between processes, and old log-probs are the
rollout's. So this is about as fast as eager PyTorch runs this network, and what a platform can hope for.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.learner import Bare
from envs.build import build
from rl.ppo import Ppo

TEXT = "reach the red target"


class Rows:
    """The toys of one process, and the policy that steps them."""

    def __init__(self, sim: dict[str, Any], policy: Any, memory: dict[str, Tensor], rows: slice) -> None:
        self.toys = [build(sim) for _ in range(rows.stop - rows.start)]
        self.policy, self.memory = policy, {k: v[rows] for k, v in memory.items()}
        self.tokens = policy.towers.tokens([TEXT])
        self.rng = torch.Generator().manual_seed(rows.start)
        self.seen = [toy.reset("red", rows.start + i) for i, toy in enumerate(self.toys)]

    @torch.no_grad()
    def sample(self) -> None:
        """Fill this process's rows."""
        m = self.memory
        for t in range(m["value"].shape[1]):
            decision, _ = self.policy.act(self._features(t), {}, self.rng)
            m["trace"][:, t], m["log_prob"][:, t], m["value"][:, t] = decision.trace, decision.log_prob, decision.value
            for i, (toy, chunk) in enumerate(zip(self.toys, decision.chunk.double().numpy(), strict=True)):
                step = toy.step(chunk[0])
                m["env_reward"][i, t], m["terminated"][i, t] = step.reward, step.terminated
                over = step.terminated or step.truncated
                self.seen[i] = toy.reset("red", t) if over else step.obs
        m["next_value"][:, :-1] = m["value"][:, 1:]
        m["next_value"][:, -1] = self.policy.value(self._features(0), {})

    def _features(self, t: int) -> dict[str, Tensor]:
        """Write what is seen where it is learned from, and show it to the policy."""
        for i, obs in enumerate(self.seen):
            for camera, image in obs.images.items():
                self.memory[f"image/{camera}"][i, t, 0] = torch.from_numpy(image)
            self.memory["proprio"][i, t, 0] = torch.from_numpy(obs.proprio)
        stored = {k: v[:, t] for k, v in self.memory.items() if k.startswith("image/") or k == "proprio"}
        return stored | {"tokens": self.tokens.expand(len(self.seen), -1)}


def _work(line: Connection, sim: dict[str, Any], policy: Any, memory: dict[str, Tensor], rows: slice) -> None:
    torch.set_num_threads(1)
    mine = Rows(sim, policy, memory, rows)
    while line.recv():
        mine.sample()
        line.send(True)


def make_memory(policy: Any, streams: int, decisions: int) -> dict[str, Tensor]:
    """Shared arrays [N, T, ...] of a segment."""
    n, t, spec = streams, decisions, policy.spec
    out = {f"image/{c}": torch.zeros(n, t, 1, y, x, 3, dtype=torch.uint8) for c, (y, x) in spec.cameras.items()}
    out["proprio"] = torch.zeros(n, t, 1, len(spec.proprio))
    out["trace"] = torch.zeros(n, t, 2, spec.horizon, spec.action_dim)
    out["log_prob"] = torch.zeros(n, t, 1)
    out |= {k: torch.zeros(n, t) for k in ("value", "next_value", "env_reward")}
    out["terminated"] = torch.zeros(n, t, dtype=torch.bool)
    return {k: v.share_memory_() for k, v in out.items()}


def make_loop(setting: dict[str, Any]) -> tuple[Callable[[], float], Callable[[], Any], Callable[[], None]]:
    """(collects and returns the number of samples, learns from them, ends the processes)."""
    sim, workers, envs = setting["sim"], setting["workers"], setting["envs"]
    policy: Any = build(setting["policy"], env=build(sim).spec)
    policy.share_memory()
    memory = make_memory(policy, workers * envs, setting["decisions"])
    learner = Bare(policy, rescore=False, algo=Ppo(**setting["algo"]))
    spawn, lines = multiprocessing.get_context("spawn"), []
    for i in range(workers):
        ours, theirs = spawn.Pipe()
        rows = slice(i * envs, (i + 1) * envs)
        spawn.Process(target=_work, args=(theirs, sim, policy, memory, rows), daemon=True).start()
        lines.append(ours)
    count = memory["value"].shape
    tokens = policy.towers.tokens([TEXT]).expand(*count, -1)
    features = {k: v for k, v in memory.items() if k.startswith("image/") or k == "proprio"} | {"tokens": tokens}
    fixed = {"features": features, "starts": torch.zeros(*count, dtype=torch.bool), "duration": torch.ones(*count)}
    segment: Any = SimpleNamespace(**memory, **fixed)

    def sample() -> float:
        for line in lines:
            line.send(True)
        for line in lines:
            line.recv()
        return float(memory["value"].numel())

    def stop() -> None:
        for line in lines:
            line.send(False)

    return sample, lambda: learner.update(segment), stop
