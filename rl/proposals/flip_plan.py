"""FLIP's plan as a hint: where points of the picture should go next, searched for by the planner.

Search is over imagined futures, never over actions: the policy that sees the plan is scored as it is, so the learner's
first ratio stays 1. A planner that fails gives an empty plan and says so; nothing stops.
"""

import hashlib
import logging
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrained.flip.imagine import Imagination
from pretrained.flip.plan import load_modules, search
from pretrained.flip.planner import Planner
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
        world: Imagination | None = None,
        camera: str,
        every: int = 4,
        points: int = 144,
        steps: int = 10,
        beams: int = 1,
        candidates: int = 4,
        segments: int = 1,
        goals: bool = False,
        seed: int | None = None,
        device: str = "",
    ) -> None:
        """`flow`, `video`, `value`: checkpoints of these stages (or give a `world`). `every`: decisions between two
        plans; a plan's first segment is what the policy sees. `seed`: the same noise for every plan, which are then
        remembered; null draws it. `goals`: also attach vectors of the plan's pictures, `plan/goals` [N, K, D], for
        `rl.rewards.plan_tracking`. Best of `candidates` is meant: 1 is planning without value."""
        if every < 1 or segments < 1:
            raise ValueError(f"flip plan: expected every >= 1 and segments >= 1, got {every} and {segments}")
        if world is None:
            world = load_modules(flow, video, value, points=points, steps=steps, device=device)
        self.world, self.camera, self.every, self.seed, self.goals = world, camera, every, seed, goals
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
        plans = [self._plan(p, text, g) for p, text, g in zip(pictures, obs.texts, rngs, strict=True)]
        return {k: torch.stack([plan[k] for plan in plans]) for k in plans[0]}

    def _none(self) -> dict[str, Tensor]:
        """No plan."""
        world = self.world
        out = {"plan/tracks": torch.zeros(len(world.points), world.flow.horizon, 2), "plan/given": torch.zeros(1)}
        if self.goals:
            out["plan/goals"] = torch.zeros(self.planner.segments * world.video.frames, world.value.model.sizes.embed)
        return out

    @torch.no_grad()
    def _plan(self, picture: Tensor, text: str, rng: torch.Generator) -> dict[str, Tensor]:
        """The hints of one observation, without N; no plan if planning failed."""
        # Drawn even if not used, so that what follows does not depend on what is remembered.
        drawn = int(torch.randint(2**31, (), generator=rng))
        seed = drawn if self.seed is None else self.seed
        key = hashlib.blake2b(picture.numpy().tobytes() + text.encode(), digest_size=16).digest()
        if self.seed is not None and key in self._known:
            return self._known[key]
        try:
            plan, _ = search(self.world, self.planner, picture.permute(2, 0, 1).float() / 255, text, seed=seed)
        except (ValueError, RuntimeError) as e:
            self.failures += 1
            log.warning("no plan, the policy acts without one (%d so far): %s", self.failures, e)
            return self._none()
        start = self.world.points.cpu()[:, None]
        tracks = torch.cat([start, plan.flow[0].cpu().float()], 1)
        size: Any = np.array(self.world.flow.size[::-1], dtype=np.float32)
        tracks = 2 * (tracks + 0.5) / torch.from_numpy(size) - 1
        hints = {"plan/tracks": tracks, "plan/given": torch.ones(1)}
        if self.goals:
            hints["plan/goals"] = self.world.value.pictures(plan.video.flatten(0, 1)).float().cpu()
        if self.seed is not None:
            self._known[key] = hints
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return hints
