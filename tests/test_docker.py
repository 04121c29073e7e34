"""Dockerfiles, read: no container engine runs here, so nothing is built."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KNOWN = {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "ENV", "ENTRYPOINT", "CMD", "USER", "EXPOSE", "LABEL"}


def instructions(path: Path) -> list[tuple[str, str]]:
    """(word, rest) of every instruction, continued lines joined, comments left out."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#")))
    found = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(parts[0], parts[1].strip()) for parts in found]


def test_there_is_one_per_simulator_s_interpreter() -> None:
    own = {p.stem for p in (ROOT / "envs" / "requirements").glob("*.txt")}
    assert {p.stem for p in FILES} - {"base"} <= own
    assert len(FILES) >= 5


def test_clusters_find_what_they_call_by_name() -> None:
    """Ray itself, which lives in the environment of the project, and what KubeRay's probes ask with."""
    runs = " ".join(rest for word, rest in instructions(ROOT / "docker" / "base.Dockerfile") if word == "RUN")
    assert "ln -s /temper/.venv/bin/ray /usr/local/bin/ray" in runs
    assert "wget" in runs.partition("apt-get install")[2].partition("&&")[0].split()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_dockerfile(path: Path) -> None:
    found = instructions(path)
    assert {word for word, _ in found} <= KNOWN
    assert next(word for word, _ in found if word != "ARG") == "FROM"
    for word, rest in found:
        if word == "FROM":
            assert ":" in rest or "${" in rest, f"{rest} has no tag"
        if word == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
            assert "curl" not in rest
            if "apt-get install" in rest:
                assert "--no-install-recommends" in rest
                assert "rm -rf /var/lib/apt/lists" in rest
        if word == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest
        if word in ("ENTRYPOINT", "CMD"):
            assert rest.startswith("["), f"{word} {rest}: signals do not pass through a shell"
