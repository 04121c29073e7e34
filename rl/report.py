"""One self-contained HTML page for a run: curve, before and after, cost, videos, commands. No external requests.

Everything is read from the run's files, and whatever is missing is left out and named, so a page can be written of a
run that was cut short.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rl.chart import Point, line_chart, number
from rl.ledger import Account, account, cost_per_point, read, renewed
from rl.page import duration, interval, rate, read_json, table, video, wide, write_page
from rl.stats import mcnemar, paired_difference, wilson

SIDES = ("before", "after")
MAX_PAIRS = 4  # videos shown per side
MAX_FAILURES, MAX_REPLAYS = 4, 20  # further videos, and commands
CURVES = {  # key -> title; drawn if the run logged it
    "rollout/length": "Episode length (steps)",
    "loss/value": "Value loss",
    "loss/explained_variance": "Explained variance of the critic",
    "loss/kl": "KL divergence from the sampling policy",
    "loss/clip_fraction": "Clipped ratios",
    "loss/entropy": "Entropy (nats per element and link)",
}


def report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path. Raises ValueError if the folder holds nothing to report."""
    run_dir = Path(run_dir)
    metrics = renewed(read(run_dir / "metrics.jsonl"))
    summary = read_json(run_dir / "summary.json")
    sides = {side: _evaluation(run_dir / f"evaluate_{side}", summary.get(side)) for side in SIDES}
    if not metrics and not summary and not any(sides.values()):
        raise ValueError(
            f"{run_dir} holds no metrics.jsonl, summary.json or evaluate_before/ or evaluate_after/: expected the "
            "folder of a run, for example runs/demo"
        )
    title = f"{summary.get('task', run_dir.resolve().name)}" + (
        f", seed {summary['seed']}" if "seed" in summary else ""
    )
    sections = [
        f"<h1>{escape(title)}</h1>",
        '<p class="soft">Imitation, then reinforcement learning. Intervals are 95 %.</p>',
        _headline(sides, run_dir),
        _curve(metrics, sides),
        _cost(run_dir, metrics, summary, sides),
        _videos(run_dir),
        _failures(run_dir),
        _more_curves(metrics),
        _commands(run_dir, summary),
    ]
    return write_page(run_dir / "report.html", title, sections)


# --- sections ---------------------------------------------------------------------------------------------------------


def _headline(sides: Mapping[str, dict[str, Any]], run_dir: Path) -> str:
    """Success before and after, per task if there are several, and whether the change is more than chance."""
    cards = [
        f'<div class="card {side}">{side}<b>{e["success"]:.0%}</b><span class="soft">{interval(e)}, '
        f"{e['episodes']} episodes</span></div>"
        for side, e in sides.items()
        if e
    ]
    change = _paired(run_dir)
    if change:
        cards.append(f'<div class="card">change<b>{change[0]}</b><span class="soft">{escape(change[1])}</span></div>')
    rows = [
        [task, *(rate(sides[s].get("tasks", {}).get(task)) for s in SIDES)]
        for task in sorted({t for e in sides.values() for t in e.get("tasks", {})})
    ]
    tasks = table(["task", *SIDES], rows) if len(rows) > 1 else ""
    lost = sum(int(e.get("infrastructure_failures", 0)) for e in sides.values())
    note = f'<p class="soft">{lost} episodes were lost to simulator failures and are not counted.</p>' if lost else ""
    missing = [side for side in SIDES if not sides[side]]
    gap = f'<p class="soft">Not evaluated: {" and ".join(missing)}.</p>' if missing else ""
    return f'<h2>Success</h2><div class="cards">{"".join(cards)}</div>{note}{gap}{tasks}'


def _curve(metrics: Sequence[Mapping[str, Any]], sides: Mapping[str, dict[str, Any]]) -> str:
    rows = [m for m in metrics if "rollout/success" in m]
    if not rows:
        return ""
    end = max(float(m.get("env_steps", 0)) for m in rows)
    points = [
        Point(x, e["success"], e["low"], e["high"], f"{side} {e['success']:.0%}", side)
        for side, x in (("before", 0.0), ("after", end))
        if (e := sides[side])
    ]
    chart = line_chart(
        [float(m.get("env_steps", 0)) for m in rows],
        [m["rollout/success"] for m in rows],
        low=[m.get("rollout/success_low", m["rollout/success"]) for m in rows],
        high=[m.get("rollout/success_high", m["rollout/success"]) for m in rows],
        points=points,
        x_label="environment steps",
        title="Success during training",
        percent=True,
    )
    note = "Line: recent training episodes, with the noise of exploration. Points: separate evaluation episodes."
    return f'<h2>Learning curve</h2>{wide(chart)}<p class="soft">{note}</p>'


def _more_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    for key, title in CURVES.items():
        rows = [m for m in metrics if isinstance(m.get(key), int | float)]
        if len(rows) > 1:
            xs, ys = [float(m.get("env_steps", 0)) for m in rows], [float(m[key]) for m in rows]
            chart = line_chart(xs, ys, x_label="environment steps", title=title)
            charts.append(f"<figure>{wide(chart)}<figcaption>{escape(title)}</figcaption></figure>")
    return f'<h2>Training</h2><div class="two">{"".join(charts)}</div>' if charts else ""


def _cost(
    run_dir: Path,
    metrics: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    sides: Mapping[str, Mapping[str, Any]],
) -> str:
    total = account(read(run_dir / "ledger.jsonl"))
    last = metrics[-1] if metrics else {}
    rows: list[list[str]] = []
    steps = summary.get("env_steps", last.get("env_steps"))
    if steps is not None:
        rows.append(["environment steps of fine-tuning", number(float(steps))])
    if total.unlearned_steps:
        rows.append(["steps lost with a learner or a killed run", number(float(total.unlearned_steps))])
    if "wall_s" in last:
        rows.append(["wall-clock of fine-tuning", duration(float(last["wall_s"]))])
    if "wall_s" in summary:
        rows.append(["wall-clock of everything", duration(float(summary["wall_s"]))])
    if metrics:
        rows.append(["iterations", str(last.get("iteration", len(metrics)))])
    if total.started:
        rows.append(
            ["training episodes", f"{total.finished} finished, {total.failed} lost, {total.in_flight} in flight"]
        )
    rows += _device_time(total, sides)
    rows.extend([f"restarts: {cause}", str(count)] for cause, count in sorted(total.restarts.items()))
    if total.started and not total.restarts:
        rows.append(["restarts", "0"])
    if not total.balanced:
        rows.append(["ledger", "does not add up: more episodes ended than started"])
    return f"<h2>Cost</h2>{table(['', ''], rows)}" if rows else ""


def _device_time(total: Account, sides: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What workers and learners did with their time, and what a point of success cost of it."""
    if not total.device_s:
        return []
    shares = {"busy": total.busy_s, "idle": total.idle_s, "lost to failures": total.lost_s}
    text = ", ".join(f"{v / total.device_s:.0%} {k}" for k, v in shares.items())
    rows = [["device time (workers and learners)", f"{duration(total.device_s)}: {text}"]]
    if sides["before"] and sides["after"]:
        cost = cost_per_point(total, sides["before"]["success"], sides["after"]["success"])
        rows.append(["device time per success point", duration(cost) if cost else "nothing was gained"])
    return rows


def _videos(run_dir: Path) -> str:
    """Pairs of the same episode, before and after; they are named `<number>_...mp4`."""
    found, numbers = _filmed(run_dir)
    figures = [video(found[side][n], side) for n in numbers for side in SIDES if n in found[side]]
    if not figures:
        return ""
    both = all(n in found[side] for n in numbers for side in SIDES)
    notes = ["Each row starts from the same initial state."] if both else []
    notes += _cameras(run_dir)
    return f'<h2>Videos</h2><p class="soft">{escape(" ".join(notes))}</p><div class="two">{"".join(figures)}</div>'


def _filmed(run_dir: Path) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Videos by side and number, and the numbers that are shown side by side."""
    found = {side: _numbered(run_dir / f"evaluate_{side}" / "videos") for side in SIDES}
    both = sorted(set(found["before"]) & set(found["after"]))
    return found, (both or sorted(set(found["before"]) | set(found["after"])))[:MAX_PAIRS]


def _cameras(run_dir: Path) -> list[str]:
    """What the pictures show, what the policy sees of it, and how many could not be made."""
    found = [read_json(run_dir / f"evaluate_{side}" / "summary.json") for side in SIDES]
    stated = next((e for e in found if e.get("videos")), None)
    if stated is None:
        return []
    shown, seen = (
        ", ".join(f"{name} {y}x{x}" for name, (y, x) in sizes.items())
        for sizes in (stated["videos"]["shown"], stated["cameras"])
    )
    notes = ["The policy sees what is shown."]
    if shown != seen:
        notes = [f"From left to right: {shown}. The policy sees only {seen}."]
    missing = sum(len(e["videos"]["missing"]) for e in found if e.get("videos"))
    return notes + ([f"{missing} replays went wrong and are left out."] if missing else [])


def _failures(run_dir: Path) -> str:
    """What still goes wrong, as far as it was filmed and is not shown above, and how to see the rest."""
    folder = run_dir / "evaluate_after"
    if not (folder / "episodes.jsonl").is_file():
        folder = run_dir / "evaluate_before"
    bad = [e for e in read(folder / "episodes.jsonl") if e.get("valid", True) and not e["success"]]
    if not bad:
        return ""
    shown = set(_filmed(run_dir)[1])
    filmed = [p for p in sorted((folder / "videos").glob("*_failure.mp4")) if p.name.split("_")[0] not in shown]
    figures = "".join(video(p, folder.name.removeprefix("evaluate_")) for p in filmed[:MAX_FAILURES])
    tasks: dict[str, int] = {}
    for e in bad:
        tasks[str(e["task"])] = tasks.get(str(e["task"]), 0) + 1
    counts = table(["task", "failures"], [[t, str(n)] for t, n in sorted(tasks.items())]) if len(tasks) > 1 else ""
    commands = [f"python launch.py replay {folder}:{e['episode']}" for e in bad[:MAX_REPLAYS] if "episode" in e]
    rest = f"<details><summary>See them again</summary><pre>{escape(chr(10).join(commands))}</pre></details>"
    return (
        f'<h2>Failures</h2><p class="soft">{len(bad)} episodes of {folder.name}.</p>{counts}'
        + (f'<div class="two">{figures}</div>' if figures else "")
        + (rest if commands else "")
    )


def _commands(run_dir: Path, summary: Mapping[str, Any]) -> str:
    told = [summary, *(r for r in read(run_dir / "ledger.jsonl") if r.get("event") in ("began", "resumed"))]
    told += [read_json(run_dir / f"evaluate_{side}" / "summary.json") for side in SIDES]
    commands = list(dict.fromkeys(str(r["command"]) for r in told if r.get("command")))
    out = f"<h2>Commands</h2><pre>{escape(chr(10).join(commands))}</pre>" if commands else ""
    newest = sorted(run_dir.glob("step_*/config.yaml"))[-1:]  # of a run without one of its own
    for config in [p for p in (run_dir / "config.yaml",) if p.is_file()] or newest:
        out += (
            f"<details><summary>config.yaml</summary><pre>{escape(config.read_text(encoding='utf-8'))}</pre></details>"
        )
    return out


# --- pieces -----------------------------------------------------------------------------------------------------------


def _evaluation(folder: Path, stated: Mapping[str, Any] | None) -> dict[str, Any]:
    """The summary of one evaluation; from its own file, from the run's summary, or counted from the episodes."""
    found = read_json(folder / "summary.json") or dict(stated or {})
    if not found:
        episodes = [e for e in read(folder / "episodes.jsonl") if e.get("valid", True)]
        if not episodes:
            return {}
        wins = sum(bool(e["success"]) for e in episodes)
        low, high = wilson(wins, len(episodes))
        found = {"success": wins / len(episodes), "low": low, "high": high, "episodes": len(episodes)}
    return found if isinstance(found.get("success"), int | float) and found.get("episodes") else {}


def _paired(run_dir: Path) -> tuple[str, str] | None:
    """The change over episodes that both evaluations ran from the same initial state."""
    outcomes = [
        {(e["task"], e["seed"]): bool(e["success"]) for e in read(path) if e.get("valid", True)}
        for path in (run_dir / f"evaluate_{side}" / "episodes.jsonl" for side in SIDES)
    ]
    shared = sorted(set(outcomes[0]) & set(outcomes[1]))
    if not shared:
        return None
    before, after = ([o[k] for k in shared] for o in outcomes)
    change, low, high = paired_difference(before, after)
    p = mcnemar(before, after)
    word = "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
    points = f"{100 * low:+.0f} to {100 * high:+.0f}, {len(shared)} pairs, exact McNemar {word}"
    return f"{100 * change:+.0f} points", points


def _numbered(folder: Path) -> dict[str, Path]:
    return {p.name.split("_")[0]: p for p in sorted(folder.glob("*.mp4"))}
