"""Tables of navigation episodes from what a simulator tells of them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs import stretch
from envs.types import EnvSpec, Observation
from pretrained.types import Decision
from rl.captions import caption
from rl.navigation import episode_metrics
from rl.types import EpisodeRecord
from rl.walks import Walk, Walks, write_tables

ROOMS = {"room|0": [[0, 0], [4, 0], [4, 4], [0, 4]], "room|1": [[4, 0], [8, 0], [8, 4], [4, 4]]}


def spec() -> EnvSpec:
    return replace(stretch.spec(), privileged={"agent": (4,), "worked": ()})


def seen(x: float, worked: bool = True, **notes: object) -> Observation:
    state = {"agent": np.array([x, 0.9, 1.0, 0.0]), "worked": np.array(float(worked))}
    return Observation({}, np.zeros(1, np.float32), "go", state, notes)


def test_an_episode_becomes_figures(tmp_path: Path) -> None:
    notes = {"rooms": ROOMS, "expert_length": 3, "best_distance": 4.0, "category": "Mug"}
    walk = Walk(spec(), seen(1.0, **notes))
    for x, worked in ((3.0, True), (3.0, False), (5.0, True), (5.0, True)):
        walk.follow(seen(x, worked), 0.0)
    walked = walk.walked(EpisodeRecord("ai2thor/stretch", "FetchType", 0, True, 4, 10.0))
    figures = episode_metrics(walked)
    assert figures["sel"] == 3 / 4
    assert figures["spl"] == 1.0
    assert figures["percentage_collision"] == 1 / 4
    assert figures["total_rooms_visited"] == 2
    table = write_tables(tmp_path, [walked])
    assert set(table) == {"all", "FetchType", "FetchType/Mug"}
    assert json.loads((tmp_path / "tables.json").read_text())["FetchType/Mug"]["success"] == 1.0
    rows = list(csv.DictReader((tmp_path / "tables.csv").open()))
    assert [r["rows"] for r in rows] == ["all", "FetchType", "FetchType/Mug"]
    assert float(rows[0]["eps_len"]) == 4


def test_marks_of_room_visit_are_counted() -> None:
    walk = Walk(spec(), seen(1.0, rooms=ROOMS, best_distance=-1.0))
    mark = float(stretch.action_index("sub_done"))
    for x, action in ((1.0, mark), (1.0, mark), (5.0, 0.0), (5.0, mark)):
        walk.follow(seen(x), action)
    walked = walk.walked(EpisodeRecord("ai2thor/stretch", "RoomVisit", 0, False, 4, 0.0))
    figures = episode_metrics(walked)
    assert (figures["coverage"], figures["sub_done_acc"]) == (1.0, pytest.approx(2 / 3))
    assert "spl" not in figures
    assert "sel" not in figures


def test_other_robots_do_not_walk() -> None:
    Walks().begin(0, spec(), seen(1.0, rooms=ROOMS))
    with pytest.raises(ValueError, match="agent.*worked.*take `tables` out"):
        Walks().begin(0, stretch.spec(), seen(1.0, rooms=ROOMS))


def test_captions_name_the_action_and_its_chance() -> None:
    chunk = torch.tensor([[[4]], [[1]]])
    log_prob = torch.tensor([[0.0], [0.25]]).log()
    active = torch.ones(2, 1, dtype=torch.bool)
    decision = Decision(chunk, chunk[:, None].float(), log_prob, active, torch.tensor([0.0, 3.456]))
    assert caption(spec(), decision, 1) == "rotate_right  ||||| 25 %  value 3.46"
    assert caption(spec(), decision, 0) == "done   0 %  value 0.00"
    assert caption(replace(spec(), action_convention="other"), decision, 1).startswith("action 1  |||||")
