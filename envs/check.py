"""The environment laws, checked on an adapter in this process, or on a vector of children.

Used by the tests of every adapter and by `launch.py doctor`. Standard library and numpy only, Python 3.8 syntax, so
that it also runs inside a simulator's own interpreter.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Type

import numpy as np

from envs.types import Env, EnvError, EnvSpec, Observation, ResetNeeded, Step

if TYPE_CHECKING:
    from envs.vector import Arrival, SimVector

SAME = 1e-4  # simulators repeat themselves up to rounding


def check_env(env: Env, *, steps: int = 20) -> List[str]:
    """Put a fresh adapter through the laws, close it, and return the names of the laws that were exercised.

    Raises AssertionError naming the law that is broken. The end of an episode is only seen if it comes within `steps`,
    so build the environment with a small `max_steps`."""
    laws: List[str] = []
    spec = env.spec
    _check_spec(spec)
    laws.append("specification")
    rng = np.random.default_rng(0)
    task, actions = spec.tasks[0], [sample_action(spec, rng) for _ in range(steps)]
    _refuses(lambda: env.step(actions[0]), "step before reset raises ResetNeeded", ResetNeeded)
    _refuses(lambda: env.reset("no such task", 0), "an unknown task is refused")
    laws += ["step before reset", "unknown task"]
    first = _copy(env.reset(task, 0))
    _check_observation(spec, first, rendered=True)
    laws.append("observation")
    _check_bad_actions(env, actions[0])
    laws.append("action bounds")
    _check_rendering(env, actions[0])
    laws.append("rendering")
    _check_repeats(env, task, first, actions[:3])
    laws.append("seeded reset")
    laws += _check_episode(env, task, actions)
    env.close()
    try:
        env.close()
    except Exception as e:
        raise AssertionError(f"{spec.env_id} breaks the law 'close twice is safe': {e!r}") from e
    return [*laws, "close twice"]


def check_vector(vector: SimVector, *, steps: int = 200) -> List[str]:
    """Put a vector of at least two rows through the laws, close it, and return the laws that were exercised.

    The final observation is only checked if episodes are at most `steps` long."""
    spec = vector.env_spec
    _law(vector.num_envs >= 2, spec, "a vector to check has two rows", f"it has {vector.num_envs}")
    laws = []
    if spec.max_steps <= steps:
        _check_final_observation(vector)
        laws.append("final observation")
    _check_kill(vector)
    laws.append("kill -9 loses one episode")
    vector.close()
    try:
        vector.close()
    except Exception as e:
        raise AssertionError(f"{spec.env_id} breaks the law 'close twice is safe': {e!r}") from e
    return [*laws, "close twice"]


def sample_action(spec: EnvSpec, rng: np.random.Generator) -> np.ndarray:
    """A random legal action [A] in environment units."""
    if spec.num_actions:
        return rng.integers(spec.num_actions, size=1).astype(np.float64)
    return rng.uniform(np.asarray(spec.low), np.asarray(spec.high))


def _law(holds: Any, spec: EnvSpec, law: str, detail: str = "") -> None:
    if not holds:
        raise AssertionError(f"{spec.env_id} breaks the law '{law}'" + (f": {detail}" if detail else ""))


def _refuses(request: Callable[[], Any], law: str, error: Type[EnvError] = EnvError) -> None:
    """`request` must raise `error`."""
    try:
        request()
    except error:
        return
    except Exception as e:
        raise AssertionError(f"broken law '{law}': expected {error.__name__}, got {e!r}") from e
    raise AssertionError(f"broken law '{law}': nothing was raised, expected {error.__name__}")


def _check_spec(spec: EnvSpec) -> None:
    law = "specification"
    _law("/" in spec.env_id, spec, law, "env_id must be '<simulator>/<name>'")
    _law(spec.cameras and all(y > 0 and x > 0 for y, x in spec.cameras.values()), spec, law, f"cameras {spec.cameras}")
    _law(spec.proprio and spec.actions and spec.tasks, spec, law, "proprio, actions and tasks must not be empty")
    _law(len(spec.low) == len(spec.high) == len(spec.actions), spec, law, "low, high and actions differ in length")
    _law(np.isfinite(spec.low).all() and np.isfinite(spec.high).all(), spec, law, "action bounds must be finite")
    _law(all(a < b for a, b in zip(spec.low, spec.high)), spec, law, f"low {spec.low} must lie below high {spec.high}")
    _law(len(set(spec.tasks)) == len(spec.tasks), spec, law, f"tasks repeat: {spec.tasks}")
    _law(spec.control_hz > 0 and spec.max_steps > 0, spec, law, "control_hz and max_steps must be positive")
    _law(bool(spec.action_convention), spec, law, "action_convention must be named")
    if spec.num_actions:
        bounds = spec.low == (0,) and spec.high == (spec.num_actions - 1,)
        _law(bounds, spec, law, "a discrete action has low (0,) and high (num_actions - 1,)")
    _law(EnvSpec.from_json(spec.to_json()) == spec, spec, law, "it does not survive a round trip through JSON")


def _check_observation(spec: EnvSpec, obs: Observation, *, rendered: bool) -> None:
    if rendered:
        _check_images(spec, obs.images)
    else:
        _law(not obs.images, spec, "no images unless asked for", f"got {sorted(obs.images)}")
    proprio, law = obs.proprio, "proprioception"
    _law(proprio.dtype == np.float32 and proprio.shape == (spec.proprio_dim,), spec, law, _shape(proprio))
    _law(np.isfinite(proprio).all(), spec, law, f"not finite: {proprio.tolist()}")
    _law(isinstance(obs.instruction, str) and obs.instruction, spec, "the instruction is a text", repr(obs.instruction))
    law = "privileged state as declared"
    shapes = {name: tuple(np.shape(value)) for name, value in obs.privileged.items()}
    _law(shapes == dict(spec.privileged), spec, law, f"got {shapes}, declared {dict(spec.privileged)}")
    for name, value in obs.privileged.items():
        _law(np.asarray(value).dtype == np.float64, spec, law, f"'{name}' is {np.asarray(value).dtype}, not float64")
        _law(np.isfinite(value).all(), spec, law, f"'{name}' is not finite")


def _check_images(spec: EnvSpec, images: Dict[str, np.ndarray]) -> None:
    law = "images as declared"
    _law(list(images) == list(spec.cameras), spec, law, f"got {list(images)}, declared {list(spec.cameras)}, in order")
    for name, (y, x) in spec.cameras.items():
        image = images[name]
        right = image.dtype == np.uint8 and image.shape == (y, x, 3)
        _law(right, spec, law, f"camera '{name}' gave {_shape(image)}, expected uint8 {(y, x, 3)}")
        _law(image.max() > image.min(), spec, law, f"camera '{name}' shows a single colour, {image.flat[0]}")


def _check_bad_actions(env: Env, good: np.ndarray) -> None:
    spec = env.spec
    high = np.asarray(spec.high, dtype=np.float64)
    bad = {
        "too large": high + 0.5,
        "not finite": np.full(spec.action_dim, np.nan),
        "of the wrong shape": np.zeros(spec.action_dim + 1),
    }
    for what, action in bad.items():
        _refuses(lambda action=action: env.step(action), f"an action {what} is refused")
    _law(not env.step(good).truncated, spec, "a refused action changes nothing")


def _check_rendering(env: Env, action: np.ndarray) -> None:
    spec = env.spec
    blind = env.step(action, render=False)
    _check_observation(spec, blind.obs, rendered=False)
    seeing = env.step(action, render=True)
    _check_observation(spec, seeing.obs, rendered=True)
    kept = {name: image.copy() for name, image in seeing.obs.images.items()}
    again = env.render()
    _check_images(spec, again)
    same = all(_images_agree(kept[name], again[name]) for name in kept)
    _law(same, spec, "render shows the present state", "it differs from the images of the last step")


def _check_repeats(env: Env, task: str, first: Observation, actions: List[np.ndarray]) -> None:
    """The same task and seed start the same episode, also after another one."""
    law = "the same task and seed repeat"
    walks = []
    for seed in (1, 0, 0):
        obs = env.reset(task, seed)
        if seed == 0:
            _law(_observations_agree(first, obs), env.spec, law, f"the first observation differs: {_gap(first, obs)}")
            walks.append([_copy(env.step(action, render=False).obs) for action in actions])
    for one, other in zip(*walks):
        _law(_observations_agree(one, other), env.spec, law, f"steps differ after a repeated reset: {_gap(one, other)}")


def _check_episode(env: Env, task: str, actions: List[np.ndarray]) -> List[str]:
    spec = env.spec
    env.reset(task, 0)
    for count, action in enumerate(actions, start=1):
        step = env.step(action, render=count == len(actions))
        _check_step(spec, step)
        if step.terminated or step.truncated:
            at_limit = step.terminated or count == spec.max_steps
            _law(at_limit, spec, "truncated at max_steps", f"after {count} steps, max_steps is {spec.max_steps}")
            _refuses(lambda: env.step(actions[0]), "step after the end raises ResetNeeded", ResetNeeded)
            env.reset(task, 0)
            env.step(actions[0])
            return ["success implies terminated", "end of episode"]
        _law(count < spec.max_steps, spec, "truncated at max_steps", f"no end after {count} steps")
    return ["success implies terminated"]


def _check_step(spec: EnvSpec, step: Step) -> None:
    _check_observation(spec, step.obs, rendered=bool(step.obs.images))
    _law(np.isfinite(step.reward), spec, "the reward is finite", repr(step.reward))
    for name in ("terminated", "truncated", "success"):
        value = getattr(step, name)
        _law(isinstance(value, (bool, np.bool_)), spec, "flags are booleans", f"{name} is {value!r}")
    _law(step.terminated or not step.success, spec, "success implies terminated")


def _check_final_observation(vector: SimVector) -> None:
    """A chunk that runs over the end delivers what single steps deliver at that end."""
    spec, law = vector.env_spec, "the true final observation is delivered"
    rng = np.random.default_rng(0)
    actions = np.stack([sample_action(spec, rng) for _ in range(spec.max_steps + vector.max_chunk)])
    final = []
    for row, size in ((0, vector.max_chunk), (1, 1)):
        _reset(vector, row, seed=0)
        executed = 0
        while True:
            arrival = _step(vector, row, actions[executed : executed + size])
            _law(arrival.kind == "step", spec, law, f"row {row} failed: {arrival.failure}")
            executed += arrival.executed
            _law(len(arrival.rewards) == arrival.executed, spec, "one reward for each executed step")
            _law(arrival.terminated or not arrival.success, spec, "success implies terminated")
            _law(executed <= spec.max_steps, spec, "truncated at max_steps", f"{executed} steps were executed")
            if arrival.terminated or arrival.truncated:
                break
        assert arrival.obs is not None
        final.append((executed, _copy(arrival.obs)))
        _refuses(lambda row=row: _step(vector, row, actions[:1]), "step after the end raises ResetNeeded", ResetNeeded)
    _law(final[0][0] == final[1][0], spec, law, f"episodes of {final[0][0]} and {final[1][0]} steps")
    _law(_observations_agree(final[0][1], final[1][1]), spec, law, _gap(final[0][1], final[1][1]))


def _check_kill(vector: SimVector) -> None:
    """Kill row 0 inside its episode: it is reported, replaced and repeats; row 1 never notices."""
    spec, law = vector.env_spec, "kill -9 of a child loses one episode and nothing else"
    rng = np.random.default_rng(1)
    action = sample_action(spec, rng)[None]
    before = _copy(_reset(vector, 0, seed=3))
    _reset(vector, 1, seed=3)
    pids = vector.pids()
    _step(vector, 0, action)
    _step(vector, 1, action)
    os.kill(pids[0], signal.SIGKILL)
    lost, other = _step(vector, 0, action), _step(vector, 1, action)
    cause = lost.failure.cause if lost.failure else None
    _law(lost.kind == "failed" and cause == "crashed", spec, law, f"row 0 answered {lost.kind}, cause {cause}")
    _law(other.kind == "step", spec, law, f"row 1 answered {other.kind}: {other.failure}")
    after = _reset(vector, 0, seed=3)
    _law(_observations_agree(before, after), spec, law, f"the new child starts differently: {_gap(before, after)}")
    _law(_step(vector, 1, action).kind == "step", spec, law, "row 1 stopped with the restart of row 0")
    now = vector.pids()
    _law(now[0] != pids[0] and now[1:] == pids[1:], spec, law, f"process ids were {pids}, are {now}")


def _reset(vector: SimVector, row: int, *, seed: int) -> Observation:
    vector.send_reset(row, vector.tasks[0], seed)
    arrival = _take(vector, row)
    if arrival.obs is None:
        raise AssertionError(f"{vector.env_spec.env_id}: reset of row {row} failed: {arrival.failure}")
    return arrival.obs


def _step(vector: SimVector, row: int, chunk: np.ndarray) -> Arrival:
    vector.send_step(row, chunk)
    return _take(vector, row)


def _take(vector: SimVector, row: int) -> Arrival:
    while row not in vector.wait():
        pass
    return vector.take(row)


def _shape(value: Any) -> str:
    return f"{np.asarray(value).dtype} {np.shape(value)}"


def _copy(obs: Observation) -> Observation:
    """Observations may be views that the next request overwrites."""
    images = {name: image.copy() for name, image in obs.images.items()}
    privileged = {name: np.array(value) for name, value in obs.privileged.items()}
    return Observation(images, obs.proprio.copy(), obs.instruction, privileged, obs.notes)


def _images_agree(a: np.ndarray, b: np.ndarray) -> bool:
    """Software rasterisers may differ in a few edge pixels from one context to another."""
    return float(np.abs(a.astype(np.int16) - b).mean()) < 0.5


def _observations_agree(a: Observation, b: Observation) -> bool:
    images = all(_images_agree(a.images[name], b.images[name]) for name in a.images)
    same = a.instruction == b.instruction and a.notes == b.notes
    return images and same and max(_differences(a, b).values()) < SAME


def _differences(a: Observation, b: Observation) -> Dict[str, float]:
    """Largest absolute difference of each array."""
    pairs = {"proprio": (a.proprio, b.proprio)}
    pairs.update({name: (value, b.privileged[name]) for name, value in a.privileged.items()})
    return {k: float(np.max(np.abs(np.subtract(x, y)), initial=0.0)) for k, (x, y) in pairs.items()}


def _gap(a: Observation, b: Observation) -> str:
    """What differs, in words."""
    parts = [f"{name} by {gap:.2g}" for name, gap in _differences(a, b).items() if gap >= SAME]
    parts += [f"camera {name}" for name in a.images if not _images_agree(a.images[name], b.images[name])]
    parts += [f"note '{k}'" for k in {**a.notes, **b.notes} if a.notes.get(k) != b.notes.get(k)]
    return ", ".join(parts) or f"instructions '{a.instruction}' and '{b.instruction}'"
