"""Line charts as inline SVG: no scripts, no fonts, no requests; colours come from the page's CSS variables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40
MAX_POINTS = 400  # longer lines are thinned: nobody sees more, and pages stay small


@dataclass(frozen=True)
class Point:
    """A measurement drawn with its interval."""

    x: float
    y: float
    low: float
    high: float
    label: str
    kind: str = "after"  # CSS class


def line_chart(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    low: Sequence[float] = (),
    high: Sequence[float] = (),
    points: Sequence[Point] = (),
    x_label: str = "",
    title: str = "",
    percent: bool = False,
) -> str:
    """A line with an optional interval band and measured points. `percent` fixes the y axis to 0 .. 100 %."""
    keep = _thin(len(xs))
    xs, ys = [xs[i] for i in keep], [ys[i] for i in keep]
    band = [(low[i], high[i]) for i in keep] if low and high else []
    x_ticks = ticks(min([*xs, *(p.x for p in points)], default=0), max([*xs, *(p.x for p in points)], default=1), 6)
    y_ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if percent else ticks(min(ys, default=0), max(ys, default=1), 4)
    x_at = _scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    y_at = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">',
        *(_y_tick(y_at(y), f"{y:.0%}" if percent else number(y)) for y in y_ticks),
        *(_text(x_at(x), HEIGHT - BOTTOM + 18, number(x)) for x in x_ticks),
        _text((LEFT + WIDTH) / 2, HEIGHT - 4, x_label),
    ]
    if band:
        upper = [f"{x_at(x):.1f},{y_at(b[1]):.1f}" for x, b in zip(xs, band, strict=True)]
        lower = [f"{x_at(x):.1f},{y_at(b[0]):.1f}" for x, b in zip(xs, band, strict=True)]
        parts.append(f'<polygon class="band" points="{" ".join([*upper, *reversed(lower)])}"/>')
    if len(xs) > 1:
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline class="line" points="{path}"/>')
    elif xs:
        parts.append(f'<circle class="dot" cx="{x_at(xs[0]):.1f}" cy="{y_at(ys[0]):.1f}" r="3"/>')
    parts.extend(_mark(p, x_at(p.x), y_at(p.y), y_at(p.low), y_at(p.high)) for p in points)
    return "".join([*parts, "</svg>"])


def interval_chart(rows: Sequence[tuple[str, Sequence[Point]]], *, title: str = "") -> str:
    """Success rates with their intervals, 0 to 100 % to the right; each row holds the points of one name. `x` and
    `label` of a point: its rate again, and what it is of (shown when pointed at)."""
    top, line, gap = 24, 18, 12
    x_at = _scale(0.0, 1.0, 12, WIDTH - 12)
    height = top + sum(line * len(points) + 18 + gap for _, points in rows)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = x_at(share)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 6}"/>')
        parts.append(_text(x, 14, f"{share:.0%}", "start" if not share else "end" if share == 1 else "middle"))
    y = top
    for name, points in rows:
        parts.append(_text(12, y + 12, name, "start"))
        y += 18
        for p in points:
            middle, low, high = y + line / 2, x_at(p.low), x_at(p.high)
            at = f'y1="{middle:.1f}" y2="{middle:.1f}"'
            end = "end" if p.high > 0.75 else "start"
            beside = low - 6 if end == "end" else high + 6
            parts.append(
                f'<g class="{escape(p.kind, quote=True)}"><title>{escape(p.label)}</title>'
                f'<line x1="{low:.1f}" x2="{high:.1f}" {at}/><circle cx="{x_at(p.y):.1f}" cy="{middle:.1f}" r="4"/>'
                f'<text x="{beside:.1f}" y="{middle + 4:.1f}" text-anchor="{end}">{escape(p.label)}</text></g>'
            )
            y += line
        y += gap
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that enclose [low, high], about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A short way to write a number: 1.2M, 35k, 0.05."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _y_tick(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 8, y + 4, text, "end")


def _mark(p: Point, x: float, y: float, low: float, high: float) -> str:
    end = 'text-anchor="end" ' if x > WIDTH / 2 else ""
    shift = -9 if end else 9
    return (
        f'<g class="{escape(p.kind, quote=True)}"><title>{escape(p.label)}</title>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
        f'<text {end}x="{x + shift:.1f}" y="{y - 8:.1f}">{escape(p.label)}</text></g>'
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _thin(n: int) -> list[int]:
    if n <= MAX_POINTS:
        return list(range(n))
    return sorted({round(i * (n - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)})
