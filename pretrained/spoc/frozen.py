"""The frozen towers of SPOC: DINOv2 or SigLIP for pictures, T5 for the instruction.

They are loaded from a folder in transformers' layout or a hub id and are not part of a checkpoint. Pictures become maps
of pooled patch tokens, 7x12 for a 16x27 grid of patches; instructions become one vector per token. For training from
scratch on a CPU there is `pixels`, which has no weights: the picture is made smaller, its 16x16 patches are tokens,
each with its row and column, because the fusion has no positions of its own (DINOv2's tokens know theirs).
"""

import functools
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained.encoders import CLIP_MEAN, CLIP_STD

POSITION_OFFSET = 0.1  # DINOv2 stretches its position table by (patches + 0.1) / table, not to the exact size
TINY, PIXELS = "tiny", "pixels"
PATCH = 16  # of `pixels`
END = 1  # T5's end of sentence; 0 pads

Tokenizer = Callable[[str], list[int]]


class FrozenTowers(nn.Module):
    """Vision and text towers without gradient. `vision`, `text`: a folder, a hub id, or "tiny" (small, random).

    `vision` may also be "pixels"."""

    def __init__(
        self, *, vision: str, text: str, tokenizer: str, grid: Sequence[int], max_tokens: int, positions: str
    ) -> None:
        super().__init__()
        self.grid, self.max_tokens = (int(grid[0]), int(grid[1])), max_tokens
        tower, self.kind = _small_vision(vision) if vision in (TINY, PIXELS) else _load_vision(vision)
        sentence = _tiny_text() if text == TINY else _load_text(text)
        words = int(sentence.config.vocab_size)
        name = tokenizer or ("words" if text == TINY else text)
        self._tokenize = functools.partial(_hash_words, vocabulary=words) if name == "words" else _tokenizer(name)
        if self.kind == "dinov2" and positions == "offset":
            tower.embeddings.interpolate_pos_encoding = functools.partial(_stretched_positions, tower.embeddings)
        self._frozen = [tower.requires_grad_(False).eval(), sentence.requires_grad_(False).eval()]  # no submodules
        self.patch = PATCH if self.kind == PIXELS else int(tower.config.patch_size)
        pixels = 3 * PATCH**2 + sum(self.grid)
        self.image_dim = pixels if self.kind == PIXELS else int(tower.config.hidden_size)
        self.text_dim = int(sentence.config.d_model)
        self._sentences: dict[bytes, Tensor] = {}

    @property
    def vision(self) -> Any:
        """The vision tower."""
        return self._frozen[0]

    @property
    def text(self) -> Any:
        """The text tower."""
        return self._frozen[1]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "FrozenTowers":
        """Move the frozen towers along with the module."""
        super()._apply(fn, recurse)
        for tower in self._frozen:
            tower._apply(fn)
        self._sentences.clear()
        return self

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """uint8 [B, Y, X, 3] -> float32 [B, C, *grid], pooled."""
        if self.kind == PIXELS:
            size = [side * PATCH for side in self.grid]
            patches = F.pixel_unshuffle(F.interpolate(dino_pixels(images), size, mode="area"), PATCH)
            return torch.cat([patches, places(self.grid).to(patches).expand(len(patches), -1, -1, -1)], 1)
        pixels = siglip_pixels(images, self.vision.config.image_size) if self.kind == "siglip" else dino_pixels(images)
        return self.pooled(pixels)

    @torch.no_grad()
    def pooled(self, pixels: Tensor) -> Tensor:
        """As `maps`, from preprocessed pixels [B, 3, Y, X]."""
        tokens, (rows, columns) = self.patch_tokens(pixels)
        return F.adaptive_avg_pool2d(tokens.transpose(1, 2).unflatten(2, (rows, columns)), self.grid)

    @torch.no_grad()
    def patch_tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised patch tokens [B, rows * columns, C] of pixels, cut on all sides to whole patches."""
        rows, columns = (side // self.patch for side in pixels.shape[2:])
        top, left = ((side - n * self.patch) // 2 for side, n in zip(pixels.shape[2:], (rows, columns), strict=True))
        pixels = pixels[:, :, top : top + rows * self.patch, left : left + columns * self.patch]
        tokens = self.vision(pixel_values=pixels).last_hidden_state
        return (tokens[:, 1:] if self.kind == "dinov2" else tokens).float(), (rows, columns)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """int64 [N, max_tokens], padded with 0; ValueError if an instruction is longer."""
        out = torch.zeros(len(texts), self.max_tokens, dtype=torch.int64)
        for row, text in zip(out, texts, strict=True):
            ids = self._tokenize(text)
            if len(ids) > self.max_tokens:
                raise ValueError(
                    f"instruction '{text}' has {len(ids)} tokens, max_tokens is {self.max_tokens}; raise max_tokens"
                )
            row[: len(ids)] = torch.tensor(ids)
        return out

    @torch.no_grad()
    def embed_text(self, tokens: Tensor) -> Tensor:
        """Last hidden states [B, S, text_dim] of tokens [B, S]; each sentence is computed once."""
        unique, index = torch.unique(tokens, dim=0, return_inverse=True)
        keys = [row.cpu().numpy().tobytes() for row in unique]
        for row, key in zip(unique, keys, strict=True):
            if key not in self._sentences:
                ids = row[None]
                self._sentences[key] = self.text(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[0]
        return torch.stack([self._sentences[key].float() for key in keys])[index]


def places(grid: tuple[int, int]) -> Tensor:
    """Rows and columns of a grid (Y, X), one-hot: [Y + X, Y, X]; as large as a patch's contrast, to weigh as much."""
    rows, columns = torch.eye(grid[0]), torch.eye(grid[1])
    return PATCH * torch.cat([rows[:, :, None].expand(-1, -1, grid[1]), columns[:, None].expand(-1, grid[0], -1)])


def dino_pixels(images: Tensor) -> Tensor:
    """uint8 [B, Y, X, 3] -> [B, 3, Y, X] with CLIP's statistics, which SPOC uses for DINOv2 too."""
    x = images.permute(0, 3, 1, 2).float() / 255
    return (x - x.new_tensor(CLIP_MEAN)[:, None, None]) / x.new_tensor(CLIP_STD)[:, None, None]


def siglip_pixels(images: Tensor, size: int) -> Tensor:
    """uint8 [B, Y, X, 3] -> [B, 3, size, size] in [-1, 1]: bicubic with antialiasing, rounded to grey levels."""
    x = F.interpolate(
        images.permute(0, 3, 1, 2).float(), (size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return x.round().clamp(0, 255) / 127.5 - 1


def _stretched_positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """The position table [1, 1 + patches, C] for a picture of that size, as DINOv2 itself resizes it."""
    table = embeddings.position_embeddings
    side = round((table.shape[1] - 1) ** 0.5)
    rows, columns = height // embeddings.patch_size, width // embeddings.patch_size
    if (rows, columns) == (side, side):
        return table
    square = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = ((rows + POSITION_OFFSET) / side, (columns + POSITION_OFFSET) / side)
    resized = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2).to(table.dtype)], 1)


def _load_vision(name: str) -> tuple[Any, str]:
    from transformers import AutoConfig, Dinov2Model, SiglipVisionModel

    try:
        kind = str(AutoConfig.from_pretrained(name).model_type)
        if kind == "dinov2":
            return Dinov2Model.from_pretrained(name), "dinov2"
        if kind in ("siglip", "siglip_vision_model"):
            return SiglipVisionModel.from_pretrained(name), "siglip"
    except (OSError, ValueError) as e:
        raise ValueError(_cannot("vision", name, str(e))) from e
    raise ValueError(_cannot("vision", name, f"it holds a '{kind}', expected dinov2 or siglip"))


def _load_text(name: str) -> Any:
    from transformers import T5EncoderModel

    try:
        return T5EncoderModel.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise ValueError(_cannot("text", name, str(e))) from e


def _tokenizer(name: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as e:
        raise ValueError(_cannot("tokenizer", name, str(e))) from e
    return lambda text: [int(i) for i in np.asarray(tokenizer(text)["input_ids"])]


def _cannot(what: str, name: str, why: str) -> str:
    why = why.strip().split("\n")[0]
    return (
        f"policy.{what} cannot be loaded from '{name}': {why}; give a folder in transformers' layout, or a hub id that "
        "can be reached"
    )


def _hash_words(text: str, *, vocabulary: int) -> list[int]:
    """Each word is a number from its checksum, behind it the end of sentence; needs no file."""
    return [2 + zlib.crc32(word.encode()) % (vocabulary - 2) for word in re.findall(r"[a-z0-9]+", text.lower())] + [END]


def _small_vision(name: str) -> tuple[Any, str]:
    """Nothing, or the same random weights on every call."""
    if name == PIXELS:
        return nn.Identity(), PIXELS
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=20, patch_size=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Dinov2Model(config), "dinov2"


def _tiny_text() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=1024, dropout_rate=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return T5EncoderModel(config)
