"""How far the learner's log-probs are from those of the rollout: `python -m benchmarks.log_probs [--no-write]`.

Each family of configs/policy, at the size written there and with chains of 1, 2 and 5 links, decides in a real
simulator (the toy). Then a learner whose rate is 0 makes an update of four epochs, in minibatches of unequal sizes
drawn anew in each. Figures are nats of float32, the largest of all scored links; weights are random, with none at zero.

    ratio    |log-ratio| that PPO sees in that update: what is drawn at random or remembered inside it would show here,
             and so would rounding that depends on the minibatch
    gap      between the numbers of the rollout, computed a few rows at a time, and the learner's: rounding of another
             shape, magnified by 1 / standard deviation; PPO does not use the rollout's numbers
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.families import CONFIGS, FAMILIES
from benchmarks.tables import hardware, table, write_results, write_section
from envs.build import build
from envs.types import EnvConfig
from envs.vector import SimVector
from rl.collect import Collector
from rl.learner import Learner
from rl.ppo import Ppo
from rl.rewards import build_terms

LIMIT = 1e-5  # nats
LINKS = (1, 2, 5)
REWARDS = {"sparse": {"weight": 1.0, "term": {"_target_": "rl.rewards.sparse.Sparse"}}}
CASES = [(f, k) for f in FAMILIES for k in (LINKS if f not in ("gaussian", "categorical") else (1,))]


def measure(family: str, links: int, *, rows: int = 8, decisions: int = 32, memory: str = "none") -> dict[str, float]:
    """`ratio` and `gap` of one family."""
    node = yaml.safe_load((Path(CONFIGS) / "policy" / f"{family}.yaml").read_text()) | {"memory": memory}
    discrete = family == "categorical"
    if not discrete:
        node["kernel"]["steps"] = links
    env = EnvConfig(sim={"_target_": "envs.toy.Toy", "name": "reach_discrete" if discrete else "reach"})
    vector = SimVector([env] * rows, max_chunk=node["horizon"])
    try:
        torch.manual_seed(0)
        policy = build(node, env=vector.env_spec)
        for p in policy.parameters():
            if p.requires_grad and not p.any():
                torch.nn.init.normal_(p, std=0.1)
        segment = Collector(vector, policy.eval(), decisions=decisions, gamma=0.99).collect(0)
    finally:
        vector.close()
    algo = Ppo(lr=0.0, weight_decay=0.0, links="each", reduction="sum", clip=0.2, epochs=4, minibatches=3)
    seen = Watched(algo)
    metrics = Learner(policy, seen, build_terms(REWARDS)).update(segment)  # type: ignore[arg-type]
    counts = segment.active & segment.valid[..., None]
    return {
        "ratio": max(seen.ratios),
        "gap": metrics["loss/rollout_log_prob_gap"],
        "largest": float(segment.log_prob[counts].abs().max()),
        "scored": int(counts.sum()),
    }


class Watched:
    """PPO that notes the largest |log-ratio| of every minibatch."""

    def __init__(self, algo: Ppo) -> None:
        self.algo, self.ratios = algo, list[float]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algo, name)

    def loss(self, *args: Any) -> Any:
        """As PPO's."""
        loss, metrics = self.algo.loss(*args)
        self.ratios.append(metrics["loss/max_log_ratio"])
        return loss, metrics


def as_table(found: Mapping[tuple[str, int], Mapping[str, float]]) -> str:
    """One row per family and chain."""
    head = ["family", "links", f"ratio (below {LIMIT:g})", "gap", "largest log-prob", "links scored"]
    rows = [[family, str(k), f"{r['ratio']:.1e}" + " *" * (r["ratio"] >= LIMIT), f"{r['gap']:.1e}",
             f"{r['largest']:.1f}", f"{r['scored']:.0f}"] for (family, k), r in found.items()]  # fmt: skip
    return table(head, rows) + "\n\n`*` above the limit."


def main() -> int:
    """Measure, print the table, and write results.json and RESULTS.md; 1 if a family is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-write", action="store_true", help="only print")
    args = parser.parse_args()
    found = {}
    for case in CASES:
        found[case] = measure(*case)
        print(f"{case[0]}, {case[1]} links: {found[case]}", file=sys.stderr)
    print(as_table(found))
    if not args.no_write:
        write_results({f"log_probs/{f}/{k}": {"goal": None, **r} for (f, k), r in found.items()})
        text = f"## Log-probs of rollout and learner\n\n{hardware()}, float32\n\n{as_table(found)}\n\n"
        write_section("log_probs", text + "Command: `python -m benchmarks.log_probs`.")
    return int(any(r["ratio"] >= LIMIT for r in found.values()))


if __name__ == "__main__":
    sys.exit(main())
