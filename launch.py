"""The command line: `python launch.py <verb> [group=choice] [key=value ...]`. Nothing here does any work itself."""

import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Before torch is loaded: threads that wait for one another spin for microseconds only, then sleep. Spinning for longer
# makes two threads many times slower than one on a busy machine; not spinning at all does so on a quiet one, for small
# networks. Processes started from here inherit the setting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

ROOT = Path(__file__).resolve().parent
NODES = ("env", "collect", "pretrain", "evaluate", "finetune")  # nested settings that a verb takes as objects
FLAGS = ("--dry", "--debug", "--help", "-h", "--lite", "--plan")
OF_ONE_VERB = {"--lite": "assets", "--plan": "doctor"}


class Verb(NamedTuple):
    """A word of the command line."""

    does: str
    example: str
    call: Callable[[list[str], bool], int]


def main(words: Sequence[str]) -> int:
    """Run one command; returns the exit status: 0 done, 1 a check or a bug, 2 the user's mistake, 130 interrupted."""
    flags = [w for w in words if w.startswith("-")]
    rest = [w for w in words if not w.startswith("-")]
    verb = rest.pop(0) if rest else "help"
    try:
        if unknown := [f for f in flags if f not in FLAGS]:
            raise ValueError(f"unknown flag '{unknown[0]}'; expected one of {', '.join(FLAGS)}, or key=value")
        if verb == "help" or {"--help", "-h"} & set(flags):
            print(_help([verb, *rest]))
            return 0
        if verb not in VERBS:
            raise ValueError(f"unknown verb '{verb}'; {_nearest(verb, list(VERBS))}")
        own = [f for f in flags if f in OF_ONE_VERB]
        for flag in own:
            if OF_ONE_VERB[flag] != verb:
                hint = "; for lite pictures set env.sim.render_quality=lite" if flag == "--lite" else ""
                raise ValueError(f"'{verb}' has no flag {flag}, only '{OF_ONE_VERB[flag]}' has{hint}")
        return VERBS[verb].call(rest + own, "--dry" in flags)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it can", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError) as e:
        if "--debug" in flags or not (getattr(e, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or _said_by_us(e)):
            raise
        print(f"{verb}: {e}\n(--debug shows where this comes from)", file=sys.stderr)
        return 2


# --- verbs that run a configuration -----------------------------------------------------------------------------------


def collect(words: list[str], dry: bool) -> int:
    """Record demonstrations by a scripted expert."""
    if tree := _tree("collect", words, dry):
        from pretrained.demos.collect import collect as work

        print(work(_made(tree)))
    return 0


def pretrain(words: list[str], dry: bool) -> int:
    """Imitate demonstrations."""
    if tree := _tree("pretrain", words, dry):
        from pretrained.imitate import imitate as work

        print(work(_made(tree)))
    return 0


def finetune(words: list[str], dry: bool) -> int:
    """Improve a checkpoint by PPO."""
    if tree := _tree("finetune", words, dry):
        from rl.finetune import finetune as work

        print(work(_made(tree)))
    elif dry and not _goes(words):
        print("# " + "\n# ".join(_memory(words)))
    return 0


def evaluate(words: list[str], dry: bool) -> int:
    """Measure a checkpoint on fixed initial states."""
    if tree := _tree("evaluate", words, dry):
        from rl.evaluate import evaluate as work

        summary = work(_made(tree))
        print(f"success {_rate(summary)} of {summary['episodes']} episodes; records in {tree['out']}")
        return 0 if summary["episodes"] else 1
    return 0


def sweep(words: list[str], dry: bool) -> int:
    """Measure checkpoints on tasks, perturbations and initial states; the same command continues after a kill."""
    if tree := _tree("sweep", words, dry):
        from rl.sweep import sweep as work

        print(work(_made(tree)))
    elif dry and not _goes(words):
        from configs.load import load
        from rl.sweep import describe

        print("# " + "\n# ".join(describe(_made(load("sweep", words)))))
    return 0


def serve(words: list[str], dry: bool) -> int:
    """Answer observations over a WebSocket; `policy=FOLDER` is `checkpoint=FOLDER`."""
    words = [w.replace("policy=", "checkpoint=", 1) if w.startswith("policy=") else w for w in words]
    if tree := _tree("serve", words, dry):
        from pretrained.serve import make_server

        server = make_server(_made(tree))
        print(f"serving {tree['checkpoint']} on ws://{tree['host']}:{server.port}", flush=True)
        server.forever()
    return 0


def plan(words: list[str], dry: bool) -> int:
    """Let FLIP plan in pictures."""
    if tree := _tree("plan", words, dry):
        from pretrained.flip.plan import make_plan as work

        print(work(_made(tree)))
    return 0


def demo(words: list[str], dry: bool) -> int:
    """Run the main job from demonstrations to report."""
    if tree := _tree("demo", words, dry):
        from rl.demo import demo as work
        from rl.demo import show

        show(work(_made(tree)))
    return 0


def report(words: list[str], dry: bool) -> int:
    """Write the HTML report of a run or a sweep."""
    if len(words) != 1 or "=" in words[0]:
        raise ValueError("expected one run folder, for example: launch.py report runs/demo")
    folder = Path(words[0])
    if dry:
        print(folder / "report.html")
    elif (folder / "results.sqlite").is_file():
        from rl.sweep_report import sweep_report

        print(sweep_report(folder))
    else:
        from rl.report import report as work

        print(work(folder))
    return 0


def replay(words: list[str], dry: bool) -> int:
    """See an evaluated episode again; `FOLDER:NUMBER`, then `out=VIDEO.mp4` and `python=PATH` if wanted."""
    given = dict(w.split("=", 1) for w in words if "=" in w)
    places = [w for w in words if "=" not in w]
    if len(places) != 1 or set(given) - {"out", "python"}:
        raise ValueError("expected one episode and perhaps out=VIDEO.mp4: launch.py replay runs/evaluate:12")
    from rl.replay import ReplayRun
    from rl.replay import replay as work

    if dry:
        print(ReplayRun(places[0], **given))
        return 0
    found = work(ReplayRun(places[0], **given))
    print(f"the same {found['length']} steps, to the bit: {found['video']}")
    return 0


def _tree(verb: str, words: list[str], dry: bool) -> dict[str, Any]:
    """The checked configuration with the command that made it; {} after a dry run, which prints it."""
    from configs.load import dump, load

    tree = load(verb, words)
    if _goes(words) and _elsewhere(verb, words, dry, tree):
        return {}
    if dry:
        print(dump(tree), end="")
        return {}
    _show_token(tree.get("ray_address", ""))
    return _with_origin(tree, verb, shlex.join(["python", "launch.py", verb, *words]))


def _show_token(address: str) -> None:
    """Switch Ray's token authentication on, before Ray is imported, if the cluster is not on this machine."""
    from rl.access import demand_token

    if address and (warning := demand_token(address, os.environ, Path.home())):
        print(warning, file=sys.stderr)


def _goes(words: list[str]) -> bool:
    """Whether the words may send a run to a cluster; composing the configuration to find out takes a while."""
    return any(w.startswith(("cluster=", "cluster.")) for w in words)


def _elsewhere(verb: str, words: list[str], dry: bool, tree: dict[str, Any]) -> bool:
    """Write down a run that goes to a cluster, and say how to hand it in; False if it stays here."""
    from configs.load import place

    if not (node := place(verb, words)):
        return False
    from rl.cluster import made, render

    texts, commands = render(made(node), verb=verb, words=words, out=Path(tree["out"]), write=not dry)
    for file, text in texts.items():
        print(f"# {file}\n{text}" if dry else file)
    print("# hand it in:\n" + "\n".join(shlex.join(c) for c in commands))
    return True


def _memory(words: list[str]) -> list[str]:
    """What a fine-tuning run will take, for `--dry`."""
    from configs.load import load
    from rl.memory import predict

    try:
        return predict(_made(load("finetune", words))).lines()
    except (ValueError, RuntimeError, OSError) as e:
        return [f"peak memory: not predicted, because {str(e).splitlines()[0]}"]


def _with_origin(tree: dict[str, Any], verb: str, command: str) -> dict[str, Any]:
    """Fill in `command` and `config` where the run keeps them: what was typed, and what it resolved to."""
    from configs.schema import parameters

    known = parameters(str(tree["_target_"]), verb)
    out = {k: _with_origin(v, k, command) if k in NODES[1:] and isinstance(v, dict) else v for k, v in tree.items()}
    if "config" in known and not out.get("config"):
        out["config"] = dict(tree)
    if "command" in known and not out.get("command"):
        out["command"] = command
    return out


def _made(tree: dict[str, Any]) -> Any:
    """Build the settings object of a verb, with those nested in it."""
    from envs.build import build

    nested = {k: _made(v) for k, v in tree.items() if k in NODES and isinstance(v, dict) and "_target_" in v}
    lists = {k: tuple(v) for k, v in tree.items() if isinstance(v, list)}
    return build({**tree, **lists, **nested})


# --- verbs about this machine -----------------------------------------------------------------------------------------


def install(words: list[str], dry: bool) -> int:
    """Install simulators' interpreters, or the system's rendering libraries (gl)."""
    from envs.install import check_gl, gl_command, install_gl, simulators
    from envs.install import install as work

    known = ["gl", *simulators()]
    for name in words or ["?"]:
        if name not in known:
            what = "name what to install" if name == "?" else f"unknown simulator '{name}'"
            raise ValueError(f"{what}; {_nearest(name, known)}")
    for name in words:
        if dry:
            print(gl_command() if name == "gl" else f"python -m venv .venvs/{name}; see envs/requirements/{name}.txt")
        elif name != "gl":
            work(name, ROOT, print)
        elif (missing := check_gl()) and (command := install_gl(print)):
            raise ValueError(f"missing for offscreen rendering: {', '.join(missing)}; type: {command}")
    return 0


def assets(words: list[str], dry: bool) -> int:
    """Build the lite meshes and textures of a simulator, or say how many are there."""
    from envs.lite import SIMULATORS, build, command, find_jobs, lite_folder, missing

    names = [word for word in words if word != "--lite"]
    if len(names) != 1 or names[0] not in SIMULATORS:
        raise ValueError(f"expected one of {', '.join(SIMULATORS)}, for example: launch.py assets libero --lite")
    jobs = find_jobs(names[0], ROOT)
    waiting = missing(jobs)
    if "--lite" in words and waiting and not dry:
        from pretrained.progress import Bar

        with Bar(f"lite assets of {names[0]}", total=len(jobs), done=len(jobs) - len(waiting)) as bar:
            for _ in build(waiting):
                bar.advance()
        waiting = missing(jobs)
    print(f"{names[0]}: {len(jobs) - len(waiting)} of {len(jobs)} lite assets are built in {lite_folder()}")
    if waiting:
        print(f"the rest: {command(names[0])}")
    return 0


def doctor(words: list[str], dry: bool) -> int:
    """Check this machine, and with env=... a simulator; with --plan, propose the size of a run instead."""
    if "--plan" in words:
        print("\n".join(_plan([w for w in words if w != "--plan"])))
        return 0
    from rl.doctor import machine

    rows = machine()
    if not dry and words:
        from configs.load import load
        from envs.build import locate
        from envs.doctor import simulator

        config = _made(load("collect", words)["env"])
        rows += getattr(locate(config.sim["_target_"]), "needs", lambda config: [])(config)
        try:
            rows += simulator(config)
        except RuntimeError as e:  # it does not start: the rows above may say why
            rows.append(("simulator", str(e), "BAD"))
    width = max(len(r[0]) for r in rows)
    for name, value, verdict in rows:
        print(f"  {name:<{width}}  {verdict:<4}  {value}")
    bad = [name for name, _, verdict in rows if verdict == "BAD"]
    print(f"{len(bad)} of {len(rows)} checks need attention" + (f": {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


def _plan(words: list[str]) -> list[str]:
    """A proposal, from what is measured here and what the words say instead."""
    from rl.planning import advise, complete, machine, measure, split

    figures, address, rest = split(words)
    _show_token(address)
    there, costs = machine(figures, address), None
    if not complete(figures):
        from configs.load import load

        run, policy = load("finetune", rest), load("pretrain", rest)["policy"]
        costs = measure(_made(run["env"]), policy, {k: run[k] for k in ("algo", "rewards")})
    return advise(there, costs, figures)


# --- words ------------------------------------------------------------------------------------------------------------


VERBS = {
    "install": Verb("install a simulator's interpreter, or the rendering libraries", "install libero", install),
    "assets": Verb("build the coarse meshes that render_quality=lite uses", "assets libero --lite", assets),
    "doctor": Verb("check this machine and a simulator; --plan sizes a run", "doctor env=robosuite_lift", doctor),
    "collect": Verb("record demonstrations by a scripted expert", "collect env=robosuite_lift episodes=50", collect),
    "pretrain": Verb("imitate demonstrations", "pretrain policy=flow demos=runs/demos/demos.hdf5", pretrain),
    "finetune": Verb("improve a checkpoint by PPO", "finetune checkpoint=runs/pretrain algo=reinflow", finetune),
    "evaluate": Verb("measure a checkpoint", "evaluate checkpoint=runs/finetune episodes=100", evaluate),
    "serve": Verb("answer a robot's observations over a WebSocket", "serve policy=runs/finetune port=8765", serve),
    "plan": Verb("plan in pictures with FLIP's modules", "plan demos=runs/tracks episode=3", plan),
    "sweep": Verb("measure checkpoints x tasks x perturbations", "sweep checkpoints=[runs/a,runs/b] env=toy", sweep),
    "replay": Verb("see an evaluated episode again, to the bit", "replay runs/evaluate:12", replay),
    "report": Verb("write the HTML page of a run", "report runs/demo", report),
    "demo": Verb("all of it: collect, pretrain, fine-tune, evaluate, report", "demo run=demo seed=1", demo),
}


def _help(words: list[str]) -> str:
    """Plain help; imports nothing, so that it is quick."""
    verb = next((w for w in words if w in VERBS), "")
    lines = ["usage: python launch.py <verb> [group=choice ...] [key=value ...] [--dry] [--debug]", ""]
    for name in [verb] if verb else list(VERBS):
        lines += [f"  {name:<9} {VERBS[name].does}", f"            e.g. python launch.py {VERBS[name].example}"]
    lines += ["", "groups (configs/<group>/<choice>.yaml):"]
    for folder in sorted(p for p in (ROOT / "configs").iterdir() if p.is_dir() and not p.name.startswith("_")):
        lines.append(f"  {folder.name:<9} {' '.join(sorted(p.stem for p in folder.glob('*.yaml')))}")
    lines += ["", "--dry prints the resolved configuration and stops; --debug shows tracebacks."]
    return "\n".join(lines)


def _nearest(word: str, known: list[str]) -> str:
    from configs.schema import nearest

    return nearest(word, known)


def _said_by_us(error: BaseException) -> bool:
    """Whether one of our own files raised this. What a library raises is a bug of ours, and needs its traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    path = Path(trace.tb_frame.f_code.co_filename)
    return ROOT in path.parents and not any(part.startswith(".venv") for part in path.parts)


def _rate(part: dict[str, Any]) -> str:
    return f"{part['success']:.1%} [{part['low']:.1%}, {part['high']:.1%}]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
