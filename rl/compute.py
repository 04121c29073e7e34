"""How a learner computes its gradients: plain float32, or faster and smaller ways to nearly the same ones.

    bf16       the networks run in bfloat16; weights, log-probs, losses and Adam's moments stay float32
    compile    `evaluate` is compiled by torch.compile: on a GPU by Triton, on a CPU with the machine's C++ compiler
    fused      one kernel per group of parameters in the optimizer's step; on by default
    recompute  gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): what is inside the image towers and the
               blocks of the velocity network is computed again on the way back instead of being kept

The others are off unless asked for. `docs/learner.md` says what each is good for.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrained.networks import recomputable
from pretrained.types import Evaluation, Features, Memory, Policy, PolicySpec


class Scorer(Protocol):
    """The part of a policy that learning needs."""

    spec: PolicySpec

    def evaluate(
        self, x: Features, trace: Tensor, starts: Tensor, memory: Memory, links: Tensor | None = None
    ) -> Evaluation: ...


@dataclass(frozen=True)
class Compute:
    """The switches of a learner."""

    bf16: bool = False
    compile: bool = False
    fused: bool = True
    recompute: bool = False

    def prepare(self, policy: Policy, device: torch.device) -> Scorer:
        """What to score with instead of `policy`. Raises ValueError if this machine or policy cannot do it."""
        asked = [name for name in ("bf16", "fused", "compile") if getattr(self, name)]
        if asked and device.type not in ("cpu", "cuda"):
            raise ValueError(f"{asked[0]}=true works on cpu and cuda, not on {device}; set {asked[0]}=false")
        if self.bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ValueError(f"bf16=true, but {torch.cuda.get_device_name(device)} has no bfloat16; set bf16=false")
        if self.recompute:
            _recompute(policy)
        if not self.compile:
            return policy
        if missing := missing_for_compile(device):
            raise ValueError(f"compile=true needs {missing}; install it, or set compile=false")
        return _Compiled(policy)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Around every scoring; entered anew after each step, since it keeps copies of the weights."""
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()


def missing_for_compile(device: torch.device) -> str:
    """What torch.compile would not find on this machine; "" if all is there."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton, which comes with torch for CUDA"
        return "" if any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang"))) else "a C compiler (gcc)"
    if not shutil.which(os.environ.get("CXX", "g++")):
        return f"a C++ compiler ('{os.environ.get('CXX', 'g++')}' is not there; CXX names another)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return "" if header.exists() else f"Python's headers ({header} is not there; Debian: apt-get install python3-dev)"


class _Compiled:
    """A policy whose `evaluate` is compiled at its first call."""

    def __init__(self, policy: Policy) -> None:
        self.spec = policy.spec
        self._evaluate = torch.compile(policy.evaluate)

    def evaluate(
        self, x: Features, trace: Tensor, starts: Tensor, memory: Memory, links: Tensor | None = None
    ) -> Evaluation:
        try:
            return self._evaluate(x, trace, starts, memory, links)
        except RuntimeError as e:
            from torch._dynamo.exc import TorchDynamoException  # slow to import

            if not isinstance(e, TorchDynamoException):
                raise
            raise RuntimeError(
                f"torch.compile failed on this policy: {str(e).strip().splitlines()[0]}; set compile=false"
            ) from e


def _recompute(policy: Policy) -> None:
    module: Any = policy  # policies are modules (pretrained.types)
    blocks = recomputable(module)
    if not blocks:
        raise ValueError(
            "recompute=true, but this policy has no block that is worth it (an image tower that learns, a block of "
            "the velocity network); set recompute=false"
        )
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
