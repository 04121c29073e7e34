"""Speed of the MuJoCo simulators: `python -m benchmarks.sims [--env NAME] [--rounds N] [--steps N] [--no-write]`.

Per environment one process plays the same actions (a scripted expert's episode) in turns of 32 steps with

    untouched  the package's own environment and its own `step`, without our code; with and without its cameras
    stock      our adapter with `core: stock`, no cameras
    fast       our adapter with `core: fast`, no cameras
    bare       mj_step as often as a control step has substeps, with the motor commands that `fast` ended with, from the
               states that `fast` went through: what is left of a control step without controller, reward, observation
    exact, quick, lite, soft    `core: fast` with two cameras of 128 px every step; `quick` is render_quality: fast
    exact of 8 and so on        the same with pictures only at the last of eight steps, as chunks need them

A round is one episode; each figure is the median over the rounds of a ratio of times within the round. Turns of the
variants alternate, so whatever else the machine does slows all of them alike. Setting states, resets and the expert
are not timed.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import simulators
from benchmarks.simulators import arm
from envs.experts import make_expert
from envs.types import Env

CHUNK = 8  # steps of an action chunk
TURN = 4 * CHUNK  # steps between two changes of variant: with fewer, all would mostly refill the processor's caches
SIZE = 128
CAMERAS = {"agentview": (SIZE, SIZE), "robot0_eye_in_hand": (SIZE, SIZE)}
NAMES = {"robosuite_lift": "Lift"}  # where an environment is not called as its simulator calls it
TASKS = {"robosuite_lift": 0, "libero_spatial": 0, "libero_object": 2, "libero_goal": 1, "libero_10": 4}
QUALITIES = {"exact": "exact", "quick": "fast", "lite": "lite", "soft": "soft"}  # variant -> render quality
GOALS = {  # figure -> (numerator, denominator, at least)
    "fast/untouched": ("untouched", "fast", 5.0),
    "fast/bare": ("bare", "fast", 0.85),
    "stock/untouched": ("untouched", "stock", 0.0),
    "soft/untouched": ("untouched cameras", "soft", 12.0),
    "lite/untouched": ("untouched cameras", "lite", 0.0),
    "quick/untouched": ("untouched cameras", "quick", 0.0),
    "exact/untouched": ("untouched cameras", "exact", 0.0),
    "soft of 8/untouched": ("untouched cameras", "soft of 8", 35.0),
    "lite of 8/untouched": ("untouched cameras", "lite of 8", 0.0),
    "quick of 8/untouched": ("untouched cameras", "quick of 8", 0.0),
    "exact of 8/untouched": ("untouched cameras", "exact of 8", 8.0),
}


# --- in the simulator's interpreter -----------------------------------------------------------------------------------


def make(name: str, core: str, quality: str = "") -> Env:
    """Our environment, in which no episode ends by time."""
    return simulators.adapter(NAMES.get(name, name), core, CAMERAS, quality, max_steps=10**9)


def untouched(name: str, cameras: bool) -> Any:
    """The package's own environment."""
    from benchmarks.untouched import camera_settings, libero_task, robosuite_task

    settings = camera_settings(CAMERAS if cameras else {})
    if name.startswith("libero"):
        from envs.libero_assets import suite_tasks

        return libero_task(name, suite_tasks(name)[TASKS[name]], hard_reset=False, **settings).env
    return robosuite_task("Lift", **settings)


class Bench:
    """All variants of one environment, and what one round needs."""

    def __init__(self, name: str, cameras: bool, clock: Callable[[], float]) -> None:
        self.name, self.clock = name, clock
        self.envs = {"stock": make(name, "stock"), "fast": make(name, "fast")}
        self.theirs = {"untouched": untouched(name, False)}
        if cameras:
            self.theirs["untouched cameras"] = untouched(name, True)
            for label, quality in QUALITIES.items():
                self.envs[label] = make(name, "fast", quality)
                self.envs[f"{label} of {CHUNK}"] = self.envs[label]  # one environment, two ways to ask it for pictures
        self.task = self.envs["fast"].spec.tasks[TASKS[name]]

    def round(self, seed: int, steps: int) -> dict[str, float]:
        """Seconds per control step of every variant, over one episode."""
        actions, states = self._episode(seed, steps)
        times = {label: 0.0 for label in ("bare", *self.theirs, *self.envs)}
        for label in self.envs:
            if " of " not in label:
                self.envs[label].reset(self.task, seed)
        for env in self.theirs.values():
            env.reset()
        for k in range(0, len(actions), TURN):
            turn = slice(k, k + TURN)
            for label, env in self.theirs.items():
                times[label] += self._their_turn(env, actions[turn], states[k])
            for label, env in self.envs.items():
                if " of " in label:
                    arm(env).set_state(states[k][0])  # its every-step twin has already been here
                times[label] += self._our_turn(env, actions[turn], label)
            times["bare"] += self._bare_turn(states[turn])
        return {label: spent / len(actions) for label, spent in times.items()}

    def _episode(self, seed: int, steps: int) -> tuple[list[np.ndarray], list[tuple[np.ndarray, ...]]]:
        """The expert's actions, in whole chunks, and what `fast` went through: state, warm start, motor commands."""
        env, actions, states, done = self.envs["fast"], [], [], False
        obs = env.reset(self.task, seed)
        expert = make_expert(env.spec.env_id, self.task, seed=seed)
        expert.reset(obs)
        while not done and len(actions) < steps:
            data = arm(env).data
            before = arm(env).state(), data.qacc_warmstart.copy()
            actions.append(expert.act(obs))
            step = env.step(actions[-1], render=False)
            states.append((*before, data.ctrl.copy()))
            obs, done = step.obs, step.terminated or step.truncated
        whole = max(1, (len(actions) - 1) // CHUNK) * CHUNK  # the step that ends the episode is not among them
        return actions[:whole], states[:whole]

    def _their_turn(self, env: Any, actions: list[np.ndarray], state: tuple[np.ndarray, ...]) -> float:
        context = env.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()  # it assumes that there is no other
        env.sim.set_state_from_flattened(state[0])
        env.sim.forward()
        return timed(lambda: [env.step(action) for action in actions], self.clock)

    def _our_turn(self, env: Env, actions: list[np.ndarray], label: str) -> float:
        every, last = label in QUALITIES, " of " in label

        def play() -> None:
            for j, action in enumerate(actions):
                step = env.step(action, render=every or (last and j % CHUNK == CHUNK - 1))
                if step.terminated:  # a step earlier than in the recorded episode, by rounding: play on
                    env._running = True  # type: ignore[attr-defined]

        return timed(play, self.clock)

    def _bare_turn(self, states: list[tuple[np.ndarray, ...]]) -> float:
        import mujoco

        fast = arm(self.envs["fast"])
        model, data, spent = fast.model, mujoco.MjData(fast.model), 0.0
        for state, warm, motors in states:
            data.time, data.qpos[:], data.qvel[:] = state[0], state[1 : 1 + model.nq], state[1 + model.nq :]
            data.qacc_warmstart[:], data.ctrl[:] = warm, motors
            spent += timed(lambda: mujoco.mj_step(model, data, fast.substeps), self.clock)
        return spent


def timed(play: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Seconds that it takes."""
    started = clock()
    play()
    return clock() - started


def serve(args: argparse.Namespace) -> None:
    """Print one line of JSON per round."""
    bench = Bench(args.env, not args.no_cameras, time.process_time if args.cpu else time.perf_counter)
    bench.round(0, CHUNK)  # warm-up: first pictures, first calls
    for seed in range(args.rounds):
        print(json.dumps(bench.round(seed, args.steps)), flush=True)
    os._exit(0)  # some GL libraries crash in their own exit handlers


# --- in ours ----------------------------------------------------------------------------------------------------------


def measure(name: str, rounds: int, options: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Medians over the rounds: milliseconds per control step, and the ratios."""
    found = []
    for row in simulators.rows("sims", name, NAMES.get(name, name), ["--rounds", str(rounds), *options]):
        found.append(row)
        say(f"{name}: " + ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in row.items()))
    if len(found) != rounds:
        raise RuntimeError(f"the simulator process of {name} ended after {len(found)} of {rounds} rounds")
    return {
        "ms": {label: 1e3 * statistics.median(row[label] for row in found) for label in found[0]},
        "ratio": {
            figure: statistics.median(row[above] / row[below] for row in found)
            for figure, (above, below, _) in GOALS.items()
            if above in found[0] and below in found[0]
        },
        "rounds": rounds,
    }


def as_results(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """name -> ratio, goal and the figures behind it, as they are kept in results.json."""
    return {
        f"sims/{name}/{figure}": {
            "ratio": round(ratio, 3),
            "goal": GOALS[figure][2] or None,
            "ms": {label: round(found["ms"][label], 4) for label in GOALS[figure][:2]},
            "rounds": found["rounds"],
        }
        for figure, ratio in found["ratio"].items()
    }


def as_table(all_found: dict[str, dict[str, Any]]) -> str:
    """One row per environment; ratios are speeds, so more is better."""
    from benchmarks.tables import table

    figures = [f for f in GOALS if any(f in found["ratio"] for found in all_found.values())]
    head = ["environment", "bare ms", "untouched ms", *(f"{f} ({g:g})" if (g := GOALS[f][2]) else f for f in figures)]
    rows = []
    for name, found in all_found.items():
        cells = [f"{found['ratio'][f]:.2f}" + ("" if found["ratio"][f] >= GOALS[f][2] else " *") for f in figures]
        rows.append([name, f"{found['ms']['bare']:.3f}", f"{found['ms']['untouched']:.2f}", *cells])
    return table(head, rows) + "\n\n`*` below its goal (in brackets). Both ms columns: a control step without cameras."


def main() -> None:
    """Measure, print the table, and write results.json and RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=[*TASKS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=64, help="longest part of an episode that is played")
    parser.add_argument("--no-cameras", action="store_true", help="leave out everything with pictures")
    parser.add_argument("--cpu", action="store_true", help="count processor time: for a machine that is busy otherwise")
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "osmesa")
    if args.serve:
        serve(args)
        return
    from benchmarks.tables import hardware, write_results, write_section

    found = {}
    options = ["--steps", str(args.steps), *["--no-cameras"] * args.no_cameras, *["--cpu"] * args.cpu]
    for name in TASKS if args.env == "all" else [args.env]:
        found[name] = measure(name, args.rounds, options, lambda line: print(line, file=sys.stderr))
    print(as_table(found))
    if args.no_write:
        return
    for name, result in found.items():
        write_results(as_results(name, result))
    text = f"## Simulator speed\n\n{hardware()}\n\n{as_table(found)}\n\nCommand: `python -m benchmarks.sims"
    text += f" --env {args.env} --rounds {args.rounds} {' '.join(options)}`. What the columns are, says its docstring."
    write_section("sims", text)


if __name__ == "__main__":
    main()
