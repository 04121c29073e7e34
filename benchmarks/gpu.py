"""What the two GPU benchmarks share: the ceiling of matrix products, waiting for a device, counting work."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tables import hardware


def machine(device: torch.device) -> str:
    """The line about the hardware, with the accelerator if there is one."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no accelerator"
    return f"{hardware()}, {name}"


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock until the device has finished."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def ceiling(device: torch.device, dtype: torch.dtype, size: int, rounds: int = 9) -> float:
    """FLOP/s of square matrix products, the median of `rounds`; a product counts 2 size^3."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [seconds(lambda: a @ b, device) for _ in range(rounds + 1)][1:]  # the first one chooses its kernel
    return 2.0 * size**3 / statistics.median(times)


def flops(work: Callable[[], Any]) -> float:
    """Products and convolutions of `work`, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def choose(device: str) -> torch.device:
    """The device asked for; "" takes CUDA if it is there. Raises ValueError if it is not."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}, but torch sees no CUDA device here; use --device cpu")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
