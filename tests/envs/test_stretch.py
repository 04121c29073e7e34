"""The Stretch robot's interface."""

import numpy as np
import pytest

from envs import stretch
from tests.golden_files import golden_json


def test_actions_are_in_the_order_of_the_head() -> None:
    names = golden_json("flare_eval/rewards.json")["action_names"]
    assert [short for _, short, _ in stretch.ACTIONS] == names
    assert [stretch.action_index(name) for name in names] == list(range(20))
    assert stretch.action_index("move_ahead") == 0
    assert stretch.action_index("done") == stretch.action_index("end") == 4
    with pytest.raises(ValueError, match="action 'jump' is unknown; expected one of"):
        stretch.action_index("jump")


def test_spec() -> None:
    spec = stretch.spec()
    assert spec.num_actions == len(stretch.ACTIONS) == 20
    assert spec.cameras == {stretch.NAVIGATION: (224, 384), stretch.MANIPULATION: (224, 384)}
    assert spec == type(spec).from_json(spec.to_json())


def test_sides_are_cut_off() -> None:
    frame = np.arange(2 * 396 * 4).reshape(2, 396, 4).astype(np.uint8)
    assert np.array_equal(stretch.crop_sides(frame), frame[:, 6:390, :3])
