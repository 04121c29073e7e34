"""The actions that change the world, by AI2-THOR's names and argument names. Needs numpy alone; Python 3.8 syntax."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from envs.thor_mini.arm import clip, joints
from envs.thor_mini.world import SLACK, Mount, Outcome, Settings, View, World, empty_scene

SCENES = ("FloorPlan1_physics", "Procedural")  # the first is an empty room
STRIDE = 0.25  # metres, when no magnitude is given
QUARTER = 90.0  # degrees, likewise
STEEPEST = 90.0  # degrees, of a camera mount
INVALID = "InvalidArgument"
Numbers = Mapping[str, float]


# --- scenes and settings ----------------------------------------------------------------------------------------------


def get_scenes_in_build(world: World) -> Outcome:
    """The scenes that `Reset` accepts."""
    return Outcome(list(SCENES))


def reset(world: World, *, sceneName: str) -> Outcome:
    """Empty the house."""
    if sceneName not in SCENES:
        return Outcome(error=f"scene {sceneName} is not in this build; expected one of {list(SCENES)}", code=INVALID)
    world.settings = Settings()
    world.enter(empty_scene(sceneName))
    return Outcome()


def initialize(
    world: World, *, agentMode: str = "default", gridSize: float = 0.25, visibilityDistance: float = 1.5,
    visibilityScheme: str = "Collider", fieldOfView: float = 59.0, renderInstanceSegmentation: bool = False,
    renderDepthImage: bool = False, renderSemanticSegmentation: bool = False, renderNormalsImage: bool = False,
    renderFlowImage: bool = False, cameraNearPlane: float = 0.1, cameraFarPlane: float = 20.0,
    fastActionEmit: bool = False, autoSimulation: bool = True, autoSyncTransforms: bool = True,
    useMassThreshold: bool = False, massThreshold: float = 10.0, agentCount: int = 1, action_hook_runner: Any = None,
    renderObjectImage: bool = False, renderClassImage: bool = False, server_class: Any = None,
    renderDistortionImage: bool = False, commit_id: str = "",
) -> Outcome:  # fmt: skip
    """Settings of an episode; answers with the planes between which depth is scaled."""
    if agentMode.lower() not in ("stretch", "stretchab"):
        wanted = "only the Stretch robot is simulated here; pass agentMode='stretch'"
        return Outcome(error=f"agentMode '{agentMode}': {wanted}", code=INVALID)
    if agentCount != 1:
        return Outcome(error=f"agentCount {agentCount}: only one agent is simulated here", code=INVALID)
    if renderNormalsImage or renderFlowImage:
        return Outcome(error="normals and flow are not drawn here; leave renderNormalsImage and renderFlowImage out",
                       code=INVALID)  # fmt: skip
    if not 0.0 < cameraNearPlane < cameraFarPlane:
        return Outcome(
            error=f"camera planes {cameraNearPlane}, {cameraFarPlane}: expected 0 < near < far", code=INVALID
        )
    world.settings = Settings(
        visibility=visibilityDistance, near=cameraNearPlane, far=cameraFarPlane,
        ids=renderInstanceSegmentation, depth=renderDepthImage, classes=renderSemanticSegmentation,
        patches=fastActionEmit, heaviest=massThreshold if useMassThreshold else None, started=True,
    )  # fmt: skip
    for mount in world.mounts.values():
        mount.fov = fieldOfView
    world.changed()
    return Outcome({"cameraNearPlane": cameraNearPlane, "cameraFarPlane": cameraFarPlane})


def create_house(world: World, *, house: Dict[str, Any]) -> Outcome:
    """Build a house from its file and stand at its start. Answers with nothing, as a real build does."""
    scene = world.parts.load(house)
    settings = world.settings
    fovs = {name: mount.fov for name, mount in world.mounts.items()}
    world.enter(replace(scene, name="Procedural"))
    world.settings = settings
    world.mounts = {name: Mount(mount.pitch, fovs[name]) for name, mount in world.mounts.items()}
    for mesh in house.get("metadata", {}).get("navMeshes") or []:
        world.radii[int(mesh["id"])] = float(mesh["agentRadius"])
    return Outcome()


def change_resolution(world: World, *, x: float, y: float) -> Outcome:
    """Pictures of x by y pixels from now on."""
    if x < 1 or y < 1:
        return Outcome(error=f"resolution {x} x {y}: expected at least 1 x 1", code=INVALID)
    world.resize(int(x), int(y))
    return Outcome()


def nothing(world: World) -> Outcome:
    """Succeed and change nothing."""
    return Outcome()


def change_quality(world: World, *, quality: str) -> Outcome:
    """There is one quality."""
    return Outcome()


# --- the base ---------------------------------------------------------------------------------------------------------


def _driven(world: World, ahead: float, right: float, *, keep: bool, with_arm: bool) -> Outcome:
    name = world.move_base(ahead, right, keep=keep, with_arm=with_arm)
    return Outcome(error=f"agent collided with {name} while moving" if name else "")


def _turned(world: World, degrees: float, *, keep: bool, with_arm: bool) -> Outcome:
    name = world.turn_base(degrees, keep=keep, with_arm=with_arm)
    return Outcome(error=f"agent collided with {name} while rotating" if name else "")


def move_ahead(world: World, *, moveMagnitude: float = STRIDE) -> Outcome:
    """Drive forward all the way or not at all; the arm is not looked at."""
    return _driven(world, moveMagnitude, 0.0, keep=False, with_arm=False)


def move_back(world: World, *, moveMagnitude: float = STRIDE) -> Outcome:
    """Drive backward, as `move_ahead`."""
    return _driven(world, -moveMagnitude, 0.0, keep=False, with_arm=False)


def rotate_right(world: World, *, degrees: float = QUARTER) -> Outcome:
    """Turn clockwise; the arm is not looked at."""
    return _turned(world, degrees, keep=False, with_arm=False)


def rotate_left(world: World, *, degrees: float = QUARTER) -> Outcome:
    """Turn anticlockwise; the arm is not looked at."""
    return _turned(world, -degrees, keep=False, with_arm=False)


def move_agent(world: World, *, ahead: float = 0.0, right: float = 0.0, returnToStart: bool = True) -> Outcome:
    """Drive with the arm: it can hit things too."""
    return _driven(world, ahead, right, keep=not returnToStart, with_arm=True)


def rotate_agent(world: World, *, degrees: float, returnToStart: bool = True) -> Outcome:
    """Turn with the arm: it can hit things."""
    return _turned(world, degrees, keep=not returnToStart, with_arm=True)


def teleport(
    world: World, *, position: Optional[Numbers] = None, rotation: Optional[Numbers] = None,
    horizon: Optional[float] = None,
) -> Outcome:  # fmt: skip
    """Stand elsewhere, unless something is there."""
    base = world.base
    if position is not None:
        base = replace(base, x=float(position["x"]), z=float(position["z"]))
    if rotation is not None:
        base = replace(base, yaw=float(rotation["y"]) % 360.0)
    clearance, names = world.base_clearance(np.array([[base.x, base.z]]))
    if clearance[0] < -SLACK:
        return Outcome(error=f"teleport: agent collided with {names[0]} at ({base.x:.3f}, {base.z:.3f})")
    if world.room_at(base.x, base.z) is None:
        return Outcome(error=f"teleport: ({base.x:.3f}, {base.z:.3f}) is outside the house")
    world.teleport(base)
    if horizon is not None:
        world.mounts["navigation"].pitch = float(horizon)
    return Outcome()


# --- arm and hand -----------------------------------------------------------------------------------------------------


def move_arm(world: World, *, position: Numbers, returnToStart: bool = True) -> Outcome:
    """Lift to `position.y` and extend to `position.z`, within the limits; `position.x` has no joint."""
    goal = clip(replace(world.arm, lift=float(position["y"]), extension=float(position["z"])))
    name = world.move_arm(goal, keep=not returnToStart)
    return Outcome(error=f"arm collided with {name}" if name else "")


def rotate_wrist(world: World, *, yaw: float = 0.0, returnToStart: bool = True) -> Outcome:
    """Turn the wrist by so many degrees, as far as its arc goes."""
    name = world.move_arm(clip(replace(world.arm, wrist=world.arm.wrist + yaw)), keep=not returnToStart)
    return Outcome(error=f"wrist collided with {name}" if name else "")


def set_gripper_openness(world: World, *, openness: float = 30.0) -> Outcome:
    """Remembered; the gripper takes and holds in any position."""
    world.arm = replace(world.arm, openness=float(openness))
    return Outcome()


def pickup(world: World, *, objectIdCandidates: Optional[List[str]] = None) -> Outcome:
    """Take the nearest thing within the gripper's sphere."""
    if world.held is not None:
        return Outcome(error=f"the hand already holds {world.scene.bodies[world.held].object_id}")
    near = [
        i for i in world.within_hand()
        if objectIdCandidates is None or world.scene.bodies[i].object_id in objectIdCandidates
    ]  # fmt: skip
    if not near:
        return Outcome(error="nothing that can be picked up is within the hand sphere")
    body = world.scene.bodies[near[0]]
    if world.settings.heaviest is not None and body.mass > world.settings.heaviest:
        return Outcome(error=f"{body.object_id} is too heavy: {body.mass} kg, limit {world.settings.heaviest} kg")
    world.take(near[0])
    return Outcome([body.object_id])


def release(world: World) -> Outcome:
    """Let go; what was held falls when time passes."""
    world.let_go()
    return Outcome()


def advance(world: World, *, simSeconds: Optional[float] = None, timeStep: float = 0.02) -> Outcome:
    """Let time pass."""
    world.pass_time(timeStep if simSeconds is None else simSeconds)
    return Outcome()


def toggle_magnet(world: World, *, visible: Optional[bool] = None) -> Outcome:
    """The gripper's sphere is never drawn."""
    return Outcome()


def proprioception(world: World) -> Outcome:
    """The joints, as in the metadata."""
    return Outcome(joints(world.base, world.arm))


# --- cameras ----------------------------------------------------------------------------------------------------------


def rotate_camera_mount(world: World, *, degrees: float, secondary: bool = False) -> Outcome:
    """Pitch a camera to so many degrees below the horizon."""
    if abs(degrees) > STEEPEST:
        return Outcome(error=f"camera mount at {degrees} degrees: expected {-STEEPEST} to {STEEPEST}")
    world.mounts["manipulation" if secondary else "navigation"].pitch = float(degrees)
    return Outcome()


def change_fov(world: World, *, fieldOfView: float, camera: str = "") -> Outcome:
    """Change the vertical field of view of one camera, or of both if none is named."""
    names = {"FirstPersonCharacter": ["navigation"], "SecondaryCamera": ["manipulation"], "": list(world.mounts)}
    if camera not in names:
        return Outcome(error=f"there is no camera '{camera}'; expected one of {list(names)}", code=INVALID)
    if not 0.0 < fieldOfView < 180.0:
        return Outcome(error=f"field of view {fieldOfView}: expected degrees between 0 and 180", code=INVALID)
    for name in names[camera]:
        world.mounts[name].fov = float(fieldOfView)
    return Outcome()


def disable_second_camera(world: World) -> Outcome:
    """No picture from the manipulation camera any more."""
    world.second_camera = False
    return Outcome()


def add_camera(
    world: World, *, position: Numbers, rotation: Numbers, fieldOfView: float = 90.0, orthographic: bool = False,
    orthographicSize: float = 5.0, skyboxColor: str = "", nearClippingPlane: float = 0.0, farClippingPlane: float = 0.0,
) -> Outcome:  # fmt: skip
    """Put up one more camera."""
    world.views.append(_view(position, rotation, fieldOfView, orthographic, orthographicSize))
    return Outcome()


def update_camera(
    world: World, *, thirdPartyCameraId: int = 0, position: Optional[Numbers] = None,
    rotation: Optional[Numbers] = None, fieldOfView: Optional[float] = None, orthographic: Optional[bool] = None,
    orthographicSize: Optional[float] = None, skyboxColor: str = "",
) -> Outcome:  # fmt: skip
    """Move a camera put up before; the manipulation camera has its own actions."""
    first = int(world.second_camera)
    i = thirdPartyCameraId - first
    if not 0 <= i < len(world.views):
        have = list(range(first, first + len(world.views)))
        return Outcome(error=f"there is no added camera {thirdPartyCameraId}; there are {have}", code=INVALID)
    old = world.views[i]
    now = old.camera
    flat = (old.across is not None) if orthographic is None else orthographic
    world.views[i] = _view(
        position or {"x": now.position[0], "y": now.position[1], "z": now.position[2]},
        rotation or {"x": now.pitch, "y": now.yaw},
        now.fov if fieldOfView is None else fieldOfView,
        flat,
        (old.across or 10.0) / 2 if orthographicSize is None else orthographicSize,
    )
    return Outcome()


def _view(position: Numbers, rotation: Numbers, fov: float, orthographic: bool, size: float) -> View:
    from envs.thor_mini.scene import Camera

    place = np.array([float(position[axis]) for axis in "xyz"])
    camera = Camera(place, float(rotation.get("y", 0.0)), float(rotation.get("x", 0.0)), float(fov))
    return View(camera, 2.0 * float(size) if orthographic else None)


# --- appearance -------------------------------------------------------------------------------------------------------


def randomize_materials(
    world: World, *, useTrainMaterials: Optional[bool] = None, useValMaterials: Optional[bool] = None,
    useTestMaterials: Optional[bool] = None, inRoomTypes: Optional[List[str]] = None,
    useExternalMaterials: Optional[bool] = None,
) -> Outcome:  # fmt: skip
    """Deal the house's own materials and colours anew: among walls, among floors, and among objects of one type."""
    world.shuffles += 1
    rng = np.random.default_rng([world.scene.seed, world.shuffles])
    scene = world.original
    rooms = [replace(r, material=s.material, colour=s.colour) for r, s in zip(scene.rooms, _shuffled(scene.rooms, rng))]
    paint = dict(zip((r.room_id for r in scene.rooms), _shuffled(scene.rooms, rng)))
    coats = {wall.room_id: wall for wall in scene.walls}
    walls = [
        replace(w, material=coats[other].material, colour=coats[other].colour)
        for w in scene.walls
        for other in [paint[w.room_id].room_id if w.room_id in paint else w.room_id]
        if other in coats
    ]
    bodies = list(scene.bodies)
    for kind in sorted({b.object_type for b in bodies}):
        same = [i for i, b in enumerate(bodies) if b.object_type == kind]
        for i, other in zip(same, _shuffled([bodies[i] for i in same], rng)):
            bodies[i] = replace(bodies[i], colours=other.colours, material=other.material)
    seed = int(rng.integers(2**31))
    world.redecorate(replace(scene, rooms=rooms, walls=walls, bodies=bodies, seed=seed))
    return Outcome({"chosenMaterialTypes": [], "numTotalMaterials": len(rooms) + len(bodies)})


def _shuffled(items: List[Any], rng: np.random.Generator) -> List[Any]:
    return [items[i] for i in rng.permutation(len(items))]


def reset_materials(world: World) -> Outcome:
    """The materials and colours the house came with."""
    world.redecorate(world.original)
    return Outcome()
