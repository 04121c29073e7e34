"""The scripted expert of the play table: it does its tasks, with noise too, and whole chains."""

from pathlib import Path

import numpy as np
import pytest

from envs.calvin.chains import official_chain
from envs.calvin.env import CHAIN
from envs.calvin.instructions import INSTRUCTIONS
from envs.calvin.states import single_tasks
from envs.experts import make_expert
from envs.experts.calvin import PLANS, CalvinExpert
from envs.types import EnvError, Observation
from tests.calvin_parts import need_calvin, run

PLAY = str(Path(__file__).with_name("play.py"))
SINGLE = [task for task in PLANS if task in single_tasks()]
SOLVED = (6, 15, 23)  # official chains of its tasks; between them lifts, stacks, doors and lights


@pytest.fixture(scope="module")
def calvin():
    need_calvin()


def test_it_is_found_for_scenes_and_chains():
    assert type(make_expert("calvin/D", "open_drawer")) is CalvinExpert
    assert type(make_expert("calvin/D_chains", CHAIN)) is CalvinExpert
    assert len(SINGLE) == 28
    with pytest.raises(EnvError, match="cannot do 'place_in_slider'; expected one of move_slider_left"):
        make_expert("calvin/D", "place_in_slider")


def test_it_refuses_a_chain_with_a_task_it_cannot_do():
    expert = make_expert("calvin/D_chains", CHAIN)
    number = float(list(INSTRUCTIONS).index("place_in_slider"))
    obs = Observation({}, np.zeros(15, np.float32), "", {"task": np.array(number)})
    expert.reset(obs)
    with pytest.raises(EnvError, match="cannot do 'place_in_slider'; choose chains of"):
        expert.act(obs)


@pytest.mark.sim
@pytest.mark.usefixtures("calvin")
def test_it_does_every_task():
    found = run(PLAY, "D", "2", "0", *SINGLE)
    assert {task for task, steps in found.items() if -1 in steps} == set()
    assert max(max(steps) for steps in found.values()) <= 120


@pytest.mark.sim
@pytest.mark.usefixtures("calvin")
def test_it_does_whole_chains():
    for index in SOLVED:
        assert set(official_chain(index)[1]) <= set(PLANS)
    assert run(PLAY, "D", ",".join(map(str, SOLVED)), "0", CHAIN) == {CHAIN: [5] * len(SOLVED)}


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.usefixtures("calvin")
def test_it_does_every_task_over_twenty_seeds():
    found = run(PLAY, "D", "20", "0", *SINGLE)
    failed = {task: steps.count(-1) for task, steps in found.items() if -1 in steps}
    assert sum(failed.values()) <= 5, failed
    assert max(failed.values(), default=0) <= 2, failed


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.usefixtures("calvin")
@pytest.mark.parametrize("scene", "ABC")
def test_doors_and_lights_in_the_other_scenes(scene):
    tasks = [t for t in SINGLE if t.startswith(("move_", "open_", "close_", "turn_"))]
    found = run(PLAY, scene, "2", "0", *tasks)
    assert {task for task, steps in found.items() if -1 in steps} == set()


@pytest.mark.sim
@pytest.mark.usefixtures("calvin")
def test_noise_makes_it_slower_but_it_arrives():
    tasks = ("open_drawer", "turn_on_led", "move_slider_left", "lift_red_block_table")
    found = run(PLAY, "D", "3", "0.3", *tasks)
    assert sum(steps.count(-1) for steps in found.values()) <= 1
