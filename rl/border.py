"""Where collection stands at the border of two segments, so that a resumed run goes on as if it had never stopped.

Random numbers, memories and histories are stored. A simulator's state is reached again instead: by the task and seed of
its episode and the actions executed since. That needs nothing of a simulator but what episodes promise anyway, and
what it leads to is compared with what was seen; an episode that comes out otherwise is lost and counted as such.
"""

import zlib
from typing import Any

import numpy as np
import torch

from envs.types import Observation
from rl.collect import Collector, Episode

Border = dict[str, Any]  # tensors, arrays and plain values: what a checkpoint can hold


def keep(c: Collector) -> Border:
    """The state of a collector that has just delivered a segment. Nothing of it changes by being asked."""
    n = c.vector.num_envs
    return {
        "seed": c.seed,
        "started": list(c.started),
        "told": c.told,
        "segments": c.segments,
        "rng": [g.get_state() for g in c.rng],
        "hint_rng": c.hint_rng.get_state(),
        "hints": {k: v.clone() for k, v in c.hints.items()},
        "decided": list(c.decided),
        "memory": {k: v.clone() for k, v in c.memory.items()},
        "before": [{need: dict(values) for need, values in kept.items()} for kept in c.before],
        "images": {k: v.copy() for k, v in c.history.images.items()},
        "proprio": c.history.proprio.copy(),
        "texts": list(c.history.texts),
        "episodes": [vars(e).copy() for e in c.episodes],
        "ready": list(c.ready),
        "fresh": list(c.fresh),
        "chunks": [[len(chunk) for chunk in row] for row in c.acted],
        "actions": [np.concatenate(row) if row else np.zeros((0, 0)) for row in c.acted],
        "seen": [_digest(c.vector.seen(i)) if c.ready[i] else 0 for i in range(n)],
    }


def fits(border: Border | None, rows: int) -> bool:
    """Whether a worker with so many environments can go on from there."""
    return border is not None and len(border["episodes"]) == rows


def go_back(c: Collector, border: Border) -> None:
    """Bring a collector that has asked nothing of its simulators yet (`begin=False`) to the border."""
    c.seed, c.told, c.segments = int(border["seed"]), int(border["told"]), int(border["segments"])
    c.started, c.decided = list(border["started"]), list(border["decided"])
    for g, state in zip(c.rng, border["rng"], strict=True):
        g.set_state(_tensor(state).to(torch.uint8))
    c.hint_rng.set_state(_tensor(border["hint_rng"]).to(torch.uint8))
    c.hints = {k: _tensor(v).clone() for k, v in border["hints"].items()}
    c.memory = {k: _tensor(v).clone() for k, v in border["memory"].items()}
    c.before = [{need: {k: _array(v) for k, v in d.items()} for need, d in kept.items()} for kept in border["before"]]
    for camera, store in c.history.images.items():
        store[...] = _array(border["images"][camera])
    c.history.proprio[...] = _array(border["proprio"])
    c.history.texts = list(border["texts"])
    c.episodes = [Episode(**e) for e in border["episodes"]]
    c.fresh = list(border["fresh"])
    ready = list(border["ready"])
    _replay(c, border, [i for i in range(len(ready)) if ready[i]])
    for i in range(len(ready)):
        if not c.ready[i]:  # its next episode begins here, as it did at the border
            c.begin(i)


def _replay(c: Collector, border: Border, rows: list[int]) -> None:
    """Reset these rows to their episodes and execute again what was executed; lose the episodes that differ."""
    left = {i: _split(_array(border["actions"][i]), border["chunks"][i]) for i in rows}
    c.acted = [list(left.get(i, [])) for i in range(c.vector.num_envs)]
    for i in rows:
        c.vector.send_reset(i, c.episodes[i].task, c.episodes[i].seed)
    while left:
        for i in c.vector.wait():
            arrival = c.vector.take(i)
            if arrival.obs is None:
                assert arrival.failure is not None
                c.lose(i, f"{arrival.failure.cause}: {arrival.failure.detail}")
                del left[i]
            elif (arrival.terminated or arrival.truncated) or (
                not left[i] and _digest(arrival.obs) != border["seen"][i]
            ):
                c.lose(i, "diverged: its simulator did not repeat the episode after a resume")
                del left[i]
            elif left[i]:
                chunk = left[i].pop(0)
                c.vector.send_step(i, chunk, render="none" if left[i] else "last")
            else:
                c.ready[i] = True
                del left[i]


def _split(actions: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [actions[end - n : end] for n, end in zip(lengths, ends, strict=True)]


def _digest(obs: Observation) -> int:
    """Of everything but the pictures: renderers may differ in a bit where the state does not."""
    total = zlib.crc32(np.ascontiguousarray(obs.proprio).data)
    for name in sorted(obs.privileged):
        total = zlib.crc32(np.ascontiguousarray(obs.privileged[name]).data, total)
    return zlib.crc32(obs.instruction.encode(), total)


def _tensor(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def _array(value: Any) -> np.ndarray:
    return np.array(value.numpy() if isinstance(value, torch.Tensor) else value)
