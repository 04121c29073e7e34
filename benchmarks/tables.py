"""What the benchmarks share: Markdown tables, the line about the hardware, and sections of RESULTS.md."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    width = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * w for w in width], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, width, strict=True)) + " |" for line in lines)


def hardware() -> str:
    """Date, processor and versions, in one line."""
    cores = len(os.sched_getaffinity(0))
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    named = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    model = named[0] if named else platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{time.strftime('%Y-%m-%d')}, {model}, {cores} cores, {versions}"


def write_section(name: str, text: str, page: Path = HERE / "RESULTS.md", *, first: bool = False) -> None:
    """Put `text` between the marks of section `name`; at the end, or in front of all others, if the page has none."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = page.read_text() if page.exists() else "# Benchmark results\n"
    block = f"{begin}\n{text.strip()}\n{end}"
    if begin in old and end in old:
        before, rest = old.split(begin, 1)
        new = before + block + rest.split(end, 1)[1]
    elif first and "<!-- " in old:
        before, mark, rest = old.partition("<!-- ")
        new = before + block + "\n\n" + mark + rest
    else:
        new = old.rstrip() + "\n\n" + block + "\n"
    _replace(page, new)


def write_results(results: Mapping[str, Any], path: Path = HERE / "results.json") -> None:
    """Merge `results` (name -> figures) into the file; the other names stay."""
    old = json.loads(path.read_text()) if path.exists() else {}
    _replace(path, json.dumps({**old, **results}, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
