"""What is sent after an action: metadata and pictures as bytes. Needs numpy alone; Python 3.8 syntax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from envs.thor_mini.metadata import agent_metadata, outcome_metadata, third_party
from envs.thor_mini.visible import id_colour
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
        table = self._tables.get(kind)
        if table is None or self._tables.get("of") is not world.original:
            self._tables = {"of": world.original, "ids": _table(world, False), "classes": _table(world, True)}
            table = self._tables[kind]
        return _bytes(table[ids[::-1] + 1])


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def _table(world: World, classes: bool) -> np.ndarray:
    """Little-endian RGBA of object number - 1: uint32 [B + 1]."""
    bodies = world.scene.bodies
    types = sorted({b.object_type for b in bodies})
    numbers = [len(bodies) + types.index(b.object_type) if classes else i for i, b in enumerate(bodies)]
    colours = [[0, 0, 0, 255], *([*id_colour(i), 255] for i in numbers)]
    return np.array(colours, dtype=np.uint8).view(np.uint32).ravel()


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
