"""What AI2-THOR tells about the agent and about objects, with its names. Needs numpy alone; Python 3.8 syntax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List

import numpy as np

from envs.thor_mini import arm as stretch
from envs.thor_mini.arm import vector
from envs.thor_mini.visible import planar_distance, visible
from envs.thor_mini.world import AGENT_Y

if TYPE_CHECKING:
    from envs.thor_mini.world import Outcome, World


def agent_metadata(world: World, action: str, outcome: Outcome) -> Dict[str, Any]:
    """Everything about the one agent after an action."""
    objects = range(len(world.scene.bodies)) if world.filter is None else _indices(world, world.filter)
    return {
        **outcome_metadata(action, outcome),
        "screenWidth": world.width,
        "screenHeight": world.height,
        "sceneName": world.scene.name,
        "fov": world.mounts["navigation"].fov,
        "cameraPosition": vector(world.cameras()[0].camera.position),
        "depthFormat": "Normalized",
        "agent": _agent(world),
        "arm": _arm(world),
        "heldObjectPose": None,
        "inventoryObjects": _inventory(world),
        "objects": objects_metadata(world, list(objects)),
        "thirdPartyCameras": third_party(world),
        "colors": world.colours if world.settings.ids or world.settings.classes else None,
        "sceneBounds": _bounds(world),
        "isSceneAtRest": not world.falling,
        "collided": "collided" in outcome.error,
        "collidedObjects": [],
        "currentTime": 0.0,
        "isStanding": True,
        "agentId": 0,
    }


def outcome_metadata(action: str, outcome: Outcome) -> Dict[str, Any]:
    """What came of an action: the whole of a patch, but for the agent's id."""
    return {
        "lastAction": action,
        "lastActionSuccess": not outcome.error,
        "errorMessage": outcome.error,
        "errorCode": outcome.code if outcome.error else "",
        "actionReturn": outcome.value,
    }


def _agent(world: World) -> Dict[str, Any]:
    base = world.base
    return {
        "name": "agent",
        "position": {"x": float(base.x), "y": AGENT_Y, "z": float(base.z)},
        "rotation": {"x": 0.0, "y": float(base.yaw), "z": 0.0},
        "cameraHorizon": float(world.mounts["navigation"].pitch),
        "isStanding": True,
        "inHighFrictionArea": False,
    }


def _arm(world: World) -> Dict[str, Any]:
    names = [world.scene.bodies[i].object_id for i in world.within_hand() if i != world.held]
    held = [] if world.held is None else [world.scene.bodies[world.held].object_id]
    return {
        "joints": stretch.joints(world.base, world.arm),
        "heldObjects": held,
        "pickupableObjects": held + names,
        "touchedNotHeldObjects": names,
        "handSphereCenter": vector(stretch.hand_centre(world.base, world.arm)),
        "handSphereRadius": stretch.HAND_RADIUS,
        "gripperOpennessState": float(world.arm.openness),
    }


def _inventory(world: World) -> List[Dict[str, str]]:
    if world.held is None:
        return []
    body = world.scene.bodies[world.held]
    return [{"objectId": body.object_id, "objectType": body.object_type}]


def third_party(world: World) -> List[Dict[str, Any]]:
    """One entry for each camera but the first."""
    listed = []
    for i, view in enumerate(world.cameras()[1:]):
        camera = view.camera
        listed.append(
            {
                "thirdPartyCameraId": i,
                "position": vector(camera.position),
                "rotation": {"x": float(camera.pitch), "y": float(camera.yaw), "z": 0.0},
                "fieldOfView": float(camera.fov),
                "orthographic": view.across is not None,
            }
        )
    return listed


def _bounds(world: World) -> Dict[str, Any]:
    if world.bounds:
        return world.bounds
    plan = np.concatenate([room.polygon for room in world.scene.rooms] or [np.zeros((1, 2))])
    low = np.array([plan[:, 0].min(), 0.0, plan[:, 1].min()])
    high = np.array([plan[:, 0].max(), world.scene.ceiling, plan[:, 1].max()])
    world.bounds = box_metadata(low, high)
    return world.bounds


def box_metadata(low: np.ndarray, high: np.ndarray) -> Dict[str, Any]:
    """A box along the axes."""
    corners = [[float(x), float(y), float(z)] for x in (high[0], low[0]) for y in (high[1], low[1])
               for z in (high[2], low[2])]  # fmt: skip
    return {"center": vector((low + high) / 2), "size": vector(high - low), "cornerPoints": corners}


def _indices(world: World, ids: List[str]) -> List[int]:
    return [world.index[i] for i in ids if i in world.index]


def objects_metadata(world: World, indices: List[int]) -> List[Dict[str, Any]]:
    """Everything about the chosen bodies."""
    if not indices:
        return []
    seen = set(visible(world, 0, world.settings.visibility))
    distances = planar_distance(world, np.array(indices))
    contents: Dict[str, List[str]] = {}
    for body, parent in zip(world.scene.bodies, world.parents):
        if parent:
            contents.setdefault(parent, []).append(body.object_id)
    return [
        {**_object(world, i, contents), "visible": i in seen, "distance": float(far)}
        for i, far in zip(indices, distances)
    ]


def _object(world: World, index: int, contents: Dict[str, List[str]]) -> Dict[str, Any]:
    body, boxes = world.scene.bodies[index], world.boxes
    corners = boxes.corners(index)
    parent = world.parents[index]
    return {
        "name": body.object_id,
        "objectId": body.object_id,
        "objectType": body.object_type,
        "assetId": body.asset_id,
        "position": vector(boxes.positions[index]),
        "rotation": {"x": 0.0, "y": float(boxes.yaws[index] % 360.0), "z": 0.0},
        "axisAlignedBoundingBox": box_metadata(corners.min(0), corners.max(0)),
        "objectOrientedBoundingBox": {"cornerPoints": corners.tolist()},
        "parentReceptacles": [parent] if parent else None,
        "receptacle": body.receptacle,
        "receptacleObjectIds": contents.get(body.object_id, []) if body.receptacle else None,
        "pickupable": body.pickupable,
        "isPickedUp": world.held == index,
        "moveable": not body.pickupable and not body.fixed,
        "mass": float(body.mass),
        "isMoving": index in world.falling,
        "openable": False,
        "isOpen": False,
        "openness": 0.0,
        "toggleable": False,
        "isToggled": False,
        "breakable": False,
        "isBroken": False,
        "isInteractable": False,
    }


def minimal_metadata(world: World, indices: List[int]) -> List[Dict[str, Any]]:
    """What identifies and locates the chosen bodies, without looking for them in a picture."""
    kept = (
        "name", "objectId", "objectType", "assetId", "position", "rotation", "axisAlignedBoundingBox",
        "parentReceptacles",
    )  # fmt: skip
    return [{k: v for k, v in _object(world, i, {}).items() if k in kept} for i in indices]
