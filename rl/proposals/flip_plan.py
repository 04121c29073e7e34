"""FLIP's plan as a hint: where points of the picture should go next, searched for by the planner.

Search is over imagined futures, never over actions: the policy that sees the plan is scored as it is, so the learner's
first ratio stays 1. A planner that fails gives an empty plan and says so; nothing stops.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from envs.build import build
from pretrained.flip.plan import load_modules, search_many
from pretrained.flip.planner import Plan, Planner, World
from pretrained.types import ObsBatch, Rng

KEPT = 512  # plans that are remembered, if the seed is fixed
log = logging.getLogger(__name__)


class FlipPlan:
    """Attaches hints `plan/tracks` [N, P, F, 2], shares of the picture in [-1, 1], and `plan/given` [N, 1], 1 or 0."""

    def __init__(
        self,
        *,
        flow: str = "",
        video: str = "",
        value: str = "",
        world: World | Mapping[str, Any] | None = None,
        camera: str,
        every: int = 4,
        points: int = 144,
        steps: int = 10,
        beams: int = 1,
        candidates: int = 4,
        segments: int = 1,
        goals: bool = False,
        common: bool = False,
        seed: int | None = None,
        device: str = "",
    ) -> None:
        """`flow`, `video`, `value`: checkpoints of these stages; or give a `world`, or the node of one, such as
        `pretrained.flip.recall.Recall`. `every`: decisions between two plans; a plan's first segment is what the policy
        sees. `common`: see `Imagination`. `seed`: the same noise for every plan, which are then remembered; null draws
        it. `goals`: also attach vectors of the plan's pictures, `plan/goals` [N, K, D], for
        `rl.rewards.plan_tracking`. Best of `candidates` is meant: 1 is planning without value."""
        if every < 1 or segments < 1:
            raise ValueError(f"flip plan: expected every >= 1 and segments >= 1, got {every} and {segments}")
        if world is None:
            world = load_modules(flow, video, value, points=points, steps=steps, common=common, device=device)
        self.world: World = build(world) if isinstance(world, Mapping) else world
        self.camera, self.every, self.seed, self.goals = camera, every, seed, goals
        self.planner = Planner(beams=beams, candidates=candidates, segments=segments)
        self._known: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()
        self.failures = 0

    def __call__(self, obs: ObsBatch, rng: Rng) -> dict[str, Tensor]:
        """The plans of N observations; row i follows generator i if there is one per row."""
        if self.camera not in obs.images:
            raise ValueError(
                f"flip plan: there is no camera '{self.camera}', only {list(obs.images)}; set proposal.camera to "
                "the one that the models were trained on"
            )
        rngs = [rng] * len(obs) if isinstance(rng, torch.Generator) else list(rng)
        pictures = torch.as_tensor(obs.images[self.camera])[:, -1]
        # Drawn even if not used, so that what follows does not depend on what is remembered.
        drawn = [int(torch.randint(2**31, (), generator=g)) for g in rngs]
        seeds = drawn if self.seed is None else [self.seed] * len(drawn)
        keys = [hashlib.blake2b(p.numpy().tobytes() + t.encode(), digest_size=16).digest()
                for p, t in zip(pictures, obs.texts, strict=True)]  # fmt: skip
        new = [i for i, key in enumerate(keys) if self.seed is None or key not in self._known]
        made = dict(zip(new, self._search(pictures[new], [obs.texts[i] for i in new], [seeds[i] for i in new]),
                        strict=True)) if new else {}  # fmt: skip
        hints = [self._known[keys[i]] if i not in made else made[i] or self._none() for i in range(len(obs))]
        if self.seed is not None:
            self._known.update({keys[i]: plan for i, plan in made.items() if plan})
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return {k: torch.stack([h[k] for h in hints]) for k in hints[0]}

    def _search(self, pictures: Tensor, texts: list[str], seeds: list[int]) -> list[dict[str, Tensor]]:
        """The hints of each picture, {} where planning failed; in one batch unless that fails."""
        seen = pictures.permute(0, 3, 1, 2).float() / 255
        try:
            return [self._hints(plan) for plan in search_many(self.world, self.planner, list(seen), texts, seeds=seeds)]
        except (ValueError, RuntimeError) as e:
            if len(texts) > 1:  # one bad picture must not cost the others their plans
                return [self._search(pictures[i : i + 1], texts[i : i + 1], seeds[i : i + 1])[0]
                        for i in range(len(texts))]  # fmt: skip
            self.failures += 1
            log.warning("no plan, the policy acts without one (%d so far): %s", self.failures, e)
            return [{}]

    @torch.no_grad()
    def _hints(self, plan: Plan) -> dict[str, Tensor]:
        """Without N."""
        start = self.world.points.cpu()[:, None]
        size = torch.tensor(self.world.size[::-1], dtype=torch.float32)
        tracks = 2 * (torch.cat([start, plan.flow[0].cpu().float()], 1) + 0.5) / size - 1
        hints = {"plan/tracks": tracks, "plan/given": torch.ones(1)}
        if self.goals:
            hints["plan/goals"] = self.world.value.pictures(plan.video.flatten(0, 1)).float().cpu()
        return hints

    def _none(self) -> dict[str, Tensor]:
        """No plan."""
        world = self.world
        out = {"plan/tracks": torch.zeros(len(world.points), world.horizon, 2), "plan/given": torch.zeros(1)}
        if self.goals:
            out["plan/goals"] = torch.zeros(self.planner.segments * (world.horizon - 1), world.value.model.sizes.embed)
        return out
