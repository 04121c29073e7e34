"""CALVIN as an environment: one of 31 single tasks, chains of your own, or the benchmark's chains of five.

Every reset loads the world anew (about 50 ms): only then does an episode repeat to the bit. Images are RGB with row 0
on top, as the benchmark's. In chains an episode is a whole chain: the instruction changes when a task is done, which
pays 1, so that the episode's reward is the number of tasks solved in a row; a task that is not done within
`max_steps` ends it.
"""

from __future__ import annotations

import difflib
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from envs.calvin.cameras import Cameras
from envs.calvin.chains import LENGTH, OFFICIAL, official_chain, training_chain
from envs.calvin.data import check_data, find_data
from envs.calvin.instructions import INSTRUCTIONS
from envs.calvin.official import OfficialWorld
from envs.calvin.oracle import is_done
from envs.calvin.progress import handles, progress
from envs.calvin.scenes import BLOCKS, CONTROL_HZ, JOINT_HIGH, JOINT_LOW, SCENES, SIZES
from envs.calvin.states import Values, chain_start, official_start, single_tasks, varied_start
from envs.calvin.world import Info, World
from envs.types import BadState, EnvError, EnvSpec, Observation, ResetNeeded, Step, check_action

CHAIN = "chain"  # the name of the only task of `protocol: chains`
THEN = "_then_"  # between the tasks in the name of a chain of your own
PROTOCOLS, GRIPPERS, BACKENDS = ("single", "chains"), ("sign", "exact"), ("native", "official")
POSE = ("x", "y", "z", "roll", "pitch", "yaw")
JOINTS = tuple(f"joint_{i}" for i in range(7))
Actions = Tuple[Tuple[str, ...], Tuple[float, ...], Tuple[float, ...]]  # names, low, high without the gripper
ACTIONS: Dict[str, Actions] = {
    "relative": (tuple(f"d{name}" for name in POSE), (-1.0,) * 6, (1.0,) * 6),
    "absolute": (POSE, (-1.5,) * 3 + (-2 * np.pi,) * 3, (1.5,) * 3 + (2 * np.pi,) * 3),
    "joint_relative": (tuple(f"d{name}" for name in JOINTS), (-0.2,) * 7, (0.2,) * 7),
    "joint_absolute": (JOINTS, JOINT_LOW, JOINT_HIGH),
}
PROPRIO = {
    **{f"tcp_{axis}": "m" for axis in "xyz"},
    **{f"tcp_{angle}": "rad" for angle in ("roll", "pitch", "yaw")},
    "gripper_width": "m",
    **{name: "rad" for name in JOINTS},
    "gripper_command": "1",
}


class Calvin:
    """One scene of the play table. The seed decides the start, or names the chain."""

    def __init__(
        self,
        *,
        name: str = "D",
        protocol: str = "single",
        cameras: Optional[Mapping[str, Optional[Sequence[int]]]] = None,
        actions: str = "relative",
        gripper: str = "sign",
        max_steps: int = 360,
        chains: Sequence[Sequence[str]] = (),
        renderer: str = "exact",
        backend: str = "native",
        dataset: str = "",
        data_check: str = "hash",
    ) -> None:
        """`name` is the scene, A to D; `cameras` maps a camera to (Y, X), or to None to leave it out;
        `max_steps` is a task's limit.

        `renderer: exact` is PyBullet's, `fast` our own, `egl` PyBullet's on a GPU; their pictures differ a little.
        `chains` are lists of tasks to be done one after the other, each offered as a further task `A_then_B`.

        `protocol: chains` is scene D's benchmark: seeds 0 to 999 are its 1000 chains, larger ones training chains.
        `actions: relative | absolute | joint_relative | joint_absolute`. `gripper: sign` opens at values above 0, as
        the benchmark's evaluation does; `exact` refuses all but 1 (open) and -1 (close).
        `backend: official` takes the installed calvin_env package, with the configuration of the folder `dataset`.
        `data_check: hash | present` is what is checked of the data files.
        """
        _known("protocol", protocol, PROTOCOLS)
        _known("actions", actions, tuple(ACTIONS))
        _known("gripper", gripper, GRIPPERS)
        _known("scene", name, tuple(SCENES))
        _known("backend", backend, BACKENDS)
        if max_steps < 1:
            raise EnvError(f"max_steps = {max_steps}; expected at least 1")
        if protocol == "chains" and name != "D":
            raise EnvError(f"the benchmark's chains are for scene D, not {name}: its block places fit no other table")
        wanted = {key: size for key, size in (SIZES if cameras is None else cameras).items() if size is not None}
        sizes = {key: (int(size[0]), int(size[1])) for key, size in wanted.items()}
        self._name, self._kind, self._gripper, self._limit = name, actions, gripper, max_steps
        self._chains = protocol == "chains"
        own = tuple(_own_chain(tasks, name, self._chains) for tasks in chains)
        self._world, self._cameras, drawn = _table(backend, name, sizes, renderer, dataset, data_check)
        self._running = False
        self._tasks: List[str] = []  # of the episode; the present one is number `_done`
        self._done = self._steps = 0
        self._start: Info = self._world.info()
        self._tasks = ["open_drawer"]
        privileged = {key: value.shape for key, value in self._privileged(self._start).items()}
        self.spec = calvin_spec(
            name,
            sizes=sizes,
            actions=actions,
            chains=self._chains,
            own_chains=own,
            max_steps=max_steps,
            privileged=privileged,
            renderer=drawn,
        )

    def reset(self, task: str, seed: int) -> Observation:
        """Start an episode in a freshly loaded world; for chains the seed is the chain."""
        world = self._open_world()
        if task not in self.spec.tasks:
            near = difflib.get_close_matches(task, self.spec.tasks, 1, 0.0)[0]
            raise EnvError(
                f"{self.spec.env_id}: unknown task '{task}'; expected one of {len(self.spec.tasks)}, "
                f"for example '{near}'"
            )
        self._running = False
        tasks, values = self._plan(task, int(seed))
        world.load(0)  # that stream places blocks by chance, which is not wanted here
        world.reset(*values)
        self._tasks, self._done, self._steps = tasks, 0, 0
        self._start = world.info()
        self._running = True
        return self._observe(self._start, render=True)

    def step(self, action: np.ndarray, render: bool = True) -> Step:
        """Advance one control step (1/30 s)."""
        world = self._open_world()
        if not self._running:
            raise ResetNeeded(f"{self.spec.env_id}: there is no running episode; call reset first")
        action = check_action(self.spec, action)
        if self._gripper == "sign":
            action[-1] = 1.0 if action[-1] > 0 else -1.0
        self._act(world, action)
        self._running = False  # stays so if the simulation fails
        world.step()
        self._steps += 1
        info = world.info()
        if not np.isfinite(info["robot_info"]["arm_joint_states"]).all():
            raise BadState(f"{self.spec.env_id}: the arm's joint angles are not finite; the simulation is unstable")
        solved = is_done(self._tasks[self._done], self._start, info)
        late = not solved and self._steps >= self._limit
        success = solved and self._done + 1 == len(self._tasks)
        obs_info = self._next_task(info) if solved and not success else info
        self._running = not (success or late)
        return Step(
            obs=self._observe(obs_info, render=render, done=success),
            reward=float(solved),
            terminated=success or (late and len(self._tasks) > 1),
            truncated=late and len(self._tasks) == 1,
            success=success,
        )

    def render(self) -> Dict[str, np.ndarray]:
        """Camera images of the present state."""
        self._open_world()
        return self._cameras.render()

    def close(self) -> None:
        """Free the simulator; calling it again does nothing."""
        world, self._world = self._world, None
        if world is not None:
            world.close()

    def _open_world(self) -> Any:
        if self._world is None:
            raise EnvError(f"{self.spec.env_id}: the environment is closed; make a new one")
        return self._world

    def _plan(self, task: str, seed: int) -> Tuple[List[str], Values]:
        """The tasks of an episode and the state it starts in."""
        if not self._chains:
            tasks = task.split(THEN)
            return tasks, chain_start(tasks, self._name, seed)
        if seed < OFFICIAL:
            state, tasks = official_chain(seed)
            return tasks, official_start(state)
        state, tasks = training_chain(seed)
        return tasks, varied_start(state, self._name, seed)

    def _next_task(self, info: Info) -> Info:
        self._done, self._steps, self._start = self._done + 1, 0, info
        return info

    def _act(self, world: Any, action: np.ndarray) -> None:
        if self._kind == "relative":
            world.robot.relative(action)
        elif self._kind == "absolute":
            world.robot.absolute(action[:3].tolist(), action[3:6].tolist(), action[6])
        else:
            world.robot.joints(action[:7].tolist(), action[7], relative=self._kind == "joint_relative")

    def _observe(self, info: Info, *, render: bool, done: bool = False) -> Observation:
        privileged = self._privileged(info)
        if done:
            privileged["progress"] = np.array(1.0)
        images = self._cameras.render() if render else {}
        instruction = INSTRUCTIONS[self._tasks[self._done]]
        unseen = not self._cameras.see(privileged["robot_obs"][:3])
        return Observation(images, privileged["robot_obs"].astype(np.float32), instruction, privileged, unseen=unseen)

    def _progress(self, info: Info) -> float:
        """Of the whole episode: tasks done, and how far the present one is."""
        share = progress(self._tasks[self._done], self._open_world().scene, self._start, info)
        return (self._done + share) / len(self._tasks)

    def _privileged(self, info: Info) -> Dict[str, np.ndarray]:
        world = self._open_world()
        robot, scene = world.robot.obs(), world.scene_obs()
        blocks = info["scene_info"]["movable_objects"]
        touched = {body for body, _ in info["robot_info"]["contacts"]}
        out = {
            "robot_obs": robot,
            "scene_obs": scene,
            "target": np.concatenate([world.robot.target_position, world.robot.target_euler]),
            "tcp_quat": np.array(world.robot.tcp()[1]),
            "state": np.concatenate([robot, scene]),
            "progress": np.array(self._progress(info)),
            "task": np.array(float(_TASK_NUMBER[self._tasks[self._done]])),
        }
        for name, place in handles(world.scene, info).items():
            out[f"{name}_handle"] = place
        for colour in BLOCKS:
            block: Mapping[str, Any] = blocks[f"block_{colour}"]
            out[f"{colour}_pos"] = np.array(block["current_pos"])
            out[f"{colour}_quat"] = np.array(block["current_orn"])
            out[f"{colour}_held"] = np.array(float(block["uid"] in touched and len(block["contacts"]) <= 2))
        return out


def calvin_spec(
    scene: str,
    *,
    sizes: Mapping[str, Tuple[int, int]],
    actions: str = "relative",
    chains: bool = False,
    own_chains: Sequence[Sequence[str]] = (),
    max_steps: int = 360,
    privileged: Optional[Mapping[str, Tuple[int, ...]]] = None,
    renderer: str = "",
) -> EnvSpec:
    """What a scene offers and accepts; needs no simulator."""
    names, low, high = ACTIONS[actions]
    longest = LENGTH if chains else max([1, *map(len, own_chains)])
    return EnvSpec(
        env_id=f"calvin/{scene}_chains" if chains else f"calvin/{scene}",
        cameras=dict(sizes),
        proprio=dict(PROPRIO),
        actions=(*names, "gripper"),
        low=(*low, -1.0),
        high=(*high, 1.0),
        control_hz=CONTROL_HZ,
        max_steps=max_steps * longest,
        tasks=(CHAIN,) if chains else (*single_tasks(), *map(THEN.join, own_chains)),
        action_convention=f"calvin_{actions}",
        privileged=dict(privileged or {}),
        renderer=renderer,
    )


def _table(
    backend: str, name: str, sizes: Mapping[str, Tuple[int, int]], renderer: str, dataset: str, data_check: str
) -> Tuple[Any, Any, str]:
    """The world, its cameras, and what `EnvSpec.renderer` says of them."""
    if backend == "official":
        if renderer != "exact":
            raise EnvError(f"renderer: {renderer} draws our own table; backend: official has its own renderer")
        official = OfficialWorld(name, dataset)
        return official, official.cameras(sizes), official.renderer
    data = find_data()
    check_data(data, name, how=data_check)
    world = World(name, data)
    return world, Cameras(world, sizes, renderer=renderer), "" if renderer == "exact" else renderer


_TASK_NUMBER = {task: number for number, task in enumerate(INSTRUCTIONS)}


def _own_chain(tasks: Sequence[str], scene: str, official: bool) -> Tuple[str, ...]:
    """A chain as configured, checked."""
    if official:
        raise EnvError("chains of your own need protocol: single; `chains` is the benchmark's list")
    if len(tasks) < 2 or isinstance(tasks, str):
        raise EnvError(f"chains: {tasks!r} is no chain; expected a list of at least two tasks")
    for task in tasks:
        _known("task", task, tuple(INSTRUCTIONS))
    chain_start(tasks, scene, 0)
    return tuple(tasks)


def _known(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise EnvError(f"CALVIN: {what} '{value}' is unknown; expected one of {', '.join(choices)}")
