"""What the fast simulators leave unchanged: `python -m benchmarks.equality [--env NAME] [--no-write]`. Not timed.

Per environment one process plays, step by step beside one another,

    untouched  the package's own environment and its own `step`, without our code
    stock      our adapter with `core: stock`; its states and observations must be the untouched ones to the bit
    fast       our adapter with `core: fast`; may differ from `stock` by rounding

with random actions, and with a scripted expert that looks at `fast`: so the untouched environment replays what `fast`
recorded, and must solve what `fast` has solved. Observations are proprioception and everything privileged. MuJoCo's
own result can hang on the last digit; where `fast` is more than 1e-9 away, `nudged` is what `stock` does to itself if
one velocity is changed by 1e-15 at the start.

Pictures of two 128 px cameras: `exact` beside the untouched package, `fast` and `lite` beside `exact` (PSNR).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks import simulators
from benchmarks.simulators import adapter, arm
from benchmarks.untouched import Reference
from envs.experts import make_expert
from envs.types import Env, EnvError, Observation

CAMERAS = {"agentview": (128, 128), "robot0_eye_in_hand": (128, 128)}
TASKS = {  # LIBERO: two tasks that the expert solves
    "libero_spatial": (0, 2),
    "libero_object": (0, 2),
    "libero_goal": (1, 2),
    "libero_10": (0, 4),
    "libero_90": (9, 46),
    "Lift": (0,),
    "PickPlaceCan": (0,),
    "NutAssemblySquare": (0,),
    "Stack": (0,),
}
UNSEEN = {"finger_axis", "state_size"}  # what LIBERO itself does not observe
PICTURE_STEPS = (0, 4, 8)  # after so many control steps
ROUNDING = 1e-9
COARSE = ("fast", "lite", "soft")  # render qualities that are not exact
FIGURES = ("states", "observations", "fast", "nudged", "pixels")
NOTE = """`*` is not what the head of the column asks for. States and observations: the largest difference between
`core: stock` and the untouched package. Fast to stock: the largest difference between the cores in the expert's
episodes; episodes within: those below 1e-9; nudged: what `stock` does to itself in the others. Solved again: episodes
solved with `core: fast` that the untouched package solves with the same actions. Exact pixels: the largest difference,
of 255. PSNR to `exact`: mean (lowest)."""


# --- comparing --------------------------------------------------------------------------------------------------------


def named(obs: Observation) -> dict[str, np.ndarray]:
    """All of an observation under the names that `Reference` uses, copied."""
    images = {f"image/{camera}": image for camera, image in obs.images.items()}
    return {k: np.array(v) for k, v in {**obs.privileged, "proprio": obs.proprio, **images}.items()}


def difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest absolute difference of the state, of the other observations, and of the pixels (in grey levels)."""
    if ours.keys() - UNSEEN != theirs.keys() - UNSEEN:
        raise ValueError(f"observed differently: {sorted(ours.keys() ^ theirs.keys())}; expected the same names")
    worst = {"states": 0.0, "observations": 0.0, "pixels": 0.0}
    for name in ours.keys() & theirs.keys():
        a, b = (np.asarray(side[name], np.float64) for side in (ours, theirs))
        kind = "states" if name == "state" else "pixels" if name.startswith("image/") else "observations"
        gap = float(np.abs(a[: len(b)] - b[: len(a)]).max(initial=0))  # our states are padded to the suite's longest
        worst[kind] = max(worst[kind], gap if math.isfinite(gap) else math.inf)
    return worst


def largest(rows: list[dict[str, float]]) -> dict[str, float]:
    """The maximum of each entry over rows of the same entries."""
    return {name: max(row[name] for row in rows) for name in rows[0]} if rows else {}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """How alike two uint8 pictures are, in dB; 138 if they are the same."""
    return 10 * math.log10(255**2 / max(float(((a.astype(float) - b) ** 2).mean()), 1e-9))


# --- playing, in the simulator's interpreter --------------------------------------------------------------------------


def expert_episode(fast: Env, stock: Env, reference: Reference | None, task: str, seed: int) -> dict[str, Any]:
    """Play the expert in `fast` and its actions in the others, until `fast` is done."""
    obs, expert = fast.reset(task, seed), make_expert(fast.spec.env_id, task, seed=seed)
    expert.reset(obs)
    middle, actions, solved, replayed, done = named(stock.reset(task, seed)), [], False, False, False
    trace, apart, away = [middle], [difference(named(obs), middle)], []
    if reference is not None:
        away.append(difference(middle, reference.reset(seed)))
    while not done:
        actions.append(expert.act(obs))
        one, two = fast.step(actions[-1], render=False), stock.step(actions[-1], render=False)
        obs, done, solved = one.obs, one.terminated or one.truncated, one.success
        trace.append(named(two.obs))
        apart.append({**difference(named(obs), trace[-1]), "reward": abs(one.reward - two.reward)})
        apart[-1]["outcome"] = float((one.success, one.truncated) != (two.success, two.truncated))
        if reference is not None:
            theirs, replayed = reference.step(actions[-1])
            away.append(difference(trace[-1], theirs))
        done = done or two.terminated or two.truncated
    apart[0].update(reward=0.0, outcome=0.0)
    gaps = largest(apart)
    worst = max(gaps["states"], gaps["observations"], gaps["reward"])
    return {
        "steps": len(actions),
        "solved": solved,
        "replayed": replayed,
        "outcome": gaps["outcome"] > 0,
        "fast": worst,
        "nudged": _nudged(stock, task, seed, actions, trace) if worst > ROUNDING else None,
        "untouched": largest(away),
    }


def _nudged(stock: Env, task: str, seed: int, actions: list[np.ndarray], trace: list[dict[str, np.ndarray]]) -> float:
    """How far `stock` ends up from its own `trace` if one joint's velocity is changed by 1e-15 rad/s at the start."""
    stock.reset(task, seed)
    arm(stock).data.qvel[0] += 1e-15
    worst = 0.0
    for action, before in zip(actions, trace[1:], strict=True):
        step = stock.step(action, render=False)
        gaps = difference(named(step.obs), before)
        worst = max(worst, gaps["states"], gaps["observations"])
        if step.terminated or step.truncated:
            break
    return worst


def random_steps(stock: Env, reference: Reference, task: str, seed: int, steps: int) -> dict[str, Any]:
    """Play random actions in both, in as many episodes as it takes."""
    rng, gaps, left = np.random.default_rng(seed), [], steps
    while left:
        gaps.append(difference(named(stock.reset(task, seed)), reference.reset(seed)))
        done = False
        while left and not done:
            action = rng.uniform(-1.0, 1.0, 7)
            step, (theirs, solved) = stock.step(action, render=False), reference.step(action)
            gaps.append(difference(named(step.obs), theirs))
            if solved != step.success:
                gaps[-1]["states"] = math.inf  # one is solved and the other is not
            done, left = step.terminated or step.truncated, left - 1
        seed += 1
    return {"steps": steps, "untouched": largest(gaps)}


def frames(task: str, seed: int, source: Env | Reference) -> list[dict[str, np.ndarray]]:
    """What an environment with cameras observes after PICTURE_STEPS random steps."""
    rng, seen = np.random.default_rng(seed), []
    try:
        for step in range(max(PICTURE_STEPS) + 1):
            if isinstance(source, Reference):
                obs = source.reset(seed) if step == 0 else source.step(rng.uniform(-1.0, 1.0, 7))[0]
            elif step == 0:
                obs = named(source.reset(task, seed))
            else:
                obs = named(source.step(rng.uniform(-1.0, 1.0, 7), render=step in PICTURE_STEPS).obs)
            if step in PICTURE_STEPS:
                seen.append(obs)
    finally:
        source.close()
    return seen


def pictures(name: str, task: str, seed: int) -> dict[str, Any]:
    """`exact` beside the untouched package, and the PSNR of the other qualities beside `exact`."""
    env_id = f"{'libero' if name.startswith('libero') else 'robosuite'}/{name}"
    theirs = frames(task, seed, Reference(env_id, task, cameras=CAMERAS))
    ours = {q: frames(task, seed, adapter(name, "stock", CAMERAS, q)) for q in ("exact", *COARSE)}
    views = [f"image/{camera}" for camera in CAMERAS]
    return {
        "frames": len(theirs) * len(views),
        "untouched": largest([difference(a, b) for a, b in zip(ours["exact"], theirs, strict=True)]),
        "psnr": {
            quality: [psnr(a[v], b[v]) for a, b in zip(ours["exact"], ours[quality], strict=True) for v in views]
            for quality in COARSE
        },
    }


def play(name: str, *, expert_steps: int, steps: int, cameras: bool) -> Iterator[dict[str, Any]]:
    """One row per episode of the expert, per stretch of random actions and per set of pictures."""
    fast, stock = (adapter(name, core, CAMERAS) for core in ("fast", "stock"))
    for number in TASKS[name]:
        task, quota, seed = fast.spec.tasks[number], expert_steps // len(TASKS[name]), 0
        reference = Reference(fast.spec.env_id, task)
        try:
            make_expert(fast.spec.env_id, task)
        except EnvError:
            quota = 0
        while quota > 0:
            row = {"task": task, "kind": "expert", **expert_episode(fast, stock, reference, task, seed)}
            quota, seed = quota - row["steps"], seed + 1
            yield row
        if steps:
            row = random_steps(stock, reference, task, seed, steps // len(TASKS[name]))
            yield {"task": task, "kind": "random", **row}
        reference.close()
        if cameras:
            yield {"task": task, "kind": "pictures", **pictures(name, task, 0)}
    fast.close()
    stock.close()


# --- in ours ----------------------------------------------------------------------------------------------------------


def measure(name: str, options: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Play one environment in its own interpreter and sum up."""
    rows = []
    for row in simulators.rows("equality", name, name, options):
        rows.append(row)
        say(f"{name}: {json.dumps(row)}")
    return summary(rows)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest differences over all rows, and how many solved episodes were solved again."""
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("expert", "random", "pictures")}
    expert, moves = kinds["expert"], kinds["expert"] + kinds["random"]
    solved = [row for row in expert if row["solved"]]
    apart = [row["fast"] for row in expert]
    nudged = [row["nudged"] for row in expert if row["nudged"] is not None]
    dB = {q: [value for row in kinds["pictures"] for value in row["psnr"][q]] for q in COARSE}
    return {
        "tasks": len({row["task"] for row in rows}),
        "expert_steps": sum(row["steps"] for row in expert),
        "random_steps": sum(row["steps"] for row in kinds["random"]),
        "states": max((row["untouched"]["states"] for row in moves), default=None),
        "observations": max((row["untouched"]["observations"] for row in moves), default=None),
        "episodes": len(expert),
        "solved": len(solved),
        "replayed": sum(row["replayed"] for row in solved),
        "other_outcome": sum(row["outcome"] for row in expert),
        "fast": max(apart, default=None),
        "within": sum(gap <= ROUNDING for gap in apart),
        "nudged": max(nudged, default=None),
        "frames": sum(row["frames"] for row in kinds["pictures"]),
        "pixels": max((row["untouched"]["pixels"] for row in kinds["pictures"]), default=None),
        "psnr": {q: {"mean": sum(v) / len(v), "lowest": min(v)} for q, v in dB.items() if v},
    }


def faults(found: Mapping[str, Any]) -> list[str]:
    """The figures that are not what was promised."""
    broken = [k for k in ("states", "observations", "pixels") if found[k]]
    if found["replayed"] < found["solved"]:
        broken.append("replayed")
    if found["other_outcome"]:
        broken.append("other_outcome")
    if found["fast"] is not None and found["fast"] > ROUNDING:
        broken.append("fast")
    return broken


def as_table(all_found: Mapping[str, dict[str, Any]]) -> str:
    """One row per environment."""
    from benchmarks.tables import table

    head = ["environment", "expert, random steps", "states (0)", "observations (0)", "fast to stock (1e-9)"]
    head += ["episodes within", "stock, nudged", "solved again", "exact pixels (0)", *(f"{q} dB" for q in COARSE)]
    rows = []
    for name, found in all_found.items():
        bad = faults(found)
        cells = {k: "-" if found[k] is None else f"{found[k]:.2g}" + " *" * (k in bad) for k in FIGURES}
        again = f"{found['replayed']} of {found['solved']}" + " *" * bool({"replayed", "other_outcome"} & {*bad})
        within = f"{found['within']} of {found['episodes']}"
        row = [name, f"{found['expert_steps']}, {found['random_steps']}", cells["states"], cells["observations"]]
        row += [cells["fast"], *((within, cells["nudged"], again) if found["episodes"] else "---"), cells["pixels"]]
        for quality in COARSE:
            ratio = found["psnr"].get(quality)
            row.append(f"{ratio['mean']:.1f} ({ratio['lowest']:.1f})" if ratio else "-")
        rows.append(row)
    return f"{table(head, rows)}\n\n{NOTE}"


def main() -> None:
    """Compare, print the table, and write results.json and RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=[*TASKS, "all"], default="all")
    parser.add_argument("--expert-steps", type=int, default=600, help="at least so many, in whole episodes")
    parser.add_argument("--random-steps", type=int, default=200)
    parser.add_argument("--no-cameras", action="store_true", help="leave out everything with pictures")
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    if args.serve:
        settings = {"expert_steps": args.expert_steps, "steps": args.random_steps, "cameras": not args.no_cameras}
        for row in play(args.env, **settings):
            print(json.dumps(row), flush=True)
        os._exit(0)  # some GL libraries crash in their own exit handlers
    from benchmarks.tables import hardware, write_results, write_section

    options = ["--expert-steps", str(args.expert_steps), "--random-steps", str(args.random_steps)]
    options += ["--no-cameras"] * args.no_cameras
    names = TASKS if args.env == "all" else [args.env]
    found = {name: measure(name, options, lambda line: print(line, file=sys.stderr)) for name in names}
    print(as_table(found))
    if args.no_write:
        return
    write_results({f"equality/{name}": result for name, result in found.items()})
    text = f"## Equality of the simulators\n\n{hardware()}\n\n{as_table(found)}\n\n"
    text += f"Command: `python -m benchmarks.equality --env {args.env} {' '.join(options)}`."
    write_section("equality", text + " Its docstring says who is compared with whom.")


if __name__ == "__main__":
    main()
