"""GENIMA's diffusion agent: repaints tiled camera pictures with spheres where the joints should be, by ControlNet.

The base is Stable Diffusion (SD-Turbo) from diffusers: VAE, UNet and text encoder are frozen; a ControlNet, at first a
copy of the UNet's encoder, is shown the tile and learns to make the UNet draw the target. It is trained by the one
imitation loop, on the files of `pretrained.genima.render`, and asked by `rl.proposals.target_image`. It decides no
action, so it has only that part of `pretrained.types.Policy` that imitation needs.

`method: instruct` is the variant after InstructPix2Pix: no ControlNet; the UNet is trained, and sees the tile's latents
as further channels. "tiny" is a small random model that works on pixels, in place of the VAE's latents, and trains its
UNet too, so that it can learn to draw on a CPU. Needs the package diffusers.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.types import EnvSpec
from pretrained.genima import augment as disturb
from pretrained.genima.bases import import_diffusers, load_base, load_part, tiny_base, widen
from pretrained.genima.render import TARGET
from pretrained.genima.tiles import tile_name, tile_order
from pretrained.types import DemoBatch, Metrics, PolicySpec, Rng, randn

METHODS = ("controlnet", "instruct")
DROPPED = 0.05  # `instruct`, in training: the share of tiles, of prompts, and of both that are hidden
AUGMENTATIONS = ("crop", "colorjitter", "elastic", "blur", "affine")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def prompt(goal: str, camera: str = "") -> str:
    """What the text encoder reads, in training and in painting alike; `camera` if one view is painted alone."""
    if camera:
        return f"a robot arm executing '{goal}' from {camera} perspective"
    return f"tiled perspectives of a robot arm executing '{goal}'"


class TargetPainter(nn.Module):
    """Trains and runs the ControlNet, or the UNet. Pictures are uint8 [N, Y, X, 3] of the tile's size."""

    frozen_encoder = False

    def __init__(
        self,
        *,
        env: EnvSpec,
        model: str = "stabilityai/sd-turbo",
        method: str = "controlnet",
        controlnet: str = "",
        augment: Sequence[str] = ("crop", "colorjitter"),
        goal_in_prompt: bool = True,
        frozen_dtype: str = "float32",
        steps: int = 10,
        times: Sequence[int] = (),
        compile: bool = False,
    ) -> None:
        """`model`: folder in diffusers' layout, hub id, or "tiny". `method`: controlnet or instruct. `controlnet`: a
        trained one to start from, itself or a folder with checkpoint-N/controlnet inside. `goal_in_prompt: false`
        leaves the goal out in training, as the original's code does by accident. `steps` of painting, 1 to 10; `times`:
        levels of noise to be trained, 0 to 999, () for all; [999] is enough for one step of painting. `compile`
        compiles both networks for painting."""
        super().__init__()
        self.views = tile_order(env.cameras)
        self.spec = _spec(env, self.views)
        disturb.check_names(augment, AUGMENTATIONS)
        if frozen_dtype not in DTYPES or not 1 <= steps <= 1000:
            raise ValueError(
                f"expected frozen_dtype of {list(DTYPES)} and 1 to 1000 steps, got {frozen_dtype}, {steps}"
            )
        self.augment, self.goal_in_prompt, self.steps = tuple(augment), goal_in_prompt, steps
        if method not in METHODS or (controlnet and method == "instruct"):
            raise ValueError(
                f"painter.method is '{method}', controlnet '{controlnet}'; expected one of {METHODS}, and a ControlNet "
                "to start from only with the first"
            )
        import_diffusers()
        base = tiny_base() if model == "tiny" else load_base(model)
        levels = int(base.noise.config.num_train_timesteps)
        if bad := [t for t in times if not 0 <= t < levels]:
            raise ValueError(
                f"painter.times has {bad}; expected levels of noise from 0 to {levels - 1}, or none for all"
            )
        self.times = torch.tensor(list(times) or range(levels))
        self.method = method
        self.controlnet: Any = _controlnet(base.unet, model, controlnet) if method == "controlnet" else None
        if method == "instruct":
            widen(base.unet)
        trained = model == "tiny" or method == "instruct"
        self.unet: Any = base.unet if trained else None  # in the checkpoint where it is trained
        frozen = [base.vae, base.text] + ([] if trained else [base.unet])
        for part in frozen:
            part.requires_grad_(False).eval().to(DTYPES[frozen_dtype])
        self._base, self._frozen, self._dtype = base, frozen, DTYPES[frozen_dtype]
        networks = (self.controlnet, base.unet)
        self._networks = tuple(n and torch.compile(n) for n in networks) if compile else None
        self._check_size()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "TargetPainter":
        """Move the frozen parts along with the module."""
        super()._apply(fn, recurse)
        for part in self._frozen:
            part._apply(fn)
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def size(self) -> tuple[int, int]:
        """(Y, X) of a tile."""
        return self.spec.cameras[tile_name(self.views)]

    def _check_size(self) -> None:
        unet = self._base.unet.config
        step = self._patch * 2 ** (len(unet.block_out_channels) - 1)
        if self.size[0] % step or self.size[1] % step:
            raise ValueError(f"a tile of {self.size} does not fit the model: expected multiples of {step} pixels")

    @property
    def _patch(self) -> int:
        return int(getattr(self._base.vae, "patch", 0)) or 2 ** (len(self._base.vae.config.block_out_channels) - 1)

    # --- imitation ---

    def imitation_loss(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """Error of the predicted noise (or velocity, if the scheduler says so) at a random time of each row."""
        seen, target = (self._picture(demo, name) for name in (tile_name(self.views), TARGET))
        if self.training and self.augment:
            seen, target = self._disturb(seen, target, rng)
        base, n = self._base, len(seen)
        with torch.no_grad():
            latents = self._to_latents(target / 127.5 - 1, rng)
            text = self.embed(demo.obs.texts if self.goal_in_prompt else [""] * n)
            shown = self._shown(seen / 255)
            if self.training and self.method == "instruct":
                text, shown = self._hide(text, shown, rng)
        noise = torch.randn(latents.shape, generator=rng).to(latents)
        time = self.times[torch.randint(len(self.times), (n,), generator=rng)].to(self.device)
        out = self._predict(base.noise.add_noise(latents, noise, time), time, text, shown, compiled=False)
        wanted = noise
        if base.noise.config.prediction_type == "v_prediction":
            wanted = base.noise.get_velocity(latents, noise, time)
        loss = F.mse_loss(out.float(), wanted.float())
        return loss, {"imitation_loss": float(loss.detach())}

    def _picture(self, demo: DemoBatch, name: str) -> Tensor:
        """Float [B, 3, Y, X], 0 to 255, of the last moment."""
        if name not in demo.obs.images:
            raise ValueError(f"picture '{name}' is missing; got {list(demo.obs.images)}: render targets of kind tiles")
        image = torch.as_tensor(demo.obs.images[name])[:, -1].to(self.device)
        if image.dtype != torch.uint8 or tuple(image.shape[1:]) != (*self.size, 3):
            raise ValueError(
                f"picture '{name}': expected uint8 [B, L, {self.size}, 3], got {image.dtype} {image.shape}"
            )
        return image.permute(0, 3, 1, 2).float()

    def _disturb(self, seen: Tensor, target: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where pixels are changes for both alike; colours, elastic fields and blur for what is seen alone."""
        both = torch.cat([seen, target], 1)  # [B, 6, Y, X]
        if "crop" in self.augment:
            both = disturb.crop(both, rng, pad=2)
        if "affine" in self.augment:
            both = disturb.affine(both, rng)
        seen, target = both.split(3, 1)
        if "elastic" in self.augment:
            seen = disturb.elastic(seen, rng)
        if "colorjitter" in self.augment:
            seen = disturb.colour_jitter(seen, rng)
        return (disturb.blur(seen, sigma=0.8, size=3) if "blur" in self.augment else seen), target

    def _shown(self, seen: Tensor) -> Tensor:
        """What the network is shown of scenes [N, 3, Y, X] from 0 to 1: themselves, or their latents, unscaled."""
        if self.method == "controlnet":
            return seen
        return self._base.vae.encode((seen * 2 - 1).to(self._dtype)).latent_dist.mean.float()

    def _hide(self, text: Tensor, shown: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """For guidance without a classifier, as InstructPix2Pix is trained: some rows lack the prompt, or the scene."""
        u = torch.rand(len(text), generator=rng).to(text.device)
        nothing = self._base.text(input_ids=self._base.tokenize([""]).to(self.device)).last_hidden_state.float()
        text = torch.where((u < 2 * DROPPED)[:, None, None], nothing, text)
        return text, torch.where(((u >= DROPPED) & (u < 3 * DROPPED))[:, None, None, None], 0.0, shown)

    def _to_latents(self, images: Tensor, rng: torch.Generator) -> Tensor:
        vae = self._base.vae
        found = vae.encode(images.to(self._dtype)).latent_dist
        noise = torch.randn(found.mean.shape, generator=rng).to(found.mean)
        return ((found.mean + found.std * noise) * vae.config.scaling_factor).float()

    def embed(self, goals: Sequence[str]) -> Tensor:
        """Text features [N, S, D] of the goals' prompts; an empty goal leaves it out."""
        texts = [prompt(goal) if goal else prompt("").split("'")[0].rstrip() for goal in goals]
        with torch.no_grad():
            return self._base.text(input_ids=self._base.tokenize(texts).to(self.device)).last_hidden_state.float()

    def _predict(self, noisy: Tensor, time: Tensor, text: Tensor, shown: Tensor, *, compiled: bool) -> Tensor:
        networks = self._networks if compiled and self._networks else (self.controlnet, self._base.unet)
        control, unet, kind = *networks, next(self._base.unet.parameters()).dtype
        more: dict[str, Any] = {}
        if control is None:
            noisy = torch.cat([noisy, shown], 1)
        else:
            own = next(self.controlnet.parameters()).dtype
            down, middle = control(
                noisy.to(own),
                time,
                encoder_hidden_states=text.to(own),
                controlnet_cond=shown.to(own),
                return_dict=False,
            )
            more["down_block_additional_residuals"] = [d.to(kind) for d in down]
            more["mid_block_additional_residual"] = middle.to(kind)
        return unet(noisy.to(kind), time, encoder_hidden_states=text.to(kind), return_dict=False, **more)[0]

    # --- painting ---

    @torch.no_grad()
    def paint(
        self, tiles: np.ndarray | Tensor, goals: Sequence[str], rng: Rng, *, steps: int = 0, bf16: bool = False
    ) -> Tensor:
        """Tiles uint8 [N, Y, X, 3] with targets, all rows at once; with a generator per row, rows are independent."""
        seen = torch.as_tensor(tiles).to(self.device)
        if seen.dtype != torch.uint8 or tuple(seen.shape) != (len(goals), *self.size, 3):
            raise ValueError(
                f"expected tiles uint8 {(len(goals), *self.size, 3)}, got {seen.dtype} {tuple(seen.shape)}; the model "
                "was trained on that size"
            )
        shown, text = self._shown(seen.permute(0, 3, 1, 2).float() / 255), self.embed(goals)
        sampler, vae = self._base.sampler, self._base.vae
        sampler.set_timesteps(steps or self.steps, device=self.device)
        y, x = (n // self._patch for n in self.size)
        noise = randn((len(goals), int(self._base.unet.config.out_channels), y, x), rng, self.device)
        latents = noise * sampler.init_noise_sigma
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            for time in sampler.timesteps:
                scaled = sampler.scale_model_input(latents, time)
                out = self._predict(scaled, time, text, shown, compiled=True).float()
                latents = sampler.step(out, time, latents, return_dict=False)[0]
            pictures = vae.decode((latents / vae.config.scaling_factor).to(self._dtype), return_dict=False)[0].float()
        return ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def forward(self, demo: DemoBatch, rng: torch.Generator) -> tuple[Tensor, Metrics]:
        """`imitation_loss`, for wrappers that call the module."""
        return self.imitation_loss(demo, rng)

    def fit_normalizers(self, actions: Tensor, proprio: Tensor) -> None:
        """Nothing is normalised."""


def diffusion_stage(*, env: EnvSpec, painter: Mapping[str, Any] | None = None) -> TargetPainter:
    """What the imitation loop trains with `policy=genima stage=diffusion`, from the settings `policy.painter`."""
    known = [k for k in inspect.signature(TargetPainter).parameters if k != "env"]
    if unknown := sorted(set(painter or {}) - set(known)):
        raise ValueError(f"policy.painter has {unknown}, expected some of {known}")
    return TargetPainter(env=env, **(painter or {}))


def _controlnet(unet: Any, model: str, start: str) -> Any:
    """A trained one, or a copy of the UNet's encoder."""
    from diffusers import ControlNetModel

    if start:
        return load_part(ControlNetModel, str(find_controlnet(start)))
    small: dict[str, Any] = {"conditioning_embedding_out_channels": (16, 32, 64)} if model == "tiny" else {}
    return ControlNetModel.from_unet(unet, conditioning_channels=3, **small)


def find_controlnet(folder: str) -> Path:
    """The newest checkpoint-N/controlnet inside, by number, or the folder itself."""
    path = Path(folder)
    inside = [p for p in path.glob("checkpoint-*/controlnet") if re.fullmatch(r"checkpoint-\d+", p.parent.name)]
    found = max(inside, key=lambda p: int(p.parent.name.split("-")[1]), default=path)
    if not (found / "config.json").is_file():
        raise ValueError(f"{folder} holds neither a ControlNet (config.json) nor checkpoint-N/controlnet folders")
    return found


def _spec(env: EnvSpec, views: Sequence[str]) -> PolicySpec:
    if TARGET not in env.cameras or env.cameras[TARGET] != env.cameras[tile_name(views)]:
        raise ValueError(f"expected pictures '{tile_name(views)}' and '{TARGET}' of one size, got {env.cameras}")
    return PolicySpec(
        cameras={c: env.cameras[c] for c in (tile_name(views), TARGET)}, proprio=tuple(env.proprio),
        actions=env.actions, low=env.low, high=env.high, action_convention=env.action_convention,
        control_hz=env.control_hz, num_actions=env.num_actions,
    )  # fmt: skip
