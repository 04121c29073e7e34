"""The video model: Stable Video Diffusion told by a sentence what happens next, and what its U-Net foresees.

    first picture --VAE--> latent, repeated --.
    noise ------------------------------------+--U-Net up to an upper block--> predictive features [B, T, S, C]
    sentence --CLIP, 20 tokens----------------'

The features are taken in one pass on pure noise, by forward hooks, and the pass ends at the last block that is asked.
The same seed gives the same features. Letters: B rows, T frames, V cameras, S features of a frame, C their channels,
h, w size of a latent, Z its channels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained.vpp.quirks import Quirks, choose
from pretrained.vpp.towers import Towers, load_text, load_video

FPS, MOTION = 7.0, 127.0  # what the U-Net is told of every clip that it learns
FEATURE_FPS = 4.0  # what the original tells it instead when it takes features
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GOAL_TOKENS = 77
LOG_SIGMA = (0.7, 1.6)  # mean and deviation in training
AUGMENTATION = (-3.0, 0.5)  # of the logarithm of its strength


class Sentence(NamedTuple):
    """What the text tower says about one instruction."""

    states: Tensor  # [tokens, cross-attention width], for the U-Net
    goal: Tensor  # [G], for the action head


class VideoModel(nn.Module):
    """Frozen towers around a U-Net; only a `learning` one has parameters, those of the U-Net."""

    def __init__(
        self,
        *,
        model: str = "stabilityai/stable-video-diffusion-img2vid",
        text: str = "openai/clip-vit-base-patch32",
        tokenizer: str = "",
        frames: int = 16,
        size: Sequence[int] = (256, 256),
        block: int = 1,
        all_blocks: bool = True,
        tokens: int = 20,
        positions: bool = False,
        passes: int = 1,
        schedule: int = 20,
        dtype: str = "float32",
        quirks: str = "fixed",
        switches: Mapping[str, Any] | None = None,
        learning: bool = False,
        parts: tuple[Towers, Any, Callable[..., Any]] | None = None,
    ) -> None:
        """`block`: the last upper block whose output is taken, with `all_blocks` together with those before it.
        `positions`: whether the text's positions are added once more, a property of the weights. `passes`: at which of
        the `schedule` denoising steps features are taken. `parts` are towers that are there already."""
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype '{dtype}' is unknown; expected one of {', '.join(DTYPES)}")
        self.quirks: Quirks = choose(quirks, switches or {})
        towers, sentence, self._tokenize = parts or (load_video(model), *load_text(text, tokenizer))
        self.frames, self.size, self.tokens = frames, (int(size[0]), int(size[1])), tokens
        self.block, self.all_blocks, self.positions = block, all_blocks, positions
        self.passes, self.schedule = passes, schedule
        self.scheduler, self.scale = towers.scheduler, float(towers.vae.config.scaling_factor)
        kind = torch.float32 if learning else DTYPES[dtype]
        frozen = [towers.vae, sentence, *([] if learning else [towers.unet])]
        self._frozen = [_still(tower, kind) for tower in frozen]  # a plain list: they are no submodules
        if learning:
            self.unet = towers.unet.train().requires_grad_(True)
        self._measure(towers)
        self._sentences: dict[str, Sentence] = {}

    def _measure(self, towers: Towers) -> None:
        """Sizes of latents and features, and whether all fits together."""
        channels = [int(c) for c in reversed(towers.unet.config.block_out_channels)]
        if not 0 <= self.block < len(channels) or not 1 <= self.passes <= self.schedule:
            raise ValueError(
                f"block = {self.block} and passes = {self.passes}: the U-Net has upper blocks 0 to "
                f"{len(channels) - 1}, and the schedule {self.schedule} steps"
            )
        shrink = 2 ** (len(towers.vae.config.block_out_channels) - 1)
        folds = 2 ** (len(channels) - 1)
        if any(side % (shrink * folds) for side in self.size):
            raise ValueError(f"size {list(self.size)}: the video model takes multiples of {shrink * folds} pixels")
        y, x = (side // shrink for side in self.size)
        self.latent = (int(towers.vae.config.latent_channels), y, x)
        finest = 2 ** max(0, len(channels) - 2 - self.block)
        self.grid = (y // finest, x // finest)
        self.channels = sum(channels[: self.block + 1]) if self.all_blocks else channels[self.block]
        self.goal_dim = int(self.text.config.projection_dim)
        width = int(towers.unet.config.cross_attention_dim)
        if width % int(self.text.config.hidden_size):
            raise ValueError(
                f"the U-Net attends to vectors of {width} entries, and CLIP's have {self.text.config.hidden_size}; "
                "expected a multiple: take the text tower that the video model was trained with"
            )
        self.copies = width // int(self.text.config.hidden_size)

    @property
    def vae(self) -> Any:
        """The image tower."""
        return self._frozen[0]

    @property
    def text(self) -> Any:
        """CLIP's text tower."""
        return self._frozen[1]

    @property
    def net(self) -> Any:
        """The U-Net, learning or not."""
        return self.unet if "unet" in self._modules else self._frozen[2]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "VideoModel":
        """Move the frozen towers along with the module."""
        super()._apply(fn, recurse)
        for tower in self._frozen:
            tower._apply(fn)
        self._sentences.clear()
        return self

    # --- what goes in ---

    @torch.no_grad()
    def sentences(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """[N, tokens, W] for the U-Net and [N, G] for the action head; each sentence is computed once."""
        for sentence in dict.fromkeys(texts):
            if sentence not in self._sentences:
                (ids, mask), (goal_ids, goal_mask) = (self._tokenize([sentence], n) for n in (self.tokens, GOAL_TOKENS))
                place = self.vae.device
                hidden = self.text(input_ids=ids.to(place), attention_mask=mask.to(place)).last_hidden_state
                goal = self.text(input_ids=goal_ids.to(place), attention_mask=goal_mask.to(place)).text_embeds
                self._sentences[sentence] = Sentence(self.states(hidden)[0], goal[0].float())
        found = [self._sentences[sentence] for sentence in texts]
        return torch.stack([s.states for s in found]), torch.stack([s.goal for s in found])

    def states(self, hidden: Tensor) -> Tensor:
        """CLIP's hidden states [N, tokens, D] as wide as the U-Net's attention."""
        if self.positions:
            waves = torch.exp(torch.arange(0, hidden.shape[2], 2) * (-math.log(10000.0) / hidden.shape[2]))
            angles = torch.arange(hidden.shape[1])[:, None] * waves
            hidden = hidden + torch.cat([angles.sin(), angles.cos()], -1).to(hidden)
        return hidden.repeat(1, 1, self.copies)

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 [B, Y, X, 3] -> [B, 3, *size] in [-1, 1]."""
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        if tuple(x.shape[2:]) == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """[B, 3, *size] -> latents [B, Z, h, w] as the VAE gives them; the noisy ones are `scale` times as large."""
        return self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()

    def noise(self, seeds: Tensor, views: int) -> Tensor:
        """Standard normal [B, V, T, Z, h, w]; row b depends on seed b alone."""
        shape = (views, self.frames, *self.latent)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        return torch.stack(rows).to(self.vae.device)

    def told(self, rows: int, fps: float, augmentation: float | Tensor) -> Tensor:
        """What the U-Net is told of a clip beside its text: [B, 3]."""
        out = torch.zeros(rows, 3, device=self.vae.device)
        out[:, 0], out[:, 1], out[:, 2] = fps, MOTION, augmentation
        return out

    def ask(self, noisy: Tensor, time: Tensor, first: Tensor, states: Tensor, told: Tensor) -> Tensor:
        """One pass: noisy [B, T, Z, h, w], already divided by its size, and the first latents [B, Z, h, w]."""
        kind = self.net.dtype
        x = torch.cat([noisy, first[:, None].expand_as(noisy)], 2).to(kind)
        return self.net(x, time, states.to(kind), told.to(kind), return_dict=False)[0]

    # --- what comes out ---

    @torch.no_grad()
    def foresee(self, images: Mapping[str, Tensor], texts: Sequence[str], seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Cameras' pictures uint8 [B, Y, X, 3] -> features [B, T, V S, C] and goals [B, G]."""
        states, goals = self.sentences(texts)
        first = torch.stack([self.latents(self.pixels(image)) for image in images.values()], 1)  # [B, V, Z, h, w]
        views = first.shape[1]
        noise = self.noise(seeds, views).flatten(0, 1)
        maps = self.features(first.flatten(0, 1), states.repeat_interleave(views, 0), noise)
        tokens = maps.flatten(3).transpose(2, 3).unflatten(0, (-1, views))  # [B, V, T, S, C]
        return tokens.transpose(1, 2).flatten(2, 3), goals

    @torch.no_grad()
    def features(self, first: Tensor, states: Tensor, noise: Tensor) -> Tensor:
        """First latents [B, Z, h, w], text [B, tokens, W], unit noise [B, T, Z, h, w] -> maps [B, T, C, *grid].

        Raises ValueError if shapes are not those of this video model, or if its answer is not finite."""
        self._check(first, noise)
        self.scheduler.set_timesteps(self.schedule, device=noise.device)
        x = noise * self.scheduler.init_noise_sigma
        told = self.told(len(first), FEATURE_FPS if self.quirks.fps == "four" else FPS, 0.0)
        found: list[Tensor] = []
        for i, time in enumerate(self.scheduler.timesteps[: self.passes]):
            scaled = self.scheduler.scale_model_input(x, time)
            times = time.expand(len(first))
            if i < self.passes - 1:
                answer = self.ask(scaled, times, first, states, told)
                x = self.scheduler.step(answer, time, x).prev_sample
            else:
                found = self._tapped(lambda s=scaled, t=times: self.ask(s, t, first, states, told))
        if not self.all_blocks:
            found = found[-1:]
        grown = [F.interpolate(f, self.grid, mode="nearest") if tuple(f.shape[2:]) != self.grid else f for f in found]
        maps = torch.cat(grown, 1).unflatten(0, (len(first), -1))
        if not bool(torch.isfinite(maps).all()):
            raise ValueError(f"the video model's features are not finite in {self.net.dtype}; take bfloat16 or float32")
        return maps

    def _tapped(self, run: Callable[[], Any]) -> list[Tensor]:
        """Outputs [B T, C, ...] of the upper blocks up to `block`; the pass ends there."""
        found: list[Tensor] = []

        def tap(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.append(output)
            if len(found) > self.block:
                raise _EnoughError

        hooks = [block.register_forward_hook(tap) for block in self.net.up_blocks[: self.block + 1]]
        try:
            run()
        except _EnoughError:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _check(self, first: Tensor, noise: Tensor) -> None:
        if tuple(first.shape[1:]) != self.latent or tuple(noise.shape[2:]) != self.latent:
            raise ValueError(
                f"latents of shape {list(first.shape[1:])}, noise of {list(noise.shape[2:])}: this video model takes "
                f"{list(self.latent)} (channels, rows, columns); they were prepared for another one"
            )

    # --- learning ---

    def loss(
        self,
        latents: Tensor,
        first: Tensor,
        states: Tensor,
        *,
        sigma: Tensor,
        noise: Tensor,
        keep: Tensor,
        augmentation: float | Tensor = 0.0,
    ) -> Tensor:
        """EDM's loss (Karras et al. 2022) on scaled latents [B, T, Z, h, w], v-prediction with unit data deviation.

        `first` [B, Z, h, w] as the VAE gives it; `sigma` [B]; of rows not in `keep` bool [B] the text is zero."""
        self._check(first, latents)
        s = sigma[:, None, None, None, None]
        total = s**2 + 1
        noisy = latents + s * noise
        states = states * keep[:, None, None]
        told = self.told(len(latents), FPS, augmentation)
        out = self.ask(noisy / total.sqrt(), sigma.log() / 4, first, states, told).float()
        clean = -s / total.sqrt() * out + noisy / total
        return (total / s**2 * (clean - latents) ** 2).mean()


def _still(tower: Any, kind: torch.dtype) -> Any:
    tower.requires_grad_(False).eval()
    return tower if tower.dtype == kind else tower.to(kind)


class _EnoughError(Exception):
    """Ends a pass of the U-Net: nothing behind this block is asked."""
