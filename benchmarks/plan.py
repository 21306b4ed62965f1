"""What a command costs that computes nothing: a run with nothing to do, a plan, and a plan of 200 steps.

    python benchmarks/plan.py [--rounds 15] [--workspace FOLDER]

CPU seconds (user + system, children included) of whole commands, in turn with `python -c pass` of the same environment.
First the six steps of the tabular pipeline, in a workspace where they have run (`--workspace`; without it they run once
in a temporary one, which takes a minute): `mlops-nb run tabular` with nothing to do and `mlops-nb plan tabular`, as
multiples of the bare Python. Then `mlops-nb plan` of a generated pipeline of 200 steps, each of which reaches a dozen
functions of a local package of 40 modules, in seconds: up to date, after an edit of one module that a tenth of the
steps reaches, and cold, without any cache. Prints one line per round and a line of JSON with the medians. Exit code 1
when a limit is missed: 5 bare Pythons for a run with nothing to do and for a plan, 1 second for each plan of 200 steps.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.pipeline.documents import new_run_id
from mlops_nb.pipeline.plan import make_plan

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
STEPS, MODULES = 200, 40
LIMITS = {"run_ratio": 5.0, "plan_ratio": 5.0, "edited_seconds": 1.0, "up_to_date_seconds": 1.0, "cold_seconds": 1.0}


def cost(folder: Path, *command: str, says: str = "", **variables: str) -> float:
    """CPU seconds of a command and its children; it must succeed, and say `says`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **variables}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode or says not in done.stdout:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def module(number: int) -> str:
    """A module whose functions use each other and those of the next two modules."""
    lines = ["import math", f"LIMIT = {number}"]
    for other in (n for n in (number + 1, number + 2) if n < MODULES and n // 4 == number // 4):
        lines.append(f"from bench.m{other} import top as top_{other}")
    above = " + ".join(f"top_{n}(x)" for n in (number + 1, number + 2) if n < MODULES and n // 4 == number // 4) or "0"
    lines += [f"def part_{i}(x):\n    'Part {i}'\n    return math.sqrt(x) * LIMIT + {i}" for i in range(12)]
    return "\n".join([*lines, f"def top(x):\n    return part_0(x) + part_1(x) + {above}\n"])


def write_step(folder: Path, number: int) -> None:
    """A notebook of five cells that needs the results of up to three earlier ones."""
    needs = [f"flow.s{other}.x" for other in (number - 1, number - 7, number - 31) if other >= 0]
    sources = ["from mlops_nb import Json, flow\n" + f"from bench.m{number % MODULES} import top"]
    sources += ["#| parameters\nrate: float = 0.5  # how fast\nrounds: int = 3  # how often"]
    sources += [f"x = top(rate) + {number}", "for _ in range(rounds):\n    x = x / 2"]
    sources += [f"flow.x = Json(x + {' + '.join([*needs, '0'])})"]
    cells: list[dict[str, Any]] = []
    for place, source in enumerate(sources):
        tags = ["parameters"] if source.startswith("#|") else []
        cells.append({"cell_type": "markdown", "id": f"m{place}", "metadata": {}, "source": f"## Part {place}"})
        code = {"cell_type": "code", "id": f"c{place}", "metadata": {"tags": tags}, "source": source}
        cells.append({**code, "outputs": [], "execution_count": None})
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / f"{number:03}_s{number}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def write_project(folder: Path) -> None:
    """A project with the generated pipeline and package, left alone for long enough to be trusted."""
    (folder / "settings.ini").write_text("[package]\nname = bench\n[tracking]\nmode = off\n")
    pipeline = folder / "nbs/pipelines/big"
    pipeline.mkdir(parents=True)
    (folder / "bench").mkdir()
    (folder / "bench/__init__.py").touch()
    for number in range(MODULES):
        (folder / f"bench/m{number}.py").write_text(module(number), encoding="utf-8")
    for number in range(STEPS):
        write_step(pipeline, number)
    time.sleep(2.1)


def settle(folder: Path) -> None:
    """Enter a result for every step, as a run would."""
    settings = load_settings(folder)
    plan, run = make_plan(settings, "big", folder=folder), new_run_id()
    given: dict[str, Any] = {}
    with Ledger.open(settings) as ledger:
        plan.planner.ledger = ledger
        ledger.begin_run(run, "big", {})
        for name, step in plan.pipeline.steps.items():
            decision, data = plan.planner.decide(name, given), name.encode()
            assert decision.key and decision.parts
            stored = {"type": "Json", "sha256": plan.planner.store.put_bytes(data), "size": len(data), "meta": {}}
            given[name] = {"x": stored}
            facts = {"manifest": {"gives": given[name], "metrics": {}}, "position": step.position, "reasons": []}
            ledger.commit_step(run, name, key=decision.key, parts=decision.parts, **facts)
        ledger.end_run(run, "ok")


def plans_of_many(folder: Path, number: int) -> dict[str, float]:
    """CPU seconds of plans of 200 steps in three states."""
    cache = folder / ".mlops/cache"
    shutil.rmtree(cache, ignore_errors=True)
    found = {"cold_seconds": cost(folder, "mlops-nb", "plan", "big")}
    time.sleep(2.1)
    cost(folder, "mlops-nb", "plan", "big")
    found["up_to_date_seconds"] = cost(folder, "mlops-nb", "plan", "big", says="nothing to do")
    edited = folder / "bench/m3.py"
    text = edited.read_text(encoding="utf-8")
    edited.write_text(text.replace("LIMIT = 3", f"LIMIT = 3{number}"), encoding="utf-8")
    found["edited_seconds"] = cost(folder, "mlops-nb", "plan", "big", says="bench/m3.py::LIMIT changed")
    edited.write_text(text, encoding="utf-8")
    return found


def one_round(many: Path, workspace: str, number: int) -> dict[str, float]:
    """Everything once."""
    bare = cost(ROOT, "python", "-c", "pass")
    run = cost(ROOT, "mlops-nb", "run", "tabular", MLOPS_NB_WORKSPACE_PATH=workspace)
    plan = cost(ROOT, "mlops-nb", "plan", "tabular", MLOPS_NB_WORKSPACE_PATH=workspace)
    return {"bare_seconds": bare, "run_seconds": run, "plan_seconds": plan, **plans_of_many(many, number)}


def main() -> int:
    """Run the rounds, print a line for each and one of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workspace", help="one in which the tabular pipeline has run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlops-bench-") as folder:
        many, workspace = Path(folder).resolve() / "many", options.workspace or f"{folder}/workspace"
        os.environ.setdefault("BENTOML_HOME", f"{folder}/bentoml")
        many.mkdir()
        write_project(many)
        settle(many)
        for _ in range(2):  # the second one fills the caches
            cost(ROOT, "mlops-nb", "run", "tabular", MLOPS_NB_WORKSPACE_PATH=workspace)
        rounds = []
        for number in range(1, options.rounds + 1):
            rounds.append(one_round(many, workspace, number))
            print(f"round {number}: {', '.join(f'{k} {v:.3f}' for k, v in rounds[-1].items())}", flush=True)
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    for name in ("run", "plan"):
        medians[f"{name}_ratio"] = medians[f"{name}_seconds"] / medians["bare_seconds"]
    rounded = {name: round(value, 3) for name, value in medians.items()}
    print(json.dumps({**rounded, "limits": LIMITS, "rounds": options.rounds}))
    return int(any(medians[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
