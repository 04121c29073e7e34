"""A folder that ai2thor's Controller takes for a downloaded build: `python -m envs.thor_mini.release`.

Then pass `commit_id` (printed) and `platform="Linux64"` with `headless=True`, or another platform name given here. The
Controller deletes all but its three newest releases at every start, so give it a HOME of its own if you keep others.
Needs the standard library alone; Python 3.8 syntax.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import List, Optional, Union

COMMIT = "7468".ljust(40, "0")  # forty hexadecimal digits that no build has
ROOT = Path(__file__).resolve().parents[2]


def make_release(base: Union[str, Path], *, platform: str = "Linux64", arguments: str = "") -> Path:
    """Make the folder below `base` (usually `~/.ai2thor`) with a program that runs the stand-in; returns it."""
    name = f"thor-{platform}-{COMMIT}"
    folder = Path(base).expanduser() / "releases" / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "#!/bin/sh",
        f"PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONPATH",
        f'exec {shlex.quote(sys.executable)} -u -m envs.thor_mini {arguments} "$@"',
    ]
    program = folder / name
    program.write_text("\n".join(lines) + "\n", encoding="utf-8")
    program.chmod(0o755)
    (folder / "metadata.json").write_text(json.dumps({"server_types": ["FIFO", "WSGI"]}), encoding="utf-8")
    return folder


def main(given: Optional[List[str]] = None) -> int:
    """Make the folder and say how to use it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m envs.thor_mini.release", description=__doc__)
    parser.add_argument("--base", default="~/.ai2thor", help="where the Controller keeps its things")
    parser.add_argument("--platform", default="Linux64", choices=("Linux64", "CloudRendering"))
    parser.add_argument("--arguments", default="", help="for the stand-in, in one string")
    options = parser.parse_args(given)
    folder = make_release(options.base, platform=options.platform, arguments=options.arguments)
    logging.info("%s\nuse Controller(commit_id='%s', platform='%s', ...)", folder, COMMIT, options.platform)
    return 0


if __name__ == "__main__":
    sys.exit(main())
