"""What a proposal painted, as PNG files: one per plan, the cameras above, the painted pictures below."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.record import write_picture

GAP = 4  # black pixels between pictures


class HintPictures:
    """Writes `folder/017_seed17/0003.png` for the 4th plan of episode 17, for episodes below `episodes`."""

    def __init__(self, folder: Path, *, episodes: int) -> None:
        self.folder, self.episodes = folder, episodes
        self._written: dict[int, int] = {}  # episode -> plans

    def begin(self, episode: int) -> None:
        """An episode starts, perhaps once more: number its plans from 0."""
        self._written[episode] = 0

    def add(
        self, episode: int, seed: int, images: Mapping[str, np.ndarray | Tensor], hints: Mapping[str, Tensor]
    ) -> None:
        """What one row saw, [L, Y, X, 3] per camera, and its hints, of which pictures [Y, X, 3] are written."""
        if episode >= self.episodes:
            return
        painted = [v.cpu().numpy() for v in hints.values() if v.dtype == torch.uint8 and v.dim() == 3]
        if not painted:
            raise ValueError(
                f"the proposal's hints {list(hints)} are no pictures, so hint_pictures={self.episodes} has nothing to "
                "write; choose proposal=target_image, or leave it out"
            )
        number = self._written.get(episode, 0)
        self._written[episode] = number + 1
        seen = [np.asarray(torch.as_tensor(v)[-1]) for v in images.values()]
        write_picture(self.folder / f"{episode:03d}_seed{seed}" / f"{number:04d}.png", _rows([seen, painted]))


def _rows(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures of any size in rows, on black."""
    lines = []
    for pictures in rows:
        height = max(p.shape[0] for p in pictures)
        padded = [np.pad(p, ((0, height - p.shape[0]), (0, GAP), (0, 0))) for p in pictures]
        lines.append(np.concatenate(padded, 1)[:, :-GAP])
    width = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, GAP), (0, width - line.shape[1]), (0, 0))) for line in lines]
    return np.concatenate(padded)[:-GAP]
