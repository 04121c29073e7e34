"""GENIMA's plan: the camera pictures repainted with where the joints should be, for a controller that follows them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pretrained import checkpoint
from pretrained.genima.tiles import check_order, tile, untile
from pretrained.types import ObsBatch, Rng


class TargetImage:
    """Attaches hints `target/<camera>`, uint8 [N, Y, X, 3]: all environments that ask are painted in one batch."""

    def __init__(
        self,
        *,
        checkpoint_path: str = "",
        painter: Any = None,
        cameras: Sequence[str] | None = None,
        every: int = 1,
        steps: int = 10,
        seed: int | None = None,
        bf16: bool = False,
        compile: bool = False,
        device: str = "",
    ) -> None:
        """`checkpoint_path`: of a TargetPainter (or give a `painter`). `cameras`: the order of the tile, to be checked
        against the painter's. `seed`: the same noise for every picture, as the original has it; null draws it."""
        if every < 1 or not 1 <= steps <= 1000:
            raise ValueError(f"target image: expected every >= 1 and 1 to 1000 steps, got {every} and {steps}")
        if painter is None:
            if not checkpoint_path:
                raise ValueError("target image: name a trained painter, proposal.checkpoint_path=runs/...")
            overrides = {"compile": True} if compile else {}
            painter = checkpoint.load_policy(checkpoint.find(checkpoint_path), overrides=overrides)
        if not hasattr(painter, "paint"):
            raise ValueError(f"{checkpoint_path} holds a {type(painter).__name__}, expected a TargetPainter")
        if cameras is not None:
            check_order(cameras, painter.views, "the proposal")
        self.painter: Any = painter.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        self.every, self.steps, self.seed, self.bf16 = every, steps, seed, bf16

    def __call__(self, obs: ObsBatch, rng: Rng) -> dict[str, Tensor]:
        """The target pictures of N observations."""
        views = {c: torch.as_tensor(v)[:, -1].cpu().numpy() for c, v in obs.images.items()}
        tiles = tile(views, self.painter.views)
        noise: Rng = rng
        if self.seed is not None:
            noise = [torch.Generator().manual_seed(self.seed) for _ in range(len(obs))]
        painted = self.painter.paint(tiles, obs.texts, noise, steps=self.steps, bf16=self.bf16).cpu().numpy()
        found = untile(painted, self.painter.views)
        return {f"target/{c}": torch.from_numpy(v.copy()) for c, v in found.items()}
