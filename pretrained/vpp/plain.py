"""VPP without foresight: the Video Former looks at patches of the present picture, not at a video model's maps.

`policy.video._target_=pretrained.vpp.plain.Patches` takes the place of `VideoModel`, so that two policies differ in
what the Former sees and in nothing else: the same latents, head, critic and goals. Together with the Former it is a
small vision transformer, trained by imitation. Letters as in `pretrained.vpp.video`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained.vpp.quirks import choose
from pretrained.vpp.towers import load_text
from pretrained.vpp.video import GOAL_TOKENS

POSITION_WAVES = (1.0, 2.0, 4.0)  # half turns over the picture


class Patches(nn.Module):
    """Pictures as patches with their places. It has no weights, and the seed of the noise means nothing to it."""

    def __init__(
        self,
        *,
        text: str = "openai/clip-vit-base-patch32",
        tokenizer: str = "",
        size: Sequence[int] = (256, 256),
        patch: int = 16,
        frames: int = 1,
        quirks: str = "fixed",
        switches: Mapping[str, Any] | None = None,
    ) -> None:
        """`frames`: the picture is shown so often, so that the Former has as many latents that ask it."""
        super().__init__()
        self.size, self.patch, self.frames = (int(size[0]), int(size[1])), patch, frames
        if patch < 1 or any(side % patch for side in self.size) or frames < 1:
            raise ValueError(
                f"patch = {patch} and frames = {frames}: expected patches that divide size {list(self.size)}, and at "
                "least one frame"
            )
        self.quirks = choose(quirks, switches or {})
        tower, self._tokenize = load_text(text, tokenizer)
        self._text = [tower.requires_grad_(False).eval()]  # a plain list: it is no submodule
        self.goal_dim = int(tower.config.projection_dim)
        self.channels = 3 * patch**2 + 4 * len(POSITION_WAVES)
        self._goals: dict[str, Tensor] = {}

    def _apply(self, fn: Any, recurse: bool = True) -> "Patches":
        """Move the frozen tower along with the module."""
        super()._apply(fn, recurse)
        self._text[0]._apply(fn)
        self._goals.clear()
        return self

    @torch.no_grad()
    def goals(self, texts: Sequence[str]) -> Tensor:
        """[N, G], the same as the video model gives the action head."""
        for sentence in dict.fromkeys(texts):
            if sentence not in self._goals:
                ids, mask = (t.to(self._text[0].device) for t in self._tokenize([sentence], GOAL_TOKENS))
                self._goals[sentence] = self._text[0](input_ids=ids, attention_mask=mask).text_embeds[0].float()
        return torch.stack([self._goals[sentence] for sentence in texts])

    @torch.no_grad()
    def foresee(self, images: Mapping[str, Tensor], texts: Sequence[str], seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Cameras' pictures uint8 [B, Y, X, 3] -> patches [B, T, V S, C] and goals [B, G]."""
        seen = torch.cat([self.patches(image) for image in images.values()], 1)
        return seen[:, None].expand(-1, self.frames, -1, -1), self.goals(texts)

    def patches(self, image: Tensor) -> Tensor:
        """uint8 [B, Y, X, 3] -> [B, S, C]: colours in [-1, 1], then sines and cosines of the place."""
        x = image.permute(0, 3, 1, 2).float() / 127.5 - 1
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)
        colours = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        return torch.cat([colours, self.places(x.device).expand(len(x), -1, -1)], 2)

    def places(self, device: torch.device) -> Tensor:
        """[1, S, 4 waves]."""
        rows, columns = (torch.linspace(0, 1, side // self.patch, device=device) for side in self.size)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)  # [S, 2]
        angles = torch.pi * grid[:, :, None] * torch.tensor(POSITION_WAVES, device=device)
        return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)[None]
