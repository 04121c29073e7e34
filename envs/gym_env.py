"""The Gymnasium face of one simulator, which runs in a supervised process with its own interpreter.

`envs.make("libero/libero_object:3")`, or `import envs.gym_env` and `gymnasium.make("Temper/LiberoObject-v0")`.
"""

import re
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.envs.registration import register, registry

from envs.build import locate
from envs.spaces import action_space, observation_space
from envs.types import EnvConfig, EnvError, EnvSpec, ResetNeeded
from envs.vector import Arrival, SimVector

# Gymnasium id -> ours; any other "<simulator>/<name>" is reached through `envs.make`.
IDS = {
    "Temper/Toy-v0": "toy/reach",
    "Temper/ToyDiscrete-v0": "toy/reach_discrete",
    "Temper/RobosuiteLift-v0": "robosuite/Lift",
    "Temper/RobosuitePickPlaceCan-v0": "robosuite/PickPlaceCan",
    "Temper/RobosuiteNutAssemblySquare-v0": "robosuite/NutAssemblySquare",
    "Temper/LiberoSpatial-v0": "libero/libero_spatial",
    "Temper/LiberoObject-v0": "libero/libero_object",
    "Temper/LiberoGoal-v0": "libero/libero_goal",
    "Temper/Libero10-v0": "libero/libero_10",
    "Temper/Libero90-v0": "libero/libero_90",
}
RESET_ATTEMPTS = 3  # a simulator that fails this often in a row at reset is broken
_FORM = re.compile(r"(?P<simulator>[a-z][a-z0-9_]*)/(?P<name>[^:/\s]+)(:(?P<task>.+))?")
Observed = dict[str, Any]


def make(env_id: str, *, render_mode: str | None = None, **kwargs: Any) -> "SimEnv":
    """A gymnasium.Env for "<simulator>/<name>[:task]", task being a name or an index; `kwargs` go to the adapter."""
    return SimEnv(env_id=env_id, render_mode=render_mode, **kwargs)


def make_vector(env_id: str, num_envs: int, *, max_chunk: int = 16, **kwargs: Any) -> SimVector:
    """A gymnasium VectorEnv of `num_envs` processes; the id and `kwargs` are those of `make`."""
    config, task = parse(env_id, **kwargs)
    vector = SimVector([config] * num_envs, max_chunk=max_chunk)
    try:
        vector.tasks = _tasks(vector.env_spec, task)
    except EnvError:
        vector.close()
        raise
    return vector


def parse(
    env_id: str,
    *,
    python: str = "",
    step_deadline_s: float = 60.0,
    open_deadline_s: float = 300.0,
    **kwargs: Any,
) -> tuple[EnvConfig, str]:
    """The configuration that an id stands for, and its task ("" if it names none)."""
    match = _FORM.fullmatch(env_id)
    if match is None:
        raise EnvError(
            f"'{env_id}' is not an environment id; expected '<simulator>/<name>[:task]', as in 'toy/reach:red'"
        )
    simulator = match["simulator"]
    target = f"envs.{simulator}.{simulator.capitalize()}"
    try:
        locate(target)
    except ValueError as e:
        raise EnvError(f"'{env_id}': there is no simulator '{simulator}', which would be class {target}: {e}") from e
    sim = {"_target_": target, "name": match["name"], **kwargs}
    config = EnvConfig(sim=sim, python=python, step_deadline_s=step_deadline_s, open_deadline_s=open_deadline_s)
    return config, match["task"] or ""


class SimEnv(gymnasium.Env[Observed, Any]):
    """One simulator as a gymnasium.Env.

    Observations are {"images": {camera: uint8 [Y, X, 3]}, "proprio": float32 [P], "instruction": str}. `info` has
    `success`, `task`, `failed` (the cause, if the simulator had to be replaced; the episode then counts as truncated)
    and `privileged` simulator state. The seed given to `reset` is the simulator's own, options["task"] names a task.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's name)

    def __init__(self, env_id: str, *, render_mode: str | None = None, **kwargs: Any) -> None:
        """Starts the simulator; `kwargs` are `python`, the deadlines of EnvConfig, and those of the adapter."""
        if render_mode not in (None, "rgb_array"):
            raise EnvError(f"{env_id}: render_mode '{render_mode}' is not known; expected None or 'rgb_array'")
        config, task = parse(env_id, **kwargs)
        self._vector = SimVector([config], max_chunk=1)
        self.env_spec = self._vector.env_spec
        try:
            self._tasks = _tasks(self.env_spec, task)
        except EnvError:
            self.close()
            raise
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self.env_spec.control_hz}
        self.spec = _gymnasium_spec(env_id, kwargs)
        self.action_space = action_space(self.env_spec)
        self.observation_space = _finite(observation_space(self.env_spec))
        self._task = self._tasks[0]
        self._running = False
        self._last: Observed | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Start an episode. A simulator that fails is replaced and asked again."""
        super().reset(seed=seed)
        self._task = _tasks(self.env_spec, (options or {}).get("task", self._tasks[0]))[0]
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        failure = None
        for _ in range(RESET_ATTEMPTS):
            self._open_vector().send_reset(0, self._task, chosen)
            arrival = self._arrival()
            if arrival.kind == "reset":
                self._running = True
                return self._observe(arrival), self._info(arrival)
            failure = arrival.failure
        raise EnvError(f"{self.env_spec.env_id}: reset failed {RESET_ATTEMPTS} times, the last time: {failure}")

    def step(self, action: Any) -> tuple[Observed, SupportsFloat, bool, bool, dict[str, Any]]:
        """One control step. If the simulator fails, the last good observation comes back, truncated."""
        vector = self._open_vector()
        if not self._running or self._last is None:
            raise ResetNeeded(f"{self.env_spec.env_id}: step before reset or after the end of the episode; call reset")
        vector.send_step(0, np.asarray(action, dtype=np.float64).reshape(1, -1))
        arrival = self._arrival()
        failed = arrival.kind == "failed"
        self._running = not (failed or arrival.terminated or arrival.truncated)
        obs = self._last if failed else self._observe(arrival)
        reward = float(arrival.rewards.sum())
        return obs, reward, arrival.terminated, arrival.truncated or failed, self._info(arrival)

    def render(self) -> np.ndarray | None:
        """The cameras of the last observation side by side, or None without a render mode."""
        if self.render_mode is None:
            return None
        if self._last is None:
            raise ResetNeeded(f"{self.env_spec.env_id}: render before reset; call reset")
        from envs.record import side_by_side

        return side_by_side({name: image[None] for name, image in self._last["images"].items()})[0]

    def close(self) -> None:
        """Stop the simulator; safe to call twice."""
        self._vector.close()

    def _open_vector(self) -> SimVector:
        if getattr(self._vector, "closed", False):
            raise EnvError(f"{self.env_spec.env_id}: this environment was closed; make a new one")
        return self._vector

    def _arrival(self) -> Arrival:
        self._vector.wait()
        return self._vector.take(0)

    def _observe(self, arrival: Arrival) -> Observed:
        """A copy of the observation: the arrival's arrays are overwritten by the next request."""
        assert arrival.obs is not None
        images = {name: image.copy() for name, image in arrival.obs.images.items()}
        self._last = {"images": images, "proprio": arrival.obs.proprio.copy(), "instruction": arrival.obs.instruction}
        return {**self._last, "images": dict(images)}

    def _info(self, arrival: Arrival) -> dict[str, Any]:
        state = arrival.obs.privileged if arrival.obs is not None else {}
        return {
            "success": arrival.success,
            "task": self._task,
            "failed": f"{arrival.failure.cause}: {arrival.failure.detail}" if arrival.failure else "",
            "privileged": {name: value.copy() for name, value in state.items()},
        }


def register_all() -> None:
    """Make the `IDS` known to gymnasium.make and gymnasium.make_vec; called when this module is imported."""
    for name, env_id in IDS.items():
        if name not in registry:
            single, vector = "envs.gym_env:SimEnv", "envs.gym_env:make_vector"
            register(name, entry_point=single, vector_entry_point=vector, kwargs={"env_id": env_id})


def _tasks(spec: EnvSpec, task: str | int) -> tuple[str, ...]:
    """The tasks that a name, an index or "" (all) stands for."""
    if task == "":
        return spec.tasks
    if task in spec.tasks:
        return (str(task),)
    if str(task).isdecimal() and int(task) < len(spec.tasks):
        return (spec.tasks[int(task)],)
    known = ", ".join(spec.tasks[:20]) + (", ..." if len(spec.tasks) > 20 else "")
    raise EnvError(
        f"{spec.env_id}: there is no task '{task}'; expected an index below {len(spec.tasks)} or one of {known}"
    )


def _finite(space: spaces.Dict) -> spaces.Dict:
    """The same space with proprioception bounded by what float32 holds: a simulator never delivers infinity."""
    shape, limit = space["proprio"].shape, np.finfo(np.float32)
    return spaces.Dict({**space.spaces, "proprio": spaces.Box(limit.min, limit.max, shape, np.float32)})


def _gymnasium_spec(env_id: str, kwargs: dict[str, Any]) -> GymnasiumSpec:
    """How Gymnasium can make this environment again, whether its id is registered or not."""
    name = next((k for k, v in IDS.items() if v == env_id), "Temper/" + re.sub(r"[^\w-]", "-", env_id) + "-v0")
    return GymnasiumSpec(name, entry_point="envs.gym_env:SimEnv", kwargs={"env_id": env_id, **kwargs})


register_all()
