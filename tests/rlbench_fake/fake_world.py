"""What stands in for CoppeliaSim in tests: a kinematic Panda over a table, in MuJoCo, at 20 steps a second.

No dynamics: joints follow their targets at limited speed, a held thing follows the hand. Poses, cameras and numbers
have RLBench's conventions. `RLBENCH_FAKE_FAULT=crash|hang:<step>:<file>` breaks it once, in the step of that number.
"""

import importlib.util
import os
import signal
import time
import xml.etree.ElementTree as ET
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "osmesa")

import mujoco
import numpy as np

HOME = np.array([0.0, 0.175, 0.0, -0.873, 0.0, 1.2217, 0.785])
SPEED = 2.0 * 0.05  # rad in a step
DT = 0.05
BASE = (-0.3, 0.0, 0.75)
TABLE = 0.75  # m
CAMERAS = {  # RLBench's sensor -> where it stands, where it looks, field of view in degrees
    "cam_front": ((1.35, 0.0, 1.58), (0.1, 0.0, 0.9), 40.0),
    "cam_over_shoulder_left": ((-0.6, 0.6, 1.6), (0.2, 0.0, 0.8), 60.0),
    "cam_over_shoulder_right": ((-0.6, -0.6, 1.6), (0.2, 0.0, 0.8), 60.0),
    "cam_overhead": ((0.2, 0.0, 2.2), (0.2, 0.01, 0.75), 40.0),
}
# PyRep's cameras look along z, with y up and so x to the left; MuJoCo's look along -z.
TO_PYREP = np.array([-1.0, 1.0, -1.0])


def _model() -> mujoco.MjModel:
    """Compiled once for all processes, if RLBENCH_FAKE_MODEL names a file to keep it in."""
    kept = os.environ.get("RLBENCH_FAKE_MODEL", "")
    if kept and Path(kept).exists():
        return mujoco.MjModel.from_binary_path(kept)
    model = mujoco.MjModel.from_xml_string(_scene())
    if kept:
        mujoco.mj_saveModel(model, kept + str(os.getpid()), None)
        os.replace(kept + str(os.getpid()), kept)
    return model


def _scene() -> str:
    package = importlib.util.find_spec("robosuite")
    assert package is not None
    folder = Path(package.submodule_search_locations[0]) / "models" / "assets" / "robots" / "panda"
    tree = ET.parse(folder / "robot.xml")
    root = tree.getroot()
    for tag in ("actuator", "sensor", "default"):
        for found in root.findall(tag):
            root.remove(found)
    for body in root.iter("body"):
        for geom in list(body.findall("geom")):
            if geom.get("group") != "0":
                body.remove(geom)
            else:
                geom.set("group", "1")
                geom.set("rgba", "0.85 0.85 0.8 1")
        for camera in body.findall("camera"):
            body.remove(camera)
    used = {geom.get("mesh") for geom in root.iter("geom")}
    asset = root.find("asset")
    for found in list(asset):
        if found.tag != "mesh" or found.get("name") not in used:
            asset.remove(found)
        else:
            found.set("file", str(folder / found.get("file")))
    ET.SubElement(root, "compiler", angle="radian")
    world = root.find("worldbody")
    base = world.find("body")
    base.set("pos", " ".join(map(str, BASE)))
    hand = next(b for b in root.iter("body") if b.get("name") == "right_hand")
    for side in (-1, 1):
        finger = ET.SubElement(hand, "body", name=f"finger{side}", pos="0 0 0.07")
        ET.SubElement(finger, "joint", name=f"finger{side}", type="slide", axis=f"0 {side} 0", range="0 0.04")
        ET.SubElement(finger, "geom", type="box", size="0.01 0.006 0.03", pos=f"0 {side * 0.006} 0", mass="0.01",
                      rgba="0.2 0.2 0.2 1", group="1")  # fmt: skip
    ET.SubElement(hand, "site", name="tip", pos="0 0 0.1")
    ET.SubElement(hand, "camera", name="cam_wrist", pos="0.05 0 0.02", quat="0 1 0 0", fovy="60")
    for name, (place, at, fov) in CAMERAS.items():
        ET.SubElement(world, "body", name="at_" + name, pos=" ".join(map(str, at)))
        ET.SubElement(world, "camera", name=name, pos=" ".join(map(str, place)), fovy=str(fov))
    for i, (x, y) in enumerate(((2.0, 0.0), (-1.5, 0.0), (0.0, 2.0), (0.0, -2.0)), 1):
        size = "0.05 2 1.5" if x else "2 0.05 1.5"
        ET.SubElement(world, "geom", name=f"Wall{i}", type="box", size=size, pos=f"{x} {y} 1", rgba="0.9 0.9 0.85 1",
                      group="1")  # fmt: skip
    ET.SubElement(world, "geom", name="diningTable_visible", type="box", size="0.6 0.6 0.03", rgba="0.6 0.45 0.3 1",
                  pos=f"0.2 0 {TABLE - 0.03}", group="1")  # fmt: skip
    for name, shape, size, colour in (
        ("target", "sphere", "0.025", "1 0 0 1"),
        ("lid", "box", "0.03 0.015 0.03", "0 0 1 1"),
    ):
        body = ET.SubElement(world, "body", name=name, mocap="true", pos=f"0.2 0 {TABLE}")
        ET.SubElement(
            body, "geom", name=name, type=shape, size=size, rgba=colour, group="1", contype="0", conaffinity="0"
        )
    for name, place in (("DefaultLightA", "1 1 3"), ("DefaultLightB", "-1 1 3"), ("DefaultLightD", "0 -1 3")):
        ET.SubElement(world, "light", name=name, pos=place, dir="0 0 -1", diffuse="0.4 0.4 0.4", castshadow="false")
    return ET.tostring(root, encoding="unicode")


class World:
    """The scene of one process."""

    def __init__(self) -> None:
        self.model = _model()
        self.data = mujoco.MjData(self.model)
        self._joints = [int(self.model.joint(f"joint{i}").qposadr[0]) for i in range(1, 8)]
        self._fingers = [int(self.model.joint(f"finger{s}").qposadr[0]) for s in (-1, 1)]
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        for name, (place, at, _) in CAMERAS.items():
            self.model.cam_quat[self.model.camera(name).id] = _look(np.array(place), np.array(at))
        self.steps = 0
        self.home()

    def home(self) -> None:
        """The arm as at the start of every episode, the hand open and empty."""
        self.q, self.target, self.velocity, self.opening, self.held = HOME.copy(), HOME.copy(), np.zeros(7), 1.0, False
        self.commanded: np.ndarray | None = None
        self.velocity_now = np.zeros(7)
        self.forward()

    def forward(self) -> None:
        """Poses that follow from the joints."""
        self.data.qpos[self._joints], self.data.qpos[self._fingers] = self.q, 0.04 * self.opening
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        if self.held:
            self.place("lid", self.tip[:3, 3])

    def step(self) -> None:
        """50 ms."""
        self.steps += 1
        self._fault()
        before = self.q.copy()
        wanted = self.velocity * DT if self.velocity.any() else self.target - self.q
        self.q = self.q + np.clip(wanted, -SPEED, SPEED)
        self.velocity_now = (self.q - before) / DT
        self.forward()

    def _fault(self) -> None:
        kind, _, rest = os.environ.get("RLBENCH_FAKE_FAULT", "").partition(":")
        number, _, flag = rest.partition(":")
        if kind and self.steps == int(number) and not Path(flag).exists():
            Path(flag).touch()
            if kind == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(1e6)

    @property
    def tip(self) -> np.ndarray:
        """[4, 4] of the point between the fingers."""
        site = self.model.site("tip").id
        return _matrix(self.data.site_xpos[site], self.data.site_xmat[site])

    def place(self, name: str, position: np.ndarray) -> None:
        """Put a thing somewhere."""
        self.data.mocap_pos[self.model.body(name).mocapid[0]] = position
        mujoco.mj_kinematics(self.model, self.data)

    def where(self, name: str) -> np.ndarray:
        return self.data.mocap_pos[self.model.body(name).mocapid[0]].copy()

    def joint_poses(self) -> list[list[float]]:
        out = []
        for i in range(1, 8):
            quat = self.data.xquat[self.model.body(f"link{i}").id]
            out.append([*self.data.xanchor[self.model.joint(f"joint{i}").id], *quat[[1, 2, 3, 0]]])
        return out

    def solve(self, position: np.ndarray, quaternion: np.ndarray) -> np.ndarray | None:
        """Joints that bring the tip to a pose (x, y, z, w), from the present ones; None if they cannot."""
        data = mujoco.MjData(self.model)
        q, site = self.q.copy(), self.model.site("tip").id
        low, high = self.model.jnt_range[:7].T
        goal = np.asarray(quaternion)[[3, 0, 1, 2]]
        jac, rot = np.zeros((3, self.model.nv)), np.zeros((3, self.model.nv))
        for _ in range(200):
            data.qpos[self._joints] = q
            mujoco.mj_kinematics(self.model, data)
            mujoco.mj_comPos(self.model, data)
            mujoco.mj_jacSite(self.model, data, jac, rot, site)
            now, turn = np.zeros(4), np.zeros(3)
            mujoco.mju_mat2Quat(now, data.site_xmat[site])
            mujoco.mju_subQuat(turn, goal, now)
            turn = data.site_xmat[site].reshape(3, 3) @ turn
            error = np.concatenate([position - data.site_xpos[site], turn])
            if np.abs(error).max() < 1e-3:
                return q
            both = np.concatenate([jac, rot])[:, [int(self.model.joint(f"joint{i}").dofadr[0]) for i in range(1, 8)]]
            q = np.clip(
                q + both.T @ np.linalg.solve(both @ both.T + 1e-3 * np.eye(6), np.clip(error, -0.1, 0.1)), low, high
            )
        return None

    def picture(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        """uint8 [Y, X, 3]; `size` is (X, Y), as PyRep has it."""
        if size not in self._renderers:
            self._renderers[size] = mujoco.Renderer(self.model, size[1], size[0])
        self._renderers[size].update_scene(self.data, camera)
        return self._renderers[size].render().copy()

    def camera(self, name: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Pose [4, 4] and intrinsics [3, 3] in PyRep's conventions: along z, negative focal lengths."""
        i = self.model.camera(name).id
        focal = -size[1] / (2 * np.tan(np.radians(self.model.cam_fovy[i]) / 2))
        pose = _matrix(self.data.cam_xpos[i], self.data.cam_xmat[i])
        pose[:3, :3] *= TO_PYREP
        return pose, np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()


def _matrix(position: np.ndarray, turn: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = np.reshape(turn, (3, 3)), position
    return out


def _look(place: np.ndarray, at: np.ndarray) -> np.ndarray:
    back = (place - at) / np.linalg.norm(place - at)
    right = np.cross([0.0, 0.0, 1.0] if abs(back[2]) < 0.99 else [0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.stack([right, np.cross(back, right), back], 1).reshape(-1))
    return quat


def current() -> World:
    """The world of this process. There is one simulator a process."""
    assert _WORLDS, "no simulator was launched"
    return _WORLDS[0]


def launch() -> World:
    if _WORLDS:
        raise RuntimeError("one simulator a process")
    _WORLDS.append(World())
    return _WORLDS[0]


def shutdown() -> None:
    while _WORLDS:
        _WORLDS.pop().close()


_WORLDS: list[World] = []
