"""CLIP with a ResNet (Radford et al. 2021), which LIV is: its two towers, trainable, under the published names.

transformers has no ResNet CLIP, and packages that have one need torchvision's compiled operators. The sizes are read
off the weights, as the original does. In training mode BatchNorm sees whole batches, as in the original.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64  # width of an attention head


@dataclass(frozen=True)
class Sizes:
    """Of both towers."""

    embed: int = 1024
    image: int = 224  # pixels
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64  # of the first layers of the ResNet
    words: int = 77  # of a text
    vocabulary: int = 49408
    text_width: int = 512
    text_layers: int = 12


RN50 = Sizes()
TINY = Sizes(embed=32, image=32, layers=(1, 1, 1, 1), width=8, words=77, vocabulary=260, text_width=64, text_layers=1)


def sizes_of(weights: Mapping[str, Tensor]) -> Sizes:
    """The sizes of published weights. Raises ValueError if they are not of a ResNet CLIP."""
    try:
        places = weights["visual.attnpool.positional_embedding"].shape[0] - 1
        blocks = {tuple(k.split(".")[1:3]) for k in weights if k.startswith("visual.layer")}
        counts = [sum(1 for layer, _ in blocks if layer == f"layer{i}") for i in (1, 2, 3, 4)]
        return Sizes(
            embed=weights["text_projection"].shape[1],
            image=round(places**0.5) * 32,
            layers=(counts[0], counts[1], counts[2], counts[3]),
            width=weights["visual.layer1.0.conv1.weight"].shape[0],
            words=weights["positional_embedding"].shape[0],
            vocabulary=weights["token_embedding.weight"].shape[0],
            text_width=weights["ln_final.weight"].shape[0],
            text_layers=len({k.split(".")[2] for k in weights if k.startswith("transformer.resblocks.")}),
        )
    except KeyError as e:
        raise ValueError(f"these are not the weights of a CLIP with a ResNet: {e} is missing") from e


class Clip(nn.Module):
    """Pictures and texts to vectors of one space."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.visual = _ResNet(sizes)
        self.transformer = _Layers(sizes.text_width, sizes.text_layers)
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(sizes.words, sizes.text_width))
        self.ln_final = nn.LayerNorm(sizes.text_width)
        self.text_projection = nn.Parameter(torch.randn(sizes.text_width, sizes.embed) * sizes.text_width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # LIV has no temperature; files have it
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def pictures(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, Y, X] -> [B, D]."""
        return self.visual(pixels)

    def texts(self, tokens: Tensor) -> Tensor:
        """int64 [B, S] -> [B, D], at the largest token of each, which is the end."""
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf"), device=tokens.device).triu(1)
        hidden = self.token_embedding(tokens) + self.positional_embedding[:length]
        hidden = self.ln_final(self.transformer(hidden, mask))
        return hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(1)] @ self.text_projection


class _ResNet(nn.Module):
    """Three convolutions, four stages that blur before they stride, and attention for a pool."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.conv1, self.bn1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, sizes.layers[0], 1)
        self.layer2 = _stage(4 * width, 2 * width, sizes.layers[1], 2)
        self.layer3 = _stage(8 * width, 4 * width, sizes.layers[2], 2)
        self.layer4 = _stage(16 * width, 8 * width, sizes.layers[3], 2)
        self.attnpool = _Pool(32 * width, sizes.image // 32, max(1, 32 * width // HEAD), sizes.embed)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


def _stage(wide: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [_Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_Bottleneck(wide, width, stride), *rest)


class _Bottleneck(nn.Module):
    def __init__(self, wide: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or wide != 4 * width:
            parts = [("-1", nn.AvgPool2d(stride)), ("0", nn.Conv2d(wide, 4 * width, 1, bias=False)),
                     ("1", nn.BatchNorm2d(4 * width))]  # fmt: skip
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(F.avg_pool2d(out, self.stride) if self.stride > 1 else out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class _Pool(nn.Module):
    """The mean over places asks all places."""

    def __init__(self, width: int, side: int, heads: int, embed: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) * width**-0.5)
        self.k_proj, self.q_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.c_proj = nn.Linear(width, width), nn.Linear(width, embed)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v)[:, :, 0].flatten(1))


class _Layers(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Layer(width) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class _Layer(nn.Module):
    """Pre-norm, with the quick GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, max(1, width // HEAD), batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        h = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](h * torch.sigmoid(1.702 * h))


def byte_tokens(texts: Sequence[str], length: int) -> Tensor:
    """int64 [N, length]: bytes between a begin (257) and an end (258), padded with 0; no vocabulary is needed."""
    rows = [[257, *text.encode()[: length - 2], 258] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64)
