"""The processes that train together."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import distributed as dist


@contextlib.contextmanager
def processes(wanted: str = "") -> Iterator[tuple[int, int, torch.device]]:
    """Rank, world size and device; joins the process group that torchrun describes. "" takes CUDA if it is there."""
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    name = wanted or (f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield 0, 1, device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield dist.get_rank(), world, device
    finally:
        dist.destroy_process_group()
