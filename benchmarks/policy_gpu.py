"""Decisions per second of a policy on a GPU, by batch size: `python -m benchmarks.policy_gpu`. Needs torch, not Ray.

A decision is observations to features, features to a chunk, from the host's images to the host's chunk: what a rollout
worker waits for. Variants and batch sizes alternate; figures are medians over the rounds. `of ceiling` is the networks'
products and convolutions per second divided by those of a large matrix product of the same precision.
"""

import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import ceilings, flops, machine, parser, precision, read, seconds
from benchmarks.synthetic import CASES, Case, make_policy, observations
from benchmarks.tables import table, write_results, write_section
from pretrained.types import ObsBatch


@dataclass(frozen=True)
class Variant:
    """How a policy is run."""

    bf16: bool = False
    compile: bool = False


VARIANTS = {"float32": Variant(), "bf16": Variant(bf16=True), "bf16 compiled": Variant(bf16=True, compile=True)}
BATCHES = (1, 8, 64, 256)


class Acting:
    """One policy, run in one way."""

    def __init__(self, policy: Any, variant: Variant, device: torch.device) -> None:
        self.policy, self.variant, self.device = policy.to(device), variant, device
        self.rng = torch.Generator().manual_seed(0)
        if variant.compile:
            policy.condition = torch.compile(policy.condition)
            policy.run_network = torch.compile(policy.run_network)

    def decide(self, obs: ObsBatch) -> torch.Tensor:
        """Chunks [N, H, A] on the host."""
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.variant.bf16):
            x = self.policy.encode(obs)
            return self.policy.act(x, {}, self.rng)[0].chunk.cpu()


def measure(case: Case, device: torch.device, batches: Sequence[int], rounds: int, size: int,
            say: Callable[[str], None], variants: dict[str, Variant] = VARIANTS) -> dict[str, Any]:  # fmt: skip
    """(variant, batch) -> decisions per second, milliseconds per call, share of the ceiling."""
    policy = make_policy(case)
    rng = np.random.default_rng(0)
    seen = {n: observations(policy, n, rng) for n in batches}
    plain = Acting(copy.deepcopy(policy), Variant(), torch.device("cpu"))
    work = flops(lambda: plain.decide(seen[min(batches)])) / min(batches)
    acting = {name: Acting(copy.deepcopy(policy), v, device) for name, v in variants.items()}
    for name, one in acting.items():
        for n in batches:
            for _ in range(3):
                one.decide(seen[n])
        say(f"{name}: ready")
    spent: dict[tuple[str, int], list[float]] = {(name, n): [] for n in batches for name in acting}
    for i in range(rounds):
        for name, n in list(spent) if i % 2 else list(reversed(spent)):
            spent[name, n].append(seconds(lambda n=n, one=acting[name]: one.decide(seen[n]), device))
    tops = ceilings(device, size)
    found = {}
    for (name, n), values in spent.items():
        middle, top = statistics.median(values), tops[precision(name)]
        found[name, n] = {"per_s": n / middle, "ms": 1e3 * middle, "of_ceiling": work * n / middle / top}
    return {"points": found, "tflops": {k: v / 1e12 for k, v in tops.items()}, "mflop": work / 1e6, "rounds": rounds}


def as_results(name: str, device: torch.device, found: dict[str, Any]) -> dict[str, Any]:
    """name -> ratio (share of the ceiling), goal and both raw figures."""
    return {
        f"policy_{device.type}/{name}/{variant}/{n}": {
            "ratio": round(v["of_ceiling"], 5),
            "goal": None,
            "decisions_per_s": round(v["per_s"], 1),
            "ceiling_tflops": round(found["tflops"][precision(variant)], 2),
            "rounds": found["rounds"],
        }
        for (variant, n), v in found["points"].items()
    }


def as_table(found: dict[str, Any]) -> str:
    """One row per variant and batch size."""
    rows = [[variant, str(n), f"{v['per_s']:.0f}", f"{v['ms']:.2f}", f"{100 * v['of_ceiling']:.2f} %"]
            for (variant, n), v in found["points"].items()]  # fmt: skip
    text = table(["variant", "batch", "decisions/s", "ms", "of ceiling"], rows)
    tops = ", ".join(f"{k} {v:.2f}" for k, v in found["tflops"].items())
    return text + f"\n\nCeilings in TFLOP/s: {tops}. {found['mflop']:.0f} MFLOP per decision."


def main() -> None:
    """Measure, print the table, and write results.json and RESULTS.md."""
    options = parser(__doc__, VARIANTS, rounds=15)
    options.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    args, device = read(options)
    found = measure(CASES[args.case], device, args.batches, args.rounds, args.size,
                    lambda s: print(s, file=sys.stderr), {n: VARIANTS[n] for n in args.variants})  # fmt: skip
    print(as_table(found))
    if not args.no_write:
        write_results(as_results(args.case, device, found))
        text = f"## Policy on {device.type}\n\n{machine(device)}, case {args.case}\n\n{as_table(found)}\n\n"
        text += f"Command: `python -m benchmarks.policy_gpu --case {args.case} --device {device.type}`."
        write_section(f"policy_{device.type}", text)


if __name__ == "__main__":
    main()
