"""The page, the table and the summary of a sweep, from its store alone: also of one that was cut short."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from rl.chart import Point, interval_chart
from rl.page import duration, table, video, wide, write_page
from rl.records import plain
from rl.store import Store
from rl.sweep_tables import Comparison, Rate, causes, compare, rates

RESULTS = "results.sqlite"
BY = ("split", "checkpoint", "perturbation", "task")
MAX_FAILURES = 8  # videos of the gallery
MAX_REPLAYS = 20  # commands


def sweep_report(out: Path) -> Path:
    """Write `report.html`, `summary.json` and `table.csv` into the sweep's folder; returns the page."""
    out = Path(out)
    if not (out / RESULTS).is_file():
        raise ValueError(f"{out} holds no {RESULTS}: expected the folder of a sweep, for example runs/sweep")
    with Store(out / RESULTS) as store:
        plan = json.loads(store.meta("plan") or "[]")
        episodes, seconds = _episodes(store, plan), store.wall_s(sorted({p["key"] for p in plan}))
        words = {name: store.meta(name) for name in ("command", "config", "first", "chosen", "stop", "decisions")}
        broken, finished = store.failed(), store.finished()
    failed = {p["key"]: broken[p["key"]] for p in plan if p["key"] in broken}
    test = [e for e in episodes if e["split"] == "test"]
    perturbations = list(dict.fromkeys(p["perturbation"] for p in plan))
    tables = {
        "checkpoints": compare(test, column="checkpoint", first=words["first"], within="perturbation"),
        "perturbations": compare(test, column="perturbation", first=perturbations[0], within="checkpoint")
        if perturbations
        else [],
    }
    _write_table(out, rates(episodes, BY))
    summary = {
        "rates": [asdict(r) for r in rates(episodes, BY[:3])],
        **{f"comparisons_of_{name}": [asdict(c) for c in found] for name, found in tables.items()},
        "chosen": words["chosen"],
        "decisions": json.loads(words["decisions"] or "{}"),
        "cells": {"planned": len({p["key"] for p in plan}), "failed": len(failed)},
        "infrastructure_failures": causes(episodes),
        "seconds_of_cells": round(seconds, 1),
        "command": words["command"],
    }
    part = out / "summary.json.part"
    part.write_text(json.dumps(plain(summary), indent=1, allow_nan=False))
    part.replace(out / "summary.json")
    missing = len({p["key"] for p in plan} - finished)
    sections = [
        f"<h1>Sweep {escape(out.resolve().name)}</h1>",
        '<p class="soft">Intervals are 95 % (Wilson); comparisons are of the same initial states.</p>',
        f'<p class="soft">{missing} cells are missing: the same command continues.</p>' if missing else "",
        _cards(episodes, plan, seconds),
        _selection(episodes, words),
        _chart(test),
        _tasks(test),
        _comparisons(tables["checkpoints"], "Checkpoints", "perturbation", json.loads(words["decisions"] or "{}")),
        _comparisons(tables["perturbations"], "Perturbations", "checkpoint", {}),
        _failures(out, test),
        _lost(episodes, failed),
        _commands(words),
    ]
    return write_page(out / "report.html", f"Sweep {out.resolve().name}", sections)


def _episodes(store: Store, plan: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All episodes of the plan with the names it gives them. Cells of equal content are measured once, shown twice."""
    names = ("checkpoint", "perturbation", "split", "key")
    return [e | {n: cell[n] for n in names} for cell in plan for e in store.episodes([cell["key"]])]


def _cards(episodes: Sequence[Mapping[str, Any]], plan: Sequence[Mapping[str, Any]], seconds: float) -> str:
    distinct = {(e["key"], e["episode"]): e["valid"] for e in episodes}
    shown = {
        "checkpoints": len({p["checkpoint"] for p in plan}),
        "tasks": len({p["task"] for p in plan}),
        "perturbations": len({p["perturbation"] for p in plan}),
        "episodes measured": sum(distinct.values()),
        "lost to simulators": len(distinct) - sum(distinct.values()),
        "time of all cells": duration(seconds),
    }
    return (
        '<div class="cards">' + "".join(f'<div class="card">{k}<b>{v}</b></div>' for k, v in shown.items()) + "</div>"
    )


def _selection(episodes: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> str:
    """Which checkpoint was chosen, by what, and what it is worth on seeds that had no say."""
    validation = rates([e for e in episodes if e["split"] == "validation"], ("checkpoint",))
    if not validation:
        return ""
    test = {r.names[0]: r for r in rates([e for e in episodes if e["split"] == "test"], ("checkpoint",))}
    rows = [
        [r.names[0] + (" (chosen)" if r.names[0] == words["chosen"] else ""), _of(r), _of(test.get(r.names[0]))]
        for r in validation
    ]
    note = "Chosen on validation seeds; only the test seeds, which had no say, say what the choice is worth."
    head = ["checkpoint", "validation seeds", "test seeds"]
    return f'<h2>Selection</h2><p class="soft">{note}</p>{table(head, rows)}'


def _chart(test: Sequence[Mapping[str, Any]]) -> str:
    found = rates(test, ("perturbation", "checkpoint"))
    if not found:
        return ""
    first = found[0].names[1]
    groups: dict[str, list[Point]] = {}
    for r in found:
        if r.episodes:
            label, kind = f"{r.names[1]} {r.success:.0%}", "before" if r.names[1] == first else "after"
            groups.setdefault(r.names[0], []).append(Point(r.success, r.success, r.low, r.high, label, kind))
    rows = [[*r.names, _of(r), str(r.lost)] for r in found]
    chart = interval_chart(list(groups.items()), title="Success by perturbation and checkpoint")
    head = ["perturbation", "checkpoint", "success (interval, episodes)", "lost"]
    return f"<h2>Success</h2>{wide(chart)}{table(head, rows)}"


def _tasks(test: Sequence[Mapping[str, Any]]) -> str:
    """Tasks down, checkpoints across; all perturbations together."""
    found = {r.names: r for r in rates(test, ("task", "checkpoint"))}
    tasks, names = (list(dict.fromkeys(k[i] for k in found)) for i in (0, 1))
    if len(tasks) < 2:
        return ""
    rows = [[task, *(_of(found.get((task, name))) for name in names)] for task in tasks]
    return f'<h2>Tasks</h2><p class="soft">All perturbations together.</p>{table(["task", *names], rows)}'


def _comparisons(found: Sequence[Comparison], title: str, within: str, decisions: Mapping[str, str]) -> str:
    if not found:
        return ""
    rows = [
        [
            c.where, c.name, str(c.pairs), f"+{c.gained} -{c.lost}",
            f"{100 * c.change.value:+.0f} ({100 * c.change.low:+.0f} to {100 * c.change.high:+.0f})",
            f"{c.p:.2g}", f"{c.adjusted:.2g}", *([decisions.get(f"{c.name} / {c.where}", "-")] if decisions else []),
        ]
        for c in found
    ]  # fmt: skip
    head = [within, "", "pairs", "changed", "points", "McNemar p", "p, all rows", *(["decision"] if decisions else [])]
    note = f"Against {found[0].against}, on the same tasks and seeds. The last p allows for the number of rows (Holm)."
    if decisions:
        note += " Decisions are of the sequential test, which chose when to stop; p and intervals do not know of that."
    return f'<h2>{title} compared</h2><p class="soft">{escape(note)}</p>{table(head, rows)}'


def _failures(out: Path, test: Sequence[Mapping[str, Any]]) -> str:
    """Videos of failures, as different as possible, and how to see any other."""
    bad = [e for e in test if e["valid"] and not e["success"]]
    if not bad:
        return ""
    figures, seen = [], set()
    for e in bad:
        kind = (e["task"], e["perturbation"])
        files = sorted((out / "cells" / e["key"] / "videos").glob(f"{e['episode']:03d}_*.mp4"))
        if kind not in seen and files and len(figures) < MAX_FAILURES:
            seen.add(kind)
            figures.append(video(files[0], f"{e['checkpoint']}, {e['perturbation']}, {e['task']}"))
    commands = [f"python launch.py replay {out / 'cells' / e['key']}:{e['episode']}" for e in bad[:MAX_REPLAYS]]
    more = f"\n# and {len(bad) - MAX_REPLAYS} more: see results.sqlite" if len(bad) > MAX_REPLAYS else ""
    shown = f"<details><summary>See others again</summary><pre>{escape(chr(10).join(commands) + more)}</pre></details>"
    return f'<h2>Failures</h2><p class="soft">{len(bad)} episodes.</p><div class="two">{"".join(figures)}</div>{shown}'


def _lost(episodes: Sequence[Mapping[str, Any]], failed: Mapping[str, str]) -> str:
    rows = [[cause, f"{count} episodes"] for cause, count in sorted(causes(episodes).items())]
    rows += [[error, "a whole cell"] for error in sorted(set(failed.values()))]
    note = "Simulators that died or hung; no part in any rate above."
    return f'<h2>Infrastructure failures</h2><p class="soft">{note}</p>{table(["cause", ""], rows)}' if rows else ""


def _commands(words: Mapping[str, str]) -> str:
    shown = f"<h2>Command</h2><pre>{escape(words['command'])}</pre>" if words["command"] else ""
    config = json.dumps(json.loads(words["config"] or "{}"), indent=1)
    return shown + f"<details><summary>configuration</summary><pre>{escape(config)}</pre></details>"


def _of(rate: Rate | None) -> str:
    return f"{rate.success:.0%} ({rate.low:.0%} to {rate.high:.0%}, {rate.episodes})" if rate and rate.episodes else "-"


def _write_table(out: Path, found: Sequence[Rate]) -> None:
    part = out / "table.csv.part"
    with part.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*BY, "success", "low", "high", "episodes", "lost"])
        rows.writerows([*r.names, r.success, r.low, r.high, r.episodes, r.lost] for r in found)
    part.replace(out / "table.csv")
