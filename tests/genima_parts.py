"""What tests of GENIMA's parts share: a small CLIP folder, snapshot folders, the recorded controller."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrained.importers.genima import ALIASES, UNUSED
from tests.golden_files import golden, golden_json, golden_tensors

ORDER = ("front", "left_shoulder", "right_shoulder", "wrist")  # of the recorded views


def tiny_clip(folder: Path, *, text_dim: int = 512) -> Path:
    """A random CLIP in transformers' layout, whose sentences have `text_dim` numbers."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                             "num_attention_heads": 2, "projection_dim": text_dim}  # fmt: skip
    letters = [chr(c) for c in range(33, 127)]
    words = {t: i for i, t in enumerate([*letters, *(f"{t}</w>" for t in letters)])}
    words |= {"<|startoftext|>": 298, "<|endoftext|>": 299}
    text = CLIPTextConfig(vocab_size=300, max_position_embeddings=77, bos_token_id=298, eos_token_id=299, **small)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **small)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77).save_pretrained(folder)
    return folder


def recorded_weights() -> dict[str, Tensor]:
    """The recorded controller's weights under all their official names, as a snapshot has them."""
    first = {k if k.startswith("actor.") else f"actor.{k}": v.float()
             for k, v in golden_tensors("genima_act/tiny.safetensors").items()}  # fmt: skip
    twins = {
        old + k.removeprefix(new): v for old, new in ALIASES.items() for k, v in first.items() if k.startswith(new)
    }
    unused = {f"actor.{UNUSED}{i}.bias": torch.zeros(3) for i in (0, 2) if f"actor.{UNUSED}{i}.bias" not in first}
    return first | twins | unused


def snapshot(folder: Path, agent: Mapping[str, Tensor], *, config: Any = None) -> Path:
    """A folder as the original writes it, with the recorded statistics."""
    folder.mkdir(exist_ok=True)
    content = {"cfg": config, "_epoch": 990, "_num_iters": 12345, "agent": dict(agent)}
    torch.save(content, folder / "latest.pt")
    for name in ("action_stats.json", "proprio_stats.json"):
        (folder / name).write_text(golden("genima_act/" + name).read_text())
    return folder


def recorded_inputs() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Features of the recorded batch as `ActPolicy` wants them, all recorded tensors, and what is said about them."""
    io, meta = golden_tensors("genima_act/io.safetensors"), golden_json("genima_act/meta.json")
    images = io["in/images_u8"].permute(0, 1, 3, 4, 2)  # [B, V, Y, X, 3]
    x = {f"image/{c}": images[:, i, None] for i, c in enumerate(meta["batch"]["views_order"])}
    return x | {"proprio": io["in/low_dim_state"][:, None], "text": io["in/text_embedding"]}, io, meta
