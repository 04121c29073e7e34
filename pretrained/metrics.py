"""Figures of a training run: metrics.jsonl, which is the record, and TensorBoard beside it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class MetricsLog:
    """One line per call. What a killed run wrote after the checkpoint it resumes from (`step`) is dropped."""

    def __init__(self, out: Path, step: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step] if step else []
        path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._board = _tensorboard(out, step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Record figures of one step."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(out: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        log.warning("no TensorBoard curves (%s); metrics.jsonl has all figures", e)
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=step)


def _lines(path: Path) -> list[str]:
    """Whole lines; a kill may have cut the last one short."""
    return [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
