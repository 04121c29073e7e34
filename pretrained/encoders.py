"""Image and text towers: a small one that learns, and frozen CLIP from transformers.

An encoder maps images and instructions to vectors. `always_frozen` encoders run once per decision, at collection.
CLIP's own weights are not part of a checkpoint: they are loaded from the folder or hub id that its node names.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained.networks import SmallCnn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Encoder(Protocol):
    """What a policy needs of its towers. Also a `torch.nn.Module`."""

    image_dim: int  # of all cameras together
    text_dim: int
    always_frozen: bool

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Instructions as int64 [N, S]."""
        ...

    def embed_text(self, tokens: Tensor) -> Tensor:
        """[N, text_dim]."""
        ...

    def embed_images(self, images: dict[str, Tensor]) -> Tensor:
        """Camera -> uint8 [B, Y, X, 3], to [B, image_dim]."""
        ...


class PixelEncoder(nn.Module):
    """One small CNN per camera; instructions are bags of hashed words. Trains from scratch on a CPU."""

    always_frozen = False

    def __init__(
        self,
        *,
        cameras: dict[str, tuple[int, int]],
        width: int = 128,
        channels: Sequence[int] = (32, 32, 64),
        kernels: Sequence[int] = (5, 3, 3),
        strides: Sequence[int] = (2, 2, 1),
        pool: str = "softmax",
        text_dim: int = 32,
        words: int = 24,
        vocabulary: int = 2048,
    ) -> None:
        super().__init__()
        self.cameras = list(cameras)
        self.image_dim, self.text_dim = width * len(cameras), text_dim
        self.words, self.vocabulary = words, vocabulary
        options: dict[str, Any] = {"channels": channels, "kernels": kernels, "strides": strides, "pool": pool}
        self.towers = nn.ModuleList(SmallCnn((size[0], size[1]), out=width, **options) for size in cameras.values())
        self.text = nn.Embedding(vocabulary, text_dim, padding_idx=0)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Each word is a number from its checksum; 0 fills up. Words beyond the limit are dropped."""
        rows = [_hash_words(text, self.words, self.vocabulary) for text in texts]
        return torch.tensor(rows, dtype=torch.int64)

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Mean of the words' vectors."""
        count = (tokens > 0).sum(-1, keepdim=True).clamp(min=1)
        return self.text(tokens).sum(-2) / count

    def embed_images(self, images: dict[str, Tensor]) -> Tensor:
        """Concatenated camera vectors."""
        return torch.cat([tower(images[c]) for c, tower in zip(self.cameras, self.towers, strict=True)], -1)


def _hash_words(text: str, words: int, vocabulary: int) -> list[int]:
    found = re.findall(r"[a-z0-9]+", text.lower())[:words]
    ids = [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in found]
    return ids + [0] * (words - len(ids))


class ClipEncoder(nn.Module):
    """Frozen CLIP, vision and text, projected. `model` is a folder, a hub id, or "tiny": small, random, offline."""

    always_frozen = True

    def __init__(self, *, cameras: dict[str, tuple[int, int]], model: str = "openai/clip-vit-base-patch16") -> None:
        super().__init__()
        self.cameras = list(cameras)
        vision, text, self._tokenize = _tiny_clip() if model == "tiny" else _load_clip(model)
        vision.requires_grad_(False).eval()
        text.requires_grad_(False).eval()
        self._frozen = [vision, text]  # a plain list keeps them out of state_dict and parameters
        self.size = int(vision.config.image_size)
        self.image_dim = int(vision.config.projection_dim) * len(cameras)
        self.text_dim = int(text.config.projection_dim)
        self._cache: dict[bytes, Tensor] = {}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "ClipEncoder":
        """Move the frozen towers along with the module."""
        super()._apply(fn, recurse)
        for tower in self._frozen:
            tower._apply(fn)
        self._cache.clear()
        return self

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """CLIP tokens [N, 77] (fewer for "tiny")."""
        return self._tokenize(list(texts))

    @torch.no_grad()
    def embed_text(self, tokens: Tensor) -> Tensor:
        """Projected text embedding; each instruction is computed once."""
        keys = [row.numpy().tobytes() for row in tokens.cpu()]
        for i, key in enumerate(keys):
            if key not in self._cache:
                self._cache[key] = self._frozen[1](input_ids=tokens[i : i + 1]).text_embeds[0].float()
        return torch.stack([self._cache[key] for key in keys])

    def embed_images(self, images: dict[str, Tensor]) -> Tensor:
        """Projected image embeddings of all cameras."""
        return torch.cat([self.embed_pixels(clip_pixels(images[c], self.size)) for c in self.cameras], -1)

    @torch.no_grad()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Preprocessed [B, 3, size, size] -> projected [B, D]."""
        return self._frozen[0](pixel_values=pixels).image_embeds.float()


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """uint8 [B, Y, X, 3] -> [B, 3, size, size]: bicubic to the short side, centre crop, CLIP's mean and std."""
    x = images.permute(0, 3, 1, 2).float() / 255
    y_size, x_size = x.shape[2:]
    short = min(y_size, x_size)
    if short != size:
        target = [round(y_size * size / short), round(x_size * size / short)]
        x = F.interpolate(x, target, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (x.shape[2] - size) // 2, (x.shape[3] - size) // 2
    x = x[:, :, top : top + size, left : left + size]
    mean, std = x.new_tensor(CLIP_MEAN), x.new_tensor(CLIP_STD)
    return (x - mean[:, None, None]) / std[:, None, None]


def _load_clip(model: str) -> tuple[Any, Any, Callable[[list[str]], Tensor]]:
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    try:
        vision = CLIPVisionModelWithProjection.from_pretrained(model)
        text = CLIPTextModelWithProjection.from_pretrained(model)
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as e:
        raise ValueError(
            f"CLIP cannot be loaded from '{model}': {e}; give a folder in transformers layout or a hub id that can be "
            "reached, or model: tiny for a random one"
        ) from e

    def tokenize(texts: list[str]) -> Tensor:
        out = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="np")
        return torch.from_numpy(np.asarray(out["input_ids"], dtype=np.int64))

    return vision, text, tokenize


def _tiny_clip() -> tuple[Any, Any, Callable[[list[str]], Tensor]]:
    """The same random weights on every call, so that a checkpoint of the trained part is enough."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    length, begin, end = 48, 257, 258
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=32, patch_size=8, **small))
        text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=260,
                max_position_embeddings=length,
                bos_token_id=begin,
                eos_token_id=end,
                pad_token_id=end,
                **small,
            )
        )

    def tokenize(texts: list[str]) -> Tensor:
        rows = []
        for sentence in texts:
            ids = [begin, *sentence.encode()[: length - 2], end]
            rows.append(ids + [end] * (length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64)

    return vision, text, tokenize
