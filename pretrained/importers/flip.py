"""Official FLIP files to the weights of Temper's modules, and back.

Four files are known: `cvae` (flow model), `dynamics` (video model, of which `ema` is taken), `vae` (the tuned
autoencoder) and `reward` (LIV, released with the prefix `module.` or as written by its training, and perhaps in half
precision). Names are those of the modules, so that only prefixes change. Files are read with `weights_only`; beside
tensors, numbers and dictionaries only the namespace of the settings is allowed, which runs no code.
"""

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrained.flip.clip import sizes_of

ROOTS = {"cvae": ("model",), "dynamics": ("ema", "model"), "vae": ("model",), "reward": ("liv",)}
PREFIXES = ("module.", "")  # of DataParallel, and none
CLIP = "model."  # of LIV's names


@dataclass(frozen=True)
class ImportReport:
    """What became of the weights of an official file."""

    kind: str
    root: str  # which of the file's dictionaries was taken
    used: int
    missing: tuple[str, ...]  # names that were expected
    surplus: tuple[str, ...]  # names that have no place
    cast: tuple[str, ...]  # stored in another precision


@dataclass(frozen=True)
class Official:
    """An official file, read."""

    kind: str
    root: str
    weights: dict[str, Tensor]  # under their names, without the prefix of DataParallel


def read(path: Path | str, kind: str) -> Official:
    """Read a file. Raises ValueError if it is of another kind, or would need to run code."""
    path = Path(path)
    if kind not in ROOTS:
        raise ValueError(f"kind '{kind}' is unknown; expected one of {', '.join(ROOTS)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the name")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as e:
        raise ValueError(
            f"{path} cannot be read as plain tensors ({str(e).splitlines()[0]}); expected a file that torch wrote: "
            "other content is not unpickled"
        ) from e
    roots = [r for r in ROOTS[kind] if isinstance(content, Mapping) and r in content]
    if not roots:
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} holds {found}, expected '{ROOTS[kind][0]}'; it is not a {kind} file")
    named: dict[str, Tensor] = dict(content[roots[0]])
    prefix = next(p for p in PREFIXES if all(k.startswith(p) for k in named))
    return Official(kind, roots[0], {k.removeprefix(prefix): v for k, v in named.items()})


def clip_of(official: Official) -> dict[str, Any]:
    """The sizes of a reward file's towers, for `ValueModel(clip=...)`."""
    return dict(vars(sizes_of({k.removeprefix(CLIP): v for k, v in official.weights.items()})))


def fill(module: nn.Module, official: Official, *, tolerant: bool = False) -> ImportReport:
    """Load the weights into a FlowModel, VideoModel, Autoencoder or ValueModel.

    Raises ValueError naming what is missing, left over or of another shape; with `tolerant` what is left over is only
    reported."""
    inner = _inner(module, official.kind)
    own, weights = inner.state_dict(), official.weights
    missing = tuple(k for k in own if k not in weights)
    surplus = tuple(k for k in weights if k not in own)
    problems = [f"{k}: missing" for k in missing] + [f"{k}: surplus" for k in surplus if not tolerant]
    problems += [
        f"{k}: {list(weights[k].shape)}, expected {list(own[k].shape)}"
        for k in own
        if k in weights and own[k].shape != weights[k].shape
    ]
    if problems:
        listed = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(
            f"the {official.kind} file does not fit the {type(module).__name__}: {listed}; check its sizes"
        )
    cast = tuple(k for k in own if own[k].dtype != weights[k].dtype)
    inner.load_state_dict({k: weights[k].to(own[k].dtype) for k in own}, assign=_on_meta(inner))
    return ImportReport(official.kind, official.root, len(weights) - len(surplus), missing, surplus, cast)


def export(module: nn.Module, out: Path | str, kind: str, *, released: bool = False) -> None:
    """Write an official file. Its settings and optimiser state are not written: it can be started from, not resumed.

    `released` writes the prefix that LIV's released file has."""
    if kind not in ROOTS:
        raise ValueError(f"kind '{kind}' is unknown; expected one of {', '.join(ROOTS)}")
    prefix = "module." if released else ""
    weights = {prefix + k: v.detach().clone() for k, v in _inner(module, kind).state_dict().items()}
    torch.save({root: weights for root in ROOTS[kind]}, out)


def _inner(module: nn.Module, kind: str) -> nn.Module:
    """The part whose names are the file's."""
    return module.model if kind == "vae" and isinstance(module.model, nn.Module) else module


def _on_meta(module: nn.Module) -> bool:
    """Whether the module has shapes only; then it takes the file's tensors themselves."""
    return any(p.is_meta for p in module.parameters())
