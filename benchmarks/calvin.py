"""What CALVIN's pictures cost, and how alike they are: `python -m benchmarks.calvin [--rounds N]`.

The stock environment draws both cameras with PyBullet's software renderer after every step. Here that is compared
with drawing at decisions only, a chunk of `EXECUTE` steps apart, and with our own renderer (`renderer: fast`), which
draws the same meshes and textures at the same sizes. Processor time of one process; rounds alternate between the ways,
and the medians are reported. Pictures of both renderers are compared along an expert's episodes.
"""

import argparse
import json
import math
import statistics
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.tables import hardware, table, write_results, write_section
from envs.child import interpreter
from envs.types import EnvConfig

EXECUTE = (1, 5, 10)  # steps between pictures; 1 is the stock environment's way
RENDERERS = ("exact", "fast")
GOAL = 5.0  # of our renderer, or of the longest chunk, against stock
CONFIG = EnvConfig(sim={"_target_": "envs.calvin.env.Calvin"})
CODE = """
import json, sys, time
import numpy as np
from envs.calvin.cameras import Cameras
from envs.calvin.env import Calvin
from envs.calvin.scenes import SIZES
from envs.experts import make_expert
env, action = Calvin(), np.array([0.3, 0, 0, 0, 0, 0, 1.0])
kinds = {name: Cameras(env._world, SIZES, renderer=name) for name in ("exact", "fast")}
def rate(kind, every, steps=60):
    env._cameras = kinds[kind]
    env.reset("open_drawer", 0)
    start = time.process_time()
    for i in range(steps):
        env.step(action, render=i % every == every - 1)
    return steps / (time.process_time() - start)
def compare(task, seed):
    obs, expert, found = env.reset(task, seed), make_expert("calvin/D", task), []
    expert.reset(obs)
    for i in range(60):
        step = env.step(expert.act(obs), render=False)
        obs = step.obs
        if i % 5 == 0:
            pairs = zip(kinds["exact"].render().items(), kinds["fast"].render().values())
            found += [(name, float((a != b).any(-1).mean()), float(((a - b.astype(float)) ** 2).mean()))
                      for (name, a), b in pairs]
        if step.terminated:
            return found
    return found
ways = json.loads(sys.argv[2])
rates = [[rate(*way) for way in ways] for _ in range(int(sys.argv[1]))]
gaps = [gap for task in ("open_drawer", "turn_on_led", "lift_red_block_table") for gap in compare(task, 0)]
print(json.dumps({"rates": rates, "gaps": gaps}))
"""
WAYS = [(renderer, every) for renderer in RENDERERS for every in EXECUTE]


def measure(rounds: int) -> dict[str, Any]:
    """`rates`: steps per second of processor time by (renderer, steps between pictures); `gaps`: see `CODE`."""
    command = [interpreter(CONFIG), "-c", CODE, str(rounds), json.dumps(WAYS)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"CALVIN did not run: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    rates = {way: statistics.median(row[i] for row in found["rates"]) for i, way in enumerate(WAYS)}
    return {"rates": rates, "gaps": found["gaps"]}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found = measure(rounds)
    rates, base = found["rates"], found["rates"]["exact", 1]
    rows = [[*map(str, way), f"{rate:.1f}", f"{rate / base:.2f}"] for way, rate in rates.items()]
    text = table(["renderer", "steps between pictures", "steps/s", "ratio"], rows)
    alike = table(["camera", "pixels that differ", "PSNR of all pictures", "of the worst"], _alike(found["gaps"]))
    print(text, alike, sep="\n\n")
    last = rates["exact", EXECUTE[-1]]
    figures = {"ratio": last / base, "goal": GOAL, "every_step": base, "every_10": last, "unit": "steps/s"}
    fast = {"ratio": rates["fast", 1] / base, "goal": GOAL, "exact": base, "fast": rates["fast", 1], "unit": "steps/s"}
    write_results({"calvin/pictures": figures, "calvin/renderer": fast})
    command = f"Command: `python -m benchmarks.calvin --rounds {rounds}`. Both cameras, 200x200 and 84x84."
    write_section("calvin", f"## CALVIN's pictures\n\n{hardware()}\n\n{text}\n\n{alike}\n\n{command}")


def _alike(gaps: list[Any]) -> list[list[str]]:
    rows = []
    for camera in dict.fromkeys(name for name, _, _ in gaps):
        shares = [share for name, share, _ in gaps if name == camera]
        errors = [error for name, _, error in gaps if name == camera]
        mean, worst = (f"{_psnr(error):.1f} dB" for error in (statistics.fmean(errors), max(errors)))
        rows.append([f"`{camera}`, {len(shares)} pictures", f"{100 * statistics.fmean(shares):.2f} %", mean, worst])
    return rows


def _psnr(error: float) -> float:
    return 10 * math.log10(255**2 / max(error, 1e-9))


if __name__ == "__main__":
    main()
