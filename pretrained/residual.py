"""A small correction on top of a frozen policy, as what fine-tuning learns: a = a_base + rho u, u bounded.

Residual policies as in ResiP (Ankile et al. 2024) and Policy Decorator (Yuan et al. 2025). The base looks at pictures,
sentence and plan, once, at collection; its decision and what it saw are stored, so learning runs no tower. u is a
Gaussian that is scored before it is bounded: its log-probability is exact, whatever family the base is of, and the base
itself is never scored. Before learning, u is zero on average, and the greedy policy is the greedy base.

    python -m pretrained.residual runs/bc runs/residual --rho 0.1      # then: finetune checkpoint=runs/residual
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.build import build
from envs.types import EnvSpec
from pretrained import chain, checkpoint
from pretrained.chunk_policy import ChunkPolicy
from pretrained.heads import Gaussian
from pretrained.networks import Critic, FreeNoise, VelocityMlp
from pretrained.types import Decision, DemoBatch, Evaluation, Features, Memory, Metrics, ObsBatch, Rng

SEEN, BASE, NUMBERS = "residual/seen", "residual/base", "residual/proprio"


class ResidualPolicy(nn.Module):
    """Meets `pretrained.types.Policy`. Features are the base's condition [N, D], its chunk [N, H, A] and hints."""

    def __init__(
        self, *, env: EnvSpec, base: Mapping[str, Any], rho: float = 0.1, std: float = 0.3, max_std: float = 1.0,
        width: int = 256, layers: int = 2, critic_width: int = 256,
    ) -> None:  # fmt: skip
        """`base`: node of a ChunkPolicy without memory; `rho`: share of each action's half range that u = 1 is; `std`:
        of u at the start."""
        super().__init__()
        if not 0 < rho <= 1:
            raise ValueError(f"residual: rho = {rho:g}, expected 0 < rho <= 1 (0.05 to 0.2 is usual)")
        policy: Any = build(base, env=env)
        if not isinstance(policy, ChunkPolicy) or policy.kernel.discrete or not policy.spec.memoryless:
            raise ValueError(
                f"residual: the base is a {type(policy).__name__}, expected a ChunkPolicy of continuous actions and "
                "memory: none"
            )
        if not all(math.isfinite(b) for b in (*env.low, *env.high)):
            raise ValueError(f"residual: {env.env_id} has actions without bounds, of which rho is no share")
        self.base, self.rho = policy.requires_grad_(False), rho
        self.kernel = Gaussian(std=std, min_std=min(0.02, std), max_std=max(max_std, std))
        self.spec = replace(policy.spec, links=1, frozen_links=0)
        sizes = {"horizon": self.spec.horizon, "action_dim": self.spec.action_dim}
        seen = int(base.get("width", 256)) + self.spec.history * len(self.spec.proprio)
        seen += self.spec.horizon * self.spec.action_dim
        network = VelocityMlp(**sizes, outputs=self.spec.action_dim, cond_dim=width, width=width, layers=layers)
        self.actor = nn.ModuleDict({"input": nn.Linear(seen, width), "network": network})
        self.noise = FreeNoise(**sizes)
        self.critic = Critic(seen, width=critic_width)

    def encode(self, obs: ObsBatch) -> Features:
        """The base decides, greedily and always with the same noise; also hints, for rewards."""
        with torch.no_grad():
            x = self.base.encode(obs)
            cond, proprio = self.base.condition(x)
            fixed = [torch.Generator().manual_seed(0) for _ in range(len(obs))]
            chunk = self.base.act(x, {}, fixed, greedy=True)[0].chunk
        hints = {k: v for k, v in x.items() if k.startswith("hint/")}
        return {SEEN: cond.float(), NUMBERS: proprio.float(), BASE: chunk.float()} | hints

    def _seen(self, x: Features) -> Tensor:
        """[B, ...] of features [B, ...]."""
        low, high = self._bounds()
        chunk = 2 * (x[BASE] - low) / (high - low) - 1
        return torch.cat([x[SEEN], x[NUMBERS], chunk.flatten(1)], -1)

    def _bounds(self) -> tuple[Tensor, Tensor]:
        return self.base.actions.low, self.base.actions.high

    def _network(self, inputs: Tensor, time: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor["network"](inputs, time, cond).float(), self.noise(time, cond).float()

    def _condition(self, x: Features) -> tuple[Tensor, Tensor]:
        """[B, width] for the network, and the value [B]."""
        seen = self._seen(x)
        return self.actor["input"](seen), self.critic(seen).float()

    def initial_memory(self, n: int) -> Memory:
        """Nothing."""
        return {}

    @torch.no_grad()
    def act(self, x: Features, memory: Memory, rng: Rng, greedy: bool = False) -> tuple[Decision, Memory]:
        """Decide for N rows."""
        cond, value = self._condition(x)
        shape = (self.spec.horizon, self.spec.action_dim)
        drawn = chain.sample(self.kernel, self._network, cond, shape, rng, execute=self.spec.execute, greedy=greedy)
        low, high = self._bounds()
        step = self.rho * (high - low) / 2 * drawn.trace[:, -1].clamp(-1, 1)
        chunk = torch.minimum(torch.maximum(x[BASE] + step, low), high)
        return Decision(chunk, drawn.trace, drawn.log_prob, drawn.active, value), memory

    def evaluate(
        self, x: Features, trace: Tensor, starts: Tensor, memory: Memory, links: Tensor | None = None
    ) -> Evaluation:
        """Score recorded corrections [N, T]."""
        n, t = trace.shape[:2]
        cond, value = self._condition({k: v.flatten(0, 1) for k, v in x.items()})
        scores, entropy = chain.score(self.kernel, self._network, cond, trace.flatten(0, 1),
                                      execute=self.spec.execute,
                                      links=None if links is None else links.flatten(0, 1))  # fmt: skip
        return Evaluation(scores.unflatten(0, (n, t)), entropy.view(n, t), value.view(n, t))

    @torch.no_grad()
    def value(self, x: Features, memory: Memory) -> Tensor:
        """[N], without deciding."""
        return self._condition(x)[1]

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """There is none: the base has been imitated."""
        raise ValueError("a residual policy is fine-tuned, not imitated; imitate its base")

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """The base has its own."""


def on_top_of(folder: Path | str, out: Path | str, **options: Any) -> Path:
    """Write the checkpoint `out` of a residual policy around the policy of the checkpoint `folder`."""
    folder = checkpoint.find(folder)
    card = checkpoint.read_card(folder)
    base: Any = checkpoint.load_policy(folder)
    node = {"_target_": "pretrained.residual.ResidualPolicy", "base": dict(card.node), **options}
    policy: Any = build(node, env=card.env)
    policy.base.load_state_dict(base.state_dict())
    out = Path(out) / "step_00000000"
    checkpoint.save(out, policy, node=node, env=card.env, parent=str(folder))
    return out


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.residual", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("base", help="a checkpoint, or a run's folder")
    parser.add_argument("out", help="folder of a new run")
    parser.add_argument("--rho", type=float, default=0.1, help="share of half the range of an action that u = 1 is")
    parser.add_argument("--std", type=float, default=0.3, help="of u at the start")
    given = parser.parse_args(words)
    sys.stdout.write(f"{on_top_of(given.base, given.out, rho=given.rho, std=given.std)}\n")


if __name__ == "__main__":
    main()
