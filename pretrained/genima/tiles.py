"""Several camera views as one picture, and back; and pictures to draw on instead of the scene.

A tile of four views has the first two above, the last two below; of two, side by side. The model that paints tiles
knows where which camera is, so the order belongs to the model: GENIMA's is `ORDER`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

ORDER = ("wrist", "front", "right_shoulder", "left_shoulder")
GRIDS = {1: (1, 1), 2: (1, 2), 4: (2, 2)}  # views -> rows, columns
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def grid(num_views: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    if num_views not in GRIDS:
        raise ValueError(f"a tile has {sorted(GRIDS)} views, not {num_views}; choose other cameras")
    return GRIDS[num_views]


def tile(views: Mapping[str, np.ndarray], order: Sequence[str] = ORDER) -> np.ndarray:
    """Camera -> [..., Y, X, 3], to one picture [..., rows Y, columns X, 3]. Other cameras are left out."""
    missing = [c for c in order if c not in views]
    if missing:
        raise ValueError(f"cameras {missing} of the tile are missing; there are {sorted(views)}")
    shapes = {c: np.shape(views[c]) for c in order}
    first = shapes[order[0]]
    if len(first) < 3 or first[-1] != 3 or len(set(shapes.values())) > 1:
        raise ValueError(f"the views of a tile must all be [..., Y, X, 3] of one size, got {shapes}")
    rows, columns = grid(len(order))
    lines = [np.concatenate([views[c] for c in order[r * columns : (r + 1) * columns]], -2) for r in range(rows)]
    return np.concatenate(lines, -3)


def untile(
    picture: np.ndarray, order: Sequence[str] = ORDER, *, size: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """The views [..., Y, X, 3] of a picture; `size` (Y, X) is what they should have."""
    rows, columns = grid(len(order))
    tall, wide = np.shape(picture)[-3:-1]
    wanted = None if size is None else (rows * size[0], columns * size[1])
    if tall % rows or wide % columns or (wanted is not None and wanted != (tall, wide)):
        expected = f"{wanted}" if wanted else f"a multiple of {(rows, columns)}"
        raise ValueError(f"the picture is {tall} by {wide}, expected {expected} for {rows} by {columns} views")
    y, x = tall // rows, wide // columns
    return {c: picture[..., i // columns * y : (i // columns + 1) * y, i % columns * x : (i % columns + 1) * x, :]
            for i, c in enumerate(order)}  # fmt: skip


def check_order(order: Sequence[str], expected: Sequence[str], what: str) -> None:
    """Raise ValueError unless two tiles have the same cameras at the same places."""
    if list(order) != list(expected):
        raise ValueError(
            f"{what} has the tile order {list(order)}, expected {list(expected)} (from left to right, top row first); "
            "name the cameras in the order that the model was trained with"
        )


class Backgrounds:
    """Pictures to draw on, so that whoever looks at the drawing cannot use the scene: files, or made-up ones."""

    def __init__(self, folder: Path | str = "", *, size: tuple[int, int], limit: int = 1000) -> None:
        """The first `limit` pictures of `folder`, resized to (Y, X); "" makes smooth random colours instead."""
        self.size, self.pictures = size, []
        if not folder:
            return
        from PIL import Image

        files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)[:limit]
        if not files:
            raise ValueError(f"{folder} holds no picture ({', '.join(SUFFIXES)}); name a folder of textures, or none")
        for path in files:
            with Image.open(path) as picture:
                self.pictures.append(np.asarray(picture.convert("RGB").resize((size[1], size[0]))))

    def pick(self, rng: np.random.Generator) -> np.ndarray:
        """uint8 [Y, X, 3]; not to be written to."""
        if self.pictures:
            return self.pictures[int(rng.integers(len(self.pictures)))]
        from PIL import Image

        cells = int(rng.integers(2, 17))
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        smooth = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.NEAREST
        return np.asarray(Image.fromarray(coarse).resize((self.size[1], self.size[0]), smooth))


def tile_name(order: Sequence[str]) -> str:
    """What a tile is called where pictures have names, so that its order goes wherever it goes."""
    return f"tile({','.join(order)})"


def tile_order(names: Iterable[str]) -> tuple[str, ...]:
    """The cameras of the tile among these names. Raises ValueError if there is none, or more than one."""
    found = [n for n in names if n.startswith("tile(") and n.endswith(")")]
    if len(found) != 1:
        raise ValueError(
            f"expected one picture named 'tile(CAMERA,...)', got {list(names)}; make such demonstrations with "
            "python -m pretrained.genima.render"
        )
    return tuple(found[0].removeprefix("tile(").removesuffix(")").split(","))
