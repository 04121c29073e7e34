"""One self-contained HTML page for a run: curve, before and after, cost, videos, commands. No external requests.

Everything is read from the run's files, and whatever is missing is left out and named, so a page can be written of a
run that was cut short.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rl.chart import Point, line_chart, number
from rl.ledger import Account, account, cost_per_point, read, renewed
from rl.stats import mcnemar, paired_difference, wilson

SIDES = ("before", "after")
MAX_PAIRS = 4  # videos shown per side
MAX_VIDEO = 6 * 2**20  # bytes; larger ones are named, not embedded
CURVES = {  # key -> title; drawn if the run logged it
    "rollout/length": "Episode length (steps)",
    "loss/value": "Value loss",
    "loss/explained_variance": "Explained variance of the critic",
    "loss/kl": "KL divergence from the sampling policy",
    "loss/clip_fraction": "Clipped ratios",
    "loss/entropy": "Entropy (nats per element and link)",
}
STYLE = """
:root{--bg:#fff;--panel:#f5f6f8;--text:#1b1f24;--soft:#5d6673;--rule:#dfe3e8;--after:#1f6feb;--before:#b3541e}
@media(prefers-color-scheme:dark){:root{--bg:#101419;--panel:#191f27;--text:#e6eaf0;--soft:#9aa5b3;--rule:#2b333d;
--after:#6ea8fe;--before:#e8965a}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.2rem}h1{font-size:1.5rem;margin:.2rem 0}
h2{font-size:1.1rem;margin:2rem 0 .6rem}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.9rem}.cards{display:grid;gap:.8rem;
grid-template-columns:repeat(auto-fit,minmax(11rem,1fr))}
.card{background:var(--panel);border-radius:.6rem;padding:.8rem 1rem}
.card b{display:block;font-size:1.7rem;line-height:1.2}.before b{color:var(--before)}.after b{color:var(--after)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--rule)}
th{color:var(--soft);font-weight:600}
pre{background:var(--panel);padding:.8rem;border-radius:.6rem;overflow-x:auto;font-size:.82rem}
.chart{width:100%;height:auto;background:var(--panel);border-radius:.6rem}.grid{stroke:var(--rule)}
.tick{fill:var(--soft);font-size:12px}.line{fill:none;stroke:var(--after);stroke-width:2}.dot{fill:var(--after)}
.band{fill:var(--after);opacity:.18}.chart g line{stroke-width:2}.chart g text{font-size:12px}
.chart .before line{stroke:var(--before)}.chart .before circle,.chart .before text{fill:var(--before)}
.chart .after line{stroke:var(--after)}.chart .after circle,.chart .after text{fill:var(--after)}
.two{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr))}
figure{margin:0}figcaption{color:var(--soft);font-size:.85rem}video{width:100%;border-radius:.6rem;background:var(--panel)}
"""


def report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path. Raises ValueError if the folder holds nothing to report."""
    run_dir = Path(run_dir)
    metrics = renewed(read(run_dir / "metrics.jsonl"))
    summary = _json(run_dir / "summary.json")
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
        _more_curves(metrics),
        _commands(run_dir, summary),
    ]
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        + "\n".join(s for s in sections if s)
        + "</main></body></html>\n"
    )
    page = run_dir / "report.html"
    temporary = page.with_suffix(".html.part")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(page)
    return page


# --- sections ---------------------------------------------------------------------------------------------------------


def _headline(sides: Mapping[str, dict[str, Any]], run_dir: Path) -> str:
    """Success before and after, per task if there are several, and whether the change is more than chance."""
    cards = [
        f'<div class="card {side}">{side}<b>{e["success"]:.0%}</b><span class="soft">{_interval(e)}, '
        f"{e['episodes']} episodes</span></div>"
        for side, e in sides.items()
        if e
    ]
    change = _paired(run_dir)
    if change:
        cards.append(f'<div class="card">change<b>{change[0]}</b><span class="soft">{escape(change[1])}</span></div>')
    rows = [
        [task, *(_rate(sides[s].get("tasks", {}).get(task)) for s in SIDES)]
        for task in sorted({t for e in sides.values() for t in e.get("tasks", {})})
    ]
    table = _table(["task", *SIDES], rows) if len(rows) > 1 else ""
    lost = sum(int(e.get("infrastructure_failures", 0)) for e in sides.values())
    note = f'<p class="soft">{lost} episodes were lost to simulator failures and are not counted.</p>' if lost else ""
    missing = [side for side in SIDES if not sides[side]]
    gap = f'<p class="soft">Not evaluated: {" and ".join(missing)}.</p>' if missing else ""
    return f'<h2>Success</h2><div class="cards">{"".join(cards)}</div>{note}{gap}{table}'


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
    return f'<h2>Learning curve</h2>{chart}<p class="soft">{note}</p>'


def _more_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    for key, title in CURVES.items():
        rows = [m for m in metrics if isinstance(m.get(key), int | float)]
        if len(rows) > 1:
            xs, ys = [float(m.get("env_steps", 0)) for m in rows], [float(m[key]) for m in rows]
            chart = line_chart(xs, ys, x_label="environment steps", title=title)
            charts.append(f"<figure>{chart}<figcaption>{escape(title)}</figcaption></figure>")
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
        rows.append(["wall-clock of fine-tuning", _duration(float(last["wall_s"]))])
    if "wall_s" in summary:
        rows.append(["wall-clock of everything", _duration(float(summary["wall_s"]))])
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
    return f"<h2>Cost</h2>{_table(['', ''], rows)}" if rows else ""


def _device_time(total: Account, sides: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What workers and learners did with their time, and what a point of success cost of it."""
    if not total.device_s:
        return []
    shares = {"busy": total.busy_s, "idle": total.idle_s, "lost to failures": total.lost_s}
    text = ", ".join(f"{v / total.device_s:.0%} {k}" for k, v in shares.items())
    rows = [["device time (workers and learners)", f"{_duration(total.device_s)}: {text}"]]
    if sides["before"] and sides["after"]:
        cost = cost_per_point(total, sides["before"]["success"], sides["after"]["success"])
        rows.append(["device time per success point", _duration(cost) if cost else "nothing was gained"])
    return rows


def _videos(run_dir: Path) -> str:
    """Pairs of the same episode, before and after; they are named `<number>_...mp4`."""
    found = {side: _numbered(run_dir / f"evaluate_{side}" / "videos") for side in SIDES}
    numbers = sorted(set(found["before"]) | set(found["after"]))
    both = [n for n in numbers if n in found["before"] and n in found["after"]]
    figures = [
        _video(found[side][n], side) for n in (both or numbers)[:MAX_PAIRS] for side in SIDES if n in found[side]
    ]
    if not figures:
        return ""
    notes = ["Each row starts from the same initial state."] if both else []
    notes += _cameras(run_dir)
    return f'<h2>Videos</h2><p class="soft">{escape(" ".join(notes))}</p><div class="two">{"".join(figures)}</div>'


def _cameras(run_dir: Path) -> list[str]:
    """What the pictures show, what the policy sees of it, and how many could not be made."""
    found = [_json(run_dir / f"evaluate_{side}" / "summary.json") for side in SIDES]
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


def _commands(run_dir: Path, summary: Mapping[str, Any]) -> str:
    commands = [str(summary["command"])] if summary.get("command") else []
    for side in SIDES:
        command = _json(run_dir / f"evaluate_{side}" / "summary.json").get("command")
        if command and str(command) not in commands:
            commands.append(str(command))
    out = f"<h2>Commands</h2><pre>{escape(chr(10).join(commands))}</pre>" if commands else ""
    config = run_dir / "config.yaml"
    if config.is_file():
        out += (
            f"<details><summary>config.yaml</summary><pre>{escape(config.read_text(encoding='utf-8'))}</pre></details>"
        )
    return out


# --- pieces -----------------------------------------------------------------------------------------------------------


def _evaluation(folder: Path, stated: Mapping[str, Any] | None) -> dict[str, Any]:
    """The summary of one evaluation; from its own file, from the run's summary, or counted from the episodes."""
    found = _json(folder / "summary.json") or dict(stated or {})
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


def _video(path: Path, side: str) -> str:
    text = escape(f"{side}: {path.stem.replace('_', ' ')}")
    if path.stat().st_size > MAX_VIDEO:
        return f"<figure><figcaption>{text}: too large to embed, see {escape(path.name)}</figcaption></figure>"
    data = base64.b64encode(path.read_bytes()).decode()
    source = f'src="data:video/mp4;base64,{data}"'
    return f"<figure><video controls loop muted playsinline {source}></video><figcaption>{text}</figcaption></figure>"


def _numbered(folder: Path) -> dict[str, Path]:
    return {p.name.split("_")[0]: p for p in sorted(folder.glob("*.mp4"))}


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings) if any(headings) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{f"<tr>{head}</tr>" if head else ""}{body}</table></div>'


def _interval(part: Mapping[str, Any]) -> str:
    return f"{part['low']:.0%} to {part['high']:.0%}"


def _rate(part: Mapping[str, Any] | None) -> str:
    return f"{part['success']:.0%} ({_interval(part)}, {part['episodes']})" if part and part.get("episodes") else "-"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} if there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path} is not JSON ({e}); remove it, or run the evaluation again") from e
    return found if isinstance(found, dict) else {}
