"""The actions that only ask, by AI2-THOR's names and argument names. Needs numpy alone; Python 3.8 syntax."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from envs.thor_mini.arm import vector
from envs.thor_mini.metadata import minimal_metadata, objects_metadata
from envs.thor_mini.nav import SNAP
from envs.thor_mini.scene import Camera
from envs.thor_mini.visible import project, unhidden, visible
from envs.thor_mini.world import AGENT_Y, RADIUS, Outcome, World

INVALID = "InvalidArgument"
PLACES = 5  # along each side of a receptacle's top
NEAR_OBJECT = 2.0  # metres from the middle of an object to the end of a path to it, at most
MASK = 10  # divisions of an approximate mask, each way
Numbers = Mapping[str, float]


def _index(world: World, object_id: str) -> int:
    return world.index.get(object_id, -1)


def _unknown(object_id: str) -> Outcome:
    return Outcome(error=f"there is no object '{object_id}' in this scene", code=INVALID)


def _camera(world: World, third_party: Optional[int]) -> int:
    """The number of a camera in `World.cameras`; -1 if there is none."""
    number = 0 if third_party is None else third_party + 1
    return number if 0 <= number < len(world.cameras()) else -1


def _no_camera(world: World, third_party: Optional[int]) -> Outcome:
    last = len(world.cameras()) - 2
    return Outcome(error=f"there is no third-party camera {third_party}; the last is {last}", code=INVALID)


def get_visible_objects(
    world: World, *, maxDistance: Optional[float] = None, thirdPartyCameraIndex: Optional[int] = None,
    visibilityScheme: str = "Distance",
) -> Outcome:  # fmt: skip
    """Ids of the objects seen by a camera within a distance."""
    camera = _camera(world, thirdPartyCameraIndex)
    if camera < 0:
        return _no_camera(world, thirdPartyCameraIndex)
    far = world.settings.visibility if maxDistance is None else maxDistance
    return Outcome([world.scene.bodies[i].object_id for i in visible(world, camera, far)])


def get_object_metadata(world: World, *, objectIds: List[str]) -> Outcome:
    """Everything about these objects."""
    lost = [i for i in objectIds if i not in world.index]
    return _unknown(lost[0]) if lost else Outcome(objects_metadata(world, [world.index[i] for i in objectIds]))


def get_minimal_object_metadata(world: World, *, objectIds: Optional[List[str]] = None) -> Outcome:
    """Identity and place of these objects; of all if none are named."""
    ids = list(world.index) if objectIds is None else objectIds
    lost = [i for i in ids if i not in world.index]
    return _unknown(lost[0]) if lost else Outcome(minimal_metadata(world, [world.index[i] for i in ids]))


def set_object_filter(world: World, *, objectIds: List[str]) -> Outcome:
    """Send metadata of these objects only."""
    world.filter = list(objectIds)
    return Outcome()


def reset_object_filter(world: World) -> Outcome:
    """Send metadata of all objects again."""
    world.filter = None
    return Outcome()


# --- ways -------------------------------------------------------------------------------------------------------------


def get_reachable_positions(world: World, *, gridSize: float = 0.25, maxStepCount: int = 0) -> Outcome:
    """Places the robot can be at, on a lattice that contains where it is."""
    if gridSize <= 0.0:
        return Outcome(error=f"gridSize {gridSize}: expected metres above 0", code=INVALID)
    places = world.mesh().reachable(world.base.x, world.base.z, gridSize, RADIUS)
    return Outcome([{"x": float(x), "y": AGENT_Y, "z": float(z)} for x, z in places])


def get_shortest_path(
    world: World, *, objectId: str, position: Optional[Numbers] = None, navMeshId: Optional[int] = None,
    allowedError: float = 0.0,
) -> Outcome:  # fmt: skip
    """Corners of the shortest way from a point, or from the robot, to the free place nearest to an object."""
    i = _index(world, objectId)
    if i < 0:
        return _unknown(objectId)
    goal = world.boxes.positions[i]
    return _path(world, position, (float(goal[0]), float(goal[2])), navMeshId, objectId, within=NEAR_OBJECT)


def get_shortest_path_to_point(
    world: World, *, target: Optional[Numbers] = None, position: Optional[Numbers] = None,
    navMeshId: Optional[int] = None, allowedError: float = 0.0, x: float = 0.0, y: float = 0.0, z: float = 0.0,
) -> Outcome:  # fmt: skip
    """As `get_shortest_path`, to a point."""
    goal = {"x": x, "z": z} if target is None else target
    name = f"({goal['x']:.3f}, {goal['z']:.3f})"
    return _path(world, position, (float(goal["x"]), float(goal["z"])), navMeshId, name, within=SNAP)


def _path(
    world: World, start: Optional[Numbers], goal: Tuple[float, float], mesh: Optional[int], name: str, *, within: float
) -> Outcome:
    number = max(world.radii, key=lambda i: -world.radii[i]) if mesh is None else mesh
    if number not in world.radii:
        return Outcome(error=f"there is no navMesh {mesh}; there are {sorted(world.radii)}", code=INVALID)
    begin = (world.base.x, world.base.z) if start is None else (float(start["x"]), float(start["z"]))
    corners = world.mesh().path(begin, goal, world.radii[number], within=within)
    if corners is None:
        where = f"({begin[0]:.3f}, {begin[1]:.3f})"
        return Outcome(error=f"Path to {name} could not be found from {where} on navMesh {number}")
    return Outcome({"corners": [{"x": float(a), "y": 0.0, "z": float(b)} for a, b in corners]})


# --- objects ----------------------------------------------------------------------------------------------------------


def closest_point(world: World, *, objectId: str, point: Numbers) -> Outcome:
    """The point of an object's box that is nearest to a point, in a list of one."""
    i = _index(world, objectId)
    if i < 0:
        return _unknown(objectId)
    return Outcome([vector(world.boxes.closest(i, np.array([point["x"], point["y"], point["z"]], dtype=np.float64)))])


def proportion_visible(world: World, *, objectId: str, thirdPartyCameraIndex: Optional[int] = None) -> Outcome:
    """The share of points on an object's surface with nothing but the object between them and a camera."""
    i, camera = _index(world, objectId), _camera(world, thirdPartyCameraIndex)
    if i < 0:
        return _unknown(objectId)
    if camera < 0:
        return _no_camera(world, thirdPartyCameraIndex)
    return Outcome(float(unhidden(world, world.cameras()[camera].camera, i).mean()))


def approximate_mask(
    world: World, *, objectId: str, divisions: int = MASK, thirdPartyCameraIndex: Optional[int] = None
) -> Outcome:
    """Which cells of a coarse grid over the picture show an object: rows of 0 and 1, top row first."""
    i, camera = _index(world, objectId), _camera(world, thirdPartyCameraIndex)
    if i < 0:
        return _unknown(objectId)
    if camera < 0:
        return _no_camera(world, thirdPartyCameraIndex)
    if divisions < 1:
        return Outcome(error=f"divisions {divisions}: expected at least 1", code=INVALID)
    ids = world.frame(camera).ids
    rows, columns = np.nonzero(ids == i)
    mask = np.zeros((divisions, divisions), dtype=int)
    mask[rows * divisions // ids.shape[0], columns * divisions // ids.shape[1]] = 1
    return Outcome(mask.tolist())


def what_is_on(world: World, *, objectId: str) -> Outcome:
    """Ids of the objects that stand on an object or on a room's floor."""
    if objectId not in world.index and objectId not in {r.room_id for r in world.scene.rooms}:
        return _unknown(objectId)
    return Outcome([b.object_id for b, parent in zip(world.scene.bodies, world.parents) if parent == objectId])


def spawn_coordinates(world: World, *, objectId: str, anywhere: bool = True) -> Outcome:
    """Free points on top of a receptacle, in rows."""
    i = _index(world, objectId)
    if i < 0:
        return _unknown(objectId)
    if not world.scene.bodies[i].receptacle:
        return Outcome(error=f"{objectId} is not a receptacle")
    along = (np.arange(PLACES) + 0.5) / PLACES * 2 - 1
    x, z = (a.ravel() for a in np.meshgrid(along, along))
    top = world.boxes.world(i, np.stack([x, np.ones_like(x), z], axis=-1) * world.boxes.half[i])
    others = np.array([j for j in range(len(world.scene.bodies)) if j != i], dtype=int)
    free = (world.boxes.distance(top + np.array([0.0, 0.01, 0.0]), others) > 0.0).all(-1)
    return Outcome([vector(p) for p in top[free]])


# --- views ------------------------------------------------------------------------------------------------------------


def map_view(world: World) -> Outcome:
    """A camera that looks straight down on the whole house."""
    plan = np.concatenate([r.polygon for r in world.scene.rooms] or [np.zeros((1, 2))])
    low, high = plan.min(0), plan.max(0)
    middle, size = (low + high) / 2, high - low
    height = float(max(size[1], size[0] * world.height / world.width)) / 2
    answer: Dict[str, Any] = {
        "position": {"x": float(middle[0]), "y": world.scene.ceiling + 1.0, "z": float(middle[1])},
        "rotation": {"x": 90.0, "y": 0.0, "z": 0.0},
        "orthographicSize": height,
        "orthographic": True,
    }
    return Outcome(answer)


def in_picture(world: World, *, point: Numbers, thirdPartyCameraIndex: Optional[int] = None) -> Outcome:
    """Where a point falls in a picture: x and y from 0 to 1, from the lower left, and metres ahead."""
    camera = _camera(world, thirdPartyCameraIndex)
    if camera < 0:
        return _no_camera(world, thirdPartyCameraIndex)
    view: Camera = world.cameras()[camera].camera
    right, up, ahead = project(world, view, np.array([[point["x"], point["y"], point["z"]]], dtype=np.float64))[0]
    return Outcome({"x": float((right + 1) / 2), "y": float((up + 1) / 2), "z": float(ahead)})


def assets_in_database(world: World, *, assetIds: List[str], updateProceduralLRUCache: bool = False) -> Outcome:
    """Every asset counts as known: boxes stand for all of them."""
    return Outcome({name: True for name in assetIds})


def drop_assets(world: World, *, assetLimit: int = 0) -> Outcome:
    """There is no cache of assets."""
    return Outcome()


def visualize(world: World, *, waypoints: Any = None, positions: Any = None, pathWidth: float = 0.0, grid: bool = False,
              endText: str = "", pathGradient: Any = None) -> Outcome:  # fmt: skip
    """Paths are not drawn into pictures."""
    return Outcome()
