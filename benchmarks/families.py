"""Every family of policies from a weak imitation start to PPO on the toy: `python -m benchmarks.families [NAME ...]`.

    scripted expert ─► few demonstrations ─► short imitation ─► evaluation ─► PPO ─► evaluation on the same episodes

The policies are those of configs/policy; what differs from there, and all numbers, stand in `BASE` and `FAMILIES`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.tables import hardware, table, write_results, write_section
from envs.types import EnvConfig
from pretrained.checkpoint import load_learner, merge
from pretrained.demos.collect import CollectRun, collect
from pretrained.imitate import ImitateRun, imitate
from rl.evaluate import EvaluateRun, evaluate
from rl.finetune import finetune
from rl.run import FinetuneRun

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GOAL = 0.90  # success after PPO

# --- the numbers ------------------------------------------------------------------------------------------------------

WARM_UP = {"iterations": 3, "losses": ["value"], "freeze": ["actor", "encoder", "noise"]}
BASE: dict[str, Any] = {
    "env": "reach",  # name of the toy
    "policy": {"horizon": 4},  # goes over configs/policy/<family>.yaml
    "demos": {"episodes": 40, "noise": 0.1},
    "imitate": {"steps": 400, "batch_size": 64, "lr": 1e-3, "warmup": 50},
    "algo": {
        "lr": {"": 5e-5, "critic": 1e-3},
        "clip": 0.2,
        "links": "sum",
        "reduction": "sum",
        "gamma": 0.97,
        "lam": 0.8,
        "epochs": 4,
        "minibatches": 4,
        "max_grad_norm": 1.0,
        "target_kl": 0.03,
        "stages": [WARM_UP, {}],
    },
    "rewards": {
        "sparse": {"weight": 1.0, "term": {"_target_": "rl.rewards.sparse.Sparse"}},
        "progress": {"weight": 3.0, "term": {"_target_": "rl.rewards.progress.Progress", "mode": "pbrs"}},
    },
    "finetune": {"envs_per_worker": 16, "decisions": 24, "iterations": 120, "learner_threads": 1},
}
CHAIN: dict[str, Any] = {"algo": {"target_kl": 0.08}, "finetune": {"iterations": 160}}  # of several links
FAMILIES: dict[str, dict[str, Any]] = {
    "flow": {**CHAIN, "policy": {"kernel": {"min_std": 0.1, "std": 0.2, "max_std": 0.4}}},
    "flow_sde": CHAIN,
    "ddpm": {**CHAIN, "imitate": {"steps": 1200}},
    "ddim": {**CHAIN, "imitate": {"steps": 1200}, "finetune": {"iterations": 300}},
    "edm": {**CHAIN, "imitate": {"steps": 1200}, "finetune": {"iterations": 300}},
    "gaussian": {"policy": {"kernel": {"std": 0.3}}},
    "categorical": {
        "env": "reach_discrete",
        "policy": {"horizon": 1},
        "imitate": {"steps": 1200},
        "finetune": {"decisions": 48, "iterations": 160},
    },
}


def settings(family: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`BASE` with what `FAMILIES` and then `changes` say otherwise."""
    return merge(merge(BASE, FAMILIES[family]), changes or {})


# --- the job ----------------------------------------------------------------------------------------------------------


def run(family: str, out: Path, *, episodes: int, seed: int, changes: Mapping[str, Any] | None = None,
        quiet: bool = True) -> dict[str, Any]:  # fmt: skip
    """Success before and after, with what it took. A second call with the same folder goes on where the first ended."""
    s = settings(family, changes)
    env = EnvConfig(sim={"_target_": "envs.toy.Toy", "name": s["env"]}, step_deadline_s=30.0)
    policy = merge(yaml.safe_load((CONFIGS / "policy" / f"{family}.yaml").read_text()), s["policy"])
    demos = collect(CollectRun(env=env, out=str(out / "demos"), seed=seed, quiet=quiet, **s["demos"]))
    start = imitate(
        ImitateRun(policy=policy, demos=str(demos), out=str(out / "imitate"), seed=seed, device="cpu", threads=1,
                   val_fraction=0.0, quiet=quiet, **s["imitate"])
    )  # fmt: skip

    def judge(checkpoint: Path, name: str) -> dict[str, Any]:
        return evaluate(EvaluateRun(checkpoint=str(checkpoint), env=env, out=str(out / name), episodes=episodes,
                                    workers=8, videos=0, threads=1, quiet=quiet))  # fmt: skip

    before = judge(start, "before")
    last = finetune(
        FinetuneRun(checkpoint=str(start), env=env, out=str(out / "finetune"), algo=s["algo"], rewards=s["rewards"],
                    engine="local", seed=seed, quiet=quiet,
                    logger={"tensorboard": False}, **s["finetune"])
    )  # fmt: skip
    loop = (load_learner(last) or {"loop": {}})["loop"]  # counts what ran before an interruption too
    after = judge(last, "after")
    keep = ("success", "low", "high", "episodes")
    return {
        "before": {k: before[k] for k in keep},
        "after": {k: after[k] for k in keep},
        "goal": GOAL,
        "finetune_s": round(float(loop["wall_s"]), 1),
        "env_steps": int(loop["env_steps"]),
    }


def as_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per family."""
    head = ["family", "before", "95 %", "after", "95 %", "episodes", "PPO env steps", "PPO seconds"]
    rows = []
    for family, r in found.items():
        b, a = r["before"], r["after"]
        rows.append([family, f"{100 * b['success']:.0f} %", _interval(b), f"{100 * a['success']:.0f} %", _interval(a),
                     str(a["episodes"]), str(r["env_steps"]), f"{r['finetune_s']:.0f}"])  # fmt: skip
    return table(head, rows)


def _interval(r: Mapping[str, Any]) -> str:
    return f"{100 * r['low']:.0f} to {100 * r['high']:.0f}"


def main() -> int:
    """Run the families, print the table, and write results.json and RESULTS.md; 1 if one misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="NAME", help=f"of {', '.join(FAMILIES)}; all if none is named")
    parser.add_argument("--episodes", type=int, default=200, help="per evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="", help="keep the runs here, and go on with what is there already")
    parser.add_argument("--no-write", action="store_true", help="only print")
    args = parser.parse_args()
    if unknown := sorted(set(args.families) - set(FAMILIES)):
        parser.error(f"unknown families {unknown}; expected some of {', '.join(FAMILIES)}")
    os.environ.setdefault("WANDB_MODE", "disabled")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for family in args.families or FAMILIES:
            folder = Path(args.out or temporary) / f"{family}_{args.seed}"
            found[family] = run(family, folder, episodes=args.episodes, seed=args.seed, quiet=not sys.stderr.isatty())
            print(as_table({family: found[family]}), file=sys.stderr)
    print(as_table(found))
    if not args.no_write:
        write_results({f"families/{k}": v for k, v in found.items()})
        text = f"## Families on the toy\n\n{hardware()}, one process\n\n{as_table(found)}\n\n"
        text += f"Command: `python -m benchmarks.families {' '.join([*args.families, f'--seed {args.seed}'])}`."
        write_section("families", text)
    return 0 if all(r["after"]["success"] >= GOAL for r in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
