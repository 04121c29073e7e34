"""Our learner against PPO in plain PyTorch on the same batch: `python -m benchmarks.learner [--case NAME]`.

    ours   rl.learner.Learner.update, everything switched off: float32
    bare   the same PPO written for this batch alone: targets, the log-probs before learning, epochs of minibatches,
           loss, backward, clip, AdamW in two groups, a handful of numbers to log
    short  the same without computing the log-probs before learning: it trusts the rollout's

Both start from equal weights and score with the same network, so the ratio bare / ours (of seconds per update) is what
is left of the machine's speed after everything our learner does besides: rewards as terms, links, stages, checks, lag,
several learners. Computing log-probs before learning is a choice of ours, of which `short` shows the price. Updates
alternate; ratios are medians over the rounds. Both spend their time on one thread unless --threads says otherwise.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.synthetic import CASES, Case, make_policy, make_segment
from benchmarks.tables import hardware, table, write_results, write_section
from envs.build import build
from rl.learner import Learner
from rl.ppo import Ppo
from rl.types import Segment

ALGO = Ppo(lr={"": 1e-5, "critic": 1e-4}, links="sum", reduction="sum", clip=0.2, epochs=4, minibatches=4)
REWARDS = {"sparse": {"weight": 1.0, "term": {"_target_": "rl.rewards.sparse.Sparse"}}}
GOAL = 0.95  # bare / ours
CHOICES = ("gaussian", "flow")


def make_learner(policy: Any, threads: int) -> Learner:
    """Ours, as a run would make it."""
    terms = {name: {"weight": r["weight"], "term": build(r["term"])} for name, r in REWARDS.items()}
    return Learner(policy, ALGO, terms, threads=threads)


class Bare:
    """PPO over the summed log-prob of a memoryless policy's chain, for a segment of N streams and T decisions."""

    def __init__(self, policy: Any, *, rescore: bool, algo: Ppo | None = None) -> None:
        self.policy, self.rescore, self.algo = policy, rescore, algo or ALGO
        critic = list(policy.critic.parameters())
        actor = [p for n, p in policy.named_parameters() if p.requires_grad and not n.startswith("critic")]
        groups = [{"params": actor, "lr": 1e-5}, {"params": critic, "lr": 1e-4}]
        self.parts = (actor, critic)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    def update(self, s: Segment) -> dict[str, float]:
        """One iteration of learning."""
        advantage, returns = self._targets(s)
        rows = s.value.numel()
        x = {k: v.flatten(0, 1)[:, None] for k, v in s.features.items()}
        trace, starts = s.trace.flatten(0, 1)[:, None], s.starts.reshape(rows, 1)
        old = s.log_prob.sum(-1).flatten()
        if self.rescore:
            with torch.no_grad():
                old = torch.cat([self._score(x, trace, starts, i)[0] for i in torch.arange(rows).tensor_split(4)])
        advantage, returns, logs = advantage.flatten(), returns.flatten(), []
        for _ in range(self.algo.epochs):
            for i in torch.randperm(rows).tensor_split(self.algo.minibatches):
                log_prob, value = self._score(x, trace, starts, i)
                ratio = (log_prob - old[i]).exp()
                a = advantage[i]
                policy_loss = -torch.minimum(ratio * a, ratio.clamp(1 - self.algo.clip, 1 + self.algo.clip) * a).mean()
                value_loss = 0.5 * ((value - returns[i]) ** 2).mean()
                self.optimizer.zero_grad()
                (policy_loss + self.algo.value_coef * value_loss).backward()
                norms = [float(torch.nn.utils.clip_grad_norm_(p, self.algo.max_grad_norm)) for p in self.parts]
                self.optimizer.step()
                logs.append([policy_loss.item(), value_loss.item(), *norms])
        names = ("policy", "value", "norm", "critic_norm")
        return dict(zip(names, torch.tensor(logs).mean(0).tolist(), strict=True))

    def _score(self, x: dict[str, Tensor], trace: Tensor, starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        scored = self.policy.evaluate({k: v[rows] for k, v in x.items()}, trace[rows], starts[rows], {})
        return scored.log_prob.sum(-1).flatten(), scored.value.flatten()

    def _targets(self, s: Segment) -> tuple[Tensor, Tensor]:
        advantage, last = torch.zeros_like(s.value), torch.zeros(len(s.value))
        discount, live = self.algo.gamma**s.duration, (~s.terminated).float()
        error = s.env_reward + discount * live * s.next_value - s.value
        for t in reversed(range(s.value.shape[1])):
            last = error[:, t] + discount[:, t] * self.algo.lam * live[:, t] * last
            advantage[:, t] = last
        returns = advantage + s.value
        return (advantage - advantage.mean()) / (advantage.std() + 1e-8), returns


def measure(case: Case, seconds: float, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Rounds of ours, bare and short for about `seconds`; medians of ratios and of seconds per update."""
    policy = make_policy(case)
    segment = make_segment(policy, case)
    learners = {
        "ours": make_learner(copy.deepcopy(policy), threads),
        "bare": Bare(copy.deepcopy(policy), rescore=True),
        "short": Bare(copy.deepcopy(policy), rescore=False),
    }
    rounds: list[dict[str, float]] = []
    before, ends = torch.get_num_threads(), time.perf_counter() + seconds
    torch.set_num_threads(threads)
    try:
        for learner in learners.values():  # warm-up
            learner.update(segment)
        while len(rounds) < 2 or time.perf_counter() < ends:
            order = list(learners) if len(rounds) % 2 else list(reversed(learners))  # nobody is always first
            row = {}
            for name in order:
                segment.version = learners["ours"].iteration  # no importance weights
                started = time.perf_counter()
                learners[name].update(segment)
                row[name] = time.perf_counter() - started
            rounds.append(row)
            say(", ".join(f"{k} {v:.3f} s" for k, v in sorted(row.items())))
    finally:
        torch.set_num_threads(before)
    return {
        "seconds": {k: statistics.median(r[k] for r in rounds) for k in learners},
        "ratio": {k: statistics.median(r[k] / r["ours"] for r in rounds) for k in ("bare", "short")},
        "rounds": len(rounds),
        "samples": case.streams * case.decisions,
    }


def as_results(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """name -> ratio, goal and both raw figures, as they are kept in results.json."""
    return {
        f"learner/{name}/{other}": {
            "ratio": round(found["ratio"][other], 4),
            "goal": GOAL if other == "bare" else None,
            "ours_s": round(found["seconds"]["ours"], 4),
            f"{other}_s": round(found["seconds"][other], 4),
            "rounds": found["rounds"],
        }
        for other in found["ratio"]
    }


def as_table(all_found: dict[str, dict[str, Any]]) -> str:
    """One row per case."""
    head = ["policy", "samples", "rounds", "ours s", "bare s", f"bare/ours ({GOAL:g})", "short/ours"]
    rows = []
    for name, f in all_found.items():
        bare = f"{f['ratio']['bare']:.3f}" + ("" if f["ratio"]["bare"] >= GOAL else " *")
        rows.append([name, str(f["samples"]), str(f["rounds"]), f"{f['seconds']['ours']:.3f}",
                     f"{f['seconds']['bare']:.3f}", bare, f"{f['ratio']['short']:.3f}"])  # fmt: skip
    return table(head, rows) + "\n\n`*` below its goal (in brackets)."


def main() -> None:
    """Measure, print the table, and write results.json and RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[*CHOICES, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="per case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-write", action="store_true", help="only print")
    args = parser.parse_args()
    found = {}
    for name in CHOICES if args.case == "all" else [args.case]:
        found[name] = measure(CASES[name], args.seconds, args.threads, lambda s, n=name: print(n, s, file=sys.stderr))
    print(as_table(found))
    if args.no_write:
        return
    for name, result in found.items():
        write_results(as_results(name, result))
    text = f"## Learner\n\n{hardware()}\n\n{as_table(found)}\n\nCommand: `python -m benchmarks.learner"
    text += f" --case {args.case} --seconds {args.seconds:g} --threads {args.threads}`. The columns: its docstring."
    write_section("learner", text)


if __name__ == "__main__":
    main()
