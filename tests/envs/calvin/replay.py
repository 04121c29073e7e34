"""Run in the simulator's interpreter: play recorded episodes and pictures again, and print how far they differ.

`python replay.py motion|pictures|fast|resets FILE...` prints one JSON object, by file name; `fast` draws the pictures
with our own renderer.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from envs.calvin.cameras import Cameras
from envs.calvin.data import find_data
from envs.calvin.scenes import SIZES
from envs.calvin.world import World

ANGLES = [3, 4, 5, *range(7, 14)]  # entries of robot_obs that are compared modulo a turn


def apply(world, op, arg):
    """One recorded operation."""
    if op.startswith("reset"):
        robot, scene = arg[:15], arg[15:39]
        world.reset(None if np.isnan(robot[0]) else robot, None if np.isnan(scene[0]) else scene)
        return
    action = arg[: int(np.argmax(np.isnan(arg)))]
    if op in ("rel", "dict_cartesian_rel"):
        world.robot.relative(action)
    elif "joint" in op:
        world.robot.joints(action[:7], action[7], relative="rel" in op)
    else:
        world.robot.absolute(action[:3], action[3:-1], action[-1])
    world.step()


def readings(world):
    """What the recording holds of one row."""
    b, client, robot = world.bullet, world.client, world.robot
    joints = b.getJointStates(robot.uid, (*range(7), 9, 11), physicsClientId=client)
    blocks = [
        (*world.block_pose(uid), *b.getBaseVelocity(uid, physicsClientId=client)) for uid in world.blocks.values()
    ]
    scene, latches = world.scene_obs(), (world._button_latch, world._switch_latch)
    return {
        "robot_obs": robot.obs(),
        "scene_obs": scene,
        "tcp_quat": robot.tcp()[1],
        "joint_pos": [j[0] for j in joints],
        "joint_vel": [j[1] for j in joints],
        "target_pos": robot.target_position,
        "target_orn": robot.target_euler,
        "ik_joint_targets": robot.joint_targets or [np.nan] * 7,
        **{key: [block[i] for block in blocks] for i, key in enumerate(BLOCK_KEYS)},
        "fixture_joint": scene[:4],
        "fixture_logical": [*latches, scene[4], scene[5]],
        "button_was_pressed": world._button_was_pressed,
    }


BLOCK_KEYS = ("block_pos", "block_quat", "block_lin_vel", "block_ang_vel")


def touching(world):
    """(body, link, other body, other link, points) of robot, blocks and table, sorted."""
    counts = {}
    for uid in (world.robot.uid, *world.blocks.values(), world.table):
        for point in world.bullet.getContactPoints(bodyA=uid, physicsClientId=world.client):
            key = (point[1], point[3], point[2], point[4])
            counts[key] = counts.get(key, 0) + 1
    return sorted((*key, n) for key, n in counts.items())


def motion(path):
    with np.load(path, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    world = World(str(data["scene"]), find_data(), seed=int(data["seed"]))
    names, rows = [str(name) for name in data["op_names"]], len(data["op"])
    differs, first_contact, deviation = {}, None, {"robot_obs": [], "scene_obs": []}
    for row in range(rows):
        apply(world, names[data["op"][row]], data["arg"][row])
        for key, value in readings(world).items():
            value, wanted = np.asarray(value, dtype=np.float64), np.asarray(data[key][row], dtype=np.float64)
            known = ~np.isnan(wanted)
            if not np.array_equal(value[known], wanted[known]):
                differs.setdefault(key, row)
            if key in deviation:
                gap = np.abs(value - wanted)
                if key == "robot_obs":
                    gap[ANGLES] = np.minimum(gap[ANGLES] % (2 * np.pi), -gap[ANGLES] % (2 * np.pi))
                deviation[key].append(float(gap.max()))
        recorded = sorted(tuple(int(v) for v in c[1:]) for c in data["contacts"][data["contacts"][:, 0] == row])
        if first_contact is None and touching(world) != recorded:
            first_contact = row
    world.close()
    if first_contact is not None:
        differs["contacts"] = first_contact
    return {"rows": rows, "differs": differs, "deviation": deviation}


def pictures(path, renderer="exact"):
    found = {}
    with np.load(path, allow_pickle=False) as data:
        world = World(str(data["scene"]), find_data(), seed=int(data["seed"]))
        cameras = Cameras(world, SIZES, renderer=renderer)
        for moment in ("reset", "state", "near"):
            if moment == "near":
                for _ in range(14):
                    world.robot.relative(np.array([0.4, 0.6, -0.4, 0.0, 0.0, 0.3, -1.0]))
                    world.step()
            else:
                state = [data[f"state_{k}_obs_in"] for k in ("robot", "scene")] if moment == "state" else ()
                world.reset(*state)
            for camera in ("static", "gripper"):
                image, depth = cameras.picture(f"rgb_{camera}")
                wanted = {k: data[f"{moment}_{k}_{camera}"] for k in ("rgb", "depth", "view", "proj")}
                error = np.mean((image.astype(np.float64) - wanted["rgb"]) ** 2)
                found[f"{moment} {camera}"] = {
                    "pixels": float((image != wanted["rgb"]).any(axis=-1).mean()),
                    "psnr": float(10 * np.log10(255.0**2 / max(error, 1e-9))),
                    "depth": float(np.abs(depth / wanted["depth"] - 1).max()),
                    "view": float(np.abs(np.array(cameras.view(f"rgb_{camera}")) - wanted["view"]).max()),
                    "projection": float(np.abs(np.array(cameras.projection(f"rgb_{camera}")) - wanted["proj"]).max()),
                }
        world.close()
    return found


def resets(path):
    """Default resets, to the bit: the number compared and those that differ."""
    table, wrong, count = json.loads(Path(path).read_text()), [], 0
    for recorded in table["default_resets"]:
        world = World(recorded["scene"], find_data(), seed=recorded["seed"])
        for i, wanted in enumerate(recorded["resets"]):
            world.reset()
            seen = {"robot_obs": world.robot.obs().tolist(), "scene_obs": world.scene_obs().tolist()}
            count += 1
            wrong += [(recorded["scene"], recorded["seed"], i) for k, v in seen.items() if v != wanted[k]]
        world.close()
    world = World("D", find_data())
    for i, state in enumerate(table["states"]):
        world.load(0)
        world.reset(state["robot_obs"], state["scene_obs"])
        for key, steps in (("env_after_reset", 0), ("env_after_30_zero_actions_gripper_open", 30)):
            for _ in range(steps):
                world.robot.relative(np.array([0.0] * 6 + [1.0]))
                world.step()
            seen = {"robot_obs": world.robot.obs().tolist(), "scene_obs": world.scene_obs().tolist()}
            count += 1
            wrong += [("D", key, i) for k, v in seen.items() if v != state[key][k]]
    world.close()
    return {"compared": count, "wrong": wrong}


if __name__ == "__main__":
    fast = functools.partial(pictures, renderer="fast")
    play = {"motion": motion, "pictures": pictures, "fast": fast, "resets": resets}[sys.argv[1]]
    print(json.dumps({Path(path).name: play(path) for path in sys.argv[2:]}))
