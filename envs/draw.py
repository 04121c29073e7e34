"""Pictures of a MuJoCo scene from our own rasteriser: `render_quality: soft`.

`draw.c`, next to this file, is compiled once and kept in the user's cache. It draws what MuJoCo's OpenGL renderer draws
without multisampling, reflections and shadows, corner by corner and light by light; docs/rendering.md says how near it
comes. Facts of that renderer: github.com/google-deepmind/mujoco, src/render/render_gl3.c.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import numpy as np

from envs import draw_shapes as shapes
from envs import native
from envs.render import CameraRenderer, camera_id, plain_cameras, view_options
from envs.types import EnvError

SOURCE = Path(__file__).with_name("draw.c")
FLAGS = ("-O3", "-ffast-math", "-fno-finite-math-only")
AVX2 = "-march=x86-64-v3"
OPAQUE = 0.995  # with an alpha below, MuJoCo blends
SHAPE = np.dtype(
    [(name, "i4") for name in ["corner", "corners", "face", "faces", "place", "texture", "blended"]]
    + [("colour", "f4", 4), ("emission", "f4"), ("specular", "f4"), ("shininess", "f4")]
    + [("middle", "f4", 3), ("half", "f4", 3)],
    align=True,
)
LEVELS = 16
TEXTURE = np.dtype(
    [("texels", "u8"), ("width", "i4"), ("height", "i4"), ("levels", "i4"), ("sides", "i4"), ("starts", "i4", LEVELS)],
    align=True,
)
LIGHT = np.dtype(
    [(name, "f4", 3) for name in ["position", "direction", "ambient", "diffuse", "specular", "attenuation"]]
    + [("cosine", "f4"), ("exponent", "f4"), ("directional", "i4")],
    align=True,
)
ADDRESSES = [
    "shapes",
    "positions",
    "normals",
    "coordinates",
    "textures",
    "lights",
    "faces",
    "planes",
    "places",
    "turns",
]
SCENE = np.dtype(
    [(name, "u8") for name in ADDRESSES]
    + [
        ("num_shapes", "i4"),
        ("num_faces", "i4"),
        ("num_lights", "i4"),
        ("sky", "i4"),
        ("ambient", "f4"),
        ("unused", "i4"),
    ],
    align=True,
)
BUFFERS = ["inverse", "owner", "seen", "screen", "front", "lamps", "stamps", "drawn", "frames", "near_lights"]
DRAWN = np.dtype(
    [("e", "f4", 9), ("shade", "f4", 9), ("at", "f4", 12), ("shape", "i4"), ("face", "i4"), ("lit", "i4")], align=True
)
VIEW = np.dtype(
    [("position", "f8", 3), ("axes", "f8", 9), ("focal", "f8")]
    + [(name, "i4") for name in ["width", "height", "room", "unused"]]
    + [("nearest", "f4"), ("farthest", "f4")]
    + [(name, "u8") for name in [*BUFFERS, "rgb"]],
    align=True,
)


@lru_cache(maxsize=1)
def load_library() -> Any:
    """The compiled functions of draw.c; EnvError if they cannot be had."""
    known, flags = [SOURCE.with_suffix(".h").read_text(encoding="utf-8")], FLAGS + ((AVX2,) if _has_avx2() else ())
    path = native.compiled(
        SOURCE, name="draw", who="render_quality: soft", flags=flags, facts=known, otherwise=" Or choose lite."
    )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as e:
        raise EnvError(f"render_quality: soft cannot load {path} ({e}); delete it to have it compiled again") from e
    library.draw.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    library.draw.restype = None
    sizes = _sizes(library)
    expected = tuple(kind.itemsize for kind in (SHAPE, TEXTURE, LIGHT, SCENE, VIEW, DRAWN))
    assert sizes[:6] == expected, f"draw.py and draw.c differ: {sizes} and {expected}"
    return library


def _has_avx2() -> bool:
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _sizes(library: Any) -> Tuple[int, ...]:
    sizes = (ctypes.c_int32 * 7)()
    library.draw_sizes(sizes)
    return tuple(sizes)


class SoftRenderer:
    """Draws named cameras of one MuJoCo model, as `envs.render.CameraRenderer` does. Not to be shared by threads."""

    def __init__(self, model: Any, data: Any, *, cameras: Mapping[str, Tuple[int, int]]) -> None:
        """Triangles and textures are made here, once; EnvError for what this renderer cannot draw."""
        import mujoco

        self._mujoco, self._model = mujoco, model
        self._library = load_library()
        self._sizes = {name: (int(y), int(x)) for name, (y, x) in cameras.items()}
        self._ids = {name: camera_id(model, name) for name in cameras}
        for name, plain in zip(cameras, plain_cameras(model, list(self._ids.values()))):
            if not plain:
                raise EnvError(
                    f"render_quality: soft cannot draw camera '{name}', which has a lens of its own; use lite"
                )
        self._textures, self._texels = _textures(model)
        self._soups: Dict[Tuple[Any, ...], Tuple[np.ndarray, ...]] = {}
        self._look: Tuple[np.ndarray, ...] = ()
        self._refresh(data)

    def render(self, data: Any) -> Dict[str, np.ndarray]:
        """Images uint8 [Y, X, 3] of all cameras at the poses that `data` holds now; new arrays each time."""
        self._place(data)
        return {name: self._draw(data, name) for name in self._sizes}

    def surfaces(self, data: Any, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """As `CameraRenderer.surfaces`: metres along the camera's axis and number of the body, [Y, X] each."""
        self._place(data)
        y, x, _ = self._draw(data, name).shape
        inverse, owner = (self._buffers[i][: 4 * y * x].view(kind) for i, kind in enumerate(("f4", "i4")))
        drawn = self._buffers[BUFFERS.index("drawn")]
        shape = drawn[: len(drawn) // DRAWN.itemsize * DRAWN.itemsize].view(DRAWN)["shape"][np.maximum(owner, 0)]
        place = self._shapes["place"][shape]
        seen = (owner >= 0) & (place < self._model.ngeom)
        bodies = np.where(seen, self._model.geom_bodyid[np.where(seen, place, 0)], -1)
        return (1.0 / inverse.astype(np.float64)).reshape(y, x), bodies.reshape(y, x)

    def _place(self, data: Any) -> None:
        self._refresh(data)
        np.concatenate([data.geom_xpos, data.site_xpos], out=self._places)
        np.concatenate([data.geom_xmat, data.site_xmat], out=self._turns)

    def _draw(self, data: Any, name: str) -> np.ndarray:
        (y, x), camera, view = self._sizes[name], self._ids[name], self._view
        turn = data.cam_xmat[camera].reshape(3, 3)
        view["position"] = data.cam_xpos[camera]
        view["axes"] = np.concatenate([turn[:, 0], turn[:, 1], -turn[:, 2]])
        view["focal"] = 0.5 * y / math.tan(math.radians(float(self._model.cam_fovy[camera])) / 2)
        view["height"], view["width"] = y, x
        self._shine(data, camera)
        image = np.empty((y, x, 3), np.uint8)
        view["rgb"] = image.ctypes.data
        near = self._by_distance(data.cam_xpos[camera])
        self._library.draw(self._scene.ctypes.data, view.ctypes.data, near.ctypes.data, len(near))
        return image

    def close(self) -> None:
        """Nothing is held that needs freeing."""

    # --- inside ---

    def _refresh(self, data: Any) -> None:
        """Look again at what is to be drawn if colours, materials or shapes have changed."""
        m = self._model
        look = (m.geom_rgba, m.geom_group, m.geom_matid, m.geom_size, m.site_rgba, m.mat_rgba, m.mat_texid,
                m.mat_texrepeat, m.mat_texuniform, m.mat_specular, m.mat_shininess, m.mat_emission,
                m.light_active)  # fmt: skip
        if self._look and all(np.array_equal(a, b) for a, b in zip(look, self._look)):
            return
        self._look = tuple(a.copy() for a in look)
        self._build(data)

    def _build(self, data: Any) -> None:
        mujoco, model = self._mujoco, self._model
        listed = mujoco.MjvScene(model, maxgeom=max(1000, 2 * model.ngeom + 2 * model.nsite))
        camera = mujoco.MjvCamera()
        mujoco.mjv_updateScene(
            model, data, view_options(mujoco), mujoco.MjvPerturb(), camera, mujoco.mjtCatBit.mjCAT_ALL, listed
        )
        seen = [geom for geom in listed.geoms[: listed.ngeom] if geom.rgba[3] > 0]  # robosuite hides by less than 0
        made = [self._shape(geom) for geom in seen]
        self._shapes = np.array([shape for shape, *_ in made], SHAPE) if made else np.zeros(0, SHAPE)
        corners = [part[1] for part in made]
        ends, face_ends = np.cumsum([len(c) for c in corners]), np.cumsum([len(part[2]) for part in made])
        self._shapes["corner"], self._shapes["corners"] = ends - [len(c) for c in corners], [len(c) for c in corners]
        self._shapes["face"] = face_ends - [len(part[2]) for part in made]
        self._shapes["faces"] = [len(part[2]) for part in made]
        everything = np.concatenate(corners)
        self._positions, self._normals, self._coordinates = (
            np.ascontiguousarray(everything[:, k : k + 3]) for k in (0, 3, 6)
        )
        self._faces = np.ascontiguousarray(np.concatenate([part[2] for part in made]))
        self._planes = np.ascontiguousarray(np.concatenate([part[3] for part in made]).T)
        self._places, self._turns = np.zeros((model.ngeom + model.nsite, 3)), np.zeros((model.ngeom + model.nsite, 9))
        self._lights = np.zeros(listed.nlight, LIGHT)
        self._headlight = [bool(light.headlight) for light in listed.lights[: listed.nlight]]
        for own, light in zip(self._lights, listed.lights):
            _set_light(own, light)
        self._blended = np.flatnonzero(self._shapes["blended"]).astype(np.int32)
        self._connect(len(everything))

    def _connect(self, corners: int) -> None:
        """Buffers, and the addresses of everything."""
        pixels = max(y * x for y, x in self._sizes.values())
        room, sizes = max(corners, len(self._faces)) + 2, _sizes(self._library)
        lights = len(self._shapes) * max(1, len(self._lights)) * LIGHT.itemsize
        wanted = (4 * pixels, 4 * pixels, 12 * room, 8 * room, 4 * room, 12 * room, room, sizes[5] * room)
        wanted += (sizes[6] * len(self._shapes), lights)
        self._buffers = [np.zeros(size + 16, np.uint8) for size in wanted]
        self._scene, self._view = np.zeros((), SCENE), np.zeros((), VIEW)
        for name in ADDRESSES:
            self._scene[name] = getattr(self, "_" + name).ctypes.data
        skies = np.flatnonzero(self._model.tex_type == int(self._mujoco.mjtTexture.mjTEXTURE_SKYBOX))
        self._scene["num_shapes"], self._scene["num_lights"] = len(self._shapes), len(self._lights)
        self._scene["num_faces"] = len(self._faces)
        self._scene["sky"] = skies[0] if len(skies) else -1
        self._scene["ambient"] = 0.0 if len(self._lights) else 0.3
        for name, buffer in zip(BUFFERS, self._buffers):
            self._view[name] = buffer.ctypes.data
        self._view["room"], reach = room, float(self._model.stat.extent)
        self._view["nearest"] = 1 / (reach * self._model.vis.map.znear)
        self._view["farthest"] = 1 / (reach * self._model.vis.map.zfar)

    def _shape(self, geom: Any) -> Tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
        """Record, corners [C, 9], faces [F, 3] and planes [F, 4] of one entry of MuJoCo's scene."""
        model, mujoco = self._model, self._mujoco
        texture = int(model.mat_texid[geom.matid][int(mujoco.mjtTextureRole.mjTEXROLE_RGB)]) if geom.matid >= 0 else -1
        flat = texture >= 0 and int(model.tex_type[texture]) == int(mujoco.mjtTexture.mjTEXTURE_2D)
        key = self._form(geom, texture)
        if key not in self._soups:
            soup = self._soup(geom)
            self._soups[key] = shapes.merged(soup, _coordinates(model, geom, soup, texture, flat))
        corners, faces, planes = self._soups[key]
        if geom.texcoord and not flat:
            texture = -1  # a mesh that says itself how it is covered has no directions to look a cube up with
        if geom.objtype == int(mujoco.mjtObj.mjOBJ_SITE):
            place = model.ngeom + int(geom.objid)
        elif geom.objtype == int(mujoco.mjtObj.mjOBJ_GEOM):
            place = int(geom.objid)
        else:
            kind = mujoco.mjtObj(geom.objtype).name
            raise EnvError(f"render_quality: soft draws geoms and sites only, and this scene shows a {kind}; use lite")
        low, high = (corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)) if len(corners) else np.zeros((2, 3))
        shape = np.zeros((), SHAPE)
        shape["place"], shape["texture"] = place, texture
        shape["colour"], shape["emission"] = geom.rgba, geom.emission
        shape["blended"] = geom.rgba[3] < OPAQUE
        shape["specular"], shape["shininess"] = geom.specular, 128 * geom.shininess
        shape["middle"], shape["half"] = (low + high) / 2, (high - low) / 2
        return shape, corners, faces, planes

    def _form(self, geom: Any, texture: int) -> Tuple[Any, ...]:
        """All that corners and texture coordinates hang on."""
        model, own = self._model, (int(geom.type), int(geom.dataid), *geom.size.tolist())
        if int(geom.type) == int(self._mujoco.mjtGeom.mjGEOM_PLANE):
            own += tuple(model.geom_size[geom.objid])  # which say where its lines are
        if geom.matid < 0:
            return own
        laid = (*model.mat_texrepeat[geom.matid], bool(model.mat_texuniform[geom.matid]))
        return (*own, texture, *laid)

    def _soup(self, geom: Any) -> shapes.Soup:
        model, kinds = self._model, self._mujoco.mjtGeom
        size, quality = np.asarray(geom.size, np.float64), model.vis.quality
        slices, stacks = int(quality.numslices), int(quality.numstacks)
        kind = kinds(geom.type)
        if kind == kinds.mjGEOM_MESH:
            return shapes.mesh(model, int(geom.dataid) // 2)
        if kind == kinds.mjGEOM_PLANE:
            far = float(model.vis.map.zfar * model.stat.extent)
            repeat = model.mat_texrepeat[geom.matid] if geom.matid >= 0 else (0.0, 0.0)
            own = model.geom_size[geom.objid]
            return shapes.plane(*(shapes.plane_lines(own[k], own[2], float(repeat[k]), far) for k in (0, 1)))
        if kind == kinds.mjGEOM_BOX:
            return shapes.box(size, int(quality.numquads))
        if kind in (kinds.mjGEOM_SPHERE, kinds.mjGEOM_ELLIPSOID):
            return shapes.ball(size, slices, stacks)
        if kind == kinds.mjGEOM_CYLINDER:
            return shapes.cylinder(size, slices, stacks)
        if kind == kinds.mjGEOM_CAPSULE:
            return shapes.capsule(size, slices, stacks)
        raise EnvError(f"render_quality: soft cannot draw a {kind.name}; use lite")

    def _shine(self, data: Any, camera: int) -> None:
        """Where the lights are: MuJoCo's list has the headlight first, then the active ones in their order."""
        lamps = self._lights
        active = np.flatnonzero(self._model.light_active)
        turned = iter(active)
        for i, head in enumerate(self._headlight):
            if head:
                lamps["position"][i] = data.cam_xpos[camera]
                lamps["direction"][i] = -data.cam_xmat[camera].reshape(3, 3)[:, 2]
            else:
                light = next(turned)
                lamps["position"][i], lamps["direction"][i] = data.light_xpos[light], data.light_xdir[light]

    def _by_distance(self, eye: np.ndarray) -> np.ndarray:
        if not len(self._blended):
            return self._blended
        places = self._places[self._shapes["place"][self._blended]]
        return self._blended[np.argsort(np.linalg.norm(places - eye, axis=1))]


def open_renderer(model: Any, data: Any, cameras: Mapping[str, Tuple[int, int]], quality: str) -> Any:
    """What draws pictures of this quality: with `render`, `surfaces` and `close`."""
    if quality == "soft":
        return SoftRenderer(model, data, cameras=cameras)
    return CameraRenderer(model, cameras=cameras, quality=quality)


def _set_light(own: Any, light: Any) -> None:
    for name in ("ambient", "diffuse", "specular", "attenuation"):
        own[name] = getattr(light, name)
    directional = bool(light.directional) if hasattr(light, "directional") else int(light.type) == 1
    if not directional and hasattr(light, "type") and int(light.type) != 0:
        raise EnvError(
            "render_quality: soft knows spot lights and directional ones, and this scene has another; use lite"
        )
    own["directional"], own["exponent"] = directional, light.exponent
    own["cosine"] = -2.0 if directional or light.cutoff >= 180 else math.cos(math.radians(light.cutoff))


def _coordinates(model: Any, geom: Any, soup: shapes.Soup, texture: int, flat: bool) -> np.ndarray:
    """Texture coordinates [F, 3, 3] of corners: the mesh's own, or laid over it along its axes."""
    out = np.zeros(soup.position.shape)
    if texture < 0:
        return out
    if soup.texture is not None:
        out[..., :2] = soup.texture
        return out
    uniform, size = bool(model.mat_texuniform[geom.matid]), np.asarray(geom.size, np.float64)
    if not flat:
        return soup.unit * (size if uniform else 1.0)
    scale = np.array(model.mat_texrepeat[geom.matid], np.float64)
    sized = size[:2] > 0
    if geom.dataid >= 0:
        scale[sized] /= size[:2][sized]
    if uniform:
        scale[sized] *= size[:2][sized]
    out[..., 0], out[..., 1] = 0.5 * scale[0] * soup.unit[..., 0] - 0.5, -0.5 * scale[1] * soup.unit[..., 1] - 0.5
    return out


def _textures(model: Any) -> Tuple[np.ndarray, List[np.ndarray]]:
    """Records of all textures, and the texels they point to: each level half as large as the one before."""
    records, kept = np.zeros(model.ntex, TEXTURE), []
    for i, record in enumerate(records):
        w, h, channels = int(model.tex_width[i]), int(model.tex_height[i]), int(model.tex_nchannel[i])
        first = int(model.tex_adr[i])
        data = model.tex_data[first : first + w * h * channels].reshape(h, w, channels)[..., :3]
        if hasattr(model, "tex_colorspace") and int(model.tex_colorspace[i]) == 2:  # sRGB: OpenGL makes it linear
            data = _linear(data)
        is_cube = int(model.tex_type[i]) != 0
        sides = data.reshape(-1, w, w, 3) if is_cube and h != w else data[None].repeat(6 if is_cube else 1, 0)
        levels = [sides]
        while max(levels[-1].shape[1:3]) > 1 and len(levels) < LEVELS:
            levels.append(_halved(levels[-1]))
        padded = [np.concatenate([v, np.zeros((*v.shape[:3], 1), np.uint8)], -1).reshape(-1) for v in levels]
        kept.append(np.concatenate(padded))
        record["texels"], record["width"], record["height"] = kept[-1].ctypes.data, sides.shape[2], sides.shape[1]
        record["levels"], record["sides"] = len(levels), len(sides)
        record["starts"][: len(levels)] = np.cumsum([0, *(len(v) // 4 for v in padded)])[:-1]
    return records, kept


def _linear(data: np.ndarray) -> np.ndarray:
    x = data / 255.0
    return np.round(255 * np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)).astype(np.uint8)


def _halved(v: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 texels [S, Y / 2, X / 2, 3]; what is left over at an odd edge is dropped."""
    y, x = max(1, v.shape[1] // 2), max(1, v.shape[2] // 2)
    rows = np.stack([v[:, 0 : 2 * y : 2][:, :y], v[:, min(1, v.shape[1] - 1) :: 2][:, :y]]).mean(0)
    both = np.stack([rows[:, :, 0 : 2 * x : 2][:, :, :x], rows[:, :, min(1, v.shape[2] - 1) :: 2][:, :, :x]]).mean(0)
    return np.floor(both + 0.5).astype(np.uint8)
