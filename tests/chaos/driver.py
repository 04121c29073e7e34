"""One fine-tuning run on the toy, as a process of its own: `python -m tests.chaos.driver SETTINGS.json`."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from envs.types import EnvConfig
from rl.finetune import finetune
from rl.run import FinetuneRun


def main(path: Path) -> None:
    """Run to the end, or until somebody ends it."""
    fields = json.loads(path.read_text())
    finetune(FinetuneRun(**(fields | {"env": EnvConfig(**fields["env"])})))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
