"""Samples per second of the learner on a GPU, against what matrix products reach: `python -m benchmarks.learner_gpu`.

Needs torch, not Ray. Each variant of `rl.compute` has a learner of its own; updates on the same segment alternate, and
figures are medians over the rounds. A sample is one decision in one epoch. `of ceiling` is the work of the networks
(products and convolutions, counted by torch on one minibatch: forward and backward in each epoch, forward once more for
the log-probs before learning) per second, divided by that of a large matrix product of the same precision, measured in
the same run. Batches come from the host's memory, as in a run, and what the images' bytes cost is in the figures.
"""

import copy
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import ceilings, flops, machine, parser, precision, read, seconds
from benchmarks.learner import ALGO, REWARDS
from benchmarks.synthetic import CASES, Case, make_policy, make_segment
from benchmarks.tables import table, write_results, write_section
from envs.build import build
from rl.compute import Compute
from rl.learner import Learner
from rl.types import Segment

VARIANTS: dict[str, Compute] = {
    "float32": Compute(fused=False),
    "fused": Compute(fused=True),
    "bf16": Compute(bf16=True, fused=True),
    "bf16 compiled": Compute(bf16=True, fused=True, compile=True),
    "bf16 recomputed": Compute(bf16=True, fused=True, recompute=True),
}


def work_of(policy: Any, segment: Segment) -> float:
    """FLOP per decision of an update."""
    few = {k: v[:1].flatten(0, 1)[:, None] for k, v in segment.features.items()}
    trace, starts = segment.trace[:1].flatten(0, 1)[:, None], segment.starts[:1].flatten()[:, None]

    def forward() -> torch.Tensor:
        scored = policy.evaluate(few, trace, starts, {})
        return scored.log_prob.sum() + scored.value.sum()

    there = flops(forward)
    and_back = flops(lambda: forward().backward())
    return (there + ALGO.epochs * and_back) / len(trace)


def measure(case: Case, device: torch.device, rounds: int, size: int, say: Callable[[str], None],
            variants: dict[str, Compute] = VARIANTS) -> dict[str, Any]:  # fmt: skip
    """Samples per second, share of the ceiling and peak memory of each variant."""
    policy = make_policy(case)
    segment = make_segment(policy, case)
    work = work_of(copy.deepcopy(policy), segment)
    terms = {n: {"weight": r["weight"], "term": build(r["term"])} for n, r in REWARDS.items()}
    learners, peaks = {}, {}
    for name, compute in variants.items():
        learners[name] = Learner(copy.deepcopy(policy), ALGO, terms, device=str(device), compute=compute)
        for _ in range(2):  # compiles, and the allocator finds its size
            _forget_peak(device)
            _update(learners[name], segment)
        peaks[name] = _peak(device)
        say(f"{name}: ready")
    spent: dict[str, list[float]] = {name: [] for name in learners}
    for i in range(rounds):
        for name in list(learners) if i % 2 else list(reversed(learners)):
            spent[name].append(seconds(lambda n=name: _update(learners[n], segment), device))
        say(", ".join(f"{name} {values[-1]:.3f} s" for name, values in spent.items()))
    tops = ceilings(device, size)
    decisions = segment.value.numel()
    found = {}
    for name, values in spent.items():
        middle, top = statistics.median(values), tops[precision(name)]
        found[name] = {
            "samples_per_s": decisions * ALGO.epochs / middle,
            "of_ceiling": work * decisions / middle / top,
            "speedup": statistics.median(a / b for a, b in zip(spent["float32"], values, strict=True)),
            "peak_mib": peaks[name],
        }
    return {"variants": found, "tflops": {k: v / 1e12 for k, v in tops.items()}, "mflop_per_decision": work / 1e6,
            "rounds": rounds, "decisions": decisions}  # fmt: skip


def _update(learner: Learner, segment: Segment) -> None:
    segment.version = learner.iteration  # no importance weights
    learner.update(segment)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float:
    """MiB of device memory, 0 where torch does not count."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def as_results(name: str, device: torch.device, found: dict[str, Any]) -> dict[str, Any]:
    """name -> ratio (share of the ceiling), goal and both raw figures."""
    return {
        f"learner_{device.type}/{name}/{variant}": {
            "ratio": round(v["of_ceiling"], 4),
            "goal": None,
            "samples_per_s": round(v["samples_per_s"], 1),
            "ceiling_tflops": round(found["tflops"][precision(variant)], 2),
            "rounds": found["rounds"],
        }
        for variant, v in found["variants"].items()
    }


def as_table(found: dict[str, Any]) -> str:
    """One row per variant."""
    rows = [[name, f"{v['samples_per_s']:.0f}", f"{v['speedup']:.2f}", f"{100 * v['of_ceiling']:.1f} %",
             f"{v['peak_mib']:.0f}"] for name, v in found["variants"].items()]  # fmt: skip
    text = table(["variant", "samples/s", "times float32", "of ceiling", "peak MiB"], rows)
    tops = ", ".join(f"{k} {v:.2f}" for k, v in found["tflops"].items())
    return text + f"\n\nCeilings in TFLOP/s: {tops}. {found['mflop_per_decision']:.0f} MFLOP per decision and update."


def main() -> None:
    """Measure, print the table, and write results.json and RESULTS.md."""
    args, device = read(parser(__doc__, VARIANTS, rounds=7))
    variants = {name: VARIANTS[name] for name in dict.fromkeys(["float32", *args.variants])}
    found = measure(CASES[args.case], device, args.rounds, args.size, lambda s: print(s, file=sys.stderr), variants)
    print(as_table(found))
    if not args.no_write:
        write_results(as_results(args.case, device, found))
        text = f"## Learner on {device.type}\n\n{machine(device)}, case {args.case}, {found['decisions']} decisions\n\n"
        text += f"{as_table(found)}\n\nCommand: `python -m benchmarks.learner_gpu --case {args.case}"
        write_section(f"learner_{device.type}", text + f" --device {device.type} --rounds {args.rounds}`.")


if __name__ == "__main__":
    main()
