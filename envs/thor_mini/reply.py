"""What is sent after an action: metadata and pictures as bytes. Needs numpy alone; Python 3.8 syntax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from envs.thor_mini.colours import table
from envs.thor_mini.metadata import agent_metadata, outcome_metadata, third_party
from envs.thor_mini.world import Outcome, World

Picture = Tuple[str, memoryview]  # kind, as in `wire`; bytes, bottom row first


@dataclass
class Reply:
    """One message to the Controller: all metadata with pictures, or a patch of the last."""

    metadata: Dict[str, Any]
    pictures: List[Picture] = field(default_factory=list)
    patch: bool = False


@dataclass
class Painter:
    """Turns frames into the bytes of a build's pictures."""

    channels: int = 3  # of colour pictures; a build that renders in the cloud sends 4
    _tables: Dict[str, Any] = field(default_factory=dict)

    def pictures(self, world: World) -> List[Picture]:
        """All pictures of the present state, the agent's before the third-party cameras'."""
        settings = world.settings
        sent: List[Picture] = []
        for i in range(len(world.cameras())):
            frame = world.frame(i)
            sent.append(("third_rgb" if i else "rgb", self._rgb(frame.rgb)))
            if settings.depth:
                scaled = np.clip(frame.depth[::-1] / np.float32(settings.far - settings.near), 0.0, 1.0)
                sent.append(("third_depth" if i else "depth", _bytes(scaled.astype(np.float32, copy=False))))
            if settings.ids:
                sent.append(("third_ids" if i else "ids", self._painted(world, "ids", frame.ids)))
            if settings.classes:
                sent.append(("third_classes" if i else "classes", self._painted(world, "classes", frame.ids)))
        return sent

    def _rgb(self, rgb: np.ndarray) -> memoryview:
        if self.channels == 3:
            return _bytes(rgb[::-1])
        full = np.full((*rgb.shape[:2], 4), 255, dtype=np.uint8)
        full[..., :3] = rgb[::-1]
        return _bytes(full)

    def _painted(self, world: World, kind: str, ids: np.ndarray) -> memoryview:
        """Object numbers as colours with alpha 255; what has no number is black."""
        if self._tables.get("of") is not world.original:
            bodies = world.original.bodies
            self._tables = {
                "of": world.original,
                "ids": table(bodies, types=False),
                "classes": table(bodies, types=True),
            }
        return _bytes(self._tables[kind].take(ids[::-1], mode="wrap"))


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def full_reply(world: World, painter: Optional[Painter], action: str, outcome: Outcome, sequence: int) -> Reply:
    """Everything; without a painter, without pictures."""
    metadata = {
        "agents": [agent_metadata(world, action, outcome)],
        "thirdPartyCameras": third_party(world),
        "sequenceId": sequence,
        "activeAgentId": 0,
    }
    return Reply(metadata, painter.pictures(world) if painter else [])


def patch_reply(action: str, outcome: Outcome) -> Reply:
    """What came of a question; the Controller keeps everything else, pictures included."""
    return Reply({"agentId": 0, **outcome_metadata(action, outcome)}, patch=True)
