"""Run in the simulator's interpreter: let the expert play, and print how it ended.

`python play.py SCENE SEEDS NOISE TASK...` prints {task: [steps of each success, or -1]}; for `chain` the seeds are
given as numbers joined by commas, and the list holds the tasks solved in a row.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from envs.calvin.env import CHAIN, Calvin
from envs.experts import make_expert


def play(env, task, seed, noise):
    expert, obs = make_expert(env.spec.env_id, task, noise, seed), env.reset(task, seed)
    expert.reset(obs)
    steps, total = 0, 0.0
    while True:
        step = env.step(expert.act(obs), render=False)
        obs, steps, total = step.obs, steps + 1, total + step.reward
        if step.terminated or step.truncated:
            return round(total) if task == CHAIN else (steps if step.success else -1)


if __name__ == "__main__":
    scene, seeds, noise, *tasks = sys.argv[1:]
    chains = tasks == [CHAIN]
    env = Calvin(name=scene, protocol="chains" if chains else "single", cameras={})
    numbers = [int(n) for n in seeds.split(",")] if chains else range(int(seeds))
    print(json.dumps({task: [play(env, task, seed, float(noise)) for seed in numbers] for task in tasks}))
