"""SPOC's Stretch robot: its twenty actions as the simulator's own, their success rules, its cameras and its arm.

Yaws in degrees, clockwise from above; lengths in metres. Needs numpy alone; Python 3.8 syntax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from envs import stretch
from envs.thor_link import Link
from envs.types import BadState

MOVE, TURN, SMALL_TURN = 0.2, 30.0, 6.0
ARM, SMALL_ARM, WRIST = 0.1, 0.02, 10.0
LIFT_ZERO = 0.16297650337219238  # metres of the lowest arm joint above the robot's own origin when the lift is down
WRIST_RANGE = (-260.0, 75.0)
# What must change for an action to have worked: base, base turn, lift or extension, wrist.
MOVED_M, TURNED_DEG, SLID_M, TWISTED_DEG = 0.01, 1.5, 0.005, 2.0
PITCHES = {False: 27.0, True: 33.0}  # degrees down; by whether it is the secondary camera
FOV, JITTER_PITCH, JITTER_FOV = 59.0, 2.0, 1.0
SETTLE_S = 1.0
NAV_RADII = (0.5, 0.4, 0.3, 0.2)  # metres, of the robots for which shortest paths are found; the ids are the indices
# action index -> what moves and by how much
BASE: Dict[int, float] = {0: MOVE, 3: -MOVE}
TURNS: Dict[int, float] = {1: TURN, 2: -TURN, 6: -SMALL_TURN, 7: SMALL_TURN}
ARMS: Dict[int, Tuple[float, float]] = {  # (lift, extension)
    9: (0.0, -ARM), 10: (0.0, ARM), 11: (ARM, 0.0), 12: (-ARM, 0.0),
    15: (-SMALL_ARM, 0.0), 16: (0.0, -SMALL_ARM), 17: (0.0, SMALL_ARM), 18: (SMALL_ARM, 0.0),
}  # fmt: skip
WRISTS: Dict[int, float] = {13: -WRIST, 14: WRIST}
DONE, SUB_DONE, PICKUP, DROPOFF = 4, 5, 8, 19


@dataclass(frozen=True)
class Body:
    """Where the robot is and how its arm stands."""

    position: np.ndarray  # [3]
    yaw: float
    lift: float
    extension: float
    wrist: float
    hand: np.ndarray  # [3] centre of the sphere within which things can be grasped
    hand_offset: np.ndarray  # [4] of the wrist from the robot: x, y, z, yaw
    held: Tuple[str, ...]
    graspable: Tuple[str, ...]


class Stretch:
    """Acts in a loaded house."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.body = Body(np.zeros(3), 0.0, 0.0, 0.0, 0.0, np.zeros(3), np.zeros(4), (), ())
        self.event: Any = None  # with pictures of the present state, or None
        self.error = ""  # what the simulator said against the last action

    def begin(self, pose: Sequence[float], rng: Optional[np.random.Generator]) -> None:
        """Set up cameras, gripper and pose (x, y, z, yaw) for an episode; `rng` shakes the cameras a little."""
        link = self.link
        unseen = {"renderImage": False}  # nobody looks before the last of these
        for secondary, pitch in PITCHES.items():
            shaken = 0.0 if rng is None else float(rng.uniform(-JITTER_PITCH, JITTER_PITCH))
            link.step("RotateCameraMount", degrees=pitch + shaken, secondary=secondary, **unseen)
        for camera in ("FirstPersonCharacter", "SecondaryCamera"):
            shaken = 0.0 if rng is None else float(rng.uniform(-JITTER_FOV, JITTER_FOV))
            link.step("ChangeFOV", fieldOfView=FOV + shaken, camera=camera, **unseen)
        link.step("SetGripperOpenness", openness=30, **unseen)
        link.step("ToggleMagnetVisibility", visible=False, **unseen)
        link.step("AdvancePhysicsStep", simSeconds=SETTLE_S, **unseen)
        x, y, z, yaw = (float(v) for v in pose)
        event = link.step("Teleport", position={"x": x, "y": y, "z": z}, rotation={"x": 0, "y": yaw, "z": 0})
        self.error = "" if event.metadata["lastActionSuccess"] else str(event.metadata["errorMessage"])
        self.look(event)

    def look(self, event: Any) -> None:
        """Take over what an event says of the robot."""
        self.event = event
        self.body = read_body(event.metadata)

    def act(self, index: int, *, render: bool) -> bool:
        """Perform one of the twenty actions; whether it worked, by SPOC's rules. Marks and ends move nothing."""
        if index in (DONE, SUB_DONE):
            return True
        before, extra = self.body, {} if render else {"renderImage": False}
        event = self._send(index, extra)
        self.error = "" if event.metadata["lastActionSuccess"] else str(event.metadata["errorMessage"])
        self.look(event)
        if not render:
            self.event = None
        return worked(index, before, self.body, self.error)

    def _send(self, index: int, extra: Dict[str, Any]) -> Any:
        link, body = self.link, self.body
        if index in BASE:
            name = "MoveAheadQuick" if BASE[index] > 0 else "MoveBackQuick"
            return link.step(name, moveMagnitude=abs(BASE[index]), **extra)
        if index in TURNS:
            return link.step("RotateRightQuick", degrees=TURNS[index], **extra)
        if index in ARMS:
            up, out = ARMS[index]
            position = {"x": 0.0, "y": body.lift + up, "z": body.extension + out}
            return link.step("MoveArm", position=position, returnToStart=True, speed=1, **extra)
        if index in WRISTS:
            return link.step("RotateWristRelative", yaw=wrist_turn(body.wrist, WRISTS[index]), **extra)
        if index == PICKUP:
            return link.step("PickupObject", **extra)
        link.step("ReleaseObject", **extra)
        return link.step("AdvancePhysicsStep", simSeconds=2, **extra)

    def frames(self, cameras: Mapping[str, Tuple[int, int]]) -> Dict[str, np.ndarray]:
        """Cropped pictures uint8 [Y, X, 3] of the present state, in the order of `cameras`."""
        event = self.event
        if event is None:
            event = self.link.step("Pass", renderImage=True)
            self.look(event)
        shots = {stretch.NAVIGATION: event.frame, stretch.MANIPULATION: None}
        others: List[Any] = event.third_party_camera_frames
        if others:
            shots[stretch.MANIPULATION] = others[0]
        out = {}
        for name, size in cameras.items():
            shot = shots[name]
            if shot is None:
                raise BadState(f"ai2thor: camera '{name}' sent no picture")
            frame = np.ascontiguousarray(stretch.crop_sides(shot))
            if frame.shape != (*size, 3):
                raise BadState(f"ai2thor: camera '{name}' sent {frame.shape} after cropping, expected {(*size, 3)}")
            out[name] = frame
        return out


def screen(size: Tuple[int, int]) -> Tuple[int, int]:
    """The (Y, X) to ask of the simulator so that `size` is left when the sides are cut off."""
    y, x = size
    for width in range(x, x + x // 10 + 8):
        if width - 2 * round(width * 6 / 396) == x:
            return y, width
    raise ValueError(f"no screen is cropped to a width of {x}; try {x + 1}")


def worked(index: int, before: Body, after: Body, error: str) -> bool:
    """SPOC's success flag: not blocked, and something changed; a pickup never counts, a dropoff always does."""
    if index == PICKUP:
        return False
    if index == DROPOFF:
        return True
    if "collided" in error.lower():
        return False
    if index in BASE:
        return float(np.linalg.norm(after.position - before.position)) > MOVED_M
    if index in TURNS:
        return abs(turn(before.yaw, after.yaw)) > TURNED_DEG
    if index in ARMS:
        return max(abs(after.lift - before.lift), abs(after.extension - before.extension)) > SLID_M
    return abs(turn(before.wrist, after.wrist)) > TWISTED_DEG


def turn(a: float, b: float) -> float:
    """Degrees from a to b, in [-180, 180)."""
    return (b - a + 180.0) % 360.0 - 180.0


def wrist_turn(now: float, by: float) -> float:
    """How far the wrist may turn: it stays on the arc between its stops."""
    low, high = WRIST_RANGE
    middle = (low + high) / 2
    on_arc = middle + turn(middle, now)  # the arc is 335 degrees; beyond it lies the gap between the stops
    return min(max(on_arc + by, low), high) - on_arc


def nav_meshes() -> List[Dict[str, Any]]:
    """What a house's metadata must hold for shortest paths of robots of four widths."""
    same = {"agentHeight": 1.8, "agentSlope": 10, "agentClimb": 0.5, "voxelSize": 0.1666667}
    return [{"id": i, "agentRadius": radius, **same} for i, radius in enumerate(NAV_RADII)]


def read_body(metadata: Mapping[str, Any]) -> Body:
    """The robot in an event's metadata. Raises BadState if it is not all there."""
    try:
        agent, arm = metadata["agent"], metadata["arm"]
        joints = arm["joints"]
        wrist, root = joints[-1], vector(joints[-1]["rootRelativePosition"])
        turned = wrist["rootRelativeRotation"]  # axis and angle
        yaw = float(turned["w"]) * float(turned["y"])
        return Body(
            position=vector(agent["position"]),
            yaw=float(agent["rotation"]["y"]) % 360.0,
            lift=float(joints[0]["rootRelativePosition"]["y"]) - LIFT_ZERO,
            extension=float(root[2]),
            wrist=yaw,
            hand=vector(arm["handSphereCenter"]),
            hand_offset=np.array([*root, yaw]),
            held=tuple(arm["heldObjects"]),
            graspable=tuple(arm["pickupableObjects"]),
        )
    except (KeyError, IndexError, TypeError) as e:
        raise BadState(f"ai2thor: the metadata lacks {e!r}; expected the Stretch agent's position and arm") from e


def vector(point: Mapping[str, Any]) -> np.ndarray:
    """float64 [3] of a point with x, y and z."""
    return np.array([point["x"], point["y"], point["z"]], dtype=np.float64)
