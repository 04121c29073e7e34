"""What a video model imagines, as a video: guided sampling from the first picture and a sentence.

python -m pretrained.vpp.preview --model runs/vpp_video --image view.png --instruction "open the drawer" --out a.mp4
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.record import write_video
from pretrained.vpp.video import FPS, VideoModel

DEFAULT_AUGMENTATION = 0.02  # what the original tells the model, although it adds no noise


@torch.no_grad()
def preview(
    model: VideoModel, first: Tensor, states: Tensor, noise: Tensor, *, steps: int = 30, guidance: float = 7.5
) -> Tensor:
    """First latents [B, Z, h, w], text [B, tokens, W], unit noise [B, T, Z, h, w] -> scaled latents [B, T, Z, h, w].

    Guidance (Ho and Salimans 2022) grows from 1 at the first frame to `guidance` at the last; without text."""
    scheduler = model.scheduler
    scheduler.set_timesteps(steps, device=noise.device)
    x = noise * scheduler.init_noise_sigma
    augmentation = DEFAULT_AUGMENTATION if model.quirks.preview_augmentation == "default" else 0.0
    told = model.told(2 * len(first), FPS, augmentation)
    weight = torch.linspace(1.0, guidance, noise.shape[1], device=noise.device)[:, None, None, None]
    both = torch.cat([torch.zeros_like(states), states])
    firsts = torch.cat([first, first])
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(torch.cat([x, x]), time)
        blind, seeing = model.ask(scaled, time.expand(len(firsts)), firsts, both, told).chunk(2)
        x = scheduler.step(blind + weight * (seeing - blind), time, x).prev_sample
    return x


@torch.no_grad()
def decode(model: VideoModel, latents: Tensor) -> np.ndarray:
    """Scaled latents [B, T, Z, h, w] -> frames uint8 [B, T, Y, X, 3]."""
    rows, frames = latents.shape[:2]
    flat = (latents / model.scale).flatten(0, 1).to(model.vae.dtype)
    pixels = model.vae.decode(flat, num_frames=frames).sample.float()
    shown = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return shown.permute(0, 2, 3, 1).unflatten(0, (rows, frames)).cpu().numpy()


def imagine(model: VideoModel, image: Tensor, text: str, *, seed: int = 0, steps: int = 30) -> np.ndarray:
    """One picture uint8 [Y, X, 3] and a sentence -> frames uint8 [T, Y, X, 3]."""
    states, _ = model.sentences([text])
    first = model.latents(model.pixels(image[None].to(model.vae.device)))
    noise = model.noise(torch.tensor([seed]), 1)[:, 0]
    return decode(model, preview(model, first, states, noise, steps=steps))[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; writes a video."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.vpp.preview", description="Imagine a video.")
    parser.add_argument("--model", required=True, help="folder of a pipeline, hub id, or checkpoint of stage=video")
    parser.add_argument("--text", default="openai/clip-vit-base-patch32", help="CLIP's text tower")
    parser.add_argument("--image", required=True)
    parser.add_argument("--instruction", required=True)
    parser.add_argument("--out", required=True, help="file that ends in .mp4")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    from PIL import Image

    try:
        if not Path(args.image).is_file():
            raise ValueError(f"image '{args.image}' does not exist")
        with Image.open(args.image) as file:
            image = torch.from_numpy(np.array(file.convert("RGB")))
        model = VideoModel(model=args.model, text=args.text, frames=args.frames, size=(args.size, args.size))
        frames = imagine(model, image, args.instruction, seed=args.seed, steps=args.steps)
    except ValueError as e:
        parser.exit(2, f"error: {e}\n")
    sys.stdout.write(f"{write_video(args.out, frames, fps=FPS)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
