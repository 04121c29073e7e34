"""One place that metrics go through: JSONL always; TensorBoard, Weights & Biases and Prometheus if asked for.

Keys are `<group>/<name>` with the groups rollout, reward, loss, time and eval. Every record carries `iteration`,
`env_steps` and `wall_s`, so any of them can be an axis.
"""

import json
import logging
import math
import os
import re
import time
import uuid
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rl.ledger import Ledger, read

LOG = logging.getLogger("temper")


class RunLog:
    """Writes metrics of a run to all its destinations, and remembers the last ones.

    A destination that fails (a full disk for TensorBoard, no network for wandb) is dropped with a warning: training
    must not end because of a chart. The JSONL file is the record, and its failures are raised.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = True,
        wandb: bool = False,
        prometheus: bool = False,
        name: str = "",
        config: Mapping[str, Any] | None = None,
        keep: int = 1000,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        earlier = list(read(self.path))
        self.history: deque[dict[str, float]] = deque(earlier, maxlen=keep)
        self._before_s = float(earlier[-1].get("wall_s", 0.0)) if earlier else 0.0  # of the run that this one resumes
        self._began = time.monotonic()
        self._file = Ledger(self.path)
        self._tensorboard = self._open("tensorboard", lambda: _tensorboard(folder)) if tensorboard else None
        self._prometheus = self._open("prometheus", lambda: _Gauges(name or folder.name)) if prometheus else None
        self._wandb = self._open("wandb", lambda: _wandb(folder, name or folder.name, config)) if wandb else None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def wall_s(self) -> float:
        """Seconds of this run, with those of the runs it resumes."""
        return self._before_s + time.monotonic() - self._began

    def write(self, iteration: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Record one iteration everywhere; return the record. Numbers that are not finite are left out of it."""
        numbers = {"iteration": iteration, "env_steps": 0, "wall_s": round(self.wall_s, 3), **metrics}
        record = {k: v for k, v in numbers.items() if math.isfinite(v)}
        if bad := sorted(set(numbers) - set(record)):
            LOG.warning("iteration %d: not finite and not recorded: %s", iteration, ", ".join(bad))
        self._file.write_many([record])
        self.history.append(record)
        charts, online, gauges = self._tensorboard, self._wandb, self._prometheus
        if charts is not None:
            self._try("tensorboard", lambda: _to_tensorboard(charts, record))
        if online is not None:
            self._try("wandb", lambda: online.log(record, step=iteration))
        if gauges is not None:
            self._try("prometheus", lambda: gauges.set(record))
        return record

    def last(self, key: str, default: float = math.nan) -> float:
        """The newest value of a key in the remembered records."""
        return next((r[key] for r in reversed(self.history) if key in r), default)

    def close(self) -> None:
        """Flush everything; calling it again does nothing."""
        self._file.close()
        if self._tensorboard is not None:
            self._try("tensorboard", self._tensorboard.close)
        if self._wandb is not None:
            self._try("wandb", self._wandb.finish)
        self._tensorboard = self._wandb = None

    def _open(self, name: str, make: Any) -> Any:
        try:
            return make()
        except Exception as e:  # third-party loggers raise all sorts of things
            LOG.warning("%s is off: %s: %s", name, type(e).__name__, e)
            return None

    def _try(self, name: str, call: Any) -> None:
        try:
            call()
        except Exception as e:
            LOG.warning("%s failed and is off from here on: %s: %s", name, type(e).__name__, e)
            setattr(self, f"_{name}", None)


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder / "tensorboard"))


def _to_tensorboard(writer: Any, record: Mapping[str, float]) -> None:
    for key, value in record.items():
        if "/" in key:
            writer.add_scalar(key, value, int(record["iteration"]))
    writer.flush()


class _Gauges:
    """The numbers of a run where Ray offers Prometheus its own: `ray_temper_<group>_<name>`, with the run's name."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge  # pulls in ray

        self._make, self._run, self._gauges = Gauge, run, {}

    def set(self, record: Mapping[str, float]) -> None:
        for key, value in record.items():
            if key not in self._gauges:
                name = "temper_" + re.sub(r"\W", "_", key)
                self._gauges[key] = self._make(name, description=f"{key} of a Temper run", tag_keys=("run",))
            self._gauges[key].set(float(value), tags={"run": self._run})


def _wandb(folder: Path, name: str, config: Mapping[str, Any] | None) -> Any:
    """A run that is started again goes on under the same id."""
    import wandb  # slow to import

    kept = folder / "wandb_id"
    if not kept.exists():
        kept.write_text(uuid.uuid4().hex[:12])

    plain = json.loads(json.dumps(dict(config or {}), default=str))
    mode = os.environ.get("WANDB_MODE", "offline")  # nothing leaves the machine unless the user says so
    return wandb.init(
        project="temper",
        name=name,
        dir=str(folder),
        config=plain,
        mode=mode,  # type: ignore[arg-type]
        id=kept.read_text().strip(),
        resume="allow",
    )
