"""Pictures of a MuJoCo scene without a display: the OpenGL context of a process, and cameras that share it."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import math
import os
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple

import numpy as np

from envs.types import EnvError

GL_PACKAGES = "libosmesa6 libegl1 libegl-mesa0 libgl1-mesa-dri libgl1"
_GL_MODULES = {"osmesa": "mujoco.osmesa", "egl": "mujoco.egl"}  # everything else is a window system: mujoco.glfw
_contexts: Dict[str, Any] = {}  # the process's one OpenGL context, once it is open


def choose_gl() -> str:
    """Return the OpenGL back end in use; software rendering (osmesa) unless MUJOCO_GL says otherwise."""
    return os.environ.setdefault("MUJOCO_GL", "osmesa").lower().strip()


def _gl_missing(backend: str, cause: BaseException) -> EnvError:
    fix = f"expected its system libraries: apt-get install -y --no-install-recommends {GL_PACKAGES}"
    if backend not in _GL_MODULES:
        fix = f"expected 'osmesa' or 'egl'; others need a display (DISPLAY is '{os.environ.get('DISPLAY', '')}')"
        fix += ": set MUJOCO_GL=osmesa"
    return EnvError(
        f"offscreen rendering with MUJOCO_GL={backend} is not possible ({type(cause).__name__}: {cause}); {fix}"
    )


def gl_module(backend: str) -> Any:
    """MuJoCo's module for an OpenGL back end; EnvError if its system libraries are missing."""
    try:
        return importlib.import_module(_GL_MODULES.get(backend, "mujoco.glfw"))
    except Exception as e:  # PyOpenGL raises ImportError, AttributeError or OSError, depending on what is missing
        raise _gl_missing(backend, e) from e


def _gl_context() -> Any:
    """Open, once per process, the offscreen context that all renderers of this process share."""
    backend = choose_gl()
    if "gl" not in _contexts:
        module = gl_module(backend)
        try:
            _contexts["gl"] = module.GLContext(640, 480)
        except Exception as e:
            raise _gl_missing(backend, e) from e
        atexit.register(_contexts["gl"].free)
    return _contexts["gl"]


class CameraRenderer:
    """Renders named cameras of one MuJoCo model. Images are RGB with row 0 on top."""

    def __init__(self, model: Any, *, cameras: Mapping[str, Tuple[int, int]], quality: str = "exact"):
        import mujoco

        self._mujoco = mujoco
        self._ids = {name: camera_id(model, name) for name in cameras}
        self._sizes = {name: (int(size[0]), int(size[1])) for name, size in cameras.items()}
        self._gl = _gl_context()
        self._gl.make_current()
        self._model = model
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = view_options(mujoco)
        self._perturb = mujoco.MjvPerturb()
        model.vis.global_.offheight = max([model.vis.global_.offheight] + [y for y, _ in self._sizes.values()])
        model.vis.global_.offwidth = max([model.vis.global_.offwidth] + [x for _, x in self._sizes.values()])
        stored = model.vis.quality.offsamples, model.vis.quality.shadowsize
        if quality != "exact":
            model.vis.quality.offsamples = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            model.vis.quality.shadowsize = 0  # the map would take 64 MB and never be looked at
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except mujoco.FatalError as e:  # a window system without a display is noticed only here
            raise _gl_missing(choose_gl(), e) from e
        model.vis.quality.offsamples, model.vis.quality.shadowsize = stored
        self._cull = Culling(model) if self._alone(quality) else None
        self._buffers = {name: np.empty((y, x, 3), np.uint8) for name, (y, x) in self._sizes.items()}

    def refresh(self, textures: Iterable[int]) -> None:
        """Take over pictures of textures that were changed in the model."""
        self._gl.make_current()
        for texture in textures:
            self._mujoco.mjr_uploadTexture(self._model, self._context, texture)

    def _add(self, solids: Sequence[Any]) -> None:
        """Draw shapes that the model does not have (see envs/perturb_mujoco.py)."""
        mujoco, scene = self._mujoco, self._scene
        for solid in solids[: scene.maxgeom - scene.ngeom]:
            geom = scene.geoms[scene.ngeom]
            mujoco.mjv_initGeom(geom, solid.kind, solid.size, solid.position, solid.turn, solid.rgba.astype(np.float32))
            geom.category = int(mujoco.mjtCatBit.mjCAT_DYNAMIC)  # it casts shadows as objects do
            scene.ngeom += 1

    def render(self, data: Any, *, solids: Sequence[Any] = ()) -> Dict[str, np.ndarray]:
        """Images of all cameras at the poses that `data` holds now, with `solids` added; new arrays each time."""
        mujoco = self._mujoco
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)  # another renderer may have its own
        images = {}
        for name, (y, x) in self._sizes.items():
            self._camera.fixedcamid = self._ids[name]
            with self._cull(data, self._ids[name], x / y) if self._cull else contextlib.nullcontext():
                mujoco.mjv_updateScene(
                    self._model,
                    data,
                    self._option,
                    self._perturb,
                    self._camera,
                    mujoco.mjtCatBit.mjCAT_ALL,
                    self._scene,
                )
            self._add(solids)
            view = mujoco.MjrRect(0, 0, x, y)
            mujoco.mjr_render(view, self._scene, self._context)
            mujoco.mjr_readPixels(self._buffers[name], None, view, self._context)
            images[name] = np.ascontiguousarray(self._buffers[name][::-1])  # OpenGL's row 0 is the bottom one
        return images

    def surfaces(self, data: Any, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """What a camera sees first at each pixel: metres along its axis [Y, X], and the number of the body [Y, X],
        -1 for nothing."""
        mujoco, (y, x), scene = self._mujoco, self._sizes[name], self._scene
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._camera.fixedcamid = self._ids[name]
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, self._perturb, self._camera, every, scene)
        flags = [int(mujoco.mjtRndFlag.mjRND_SEGMENT), int(mujoco.mjtRndFlag.mjRND_IDCOLOR)]
        kept, view = scene.flags[flags], mujoco.MjrRect(0, 0, x, y)
        near_to_far = np.empty((y, x), np.float32)
        try:
            scene.flags[flags] = 1
            mujoco.mjr_render(view, scene, self._context)
        finally:
            scene.flags[flags] = kept
        mujoco.mjr_readPixels(self._buffers[name], near_to_far, view, self._context)
        colour = self._buffers[name].astype(np.int64) @ [1, 2**8, 2**16]  # of a shape: its number in the scene, plus 1
        owner = np.full(scene.ngeom + 1, -1)
        for shape in scene.geoms[: scene.ngeom]:
            if shape.objtype == int(mujoco.mjtObj.mjOBJ_GEOM) and 0 <= shape.segid < scene.ngeom:
                owner[shape.segid + 1] = self._model.geom_bodyid[shape.objid]
        bodies = owner[np.minimum(colour, scene.ngeom)]
        extent, planes = self._model.stat.extent, self._model.vis.map
        near, far = extent * planes.znear, extent * planes.zfar
        depth = near * far / (far - near_to_far.astype(np.float64) * (far - near))
        return depth[::-1].copy(), bodies[::-1].copy()

    def _alone(self, quality: str) -> bool:
        """Whether a shape outside of the picture leaves no trace in it: no shadow and no mirror image."""
        if quality != "exact":
            return True
        model, kinds = self._model, self._mujoco.mjtGeom
        shiny = np.append(model.mat_reflectance, 0.0)[model.geom_matid] > 0  # -1 stands for no material
        mirrors = shiny & np.isin(model.geom_type, [int(kinds.mjGEOM_PLANE), int(kinds.mjGEOM_BOX)])  # no others can be
        return not (model.light_castshadow.any() or mirrors.any())

    def close(self) -> None:
        """Free the textures and buffers; the process's OpenGL context stays open."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None


class Culling:
    """Leaves shapes that a camera cannot see out of its scene: MuJoCo draws all, and vertices are most of the work."""

    HIDDEN = 5  # a group of shapes that is not shown

    def __init__(self, model: Any) -> None:
        import mujoco

        self._model = model
        self._groups = model.geom_group.copy()
        self._boxes = model.geom_aabb.reshape(-1, 2, 3).copy()  # centre and half sizes in the shape's own axes
        self._endless = model.geom_type == int(mujoco.mjtGeom.mjGEOM_PLANE)
        self._plain = plain_cameras(model, range(model.ncam))

    @contextlib.contextmanager
    def __call__(self, data: Any, camera: int, aspect: float) -> Iterator[None]:
        """While open, the shapes outside of the camera's view are in a hidden group; physics reads no groups."""
        if not self._plain[camera]:
            yield
            return
        self._model.geom_group[~self.visible(data, camera, aspect)] = self.HIDDEN
        try:
            yield
        finally:
            self._model.geom_group[:] = self._groups

    def visible(self, data: Any, camera: int, aspect: float) -> np.ndarray:
        """bool [ngeom]: whether any part of a shape's box may be inside the pyramid that the camera sees."""
        slope = math.tan(math.radians(float(self._model.cam_fovy[camera])) / 2)
        sides = np.array(
            [[1, 0, -slope * aspect], [-1, 0, -slope * aspect], [0, 1, -slope], [0, -1, -slope], [0, 0, -1]]
        )
        sides = sides / np.linalg.norm(sides, axis=1, keepdims=True) @ data.cam_xmat[camera].reshape(3, 3).T  # inwards
        turns = data.geom_xmat.reshape(-1, 3, 3)
        centres = data.geom_xpos + (turns @ self._boxes[:, 0, :, None])[..., 0] - data.cam_xpos[camera]
        reach = np.einsum("gj,gjk->gk", self._boxes[:, 1], np.abs(turns.transpose(0, 2, 1) @ sides.T))
        return (centres @ sides.T + reach > -1e-3).all(axis=1) | self._endless  # a millimetre, for rounding


def view_options(mujoco: Any) -> Any:
    """What is shown: not the collision shapes."""
    option = mujoco.MjvOption()
    option.geomgroup[0] = 0
    option.geomgroup[1] = 1
    return option


def plain_cameras(model: Any, cameras: Sequence[int]) -> List[bool]:
    """Whether each camera has a plain field of view: no sensor sizes, no parallel projection."""
    # MuJoCo has renamed this; 0 is perspective.
    projection = np.asarray(model.cam_projection if hasattr(model, "cam_projection") else model.cam_orthographic)
    special = (model.cam_sensorsize != 0).any(axis=1) | (projection != 0)
    return [not bool(special[camera]) for camera in cameras]


def camera_id(model: Any, name: str) -> int:
    """The number of a camera; EnvError, with the cameras that there are, if the model has none of this name."""
    import mujoco

    found = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if found < 0:
        known = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
        raise EnvError(f"there is no camera '{name}'; this scene has {', '.join(str(n) for n in known)}")
    return found
