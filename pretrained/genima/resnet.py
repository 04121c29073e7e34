"""ResNet-18 (He et al. 2016) whose last three stages an instruction modulates by FiLM (Perez et al. 2018).

Batch normalisation is frozen: its four tensors are buffers. Names are torchvision's, so that its ImageNet weights, as
the hub has them in safetensors, fit.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class FrozenNorm(nn.Module):
    """Batch normalisation that never learns."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, planes: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((planes,), value))

    def forward(self, x: Tensor) -> Tensor:
        """[B, planes, y, x]."""
        scale = self.weight * (self.running_var + EPS).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = FrozenNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = FrozenNorm(planes)
        self.downsample = None
        if stride > 1 or inputs != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), FrozenNorm(planes))

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor] | None) -> Tensor:
        """`film`: gamma and beta [B, planes], applied after the second normalisation."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if film is not None:
            out = out * (1 + film[0][:, :, None, None]) + film[1][:, :, None, None]
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class FilmResNet(nn.Module):
    """uint8 pictures and text vectors to maps of a 32nd of the size."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, text_dim: int, planes: Sequence[int] = (64, 128, 256, 512), blocks: int = 2) -> None:
        super().__init__()
        self.planes, self.blocks = tuple(planes), blocks
        self.conv1 = nn.Conv2d(3, planes[0], 7, 2, 3, bias=False)
        self.bn1 = FrozenNorm(planes[0])
        inputs = planes[0]
        for stage, width in enumerate(planes):
            rows = [Block(inputs if i == 0 else width, width, 2 if stage and i == 0 else 1) for i in range(blocks)]
            self.add_module(f"layer{stage + 1}", nn.ModuleList(rows))
            inputs = width
        self.film = nn.ModuleDict({
            str(stage): nn.Linear(text_dim, 2 * blocks * planes[stage]) for stage in range(1, len(planes))
        })  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # An instruction that changes nothing at first, so that ImageNet's weights are of use.
        for layer in cast(Iterable[nn.Linear], self.film.values()):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None] * 255, persistent=False)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Images [B, 3, Y, X], 0 to 255, and text [B, text_dim], to [B, planes, Y / 32, X / 32]."""
        x = (images.float() - self.mean) / self.std
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage, planes in enumerate(self.planes):
            film = None
            if stage:
                film = self.film[str(stage)](text).view(-1, 2, self.blocks, planes)
            for i, block in enumerate(self.get_submodule(f"layer{stage + 1}").children()):
                x = block(x, None if film is None else (film[:, 0, i], film[:, 1, i]))
        return x


def load_imagenet(network: FilmResNet, source: str) -> None:
    """Take ImageNet weights: a *.safetensors file, its folder, or a hub id (timm/resnet18.tv_in1k); "" takes none."""
    if not source:
        return
    from safetensors.torch import load_file

    path = Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(source, "model.safetensors"))
        except (OSError, ValueError) as e:
            raise ValueError(
                f"ImageNet weights cannot be loaded from '{source}' ({str(e).splitlines()[0]}); name a safetensors "
                "file with torchvision's names, a hub id that can be reached, or '' for random ones"
            ) from e
    weights = {k: v for k, v in load_file(path).items() if not k.startswith("fc.") and "num_batches" not in k}
    found = network.load_state_dict(weights, strict=False)
    missing = [k for k in found.missing_keys if not k.startswith("film.")]
    if missing or found.unexpected_keys:
        raise ValueError(f"{source} is not a ResNet-18: missing {missing[:4]}, surplus {found.unexpected_keys[:4]}")
