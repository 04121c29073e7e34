"""Tasks of a data set in the CHORES layout become a task file."""

import json
from pathlib import Path

import numpy as np
import pytest

from envs.chores.tasks import TaskFile
from pretrained.demos.spoc import CAMERAS, write_walk
from pretrained.demos.tasks import main

SPEC = {
    "task_type": "FetchType", "natural_language_spec": "Find a Mug and take it", "synsets": ["mug.n.04"],
    "broad_synset_to_object_ids": {"mug.n.04": ["Mug|1"]},
}  # fmt: skip


def write(root: Path, *, house: int, name: str, spec: dict) -> None:
    frames = {c: np.zeros((4, 16, 28, 3), np.uint8) for c in CAMERAS}
    places = np.array([[1.0, 0.9, 2.0, 0.0, 90.0, 0.0]] * 4)
    write_walk(root, task="FetchType", split="val", house=house, name=name, frames=frames, actions=["m", "p", "end"],
               in_hand=np.zeros(4), spec=spec, sensors={"last_agent_location": places})  # fmt: skip


def test_tasks_are_written_with_house_and_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data", house=12, name="0", spec=SPEC)
    write(tmp_path / "data", house=3, name="1", spec=SPEC)
    write(tmp_path / "data", house=3, name="2", spec={"natural_language_spec": "nothing"})
    assert main([str(tmp_path / "data"), str(tmp_path / "tasks.jsonl")]) == 0
    assert capsys.readouterr().out.startswith("2 tasks in")
    tasks = TaskFile(str(tmp_path / "tasks.jsonl")).tasks["FetchType"]
    assert [house for house, _ in tasks] == [3, 12]
    chore = tasks[0][1]
    assert chore.start == (1.0, 0.9, 2.0, 90.0)
    assert (chore.expert_length, chore.targets, chore.instruction) == (3, ("Mug|1",), "find a mug and take it")
    assert json.loads((tmp_path / "tasks.jsonl").read_text().splitlines()[0])["house_index"] == 3


def test_no_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "tasks.jsonl")]) == 2
    assert "expected the CHORES layout" in capsys.readouterr().err
