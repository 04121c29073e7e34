"""Use a trained vision-language-action model from Python or the command line.

    model, config = load_model("runs/lift/step_2000", None, "cpu")
    action = predict_action(model, preprocess_image("view.png"), "lift the cube", proprio, ee_pose)

    python -m pretrained.inference --checkpoint runs/lift/step_2000 --image view.png --instruction "lift the cube" \
        --proprio=0.02,-0.02 --ee-pose=-0.1,0.0,1.0,1.0,0.0,0.0,0.0 --num-flow-steps 50
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import Tensor

from pretrained import checkpoint
from pretrained.chunk_policy import ChunkPolicy
from pretrained.encoders import ClipEncoder, clip_pixels
from pretrained.rectified_flow import METHODS, VlaFusion, flow_sample

VECTORS = ("--proprio", "--ee-pose")


def load_model(
    checkpoint_path: str | Path, config_path: str | Path | None = None, device: str = "cpu"
) -> tuple[ChunkPolicy, dict[str, Any]]:
    """The model in evaluation mode, and the policy node it was built from.

    The checkpoint alone is enough. A configuration may name another place of the CLIP weights, under `clip` or
    `policy.clip`; everything else in it is ignored, because the checkpoint knows how it was trained.
    """
    folder = checkpoint.find(checkpoint_path)
    overrides: dict[str, Any] = {}
    if config_path is not None:
        given = yaml.safe_load(Path(config_path).read_text()) or {}
        clip = given.get("clip") or (given.get("policy") or {}).get("clip")
        overrides = {"clip": clip} if clip else {}
    config = dict(checkpoint.read_card(folder).node) | overrides
    model = checkpoint.load_policy(folder, overrides=overrides or None)
    if not isinstance(model, ChunkPolicy) or not isinstance(model.encoder, ClipEncoder):
        raise ValueError(
            f"{folder} holds a {config.get('_target_')}, expected pretrained.rectified_flow.vla_model; "
            "run other policies with launch.py evaluate"
        )
    return model.to(device).eval(), config


def preprocess_image(source: Any, size: int = 224) -> Tensor:
    """Path, PIL image or uint8 array [Y, X, 3] (RGB, row 0 on top) -> (1, 3, size, size) as CLIP wants it."""
    if isinstance(source, str | Path):
        from PIL import Image

        if not Path(source).is_file():
            raise ValueError(f"image '{source}' does not exist")
        with Image.open(source) as file:
            source = file.convert("RGB")
    elif hasattr(source, "convert"):
        source = source.convert("RGB")
    array = np.array(source)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"image: expected uint8 [Y, X, 3], got {array.dtype} {array.shape}")
    return clip_pixels(torch.from_numpy(array)[None], size)


def predict_action(
    model: ChunkPolicy,
    image: Tensor | Sequence[Tensor],
    instruction: str,
    proprio: Sequence[float] | np.ndarray,
    ee_pose: Sequence[float] | np.ndarray,
    num_flow_steps: int = 50,
    device: str | None = None,
    return_chunk: bool = False,
    *,
    method: str = "euler",
    seed: int = 0,
) -> np.ndarray:
    """The next action (A,) in env units, or the chunk (H, A). Models of several cameras take one image of each."""
    if device is not None:
        model = model.to(device)
    encoder = cast(ClipEncoder, model.encoder)
    images: list[Tensor] = [image] if isinstance(image, Tensor) else list(image)
    expected = (1, 3, encoder.size, encoder.size)
    if len(images) != len(encoder.cameras) or any(tuple(i.shape) != expected for i in images):
        shapes = [tuple(i.shape) for i in images]
        raise ValueError(f"expected one image {expected} for each camera of {encoder.cameras}, got {shapes}")
    with torch.no_grad():
        features = {
            "pooled": torch.cat([encoder.embed_pixels(i.to(model.device)) for i in images], -1),
            "text": encoder.embed_text(encoder.tokens([instruction]).to(model.device)),
            "proprio": _proprio(model, proprio, ee_pose).to(model.device),
        }
    rng = torch.Generator().manual_seed(seed)
    chunk = flow_sample(model, features, rng, steps=num_flow_steps, method=method)[0].cpu().numpy()
    return chunk if return_chunk else chunk[0]


def _proprio(model: ChunkPolicy, proprio: Any, ee_pose: Any) -> Tensor:
    """[1, 1, P]; entries that the model does not read take their mean."""
    fusion = cast(VlaFusion, model.actor["fusion"])
    x = model.proprio.mean.detach().cpu().clone()
    for title, values, index in (("proprio", proprio, fusion.body), ("ee_pose", ee_pose, fusion.pose)):
        row = torch.as_tensor(np.asarray(values, dtype=np.float32))
        names = [model.spec.proprio[i] for i in index]
        if tuple(row.shape) != (len(index),) or not bool(torch.isfinite(row).all()):
            raise ValueError(
                f"{title}: expected {len(index)} finite numbers, {names}, got {np.asarray(values).tolist()}"
            )
        x[index] = row
    return x[None, None]


def _numbers(text: str) -> list[float]:
    try:
        return [float(v) for v in text.replace(",", " ").split()]
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers separated by commas") from e


def _join_vectors(argv: Sequence[str]) -> list[str]:
    """`--proprio -0.1,2` -> `--proprio=-0.1,2`, or argparse would take the minus for another flag."""
    out: list[str] = []
    for word in argv:
        if out and out[-1] in VECTORS and not word.startswith("--"):
            out[-1] = f"{out[-1]}={word}"
        else:
            out.append(word)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; writes the action as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m pretrained.inference", description="Predict one action.")
    parser.add_argument("--checkpoint", required=True, help="checkpoint or run folder")
    parser.add_argument("--config", help="YAML that may name another place of the CLIP weights")
    parser.add_argument("--image", required=True, action="append", help="image file; once per camera of the model")
    parser.add_argument("--instruction", required=True)
    parser.add_argument("--proprio", required=True, type=_numbers, help="numbers separated by commas")
    parser.add_argument("--ee-pose", required=True, type=_numbers, help="x,y,z,qx,qy,qz,qw")
    parser.add_argument("--num-flow-steps", type=int, default=50)
    parser.add_argument("--method", choices=METHODS, default="euler")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--chunk", action="store_true", help="the whole chunk instead of its first action")
    args = parser.parse_args(_join_vectors(sys.argv[1:] if argv is None else argv))
    try:
        model, _ = load_model(args.checkpoint, args.config, args.device)
        size = cast(ClipEncoder, model.encoder).size
        action = predict_action(
            model,
            [preprocess_image(path, size) for path in args.image],
            args.instruction,
            args.proprio,
            args.ee_pose,
            args.num_flow_steps,
            args.device,
            args.chunk,
            method=args.method,
        )
    except (ValueError, FileNotFoundError) as e:
        parser.exit(2, f"error: {e}\n")
    sys.stdout.write(json.dumps(action.tolist()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
