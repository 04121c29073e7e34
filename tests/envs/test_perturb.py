"""Perturbations: each changes what it says and nothing else, the physics never; and what a configuration may say."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.load import load
from envs.libero_assets import find_assets
from envs.perturb import DEFAULTS, NAMED_COLOURS, SHORT, draw_texture, read_factors, recorded
from envs.perturb_mujoco import Perturbed
from envs.robosuite import Robosuite
from envs.types import EnvConfig, EnvError, EnvSpec
from envs.vector import SimVector

ROOT = Path(__file__).resolve().parents[2]
SIX = ("object_color", "distractor_object", "light_color", "background_texture", "table_texture", "camera_pose")
CAMERAS = {"agentview": [72, 72], "robot0_eye_in_hand": [48, 48]}
needs_robosuite = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is NOT installed")
OFFICIAL = """
data: {image_size: [128, 128]}
env:
  task_name: open_drawer
  seed: 7
  scene:
    factors:
      - variation: object_color
        name: manip_obj_color
        enabled: True
        targets: [cube]
        seed: ${env.seed}
      - variation: object_size
        enabled: False
        targets: [drawer_frame]
        scale_range: [0.75, 1.0]
        seed: ${env.seed}
      - variation: light_color
        enabled: True
        color_range: [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
        seed: 3
"""


# --- what a configuration may say ---


def test_short_names_and_nothing() -> None:
    assert read_factors("") == read_factors(None) == read_factors([]) == ()
    assert recorded(()) == ""
    for name in SHORT:
        (factor,) = read_factors(name)
        assert factor.variation == SHORT[name]
        assert factor.seed == 42
    assert set(SIX) < set(DEFAULTS)
    assert len(NAMED_COLOURS) == 20


def test_a_file_of_the_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "open_drawer.yaml"
    path.write_text(OFFICIAL)
    colour, light = read_factors(str(path))
    assert (colour.variation, colour.targets, colour.seed, colour.name) == (
        "object_color",
        ("cube",),
        7,
        "manip_obj_color",
    )
    assert (light.variation, light.seed, light.color_range[1]) == ("light_color", 3, (0.5, 0.5, 0.5))
    again = read_factors(json.loads(recorded((colour, light))))
    assert again == (colour, light)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("object_colour", "did you mean 'object_color'?"),
        ("no/such.yaml", "cannot be read"),
        ({"factors": 3}, "expected a list of factors"),
        ([{"variation": "camera_poses"}], "did you mean 'camera_pose'?"),
        ([{"variation": "object_size", "enabled": True}], "'object_size' is not supported"),
        ([{"variation": "light_color", "colour_range": []}], "did you mean 'color_range'?"),
        ([{"variation": "light_color", "color_range": [[0, 0, 0], [1, 1]]}], "two corners of three numbers"),
        ([{"variation": "camera_pose", "euler_range": [[0.1] * 3, [0.0] * 3]}], "the first not above"),
        ([{"variation": "camera_pose", "position_range": 0.1}], "expected [[a, b, c], [d, e, f]]"),
        ([{"variation": "light_color", "targets": "A"}], "expected a list of names"),
        ([{"variation": "light_color", "seed": "x"}], "expected a whole number"),
        ([{"variation": "distractor_object", "num_objects": 99}], "expected 0 to 20"),
    ],
)
def test_mistakes_are_named(node: Any, words: str) -> None:
    with pytest.raises(EnvError) as found:
        read_factors(node)
    assert words in str(found.value)


def test_textures_come_from_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = draw_texture(rng, (20, 30))
    assert made.shape == (20, 30, 3)
    assert made.std() > 5
    with pytest.raises(EnvError, match="no picture in"):
        draw_texture(rng, (8, 8), str(tmp_path))
    Image.new("RGB", (4, 4), (10, 200, 30)).save(tmp_path / "green.png")
    assert (draw_texture(rng, (5, 6), str(tmp_path)) == (10, 200, 30)).all()
    (tmp_path / "green.png").write_bytes(b"no")
    with pytest.raises(EnvError, match="no readable picture"):
        draw_texture(rng, (8, 8), str(tmp_path))


def test_a_run_says_what_was_perturbed() -> None:
    tree = load("collect", ["env=robosuite_lift", "env.perturb=camera_pose"])["env"]
    config = EnvConfig(**{k: v for k, v in tree.items() if k != "_target_"})
    assert config.sim["perturb"] == "camera_pose"
    vector = SimVector
    with pytest.raises(EnvError, match="envs.toy.Toy cannot be perturbed"):
        vector([EnvConfig(sim={"_target_": "envs.toy.Toy"}, python=sys.executable, perturb="camera_pose")])


# --- what is seen ---


@pytest.fixture(scope="module")
def lift() -> Iterator[Robosuite]:
    env = Robosuite(cameras=CAMERAS, core="fast", render_quality="fast", max_steps=40)
    yield env
    env.close()


def with_factors(env: Robosuite, node: Any) -> None:
    """Perturb an environment that is there, as its constructor would have."""
    arm = env._arm
    assert arm is not None
    if arm._perturbed is not None:
        arm._perturbed.restore()
        assert arm._renderer is not None
        arm._renderer.refresh(arm._perturbed.textures)
    factors = read_factors(node)
    arm._perturbed = Perturbed(arm.model, factors) if factors else None


def look(env: Robosuite, node: Any, seed: int = 5) -> dict[str, np.ndarray]:
    with_factors(env, node)
    return env.reset("Lift", seed).images


def differing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """bool [Y, X]: where two pictures differ by more than rounding."""
    return np.abs(a.astype(int) - b).max(-1) > 8


def shown(env: Robosuite, *kinds: tuple[str, ...]) -> list[np.ndarray]:
    """bool [Y, X] for each kind: which pixels of the agent's view show shapes whose name or body begins so."""
    import mujoco

    arm = env._arm
    assert arm is not None
    renderer = mujoco.Renderer(arm.model, *CAMERAS["agentview"])
    renderer.enable_segmentation_rendering()
    option = mujoco.MjvOption()
    option.geomgroup[0] = 0
    renderer.update_scene(arm.data, "agentview", option)
    found = renderer.render()[..., 0]
    renderer.close()
    model = arm.model
    names = [(model.geom(g).name, model.body(model.geom_bodyid[g]).name) for g in range(model.ngeom)]
    return [
        np.isin(found, [g for g, both in enumerate(names) if any(n.startswith(kind) for n in both)]) for kind in kinds
    ]


def grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its neighbours: edges are not the same in every rendering."""
    out = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            out |= np.roll(mask, step, axis)
    return out


@needs_robosuite
@pytest.mark.sim
def test_each_changes_what_it_says(lift: Robosuite) -> None:
    plain = look(lift, "")
    robot, cube, table, walls = shown(lift, ("robot0", "gripper0", "mount0"), ("cube",), ("table",), ("wall", "floor"))
    assert min(m.sum() for m in (robot, cube, table, walls)) >= 9
    changed = {name: differing(look(lift, name)["agentview"], plain["agentview"]) for name in SIX}
    colour = differing(look(lift, [{"variation": "object_color", "seed": 1}])["agentview"], plain["agentview"])
    assert (changed["object_color"] | colour)[cube].mean() > 0.5
    assert not changed["object_color"][~grown(grown(cube))].any()
    assert changed["table_texture"][table].mean() > 0.3
    assert changed["table_texture"][robot & ~grown(table | cube)].mean() < 0.1
    assert changed["background_texture"][walls].mean() > 0.3
    assert changed["background_texture"][~grown(walls)].mean() < 0.1
    assert changed["light_color"][table | walls].mean() > 0.5
    assert changed["camera_pose"].mean() > 0.1
    assert 0.002 < changed["distractor_object"].mean() < 0.3
    after = look(lift, "")
    np.testing.assert_array_equal(after["agentview"], plain["agentview"])
    np.testing.assert_array_equal(after["robot0_eye_in_hand"], plain["robot0_eye_in_hand"])
    hand = look(lift, "camera_pose")["robot0_eye_in_hand"]
    np.testing.assert_array_equal(hand, plain["robot0_eye_in_hand"])  # cameras on the robot stay


@needs_robosuite
@pytest.mark.sim
def test_distractors_stand_on_the_table_and_keep_clear(lift: Robosuite) -> None:
    for seed in range(6):
        look(lift, [{"variation": "distractor_object", "num_objects": 3}], seed)
        arm = lift._arm
        assert arm is not None
        assert arm._perturbed is not None
        solids = arm._perturbed.solids
        assert len(solids) == 3
        cube = arm.data.body("cube_main").xpos
        for i, solid in enumerate(solids):
            assert 0.8 + 0.015 < solid.position[2] < 0.8 + 0.075  # the table is 0.8 m high
            assert np.linalg.norm((solid.position - cube)[:2]) > 0.05
            assert all(np.linalg.norm((solid.position - other.position)[:2]) >= 0.12 for other in solids[:i])


@needs_robosuite
@pytest.mark.sim
def test_a_seed_always_looks_the_same(lift: Robosuite) -> None:
    first = {name: look(lift, name, 3)["agentview"] for name in SIX}
    for name in SIX:
        other = look(lift, name, 4)
        again = look(lift, name, 3)["agentview"]
        np.testing.assert_array_equal(again, first[name])
        assert differing(other["agentview"], again).any(), name


@needs_robosuite
@pytest.mark.sim
@pytest.mark.parametrize("core", ["fast", "stock"])
def test_nothing_moves_otherwise(lift: Robosuite, core: str) -> None:
    env = lift if core == "fast" else Robosuite(cameras=CAMERAS, core=core, render_quality="fast", max_steps=40)
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7))

    def played(node: Any) -> np.ndarray:
        look(env, node)
        steps = [env.step(a, render=i % 4 == 0).obs for i, a in enumerate(actions)]
        return np.stack([np.concatenate([o.privileged["state"], o.proprio]) for o in steps])

    expected = played("")
    for node in (*SIX, [{"variation": v} for v in DEFAULTS]):
        assert np.array_equal(played(node), expected), node
    with_factors(env, "")
    if core == "stock":
        env.close()


@needs_robosuite
@pytest.mark.sim
def test_names_that_the_scene_lacks(lift: Robosuite) -> None:
    arm = lift._arm
    assert arm is not None
    for node, words in (
        ([{"variation": "object_color", "targets": ["drawer"]}], "no body or geom 'drawer'"),
        ([{"variation": "light_color", "targets": ["DefaultLightA"]}], "no light 'DefaultLightA'"),
        ([{"variation": "camera_pose", "targets": ["cam_front"]}], "no camera 'cam_front'"),
    ):
        with pytest.raises(EnvError, match=words):
            Perturbed(arm.model, read_factors(node))
    (factor,) = read_factors([{"variation": "object_color", "targets": ["cube_main"]}])
    assert Perturbed(arm.model, [factor])._targets(factor)


@needs_robosuite
@pytest.mark.sim
def test_a_renderer_that_knows_no_changes_is_refused() -> None:
    with pytest.raises(EnvError, match="perturb needs exact, fast or lite"):
        Robosuite(cameras=CAMERAS, render_quality="soft", perturb="camera_pose")


@pytest.mark.sim
def test_libero_and_its_record() -> None:
    """Two children of one task, one with everything perturbed: other pictures, the same states to the bit."""
    own = ROOT / ".venvs" / "libero" / "bin" / "python"
    if not own.exists() and importlib.util.find_spec("libero") is None:
        pytest.skip("LIBERO IS NOT TESTED: it is not installed")
    try:
        find_assets()
    except EnvError as e:
        pytest.skip(f"LIBERO IS NOT TESTED: {e}")
    sim = {"_target_": "envs.libero.Libero", "name": "libero_spatial", "core": "fast", "render_quality": "fast",
           "cameras": {"agentview": [64, 64]}}  # fmt: skip
    everything = [{"variation": v} for v in DEFAULTS]
    vector = SimVector([EnvConfig(sim=sim), EnvConfig(sim=sim, perturb=everything)])
    try:
        specs = [row.child.spec for row in vector._rows]
        assert isinstance(specs[1], EnvSpec)
        assert [f["variation"] for f in json.loads(specs[1].perturbation)] == list(DEFAULTS)
        for i in range(2):
            vector.send_reset(i, vector.tasks[0], 3)
        seen: list[list[np.ndarray]] = [[], []]
        actions = np.random.default_rng(0).uniform(-1, 1, (6, 1, 7))
        images: list[np.ndarray] = []
        for t in range(len(actions) + 1):
            pending = {0, 1}
            while pending:
                for i in vector.wait():
                    obs = vector.take(i).obs
                    assert obs is not None
                    seen[i].append(np.concatenate([obs.privileged["state"], obs.proprio]))
                    pending.discard(i)
                    if t == 0:
                        images.append(obs.images["agentview"].copy())
            for i in range(2 if t < len(actions) else 0):
                vector.send_step(i, actions[t])
        assert np.array_equal(seen[0], seen[1])
        assert differing(images[0], images[1]).mean() > 0.3
    finally:
        vector.close()
