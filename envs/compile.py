"""Compile one scene to MuJoCo's binary format: `python -m envs.compile SIM VISUALS FILE < scene.xml`.

Runs in a process of its own, because MuJoCo keeps what it has read (hundreds of megabytes) for the next compilation,
and the simulator that wants the model does not need it. Leaves with status 3 and a message for a mistake of the user's.

What is seen may be made coarser here; what moves may not: every number of the model that physics reads is compared
with the exact model's before the file is written.
"""

from __future__ import annotations

import sys
from typing import Any, Dict, List

import numpy as np

from envs.lite import LiteAssets
from envs.types import EnvError

VISUALS = ("exact", "lite", "none")  # as the package has it; from lite assets; stand-ins, for runs without cameras
# Arrays of MuJoCo's model that describe what is seen, or where things lie in memory.
_SEEN = ("mesh_", "tex_", "bvh_", "oct_", "name", "paths", "body_bvh", "mat_", "geom_dataid", "text_")
_SEEN_GEOM = ("geom_pos", "geom_quat", "geom_size", "geom_aabb", "geom_rbound", "geom_sameframe")
_CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float64) * 0.01
_SIDES = [0, 2, 1, 0, 1, 3, 0, 3, 2, 1, 2, 3]


def compile_scene(xml: str, *, sim: str, visuals: str) -> Any:
    """The compiled model of a scene, with the visual shapes and textures asked for."""
    import mujoco

    exact = mujoco.MjModel.from_xml_string(xml)
    if visuals == "exact":
        return exact
    spec = mujoco.MjSpec.from_string(xml)
    if visuals == "lite":
        _use_copies(spec, LiteAssets(sim))
    else:
        _use_stand_ins(spec)
    model = spec.compile()
    for name in ("extent", "center", "meansize"):  # the camera's near and far planes hang on these
        setattr(model.stat, name, getattr(exact.stat, name))
    if hasattr(exact, "dof_length"):  # when bodies fall asleep, if that is switched on, hangs on the size of all shapes
        model.dof_length[:] = exact.dof_length
    if unlike := differences(exact, model):
        raise EnvError(
            f"with visuals '{visuals}' this scene would not move as the exact one does (differs in "
            f"{', '.join(unlike)}); use render_quality: exact or fast"
        )
    return model


def _visual(geom: Any) -> bool:
    """Whether a shape (of a scene or a compiled model) is only there to be seen."""
    return int(geom.group) == 1 and int(geom.contype) == 0 and int(geom.conaffinity) == 0


def _visual_meshes(spec: Any) -> List[Any]:
    """The meshes that only visual shapes use. Where others use them too, the visual shapes get meshes of their own."""
    import mujoco

    users: Dict[str, List[Any]] = {}
    for geom in spec.geoms:
        if geom.meshname:
            users.setdefault(geom.meshname, []).append(geom)
    visual = []
    for mesh in list(spec.meshes):
        seen = [geom for geom in users.get(mesh.name, []) if _visual(geom)]
        if seen and len(seen) < len(users[mesh.name]):
            own = spec.add_mesh(name=f"{mesh.name}@seen", file=mesh.file, scale=mesh.scale)
            for geom in seen:
                geom.meshname = own.name
            mesh = own
        if seen:
            mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # a coarse or open shape need not have a volume
            visual.append(mesh)
    return visual


def _use_copies(spec: Any, lite: LiteAssets) -> None:
    from pathlib import Path

    for mesh in _visual_meshes(spec):
        copy = lite.replacement(Path(mesh.file))
        if copy is not None:
            mesh.file = str(copy)
    for texture in spec.textures:
        if texture.file and list(texture.gridsize) == [1, 1]:
            copy = lite.replacement(Path(texture.file))
            if copy is not None:
                texture.file = str(copy)


def _use_stand_ins(spec: Any) -> None:
    """A tetrahedron for every visual mesh, one pixel for every texture; names and numbers of things stay."""
    import mujoco

    for mesh in _visual_meshes(spec):
        mesh.file = ""
        mesh.uservert, mesh.userface = _CORNERS.reshape(-1), _SIDES
    for texture in spec.textures:
        if texture.file or texture.builtin != mujoco.mjtBuiltin.mjBUILTIN_NONE:
            texture.file = ""
            texture.builtin, texture.width, texture.height = mujoco.mjtBuiltin.mjBUILTIN_FLAT, 1, 1


# --- proof ------------------------------------------------------------------------------------------------------------


def differences(exact: Any, model: Any) -> List[str]:
    """Names of what physics reads and in which two models of one scene differ, to the bit; [] is good."""
    if (exact.nq, exact.nv, exact.ngeom, exact.nbody) != (model.nq, model.nv, model.ngeom, model.nbody):
        return ["the number of joints, shapes or bodies"]
    seen = np.array([_visual_row(exact, i) for i in range(exact.ngeom)], bool)
    found = []
    for name in sorted(dir(exact)):
        a, b = getattr(exact, name), getattr(model, name)
        if name.startswith(("_", *_SEEN)) or not isinstance(a, np.ndarray):
            continue
        if name in _SEEN_GEOM:
            a, b = a[~seen], b[~seen]
        if a.shape != b.shape or a.tobytes() != b.tobytes():
            found.append(name)
    if exact.stat.meaninertia != model.stat.meaninertia:
        found.append("stat.meaninertia")
    return found + _unlike_hulls(exact, model, np.flatnonzero(~seen))


def _visual_row(model: Any, geom: int) -> bool:
    return model.geom_group[geom] == 1 and model.geom_contype[geom] == 0 and model.geom_conaffinity[geom] == 0


def _unlike_hulls(exact: Any, model: Any, geoms: np.ndarray) -> List[str]:
    """Whether any mesh that things collide with has other vertices, faces or another convex hull."""
    import mujoco

    for geom in geoms:
        if exact.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        parts = [_shape(m, int(m.geom_dataid[geom])) for m in (exact, model)]
        if parts[0] != parts[1]:
            return ["the collision meshes"]
    return []


def _shape(model: Any, mesh: int) -> List[bytes]:
    vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
    faces = slice(model.mesh_faceadr[mesh], model.mesh_faceadr[mesh] + model.mesh_facenum[mesh])
    parts = [model.mesh_vert[vertices].tobytes(), model.mesh_face[faces].tobytes()]
    start = int(model.mesh_graphadr[mesh])
    if start >= 0:  # counts of vertices and faces come first, then their tables
        num_vertices, num_faces = (int(n) for n in model.mesh_graph[start : start + 2])
        parts.append(model.mesh_graph[start : start + 2 + 3 * num_vertices + 6 * num_faces].tobytes())
    return parts


def main(words: List[str]) -> int:
    """Compile standard input; returns the exit status."""
    import mujoco

    sim, visuals, target = words
    try:
        model = compile_scene(sys.stdin.buffer.read().decode("utf-8"), sim=sim, visuals=visuals)
    except (EnvError, ValueError) as e:  # MuJoCo's complaints about a scene are ValueErrors
        sys.stdout.write(str(e))
        return 3
    mujoco.mj_saveModel(model, target, None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
