"""Where the robot's joints should be, drawn on camera images as striped spheres (GENIMA, Shridhar et al. 2024).

For any simulator that tells camera matrices and joint poses. A sphere is drawn unlit and without the scene around it:
spheres hide each other and are hidden by nothing else. Rays through pixel centres meet exact spheres, in numpy, inside
each sphere's box only; the original draws meshes with OpenGL.

A sphere is striped along its own x axis (u = (x / r + 1) / 2), so that the stripes show how the joint is turned; the
hemispheres of z > 0 and z < 0 look alike. Column u of the 256-pixel texture is coloured in even bars of 24 pixels, and
black in odd ones and in the last 40.

Positions are in metres, in world axes; images uint8 [Y, X, 3], RGB, row 0 on top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

NEAR, FAR = 1e-5, 3.0  # m; what lies outside along the camera's axis is not drawn
TEXTURE, BAR, LAST_BAR = (
    256,
    24,
    216,
)  # px of the stripe texture: its width, a bar's, and where the last black one starts
RADIUS = 0.01  # m, of a sphere of scale 1
OPEN = 0.1  # a gripper that is further open than this counts as open
BLUE = (0.604, 0.863, 1.0)  # tint of all but the closed gripper
YELLOW = (1.0, 1.0, 0.0)
WHITE = 255

Colour = tuple[int, int, int]


def _tinted(texture: Colour, tint: tuple[float, float, float]) -> Colour:
    red, green, blue = (round(c * t) for c, t in zip(texture, tint, strict=True))
    return red, green, blue


BASE, ELBOW, WRIST = (_tinted(c, BLUE) for c in ((255, 0, 0), (71, 240, 62), (218, 120, 240)))
GRIPPER_OPEN, GRIPPER_CLOSED = _tinted((8, 239, 235), BLUE), _tinted((255, 255, 0), YELLOW)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Pixel (x, y) = (fx X / Z + cx, fy Y / Z + cy), where (X, Y, Z) is in the camera's axes."""

    intrinsics: np.ndarray  # [3, 3] px; fx and fy may be negative, as PyRep has them
    pose: np.ndarray  # [4, 4] camera to world, looking along +Z
    size: tuple[int, int]  # (Y, X)

    def __post_init__(self) -> None:
        for name, shape in (("intrinsics", (3, 3)), ("pose", (4, 4))):
            value = np.asarray(getattr(self, name), dtype=np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"camera {name}: expected finite {shape}, got {value.tolist()}")
            object.__setattr__(self, name, value)
        turn = self.pose[:3, :3]
        if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3):
            raise ValueError(f"camera pose: expected a rotation in [:3, :3], got {turn.tolist()}")
        if not self.intrinsics[0, 0] or not self.intrinsics[1, 1]:
            raise ValueError("camera intrinsics: the focal lengths are 0; expected pixels")

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points [..., 3] -> x, y in pixels and depth in metres [..., 3]."""
        local = (np.asarray(points) - self.pose[:3, 3]) @ self.pose[:3, :3]
        flat = local @ self.intrinsics.T
        return np.concatenate([flat[..., :2] / local[..., 2:], local[..., 2:]], -1)


def mujoco_camera(position: np.ndarray, turn: np.ndarray, fovy_deg: float, size: tuple[int, int]) -> Camera:
    """From MuJoCo's `cam_xpos`, `cam_xmat` ([3, 3] or flat; x right, y up, looking along -Z) and `cam_fovy`."""
    focal = 0.5 * size[0] / np.tan(np.deg2rad(fovy_deg) / 2)
    pose = np.eye(4)
    pose[:3, :3] = np.reshape(turn, (3, 3)) * (1.0, -1.0, -1.0)
    pose[:3, 3] = position
    intrinsics = np.array([[focal, 0.0, size[1] / 2], [0.0, focal, size[0] / 2], [0.0, 0.0, 1.0]])
    return Camera(intrinsics, pose, size)


@dataclass(frozen=True)
class Sphere:
    """One sphere in the world."""

    pose: np.ndarray  # [4, 4]
    radius: float  # m
    colour: Colour  # of the bright stripes


@dataclass(frozen=True)
class Moment:
    """Where the robot is at one moment."""

    joints: np.ndarray  # [J, 7] x, y, z, qx, qy, qz, qw
    gripper: np.ndarray  # [4, 4]
    gripper_open: float

    def __post_init__(self) -> None:
        if np.ndim(self.joints) != 2 or np.shape(self.joints)[1] != 7:
            raise ValueError(
                f"joint poses have shape {np.shape(self.joints)}, expected [J, 7]: x, y, z, qx, qy, qz, qw of each "
                "joint; demonstrations without them are too old to draw targets from: record them again"
            )
        if np.shape(self.gripper) != (4, 4):
            raise ValueError(f"the gripper's pose has shape {np.shape(self.gripper)}, expected a matrix [4, 4]")
        if not (np.isfinite(self.joints).all() and np.isfinite(self.gripper).all()):
            raise ValueError("a joint's or the gripper's pose is not finite; drop the demonstration")


SCALES: Mapping[str, float] = {
    "wrist": 3.0, "front": 8.0, "right_shoulder": 6.5, "left_shoulder": 6.5, "overhead": 6.5,
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """Which spheres a camera shows, and how large; by default as the original has it for RLBench."""

    scales: Mapping[str, float] = field(default_factory=lambda: dict(SCALES))  # camera -> radii of 1 cm
    joints: Mapping[int, Colour] = field(default_factory=lambda: {1: BASE, 3: ELBOW, 5: WRIST})  # counted from 0
    gripper_only: Sequence[str] = ("overhead",)  # cameras that show no joints
    horizon: int = 20  # steps ahead

    def spheres(self, camera: str, moment: Moment) -> list[Sphere]:
        """What `camera` shows of a moment. Raises ValueError if the style does not know the camera or a joint."""
        if camera not in self.scales:
            raise ValueError(f"camera '{camera}' has no sphere scale; the style has {sorted(self.scales)}: add it")
        radius = RADIUS * self.scales[camera]
        missing = [i for i in self.joints if i >= len(moment.joints)]
        if missing:
            raise ValueError(f"joints {missing} do not exist: the robot has {len(moment.joints)}; change style.joints")
        hand = GRIPPER_OPEN if moment.gripper_open > OPEN else GRIPPER_CLOSED
        found = [Sphere(np.asarray(moment.gripper, dtype=np.float64), radius, hand)]
        if camera not in self.gripper_only:
            found += [Sphere(matrix(moment.joints[i]), radius, colour) for i, colour in self.joints.items()]
        return found


def target_frame(frame: int, length: int, horizon: int) -> int | None:
    """Whose moment is drawn on frame `frame` of `length` frames: that `horizon` later, or the last but one.

    None on the last but one, whose target would be itself, and on the last: training leaves both out."""
    if not 0 <= frame < length:
        raise ValueError(f"frame {frame} does not exist: the demonstration has {length}")
    target = min(frame + 1 + horizon, length - 1) - 1
    return target if frame < target else None


def matrix(pose: np.ndarray) -> np.ndarray:
    """[7] x, y, z, qx, qy, qz, qw -> [4, 4]. Raises ValueError for a quaternion of length 0."""
    position, q = np.asarray(pose[:3], dtype=np.float64), np.asarray(pose[3:], dtype=np.float64)
    norm = np.linalg.norm(q)
    if norm < 1e-6:
        raise ValueError(f"quaternion {q.tolist()} has length 0; expected x, y, z, w of a rotation")
    x, y, z, w = q / norm
    out = np.eye(4)
    out[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    out[:3, 3] = position
    return out


def draw(
    camera: Camera, spheres: Sequence[Sphere], background: np.ndarray | None = None, *, opacity: float = 1.0
) -> np.ndarray:
    """A new image with the spheres over `background` (white if None); opacity 0.7 lets 30 % of it shine through."""
    if background is None:
        image = np.full((*camera.size, 3), WHITE, dtype=np.uint8)
    else:
        if background.dtype != np.uint8 or background.shape != (*camera.size, 3):
            raise ValueError(
                f"the picture is {background.dtype} {background.shape}, the camera's is uint8 {(*camera.size, 3)}; "
                "draw on the picture that this camera took"
            )
        image = background.copy()
    label = labels(camera, spheres)
    rows = np.flatnonzero(label.any(1))
    if not len(rows):
        return image
    down = slice(rows[0], rows[-1] + 1)
    columns = np.flatnonzero(label[down].any(0))
    across = slice(columns[0], columns[-1] + 1)
    part, label = image[down, across], label[down, across]
    palette = np.zeros((2 * len(spheres) + 1, 3), dtype=np.uint8)
    palette[2::2] = [s.colour for s in spheres]
    covered = label > 0
    for channel in range(3):  # three masked copies are three times as fast as one of whole pixels
        colours, there = palette[:, channel].take(label), part[..., channel]
        if opacity < 1.0:
            mixed = np.float32(opacity) * colours + np.float32(1 - opacity) * there
            colours = (mixed + np.float32(0.5)).astype(np.uint8)
        np.copyto(there, colours, where=covered)
    return image


def labels(camera: Camera, spheres: Sequence[Sphere]) -> np.ndarray:
    """uint8 [Y, X]: 0 where there is none, 2 i + 1 on a black stripe of sphere i, 2 i + 2 on a bright one."""
    label = np.zeros(camera.size, dtype=np.uint8)
    depth = np.full(camera.size, FAR, dtype=np.float32)
    (fx, _, cx), (_, fy, cy) = camera.intrinsics[:2]
    columns = ((np.arange(camera.size[1]) + 0.5 - cx) / fx).astype(np.float32)  # ray directions at Z = 1
    lines = ((np.arange(camera.size[0]) + 0.5 - cy) / fy).astype(np.float32)
    turn = camera.pose[:3, :3]
    for i, sphere in enumerate(spheres):
        centre = (sphere.pose[:3, 3] - camera.pose[:3, 3]) @ turn
        across, down = (_span(rays, centre[a], centre[2], sphere.radius) for a, rays in ((0, columns), (1, lines)))
        if across.start >= across.stop or down.start >= down.stop:
            continue
        stripes = (turn.T @ sphere.pose[:3, 0]) / sphere.radius  # the sphere's x axis, in the camera's
        _paint(
            label[down, across], depth[down, across], columns[across], lines[down], centre, sphere.radius, stripes, i
        )
    return label


def _span(rays: np.ndarray, offset: float, distance: float, radius: float) -> slice:
    """The columns (or rows) whose rays [P] may meet a sphere: those between its two tangents."""
    if distance <= -radius:
        return slice(0, 0)
    square = distance**2 - radius**2
    if distance <= radius or square < 1e-12:  # around or beside the camera: no bound
        return slice(0, len(rays))
    middle, half = offset * distance / square, radius * np.sqrt(offset**2 + square) / square
    inside = np.flatnonzero((rays >= middle - half) & (rays <= middle + half))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)


def _paint(
    label: np.ndarray, depth: np.ndarray, columns: np.ndarray, lines: np.ndarray,
    centre: np.ndarray, radius: float, stripes: np.ndarray, number: int,
) -> None:  # fmt: skip
    """Paint one sphere into its box: `label` and `depth` [y, x] are views; solves |t d - c| = r for the nearer t."""
    c0, c1, c2 = (float(v) for v in centre)
    s0, s1, s2 = (float(v) for v in stripes)
    a = (lines**2)[:, None] + (columns**2 + 1)[None]
    b = (lines * np.float32(c1))[:, None] + (columns * np.float32(c0) + np.float32(c2))[None]
    rest = b * b - a * np.float32(c0 * c0 + c1 * c1 + c2 * c2 - radius * radius)
    hit = rest > 0
    t = (b - np.sqrt(np.maximum(rest, 0, out=rest))) / a
    hit &= (t > NEAR) & (t < depth)
    u = t * ((lines * np.float32(s1))[:, None] + (columns * np.float32(s0) + np.float32(s2))[None])
    u -= np.float32(c0 * s0 + c1 * s1 + c2 * s2)  # the hit's x in the sphere's axes, in radii
    column = np.minimum(np.maximum((u + 1) * np.float32(TEXTURE / 2), 0), TEXTURE - 1).astype(np.uint8)
    np.copyto(depth, t, where=hit)
    np.copyto(label, _BRIGHT[column] + np.uint8(2 * number + 1), where=hit)


_BRIGHT = np.array([(c // BAR) % 2 == 0 and c < LAST_BAR for c in range(TEXTURE)], dtype=np.uint8)
