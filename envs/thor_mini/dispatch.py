"""From an action as it comes over the wire to the function that does it. Needs numpy alone; Python 3.8 syntax."""

from __future__ import annotations

import difflib
import inspect
import logging
from typing import Any, Callable, Dict, FrozenSet, Mapping, Tuple

from envs.thor_mini import actions, queries
from envs.thor_mini.world import Outcome, World
from envs.types import EnvError

log = logging.getLogger(__name__)

CHANGES: Dict[str, Callable[..., Outcome]] = {
    "Reset": actions.reset,
    "Initialize": actions.initialize,
    "CreateHouse": actions.create_house,
    "ChangeResolution": actions.change_resolution,
    "ChangeQuality": actions.change_quality,
    "Pass": actions.nothing,
    "NoOp": actions.nothing,
    "Done": actions.nothing,
    "MoveAhead": actions.move_ahead,
    "MoveAheadQuick": actions.move_ahead,
    "MoveBack": actions.move_back,
    "MoveBackQuick": actions.move_back,
    "RotateRight": actions.rotate_right,
    "RotateRightQuick": actions.rotate_right,
    "RotateLeft": actions.rotate_left,
    "RotateLeftQuick": actions.rotate_left,
    "MoveAgent": actions.move_agent,
    "RotateAgent": actions.rotate_agent,
    "Teleport": actions.teleport,
    "TeleportFull": actions.teleport,
    "MoveArm": actions.move_arm,
    "RotateWristRelative": actions.rotate_wrist,
    "SetGripperOpenness": actions.set_gripper_openness,
    "PickupObject": actions.pickup,
    "ReleaseObject": actions.release,
    "AdvancePhysicsStep": actions.advance,
    "PausePhysicsAutoSim": actions.nothing,
    "UnpausePhysicsAutoSim": actions.nothing,
    "ToggleMagnetVisibility": actions.toggle_magnet,
    "RotateCameraMount": actions.rotate_camera_mount,
    "ChangeFOV": actions.change_fov,
    "DisableSecondaryCamera": actions.disable_second_camera,
    "AddThirdPartyCamera": actions.add_camera,
    "UpdateThirdPartyCamera": actions.update_camera,
    "RandomizeMaterials": actions.randomize_materials,
    "ResetMaterials": actions.reset_materials,
    "SetObjectFilter": queries.set_object_filter,  # these two change what is sent, so they are not answered by patches
    "ResetObjectFilter": queries.reset_object_filter,
}
QUERIES: Dict[str, Callable[..., Outcome]] = {
    "GetScenesInBuild": actions.get_scenes_in_build,
    "GetArmJoints": actions.proprioception,
    "GetVisibleObjects": queries.get_visible_objects,
    "GetObjectMetadata": queries.get_object_metadata,
    "GetMinimalObjectMetadata": queries.get_minimal_object_metadata,
    "GetReachablePositions": queries.get_reachable_positions,
    "GetShortestPath": queries.get_shortest_path,
    "GetShortestPathToPoint": queries.get_shortest_path_to_point,
    "PointOnObjectsCollidersClosestToPoint": queries.closest_point,
    "ProportionOfObjectVisible": queries.proportion_visible,
    "GetApproxObjectMask": queries.approximate_mask,
    "CheckWhatObjectsOn": queries.what_is_on,
    "GetSpawnCoordinatesAboveReceptacle": queries.spawn_coordinates,
    "GetMapViewCameraProperties": queries.map_view,
    "WorldToViewportPoint": queries.in_picture,
    "AssetsInDatabase": queries.assets_in_database,
    "DeleteLRUFromProceduralCache": queries.drop_assets,
    "VisualizeWaypoints": queries.visualize,
    "VisualizePath": queries.visualize,
    "HideVisualizedPath": actions.nothing,
}
# Arguments that any action may carry: for the renderer and the physics of a real build, or for the agent manager.
COMMON: FrozenSet[str] = frozenset(
    {
        "action", "sequenceId", "agentId", "renderImage", "renderImageSynthesis", "speed", "forceAction",
        "manualInteract", "physicsSimulationParams", "fixedDeltaTime", "simplifyPhysics", "standing", "snapToGrid",
        "manualInteraction", "coordinateSpace", "restrictMovement", "disableRendering", "visibilityDistance",
        "returnToStart", "maxAgentsDistance", "autoSimulation",
    }
)  # fmt: skip


def _parameters(do: Callable[..., Outcome]) -> Tuple[FrozenSet[str], FrozenSet[str]]:
    """Names of all arguments, and of those that must be given."""
    given = list(inspect.signature(do).parameters.values())[1:]
    return frozenset(p.name for p in given), frozenset(p.name for p in given if p.default is inspect.Parameter.empty)


PARAMETERS = {name: _parameters(do) for name, do in {**CHANGES, **QUERIES}.items()}


def perform(world: World, message: Mapping[str, Any]) -> Tuple[Outcome, bool]:
    """Do an action; returns what came of it and whether it only asked something.

    An action or argument that no build knows is answered with the error code that the Controller raises on.
    """
    name = str(message.get("action"))
    do = CHANGES.get(name) or QUERIES.get(name)
    if do is None:
        nearest = difflib.get_close_matches(name, PARAMETERS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return Outcome(error=f"action '{name}' is not simulated here{hint}", code="InvalidAction"), False
    known, needed = PARAMETERS[name]
    missing = sorted(needed - set(message))
    if missing:
        return Outcome(error=f"{name}: missing {', '.join(missing)}", code="MissingArguments"), False
    surplus = sorted(set(message) - known - COMMON)
    if surplus:
        text = f"{name}: unexpected {', '.join(surplus)}; it takes {', '.join(sorted(known)) or 'no arguments'}"
        return Outcome(error=text, code="InvalidArgument"), False
    try:
        outcome = do(world, **{k: message[k] for k in known if k in message})
    except (EnvError, KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        log.exception("%s failed", name)
        return Outcome(error=f"{name}: {type(e).__name__}: {e}", code="InvalidArgument"), False
    finally:
        if name in CHANGES:
            world.changed()
    return outcome, name in QUERIES
