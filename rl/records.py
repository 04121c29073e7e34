"""The files of an evaluation: one row per episode, and a summary that is written last."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rl.stats import wilson
from rl.types import EpisodeRecord


def summarise(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Success with its 95 % Wilson interval over valid episodes, per task and in all."""

    def rate(rows: Sequence[EpisodeRecord]) -> dict[str, Any]:
        good = [r for r in rows if r.valid]
        wins = sum(r.success for r in good)
        low, high = wilson(wins, len(good)) if good else (0.0, 1.0)
        return {
            "success": wins / len(good) if good else float("nan"),
            "low": low,
            "high": high,
            "episodes": len(good),
            "infrastructure_failures": len(rows) - len(good),
            "mean_length": float(np.mean([r.length for r in good])) if good else float("nan"),
        }

    tasks = sorted({r.task for r in records})
    return rate(records) | {"tasks": {t: rate([r for r in records if r.task == t]) for t in tasks}}


def write_records(
    out: Path, records: Sequence[EpisodeRecord], columns: Mapping[int, Mapping[str, Any]] | None = None
) -> None:
    """One row per episode, numbered by the plan; `columns` has further figures of some, which replace none."""
    rows: list[dict[str, Any]] = [{"episode": k, **asdict(r)} for k, r in enumerate(records)]
    for row in rows:
        del row["guided"]  # evaluations have no guide
    for k, more in (columns or {}).items():
        rows[k] = rows[k] | {name: value for name, value in more.items() if name not in rows[k]}
    for name in ("episodes.jsonl", "episodes.csv"):
        temporary = out / (name + ".part")
        with temporary.open("w", newline="") as f:
            if name.endswith("jsonl"):
                f.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                table = csv.DictWriter(f, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
                table.writeheader()
                table.writerows(rows)
        temporary.replace(out / name)


def write_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Last of all: a folder without a summary is not a finished evaluation."""
    temporary = out / "summary.json.part"
    temporary.write_text(json.dumps(plain(summary), indent=2, allow_nan=False))
    temporary.replace(out / "summary.json")


def plain(node: Any) -> Any:
    """JSON has no word for numbers that are not finite; they become null."""
    if isinstance(node, Mapping):
        return {k: plain(v) for k, v in node.items()}
    return None if isinstance(node, float) and not math.isfinite(node) else node
