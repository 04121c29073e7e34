"""Initial states: the benchmark's numbers, and starts of single tasks in all scenes."""

import numpy as np
import pytest

from envs.calvin.oracle import TASKS
from envs.calvin.scenes import SCENES
from envs.calvin.states import official_start, single_tasks, task_start, text_seed
from envs.types import EnvError
from tests.golden_files import golden_json


def test_official_starts_are_the_recorded_ones():
    recorded = golden_json("calvin/reset_states.json")["states"]
    assert len(recorded) >= 20
    for row in recorded:
        state = row["initial_state"]
        assert str(state.values()) == row["values_text"]
        assert text_seed(state) == row["fnv_seed"]
        robot, scene = official_start(state)
        assert robot.tolist() == row["robot_obs"]
        assert scene.tolist() == row["scene_obs"]


def test_scenes_have_the_recorded_blocks_and_surfaces():
    recorded_scenes = golden_json("calvin/constants.json")["scenes"]
    for name in "ABCD":
        recorded = recorded_scenes[name]
        scene = SCENES[name]
        assert list(scene.block_names) == [block["name"] for block in recorded["blocks_in_order"]]
        urdfs = [f"blocks/block_{colour}_{size}.urdf" for colour, size in scene.blocks]
        assert urdfs == [block["urdf"] for block in recorded["blocks_in_order"]]
        assert {k: [list(corner) for corner in box] for k, box in scene.surfaces.items()} == recorded["surfaces"]
        assert scene.slide_range == pytest.approx(recorded["joints"]["doors"][0]["limits"][1])


def test_single_tasks_are_those_with_an_empty_hand():
    left_out = set(TASKS) - set(single_tasks())
    assert left_out == {"place_in_slider", "place_in_drawer", "stack_block"}
    with pytest.raises(EnvError, match="stack_block begins with a block in the hand"):
        task_start("stack_block", "D", 0)


@pytest.mark.parametrize("scene", SCENES)
def test_starts_fit_their_task_and_follow_the_seed(scene):
    names = SCENES[scene].block_names

    def start(task, seed):
        values = task_start(task, scene, seed)[1]
        blocks = dict(zip(names, values[6:].reshape(3, 6), strict=True))
        return values, blocks

    for seed in range(8):
        assert start("open_drawer", seed)[0][1] == 0.0
        assert start("close_drawer", seed)[0][1] == 0.22
        assert start("move_slider_right", seed)[0][0] == SCENES[scene].slide_range
        assert start("turn_on_lightbulb", seed)[0][3:5].tolist() == [0.0, 0.0]
        assert start("turn_off_led", seed)[0][5] == 1.0
        values, blocks = start("lift_blue_block_drawer", seed)
        assert values[1] == 0.22
        assert blocks["block_blue"][2] < 0.4
        heights = sorted(block[2] for block in start("unstack_block", seed)[1].values())
        assert heights[-1] == pytest.approx(0.5, abs=0.002)
    assert np.array_equal(start("open_drawer", 5)[0], start("open_drawer", 5)[0])
    assert not np.array_equal(start("open_drawer", 5)[0], start("open_drawer", 6)[0])
