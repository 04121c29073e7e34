"""The value model of FLIP: how near a picture is to what a sentence says, LIV tuned on clips.

Ma et al. 2023, "LIV", and Gao et al. 2024, section 3.3: CLIP with a ResNet, trained so that similarity rises along
videos (VIP, Ma et al. 2022) and that last frames match their sentences (InfoNCE without temperature). FLIP draws the
frames of a pair from clips, so that a pause in a demonstration does not count. Repaired: field `scores` of
`pretrained.flip.quirks`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrained.encoders import CLIP_MEAN, CLIP_STD
from pretrained.flip.clip import RN50, TINY, Clip, Sizes, byte_tokens
from pretrained.flip.quirks import choose
from pretrained.flip.vae import check_range

EPSILON = 1e-8
FRAMES = ("start", "goal", "now", "next", "last")  # the order of frames in a batch
Tokens = Callable[[Sequence[str], int], Tensor]  # texts, length -> int64 [N, length]


class Frames(NamedTuple):
    """Frame numbers of one video."""

    start: int
    goal: int
    now: int
    next: int
    last: int


class ValueModel(nn.Module):
    """Similarity of pictures and sentences. `clip`: "tiny", "RN50" or sizes; weights come from a checkpoint.

    `tokenizer`: a folder in transformers' layout or a hub id of CLIP's; "bytes" needs none and fits "tiny"."""

    def __init__(
        self,
        *,
        clip: str | Mapping[str, Any] = "RN50",
        tokenizer: str = "openai/clip-vit-base-patch32",
        gamma: float = 0.98,
        quirks: str = "fixed",
        switches: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= gamma < 1:
            raise ValueError(f"ValueModel: gamma = {gamma}, expected 0 <= gamma < 1")
        self.quirks, self.gamma, self.tokenizer = choose(quirks, switches), gamma, tokenizer
        self.model = Clip(_sizes(clip))
        self._tokens: Tokens = byte_tokens if tokenizer == "bytes" else _clip_tokens(tokenizer)

    def pictures(self, pictures: Tensor) -> Tensor:
        """Pictures [..., 3, Y, X] in [0, 1] -> [..., D]. They are resized by their shorter side and cut square."""
        check_range(pictures)
        return self.embed(self.prepare(pictures.flatten(0, -4))).unflatten(0, pictures.shape[:-3])

    def embed(self, pixels: Tensor) -> Tensor:
        """As `pictures`, of what `prepare` gives."""
        return self.model.pictures(pixels)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """[N, D]"""
        return self.model.texts(self.tokens(texts).to(self.model.positional_embedding.device))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """int64 [N, S]"""
        return self._tokens(texts, self.model.sizes.words)

    def prepare(self, pictures: Tensor) -> Tensor:
        """[B, 3, Y, X] in [0, 1] -> normalised, square, of the model's size."""
        side, (y, x) = self.model.sizes.image, pictures.shape[-2:]
        if min(y, x) != side:
            size = [side if y <= x else side * y // x, side if x <= y else side * x // y]
            pictures = F.interpolate(pictures, size, mode="bilinear", align_corners=False)
        top, left = (round((length - side) / 2) for length in pictures.shape[-2:])
        pictures = pictures[..., top : top + side, left : left + side]
        mean, std = (torch.tensor(s, device=pictures.device).view(3, 1, 1) for s in (CLIP_MEAN, CLIP_STD))
        return (pictures - mean) / std

    def score(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """Similarity [B] in [-1, 1] of pictures [B, 3, Y, X] and texts, as a planner uses it."""
        if self.quirks.scores == "batch":
            pictures = _stretched(pictures)
        return F.cosine_similarity(self.pictures(pictures), self.texts(texts), dim=-1)

    def losses(self, frames: Tensor, tokens: Tensor, *, negatives: Tensor | None = None) -> dict[str, Tensor]:
        """`nce` and `vip` of frames [B, 5, 3, Y, X] in the order of `FRAMES`, and of tokens [B, S].

        With `negatives`, permutations [M, B], as in LIV's pre-training: also `vip_text`, the sentence being the goal.
        """
        check_range(frames)
        at = dict(
            zip(FRAMES, self.embed(self.prepare(frames.flatten(0, 1))).unflatten(0, (-1, 5)).unbind(1), strict=True)
        )
        text = self.model.texts(tokens)
        shown = (at["start"], at["now"], at["next"])
        terms = {"nce": nce(at["last"], text), "vip": vip(*shown, at["goal"], gamma=self.gamma)}
        if negatives is not None:
            half = len(negatives) // 2
            terms["vip"] = vip(*shown, at["goal"], gamma=self.gamma, negatives=negatives[:half])
            terms["vip_text"] = vip(*shown, text, gamma=self.gamma, negatives=negatives[half:])
        return terms


def similarity(a: Tensor, b: Tensor, *, distance: str = "cos") -> Tensor:
    """Of vectors [..., D]: cosine, or minus the Euclidean distance ("l2")."""
    if distance not in ("cos", "l2"):
        raise ValueError(f"distance '{distance}' is unknown; expected cos or l2")
    return F.cosine_similarity(a, b, dim=-1) if distance == "cos" else -(a - b).norm(dim=-1)


def vip(
    start: Tensor,
    now: Tensor,
    after: Tensor,
    goal: Tensor,
    *,
    gamma: float,
    reward: Tensor | float = -1.0,
    distance: str = "cos",
    negatives: Tensor | None = None,
) -> Tensor:
    """VIP's dual objective (Ma et al. 2022, equation 5) of embeddings [B, D]; the reward of a step is -1.

    `negatives`: permutations [M, B] of the pairs (now, after), for goals that they do not lead to."""

    def value(x: Tensor) -> Tensor:
        return similarity(x, goal, distance=distance) / (1 - gamma)

    def surprise(x: Tensor, y: Tensor, r: Tensor | float) -> Tensor:
        return torch.exp(-(r + gamma * value(y) - value(x)))

    loss = (1 - gamma) * -value(start).mean() + (EPSILON + surprise(now, after, reward).mean()).log()
    if negatives is not None and len(negatives):
        wrong = torch.stack([surprise(now[order], after[order], -1.0) for order in negatives])
        loss = loss + (EPSILON + wrong.mean()).log()
    return loss


def nce(pictures: Tensor, texts: Tensor) -> Tensor:
    """Symmetric cross-entropy of the cosines of pictures and texts [B, D], row i belonging to row i."""
    cosines = F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).T
    rows = torch.arange(len(cosines), device=cosines.device)
    return (F.cross_entropy(cosines, rows) + F.cross_entropy(cosines.T, rows)) / 2


def clip_frames(length: int, draw: Callable[[int, int], int], *, clip: int = 4) -> Frames:
    """Frames for the two losses from clips of `clip` frames; `draw(low, high)` gives an integer, both inclusive.

    Frames behind the last whole clip are never drawn, and `next` may lie after `goal`, as in the original. Raises
    ValueError if there are fewer than four clips."""
    clips = length // clip if clip > 0 else 0
    if clips < 4 or clip < 1:
        raise ValueError(
            f"a video of {length} frames has {clips} clips of {clip}, expected at least 4; take a longer video or "
            "shorter clips"
        )
    now = draw(0, clips - 2)
    start = draw(0, now)
    first, current, after, goal = (draw(c * clip, (c + 1) * clip - 1) for c in (start, now, now + 1, clips - 1))
    return Frames(first, goal, current, after, length - 1)


def _stretched(pictures: Tensor) -> Tensor:
    """By the extremes of the whole batch, and rounded up by half a grey value, as the original's image writer does."""
    low, high = pictures.min(), pictures.max()
    return ((pictures - low) / (high - low).clamp(min=1e-5) * 255 + 0.5).clamp(0, 255) / 255


def _sizes(clip: str | Mapping[str, Any]) -> Sizes:
    named = {"RN50": RN50, "tiny": TINY}
    if isinstance(clip, str):
        if clip not in named:
            raise ValueError(f"clip '{clip}' is unknown; expected {' or '.join(named)}, or sizes")
        return named[clip]
    try:
        sizes = dict(clip)
        if "layers" in sizes:
            sizes["layers"] = tuple(int(n) for n in sizes["layers"])
        return Sizes(**sizes)
    except TypeError as e:
        raise ValueError(f"clip sizes {dict(clip)}: {e}; expected some of {list(Sizes.__dataclass_fields__)}") from e


def _clip_tokens(name: str) -> Tokens:
    tokenizer: list[Any] = []  # loaded at the first text, so that a model of images needs none

    def tokens(texts: Sequence[str], length: int) -> Tensor:
        if not tokenizer:
            tokenizer.append(_load_tokenizer(name))
        out = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, text in zip(out, texts, strict=True):
            ids = tokenizer[0](text, truncation=True, max_length=length)["input_ids"]
            row[: len(ids)] = torch.tensor(ids)
        return out

    return tokens


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as e:
        why = str(e).strip().split("\n")[0]
        raise ValueError(
            f"CLIP's tokenizer cannot be loaded from '{name}': {why}; give a folder in transformers' layout, a hub id "
            "that can be reached, or bytes"
        ) from e
