"""A tracker that needs neither a simulator nor weights: optical flow from OpenCV, for rewards that look at pictures.

DIS (Kroeger et al. 2016) gives a dense flow from the first picture to each other one, and back; a point is visible
where both agree. It is less exact than `pretrained.demos.tracks.follow`: docs/flip.md says by how much.
"""

from typing import Any

import numpy as np

from pretrained.demos.tracks import Tracked

AGREE = 1.5  # pixels between a point and where the flow there and back leads


class Optical:
    """Meets `pretrained.demos.tracks.Tracker`."""

    def __init__(self, *, enlarge: int = 2) -> None:
        """`enlarge`: pictures are made larger by so much first, as DIS matches patches of 8 pixels."""
        if enlarge < 1:
            raise ValueError(f"optical tracker: enlarge = {enlarge}, expected at least 1")
        self.enlarge, self._flow = enlarge, None

    def __call__(self, frames: np.ndarray, points: np.ndarray) -> Tracked:
        """Points [P, 2] of the first of the frames uint8 [F, Y, X, 3], in all of them."""
        if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[3] != 3:
            raise ValueError(f"frames to track have shape {frames.shape} ({frames.dtype}), expected uint8 [F, Y, X, 3]")
        places = np.asarray(points, dtype=np.float64)
        grey = [self._grey(f) for f in frames]
        tracks = np.repeat(places[:, None], len(frames), 1)
        visible = np.ones(tracks.shape[:2], dtype=bool)
        for f in range(1, len(frames)):
            there, back = self._between(grey[0], grey[f]), self._between(grey[f], grey[0])
            moved = places + _at(there, places)
            inside = ((moved > -0.5) & (moved < np.array(frames.shape[2:0:-1]) - 0.5)).all(1)
            returned = moved + _at(back, moved)
            tracks[:, f] = moved
            visible[:, f] = inside & (np.linalg.norm(returned - places, axis=1) < AGREE)
        return Tracked(tracks, visible)

    def _grey(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        size = (frame.shape[1] * self.enlarge, frame.shape[0] * self.enlarge)
        return cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC)

    def _between(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """[Y, X, 2] pixels of the pictures as they came."""
        import cv2

        if self._flow is None:
            self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        found: Any = self._flow.calc(a, b, None)
        return found[:: self.enlarge, :: self.enlarge] / self.enlarge


def _at(flow: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The flow [P, 2] at places [P, 2], of the nearest pixel."""
    y, x = flow.shape[:2]
    column, row = np.clip(np.rint(places).astype(int), 0, [x - 1, y - 1]).T
    return flow[row, column].astype(np.float64)
