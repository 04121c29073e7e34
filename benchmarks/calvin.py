"""What CALVIN's pictures cost: `python -m benchmarks.calvin [--rounds N]`.

The stock environment draws both cameras with the same software renderer after every step; here they are drawn at
decisions only, with a chunk of `EXECUTE` steps in between. Same renderer, same pixels, processor time of one process;
rounds alternate between the ways, and the medians are reported.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

from benchmarks.tables import hardware, table, write_results, write_section
from envs.child import interpreter
from envs.types import EnvConfig

EXECUTE = (1, 5, 10)  # steps between pictures; 1 is the stock environment's way
GOAL = 5.0  # of the longest chunk against 1
CONFIG = EnvConfig(sim={"_target_": "envs.calvin.env.Calvin"})
CODE = """
import json, sys, time
import numpy as np
from envs.calvin.env import Calvin
env, action = Calvin(), np.array([0.3, 0, 0, 0, 0, 0, 1.0])
def rate(every, steps=60):
    env.reset("open_drawer", 0)
    start = time.process_time()
    for i in range(steps):
        env.step(action, render=i % every == every - 1)
    return steps / (time.process_time() - start)
print(json.dumps([[rate(every) for every in json.loads(sys.argv[2])] for _ in range(int(sys.argv[1]))]))
"""


def measure(rounds: int) -> dict[int, float]:
    """Steps per second of processor time, by the number of steps between pictures."""
    command = [interpreter(CONFIG), "-c", CODE, str(rounds), json.dumps(EXECUTE)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"CALVIN did not run: {done.stderr.strip().splitlines()[-1]}")
    rows = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))
    return {every: statistics.median(row[i] for row in rows) for i, every in enumerate(EXECUTE)}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rates = measure(rounds)
    base = rates[EXECUTE[0]]
    rows = [[str(every), f"{rate:.1f}", f"{rate / base:.2f}"] for every, rate in rates.items()]
    text = table(["steps between pictures", "steps/s", "ratio"], rows)
    print(text)
    last = rates[EXECUTE[-1]]
    figures = {"ratio": last / base, "goal": GOAL, "every_step": base, "every_10": last, "unit": "steps/s"}
    write_results({"calvin/pictures": figures})
    command = f"Command: `python -m benchmarks.calvin --rounds {rounds}`. Both cameras, PyBullet's software renderer."
    write_section("calvin", f"## CALVIN's pictures\n\n{hardware()}\n\n{text}\n\n{command}")


if __name__ == "__main__":
    main()
