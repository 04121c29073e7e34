"""Plans that are remembered: nearest first pictures, each of another episode, judged by what came of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrained.demos.tracks import Shard, TrackedEpisode, write
from pretrained.flip.recall import Recall
from pretrained.flip.value import ValueModel
from rl.proposals.flip_plan import FlipPlan
from tests.rl.test_flip_plan import seen

SIDE, FRAMES, STRIDE = 16, 20, 2


class Brightness(ValueModel):
    """Worth is how bright a picture is."""

    def score(self, pictures: torch.Tensor, texts: object) -> torch.Tensor:
        return pictures.mean((1, 2, 3))


@pytest.fixture(scope="module")
def recall(tmp_path_factory: pytest.TempPathFactory) -> Recall:
    """Four episodes that brighten from 20 k on, at a pace of their own."""
    folder = tmp_path_factory.mktemp("memory") / "tracks"
    points = np.array([[0.0, 0.0], [15.0, 0.0], [0.0, 15.0], [15.0, 15.0]])
    episodes = []
    for k in range(4):
        grey = 20 * k + (k + 1) * np.arange(FRAMES)
        frames = np.broadcast_to(grey[:, None, None, None], (FRAMES, SIDE, SIDE, 3)).astype(np.uint8)
        tracks = np.broadcast_to(points[:, None] + 0.5 * k * np.arange(4)[:, None], (FRAMES, 4, 4, 2))
        episodes.append(TrackedEpisode(frames, tracks, np.ones((FRAMES, 4, 4), bool), "brighten"))
    write(folder, episodes, stride=STRIDE)
    return Recall(shard=folder, value=Brightness(clip="tiny", tokenizer="bytes"), near=2, ahead=2)


def grey(level: int) -> torch.Tensor:
    return torch.full((1, 1, 3, SIDE, SIDE), level / 255)


def test_nearest_episodes_are_drawn_with_what_came_of_them(recall: Recall) -> None:
    # 41 is frame 0 or 1 of episode 2 (40, 43), and frame 10 or 11 of episode 1 (40, 42).
    rngs = [torch.Generator().manual_seed(s) for s in range(12)]
    found = recall.imagine(grey(43).expand(12, -1, -1, -1, -1), ["brighten"] * 12, rngs)
    assert found.flow.shape == (12, 4, 4, 2)
    assert found.video.shape == (12, 3, 3, SIDE, SIDE)
    speed = (found.flow[:, 0, -1, 0] - found.flow[:, 0, 0, 0]) / 3 / 0.5
    assert set(speed.round().int().tolist()) == {1, 2}
    of_two = speed.round() == 2
    torch.testing.assert_close(found.video[of_two][0, :, 0, 0, 0], torch.tensor([49.0, 55.0, 61.0]) / 255)
    torch.testing.assert_close(found.scores[of_two][0], torch.tensor(43 + 3 * 2 * 2 * 3.0) / 255)  # 12 frames on
    torch.testing.assert_close(found.scores[~of_two][0], torch.tensor(20 + 2 * 19.0) / 255)  # the end of its episode


def test_the_planner_takes_the_best_of_what_it_remembers(recall: Recall) -> None:
    obs = seen(3)
    obs.images["front"][:] = 43
    rngs = [torch.Generator().manual_seed(s) for s in range(3)]
    hints = FlipPlan(world=recall, camera="front", candidates=8)(obs, rngs)
    moved = hints["plan/tracks"][:, 0, -1, 0] - hints["plan/tracks"][:, 0, 0, 0]
    torch.testing.assert_close(moved, torch.full((3,), 2 * 3 * 1.0 / SIDE))  # all of episode 2


def test_settings_that_make_no_sense_are_named(recall: Recall) -> None:
    shard = Path(str(recall.shard.frames.filename)).parent
    assert len(Shard(shard)) == 4 * FRAMES
    for options, words in (({"near": 5}, "near = 5 of 4 episodes"), ({"ahead": 0}, "ahead = 0 clip lengths")):
        with pytest.raises(ValueError, match=words):
            Recall(shard=shard, value=recall.value, **options)
