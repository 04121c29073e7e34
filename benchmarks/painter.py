"""Painting targets for many environments at once, against one by one: `python -m benchmarks.painter [--seconds S]`.

The tiny painter (2 M weights, on pixels) on tiles of two views of 64x64, and a small model in Stable Diffusion's
layout, with a VAE, on 128x128, both with random weights; one and five steps of painting. A ratio is tiles per second in
a batch of N over tiles per second one by one, by processor time of one thread, so that other work on the machine counts
little. Batch sizes alternate within a round; the ratio is the median over the rounds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tables import hardware, table, write_results, write_section
from envs.types import EnvSpec
from pretrained.genima.painter import TargetPainter
from pretrained.genima.render import TARGET

BATCHES = (1, 8, 16)
STEPS = (1, 5)
CASES = {"tiny": (64, 128), "stable diffusion, small": (128, 128)}
NAME = "tile(front,hand)"


def make(case: str, folder: Path) -> TargetPainter:
    """A random painter of one kind."""
    size = CASES[case]
    spec = EnvSpec(
        env_id="fake/tiles", cameras={NAME: size, TARGET: size}, proprio={"x": "m"}, actions=("a",), low=(-1.0,),
        high=(1.0,), control_hz=20.0, max_steps=20, tasks=("t",), action_convention="fake",
    )  # fmt: skip
    torch.manual_seed(0)
    model = "tiny" if case == "tiny" else str(small_diffusion(folder))
    return TargetPainter(env=spec, model=model).eval()


def small_diffusion(folder: Path) -> Path:
    """A random model in diffusers' layout: latents of an eighth of the picture's size, as SD-Turbo has them."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=16, layers_per_block=1, norm_num_groups=8, block_out_channels=(64, 128), cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    vae: dict[str, Any] = dict(
        block_out_channels=(16, 16, 32, 32), norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    AutoencoderKL(**vae).save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                                 num_attention_heads=2, bos_token_id=1, eos_token_id=2)
                  ).save_pretrained(folder / "text_encoder")  # fmt: skip
    EulerDiscreteScheduler(timestep_spacing="trailing").save_pretrained(folder / "scheduler")
    words = {chr(c): i for i, c in enumerate(range(97, 123))} | {f"{chr(c)}</w>": 26 + i
                                                                  for i, c in enumerate(range(97, 123))}  # fmt: skip
    words |= {"<|startoftext|>": 60, "<|endoftext|>": 61}
    CLIPTokenizer(words, [], model_max_length=77).save_pretrained(folder / "tokenizer")
    return folder


def rate(painter: TargetPainter, batch: int, steps: int, seconds: float) -> float:
    """Tiles per second of processor time."""
    tiles = np.random.default_rng(0).integers(0, 256, (batch, *painter.size, 3), dtype=np.uint8)
    noise = [torch.Generator().manual_seed(i) for i in range(batch)]
    painter.paint(tiles, ["lift the cube"] * batch, noise, steps=steps)
    count, began = 0, time.process_time()
    while count == 0 or time.process_time() - began < seconds:
        painter.paint(tiles, ["lift the cube"] * batch, noise, steps=steps)
        count += batch
    return count / (time.process_time() - began)


def measure(painter: TargetPainter, steps: int, *, seconds: float, rounds: int,
            batches: Sequence[int] = BATCHES) -> dict[int, dict[str, float]]:  # fmt: skip
    """Batch -> tiles per second, and the ratio to one by one."""
    found: dict[int, list[float]] = {n: [] for n in batches}
    for _ in range(rounds):
        for n in batches:
            found[n].append(rate(painter, n, steps, seconds))
    ratios = {n: statistics.median(a / b for a, b in zip(v, found[batches[0]], strict=True)) for n, v in found.items()}
    return {n: {"tiles_per_s": statistics.median(found[n]), "ratio": ratios[n]} for n in batches}


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.painter", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seconds", type=float, default=0.2, help="of processor time for each figure of a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            painter = make(case, Path(folder))
            for steps in STEPS:
                found = measure(painter, steps, seconds=args.seconds, rounds=args.rounds)
                plural = "" if steps == 1 else "s"
                rows.append([case, f"{steps} step{plural}", f"{found[1]['tiles_per_s']:.2f}"]
                            + [f"{found[n]['ratio']:.2f}" for n in BATCHES[1:]])  # fmt: skip
                results |= {f"painter/{case}/{steps}/batch_{n}": {**found[n], "rounds": args.rounds}
                            for n in BATCHES[1:]}  # fmt: skip
    write_results(results)
    text = table(["painter", "painting", "tiles/s one by one", *(f"batch of {n}" for n in BATCHES[1:])], rows)
    print(text)
    write_section("painter", "## Painting targets in batches\n\nTiles per second in a batch over tiles per second one "
                  "by one (processor time, one thread, no GPU). Random weights; SD-Turbo itself was not run.\n\n"
                  f"{hardware()}\n\n{text}\n\nCommand: `python -m benchmarks.painter "
                  f"--seconds {args.seconds:g} --rounds {args.rounds}`.")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
