"""Episodes that the expert makes in AI2-THOR: kept in both layouts, and set again as tasks."""

import json
from pathlib import Path
from typing import Any

import h5py
import pytest

from envs import stretch
from envs.types import EnvConfig
from pretrained.demos import tasks
from pretrained.demos.collect import CollectRun, collect
from pretrained.demos.spoc import Chores
from tests.thor_house import PYTHON, house_file, open_vector, reset, sim, thor_is_here

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("thor_is_here")]
__all__ = ["house_file", "thor_is_here"]


def test_collected_episodes_in_the_chores_layout_are_set_again(house_file: Path, tmp_path: Path) -> None:
    config = EnvConfig(sim=sim(house_file, max_steps=60), python=str(PYTHON), tasks=("ObjectNavType",))
    out, root = tmp_path / "demos.hdf5", tmp_path / "chores"
    collect(CollectRun(env=config, out=str(out), episodes=1, workers=1, quiet=True, chores=str(root)))
    made, read = Chores(paths=out).walk(0), Chores(paths=root).walk(0)
    assert read.actions.tolist() == made.actions.tolist()
    assert read.frames(stretch.MANIPULATION, slice(0, 2)).shape == (2, 64, 112, 3)
    assert tasks.main([str(root), str(tmp_path / "tasks.jsonl"), "--split", "train"]) == 0
    vector = open_vector(house_file, task_file=str(tmp_path / "tasks.jsonl"), split="train")
    try:
        again = reset(vector, "ObjectNavType", 0).obs
        assert again is not None
        assert again.instruction == made.instruction
        with h5py.File(out) as opened:
            notes: Any = opened["data/demo_0/notes"]
            task = json.loads(notes[()])["task"]
        start = [*task["agent_starting_position"], task["agent_y_rotation"]]
        assert again.privileged["agent"][[0, 2, 3]] == pytest.approx([start[0], start[2], start[3]])
    finally:
        vector.close()
    with pytest.raises(ValueError, match="already holds episodes"):
        collect(CollectRun(env=config, out=str(out), episodes=1, chores=str(root)))
