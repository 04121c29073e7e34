"""What the two GPU benchmarks share: the ceiling of matrix products, waiting for a device, counting work."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.synthetic import CASES
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


def parser(doc: str | None, variants: Iterable[str], *, rounds: int) -> argparse.ArgumentParser:
    """The options that both have."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--case", choices=list(CASES), default="large")
    found.add_argument("--device", default="", help="cuda or cpu; CUDA if it is there")
    found.add_argument("--rounds", type=int, default=rounds)
    found.add_argument("--size", type=int, default=8192, help="of the matrices of the ceiling")
    found.add_argument("--variants", nargs="+", choices=list(variants), default=list(variants))
    found.add_argument("--no-write", action="store_true", help="only print")
    return found


def read(options: argparse.ArgumentParser) -> tuple[argparse.Namespace, torch.device]:
    """The command line and its device; ends the program if torch does not see that device."""
    args = options.parse_args()
    try:
        return args, choose(args.device)
    except ValueError as e:
        options.error(str(e))


def ceilings(device: torch.device, size: int) -> dict[str, float]:
    """FLOP/s by precision."""
    return {"float32": ceiling(device, torch.float32, size), "bf16": ceiling(device, torch.bfloat16, size)}


def precision(variant: str) -> str:
    """Which of the ceilings a variant is measured against."""
    return "bf16" if variant.startswith("bf16") else "float32"


def choose(device: str) -> torch.device:
    """The device asked for; "" takes CUDA if it is there. Raises ValueError if it is not."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}, but torch sees no CUDA device here; use --device cpu")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
