"""Arms of PPO that differ by reward or proposal, over several seeds: tables and learning curves.

    python -m benchmarks.flip_arms RUNS [--arms sparse liv plan] [--seeds 0 1 2] [--picture docs/flip_arms_libero.jpg]

RUNS holds the fine-tuning runs ARM_SEED (of which the ledger is read), their evaluations ARM_SEED/after, and
evaluations of the checkpoint that all began from: `before`, and `before_ARM` for an arm that sees hints. Evaluations
have the same episodes, so differences are paired. Episodes of one seed share a policy, and seeds share initial states:
so beside intervals over all pairs there is one over seeds (Student's t), which is what says something of the method.
Everything is of 95 %.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.tables import hardware, table
from rl.ledger import read, surviving
from rl.stats import Interval, mcnemar, paired_difference, wilson

# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


class Run(NamedTuple):
    """One run of an arm, learned and evaluated."""

    steps: list[int]  # environment steps at the end of the iteration of each training episode
    won: list[bool]  # of these episodes
    total: int  # environment steps in all
    after: list[bool]


def over_seeds(values: Sequence[float], low: float = -1.0, high: float = 1.0) -> Interval:
    """Mean of one figure per seed, and Student's interval; NaN to the ends if there is but one seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, low, high)
    half = T95[len(values) - 1] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, max(low, mean - half), min(high, mean + half))


def outcomes(folder: Path) -> list[bool]:
    """Successes of an evaluation, in the order of its plan. Raises ValueError if an episode is not valid."""
    rows = sorted(read(folder / "episodes.jsonl"), key=lambda r: int(r["episode"]))
    if not rows or not all(r["valid"] for r in rows):
        raise ValueError(f"{folder}: no finished evaluation, or episodes that failed in the simulator; evaluate again")
    return [bool(r["success"]) for r in rows]


def learned(folder: Path) -> tuple[list[int], list[bool], int]:
    """Of the training episodes that counted: environment steps so far, and success; and the steps in all."""
    rows = [r for r, counts in surviving(read(folder / "ledger.jsonl")) if counts]
    at = {int(r["iteration"]): int(r["env_steps"]) for r in rows if r["event"] == "iteration"}
    fair = [r for r in rows if r["event"] == "episode" and r["valid"] and not r.get("guided")]
    return [at[int(r["iteration"])] for r in fair], [bool(r["success"]) for r in fair], max(at.values())


def curve(runs: Sequence[Run], edges: Sequence[int]) -> list[Interval]:
    """Success in training, mean over seeds, of the episodes that ended between two edges."""
    out = []
    for first, last in pairwise(edges):
        rates = []
        for run in runs:
            won = [w for s, w in zip(run.steps, run.won, strict=True) if first < s <= last]
            rates += [sum(won) / len(won)] if won else []
        out.append(over_seeds(rates, 0.0) if rates else Interval(math.nan, math.nan, math.nan))
    return out


def compared(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]) -> tuple[Interval, float, Interval]:
    """What `second` has more than `first`, run by run: over all pairs, with McNemar's p, and over seeds."""
    a, b = [x for run in first for x in run], [x for run in second for x in run]
    each = [sum(y) / len(y) - sum(x) / len(x) for x, y in zip(first, second, strict=True)]
    return paired_difference(a, b), mcnemar(a, b), over_seeds(each)


def rows(arms: Mapping[str, Sequence[Run]], before: Mapping[str, list[bool]]) -> list[list[str]]:
    """Of the table of arms; the first one is what the others are compared with."""
    base, out = next(iter(arms.values())), []
    for arm, runs in arms.items():
        wins, count = sum(map(sum, (r.after for r in runs))), sum(len(r.after) for r in runs)
        start = before.get(arm, before[""])
        cells = [arm, f"{np.mean([r.total for r in runs]):,.0f}", _share(start), *(_share(r.after) for r in runs),
                 _shown(Interval(wins / count, *wilson(wins, count)), ""),
                 _compared([start] * len(runs), [r.after for r in runs])]  # fmt: skip
        out.append([*cells, "" if runs is base else _compared([r.after for r in base], [r.after for r in runs])])
    return out


def _share(won: Sequence[bool]) -> str:
    low, high = wilson(sum(won), len(won))
    return f"{sum(won)} of {len(won)} [{100 * low:.0f}, {100 * high:.0f}]"


def _shown(found: Interval, sign: str = "+") -> str:
    return f"{100 * found.value:{sign}.1f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _compared(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]) -> str:
    pooled, p, seeds = compared(first, second)
    return f"{_shown(pooled)}, p = {p:.2g}; over seeds {_shown(seeds)}"


def audits(root: Path) -> list[list[str]]:
    """A row for each learned reward of each evaluation that was audited."""
    out = []
    for path in sorted(root.glob("**/summary.json")):
        for term, a in json.loads(path.read_text()).get("audit", {}).items():
            if "auroc" not in a:
                continue
            name = path.parent.relative_to(root).as_posix()
            out.append([f"{name}, {term}", f"{round(a['success'] * a['episodes'])} of {a['episodes']}",
                        f"{_number(a['correlation'])}, {_number(a['rank_correlation'])}",
                        f"{_number(a['auroc'])} [{a['auroc_low']:.2f}, {a['auroc_high']:.2f}]",
                        f"{a['calibration_error']:.3f}, {a['brier']:.3f}",
                        f"{a['mean_score']:.2f}" + (", overrates" if a["overrates"] else "")
                        + (", underrates" if a["underrates"] else "")])  # fmt: skip
    return out


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def draw(arms: Mapping[str, Sequence[Run]], before: Mapping[str, list[bool]], edges: Sequence[int], path: Path) -> None:
    """Curves of training with intervals over seeds; at both ends the evaluations, each seed by itself."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(arms), figsize=(3.2 * len(arms), 3.0), sharey=True, squeeze=False)
    middle = [(a + b) / 2000 for a, b in pairwise(edges)]
    for k, (axis, (arm, runs)) in enumerate(zip(axes[0], arms.items(), strict=True)):
        for other, (name, theirs) in enumerate(arms.items()):
            line = np.array(curve(theirs, edges)) * 100
            axis.plot(middle, line[:, 0], color=COLOURS[other], lw=2 if name == arm else 0.8,
                      alpha=1 if name == arm else 0.5)  # fmt: skip
            if name == arm:
                axis.fill_between(middle, line[:, 1], line[:, 2], color=COLOURS[other], alpha=0.2, lw=0)
        start = before.get(arm, before[""])
        axis.plot(0, 100 * np.mean(start), "o", color=COLOURS[k], clip_on=False)
        ends = [100 * float(np.mean(r.after)) for r in runs]
        axis.plot([edges[-1] / 1000] * len(ends), ends, "D", color=COLOURS[k], mfc="none", clip_on=False)
        axis.set(title=arm, xlabel="thousand environment steps", ylim=(0, 100))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("success, %")
    figure.tight_layout()
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 85})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flip_arms", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("runs", type=Path)
    parser.add_argument("--arms", nargs="+", default=["sparse", "liv", "plan"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--block", type=int, default=5000, help="environment steps of a point of the curve")
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    return parser.parse_args()


def main() -> int:
    """Read, print, draw."""
    given = parse()
    arms: dict[str, list[Run]] = {}
    before = {"": outcomes(given.runs / "before")}
    for arm in given.arms:
        folders = [given.runs / f"{arm}_{seed}" for seed in given.seeds]
        arms[arm] = [Run(*learned(f), outcomes(f / "after")) for f in folders]
        if (given.runs / f"before_{arm}").exists():
            before[arm] = outcomes(given.runs / f"before_{arm}")
    total = max(run.total for runs in arms.values() for run in runs)
    edges = [*range(0, total - given.block // 2, given.block), total]
    head = ["arm", "env steps", "before", *(f"seed {s}" for s in given.seeds), "all, %", "change, points",
            f"against {given.arms[0]}, points"]  # fmt: skip
    print(hardware(), table(head, rows(arms, before)), sep="\n\n")
    learning = [[arm, *(_shown(i, "") for i in curve(runs, edges))] for arm, runs in arms.items()]
    print("", table(["training, %", *(f"to {e:,}" for e in edges[1:])], learning), sep="\n")
    if found := audits(given.runs):
        print("", table(["evaluation", "success", "correlation, rank", "AUROC", "calibration error, Brier",
                         "mean last score"], found), sep="\n")  # fmt: skip
    if given.picture:
        draw(arms, before, edges, given.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
