"""What HTML pages of runs and sweeps share: one file, no scripts, no requests, readable on a phone."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

MAX_VIDEO = 6 * 2**20  # bytes; larger ones are named, not embedded
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"  # the browser keeps it, too
STYLE = """
:root{--bg:#fff;--panel:#f5f6f8;--text:#1b1f24;--soft:#5d6673;--rule:#dfe3e8;--after:#1f6feb;--before:#b3541e}
@media(prefers-color-scheme:dark){:root{--bg:#101419;--panel:#191f27;--text:#e6eaf0;--soft:#9aa5b3;--rule:#2b333d;
--after:#6ea8fe;--before:#e8965a}}
*{box-sizing:border-box}body{margin:0;overflow-wrap:anywhere;
background:var(--bg);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.2rem}h1{font-size:1.5rem;margin:.2rem 0}
h2{font-size:1.1rem;margin:2rem 0 .6rem}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.9rem}.cards{display:grid;gap:.8rem;
grid-template-columns:repeat(auto-fit,minmax(9rem,1fr))}
.card{background:var(--panel);border-radius:.6rem;padding:.8rem 1rem}
.card b{display:block;font-size:1.7rem;line-height:1.2}.before b{color:var(--before)}.after b{color:var(--after)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.cards>*,.two>*{min-width:0}
th,td{overflow-wrap:normal;text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--rule)}
th{color:var(--soft);font-weight:600}
pre{background:var(--panel);padding:.8rem;border-radius:.6rem;overflow-x:auto;font-size:.82rem}
.scroll .chart{min-width:30rem}
.chart{width:100%;height:auto;background:var(--panel);border-radius:.6rem}.grid{stroke:var(--rule)}
.tick{fill:var(--soft);font-size:12px}.line{fill:none;stroke:var(--after);stroke-width:2}.dot{fill:var(--after)}
.band{fill:var(--after);opacity:.18}.chart g line{stroke-width:2}.chart g text{font-size:12px}
.chart .before line{stroke:var(--before)}.chart .before circle,.chart .before text{fill:var(--before)}
.chart .after line{stroke:var(--after)}.chart .after circle,.chart .after text{fill:var(--after)}
.two{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr))}
figure{margin:0}figcaption{color:var(--soft);font-size:.85rem}video{width:100%;border-radius:.6rem;background:var(--panel)}
"""


def write_page(page: Path, title: str, sections: Iterable[str]) -> Path:
    """Write the file at once and return its path; empty sections are left out."""
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        + "\n".join(s for s in sections if s)
        + "</main></body></html>\n"
    )
    temporary = page.with_suffix(".html.part")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(page)
    return page


def video(path: Path, side: str) -> str:
    """A video inside the page, with a caption."""
    text = escape(f"{side}: {path.stem.replace('_', ' ')}")
    if path.stat().st_size > MAX_VIDEO:
        return f"<figure><figcaption>{text}: too large to embed, see {escape(path.name)}</figcaption></figure>"
    data = base64.b64encode(path.read_bytes()).decode()
    source = f'src="data:video/mp4;base64,{data}"'
    return f"<figure><video controls loop muted playsinline {source}></video><figcaption>{text}</figcaption></figure>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where the screen is narrow; cells are text."""
    head = "".join(f"<th>{escape(h)}</th>" for h in headings) if any(headings) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{f"<tr>{head}</tr>" if head else ""}{body}</table></div>'


def wide(chart: str) -> str:
    """A chart that keeps its letters readable, and scrolls by itself where the screen is narrow."""
    return f'<div class="scroll">{chart}</div>'


def interval(part: Mapping[str, Any]) -> str:
    """`40% to 60%`."""
    return f"{part['low']:.0%} to {part['high']:.0%}"


def rate(part: Mapping[str, Any] | None) -> str:
    """`50% (40% to 60%, 100)`, or `-`."""
    return f"{part['success']:.0%} ({interval(part)}, {part['episodes']})" if part and part.get("episodes") else "-"


def duration(seconds: float) -> str:
    """`1 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} if there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path} is not JSON ({e}); remove it, or run the evaluation again") from e
    return found if isinstance(found, dict) else {}
