"""Videos for people: recorded episodes played again, with cameras that no policy sees.

A simulator of its own repeats task, seed and actions, so filming neither changes an evaluation nor slows it down. A
replay that ends otherwise than the episode did is refused: it would show something that did not happen.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from envs.types import EnvConfig, EnvError, EnvSpec, Observation
from envs.vector import Arrival, SimVector


@dataclass(frozen=True)
class Take:
    """What it takes to see an episode again, and how it ended."""

    task: str
    seed: int
    actions: np.ndarray  # [steps, A] env units
    success: bool
    reward: float  # sum over the steps
    captions: tuple[str, ...] = ()  # of each step, if there is something to say
    chunks: Sequence[int] = ()  # steps of each request; () if that is not known
    states: str = ""  # what `States` made of it; "" if that is not known
    entries: Sequence[str] = ()  # of the privileged state that are in it


OF_PICTURES = ("intrinsics/", "scene/depth", "scene/bodies")  # differ with a picture's size; a film's may be larger


class States:
    """A fingerprint of all that a simulator told of its state, to the bit: at the reset and after every request."""

    def __init__(self, entries: Sequence[str]) -> None:
        """`entries` are names of the privileged state; what tells of pictures is left out."""
        self.entries = sorted(name for name in entries if not name.startswith(OF_PICTURES))
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, obs: Observation) -> None:
        """One moment."""
        self._hash.update(np.ascontiguousarray(obs.proprio).tobytes())
        for name in self.entries:
            self._hash.update(np.ascontiguousarray(obs.privileged[name]).tobytes())

    def __str__(self) -> str:
        return self._hash.hexdigest()


class Film:
    """One simulator like those of `spec`, with the cameras of `config.video` first."""

    def __init__(self, config: EnvConfig, spec: EnvSpec, *, max_chunk: int = 16) -> None:
        """Starts the simulator; raises EnvError if there is no such camera."""
        cameras = dict(config.video) | {k: v for k, v in spec.cameras.items() if k not in config.video}
        if config.video:
            config = replace(config, sim={**config.sim, "cameras": {k: list(v) for k, v in cameras.items()}})
        self.vector = SimVector([config], max_chunk=max_chunk)
        self.cameras = self.vector.env_spec.cameras

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.vector.close()

    def play(self, take: Take) -> dict[str, np.ndarray]:
        """Every frame of the episode: camera -> uint8 [steps + 1, Y, X, 3]. Raises EnvError if it ends otherwise."""
        self.vector.send_reset(0, take.task, take.seed)
        arrival, states, chunks = self._answer(), States(take.entries), list(take.chunks)
        assert arrival.obs is not None
        states.add(arrival.obs)
        frames = {camera: [image[None].copy()] for camera, image in arrival.obs.images.items()}
        done, reward = 0, 0.0
        while done < len(take.actions) and not (arrival.terminated or arrival.truncated):
            steps = chunks.pop(0) if chunks else self.vector.max_chunk
            self.vector.send_step(0, take.actions[done : done + steps], "all")
            arrival = self._answer()
            assert arrival.obs is not None
            states.add(arrival.obs)
            for camera, seen in arrival.frames.items():
                frames[camera].append(seen.copy())
            done, reward = done + arrival.executed, reward + float(arrival.rewards.sum())
        over = arrival.terminated or arrival.truncated
        if (done, arrival.success) != (len(take.actions), take.success) or not over or abs(reward - take.reward) > 1e-3:
            raise EnvError(
                f"the replay of {take.task}, seed {take.seed}, took {done} steps with success {arrival.success} and "
                f"reward {reward:g}; the episode took {len(take.actions)} with success {take.success} and reward "
                f"{take.reward:g}: expected a simulator that repeats itself (launch.py doctor checks that)"
            )
        if take.states and str(states) != take.states:
            raise EnvError(
                f"the replay of {take.task}, seed {take.seed}, ended like the episode, but went through other states; "
                "expected the same to the bit: is this the simulator, on the kind of machine, that ran the episode?"
            )
        return {camera: np.concatenate(parts) for camera, parts in frames.items()}

    def _answer(self) -> Arrival:
        self.vector.wait()
        arrival = self.vector.take(0)
        if arrival.failure is not None:
            raise EnvError(f"the replay failed ({arrival.failure.cause}): {arrival.failure.detail}")
        return arrival
