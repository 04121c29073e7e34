"""Whether two groups of shapes touch, without a look at every contact in Python."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

import numpy as np


class ContactTest:
    """Does what robosuite's `env.check_contact` does, for one compiled model, and answers the same.

    robosuite compares the names of the shapes of each contact, one contact at a time; with the 90 contacts of a LIBERO
    scene that takes longer than three physics steps. Here the names become masks over the shapes' numbers once.
    """

    def __init__(self, model: Any, data: Any, names: Dict[str, int]) -> None:
        """`names` maps the name of each shape (MuJoCo geom) to its number."""
        self._data, self._names, self._count = data, names, int(model.ngeom)
        self._masks: Dict[Any, Tuple[Any, np.ndarray]] = {}

    def __call__(self, geoms_1: Any, geoms_2: Optional[Any] = None) -> bool:
        """Whether any shape of the first group touches any of the second (any other, if that is None).

        A group is a name, a list of names, or a robosuite model, which stands for its `contact_geoms`.
        """
        touching = self._data.contact.geom[: self._data.ncon]  # [ncon, 2]
        one = self._mask(geoms_1)[touching]
        if geoms_2 is None:
            return bool(one.any())
        other = self._mask(geoms_2)[touching]
        return bool(((one[:, 0] & other[:, 1]) | (one[:, 1] & other[:, 0])).any())

    def _mask(self, geoms: Any) -> np.ndarray:
        by_name = isinstance(geoms, (str, list, tuple, set, frozenset))
        key = (tuple(geoms) if not isinstance(geoms, str) else geoms) if by_name else id(geoms)
        if key not in self._masks:
            names = [geoms] if isinstance(geoms, str) else (geoms if by_name else geoms.contact_geoms)
            mask = np.zeros(self._count, dtype=bool)
            mask[[self._names[name] for name in names if name in self._names]] = True
            self._masks[key] = (geoms, mask)  # holding the model keeps its id from being given to another one
        return self._masks[key][1]
