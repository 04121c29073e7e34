"""One compiled LIBERO task: what the stock environment would have observed of it, its goal and its progress."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from envs.mujoco_arm import Arm


class Scene:
    """A compiled task: its simulator, what the stock environment would have observed, its goal and progress."""

    # What rendering and the robot's observations read, as MuJoCo's data has it.
    SEEN = ("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir",
            "xpos", "xmat")  # fmt: skip

    def __init__(self, env: Any, arm: Arm, instruction: str, *, poses: bool = False, surfaces: str = "") -> None:
        self._poses, self._surfaces = poses, surfaces
        self.arm, self.instruction, self._env = arm, instruction, env
        self._goals: List[List[str]] = env.parsed_problem["goal_state"]
        self._live = [getattr(arm.data, name) for name in self.SEEN]
        self._seen = [array.copy() for array in self._live]
        self.robot = self._robot()
        self._geoms: Dict[str, Tuple[str, ...]] = {}
        self._starts: Dict[str, Tuple[float, float]] = {}

    def look(self) -> None:
        """Take the observation now; the simulation may go on before it is asked for."""
        for seen, live in zip(self._seen, self._live):
            np.copyto(seen, live)
        self.robot = self._robot()

    def _robot(self) -> Dict[str, np.ndarray]:
        more = self.arm.surfaces(self._surfaces) if self._surfaces else {}
        return {**self.arm.robot_state(), **(self.arm.poses() if self._poses else {}), **more}

    def begin(self) -> None:
        """Observe the state that was just loaded."""
        self.look()
        self.start()

    def start(self) -> None:
        """Remember where things are, for `progress`: height, and distance to the goal, of what each goal moves."""
        self._starts = {}
        for goal in self._goals:
            low, high = self._box(goal[1])
            self._starts[str(goal)] = (float(low[2]), float(np.linalg.norm(((low + high) / 2 - self._place(goal))[:2])))

    def post_process(self) -> None:
        """Let the benchmark adjust what depends on the state just loaded."""
        self._env._post_process()

    def render(self) -> Dict[str, np.ndarray]:
        """Images of the moment last looked at."""
        now = [array.copy() for array in self._live]
        try:
            for seen, live in zip(self._seen, self._live):
                np.copyto(live, seen)
            return self.arm.render()
        finally:
            for array, live in zip(now, self._live):
                np.copyto(live, array)

    def read(self, *, success: Optional[bool]) -> Dict[str, np.ndarray]:
        """Privileged entries about the first goal that does not hold yet (the last one if all do).

        `success` is None if nobody has looked yet.
        """
        if success is not None and len(self._goals) == 1:  # the reward has just asked this
            done = [success]
        else:
            done = [bool(self._env._eval_predicate(goal)) for goal in self._goals]
        goal = self._goals[done.index(False)] if False in done else self._goals[-1]
        low, high = self._box(goal[1])
        goal_low, goal_high = self._box(self._container(goal))
        place = self._place(goal)
        part = 0.0 if all(done) else self._part(goal, low, high, place)
        return {
            "target_low": low,
            "target_high": high,
            "goal_pos": place,
            "goal_low": goal_low,
            "goal_high": goal_high,
            "progress": np.array([1.0 if success else (sum(done) + part) / len(done)]),
        }

    def _part(self, goal: Sequence[str], low: np.ndarray, high: np.ndarray, place: np.ndarray) -> float:
        """A potential in [0, 0.9] for one goal: reach, lift, carry. Goals about doors and knobs count the reach."""
        centre = (low + high) / 2
        reach = 1.0 - float(np.tanh(5.0 * np.linalg.norm(centre - self.robot["eef_pos"])))
        if len(goal) < 3:
            return 0.3 * reach
        height, distance = self._starts[str(goal)]
        over = max(1.0 - float(np.linalg.norm((centre - place)[:2])) / max(distance, 1e-6), 0.0)
        lifted = min(max(float(low[2] - height) / 0.08, 0.0), 1.0)
        return 0.2 * reach + 0.3 * max(lifted, over) + 0.4 * over  # over the goal it has to come down again

    def _place(self, goal: Sequence[str]) -> np.ndarray:
        """Where the thing has to go: the centre of the region or object that the goal names last."""
        name, env = goal[-1], self._env
        if name in env.object_sites_dict:
            return np.array(env.sim.data.get_site_xpos(name))
        return np.array(env.sim.data.body_xpos[env.obj_body_id[name]])

    def _container(self, goal: Sequence[str]) -> str:
        """The object that the goal's region belongs to, or the region itself."""
        site = self._env.object_sites_dict.get(goal[-1])
        parent = getattr(site, "parent_name", None)
        return str(parent) if parent in self._env.obj_body_id else goal[-1]

    def _box(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """World-axis box of an object's collision shapes; a point for regions and for objects without any."""
        env = self._env
        if name in env.object_sites_dict:
            point = np.array(env.sim.data.get_site_xpos(name))
            return point, point.copy()
        if name not in self._geoms:
            self._geoms[name] = tuple(getattr(env.get_object(name), "contact_geoms", None) or ())
        if self._geoms[name]:
            return self.arm.bounds(self._geoms[name])
        point = np.array(env.sim.data.body_xpos[env.obj_body_id[name]])
        return point, point.copy()
