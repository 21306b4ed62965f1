"""A small project whose steps import almost nothing, and how its runs are started, watched and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import Settings, load_settings
from mlops_nb.pipeline.documents import new_run_id
from mlops_nb.pipeline.plan import Plan, make_plan
from mlops_nb.pipeline.run import RunResult, run_pipeline

ROOT = Path(__file__).resolve().parents[2]
FLOW = "from mlops_nb import flow"
# A process of its own runs a pipeline without the listeners of upper rooms, and prints the document.
DRIVER = """
import json, sys
from mlops_nb.core.errors import MlopsError
from mlops_nb.core.registry import hooks
from mlops_nb.core.settings import load_settings
from mlops_nb.pipeline.keyed import run_keyed
from mlops_nb.pipeline.reporter import EventWriter
from mlops_nb.pipeline.run import run_pipeline
hooks._listeners.clear()
options = json.loads(sys.argv[2])
run = run_keyed if "key" in options else run_pipeline
reporter = EventWriter.open(options.pop("events")) if "events" in options else None
try:
    result = run(load_settings(sys.argv[1]), options.pop("pipeline", "churn"), reporter=reporter, **options)
except MlopsError as error:
    print(json.dumps({"error": error.document()}))
    sys.exit(error.exit_code)
print(json.dumps(result.document))
sys.exit(result.exit_code)
"""


def cell(source: str, number: int) -> dict[str, Any]:
    """A cell: text that begins with '# ' or '## ' is prose."""
    if source.startswith(("# ", "## ")):
        return {"cell_type": "markdown", "id": f"c{number}", "metadata": {}, "source": source}
    tags = ["parameters"] if source.startswith("#| parameters") else []
    code = {"cell_type": "code", "id": f"c{number}", "metadata": {"tags": tags}, "source": source}
    return code | {"outputs": [], "execution_count": None}


def write_notebook(path: Path, *sources: str) -> None:
    """A notebook of some cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [cell(source, number) for number, source in enumerate(sources)]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook), encoding="utf-8")


class Project:
    """A project in a temporary folder."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        ini = "[package]\nname = churn\n[tracking]\nmode = off\n[registry]\nbento_store = false\n"
        (self.folder / "settings.ini").write_text(ini)

    @property
    def settings(self) -> Settings:
        return load_settings(self.folder, environ={"MLOPS_NB_PIPELINE_SERVER": "off"})

    @property
    def workspace(self) -> Path:
        return self.folder / ".mlops"

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.settings, create=False)

    def step(self, name: str, *sources: str, pipeline: str = "churn") -> Path:
        """Write a step: `10_split.ipynb` and its cells, after the one that imports flow."""
        path = self.folder / "nbs/pipelines" / pipeline / f"{name}.ipynb"
        write_notebook(path, FLOW, *sources)
        return path

    def file(self, name: str, text: str) -> Path:
        """Write a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def plan(self, **options: Any) -> Plan:
        """A plan, with nothing remembered in this process."""
        return make_plan(self.settings, options.pop("pipeline", "churn"), folder=self.folder, **options)

    def reasons(self, step: str, **options: Any) -> list[str]:
        """Why a step would run."""
        return self.plan(**options).decisions[step].reasons

    def run(self, **options: Any) -> RunResult:
        """A run in this process."""
        return run_pipeline(self.settings, options.pop("pipeline", "churn"), folder=self.folder, **options)

    def start(self, environment: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """A run in a process of its own."""
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(self.folder), json.dumps(options)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[str], timeout: float = 60) -> tuple[int, dict[str, Any]]:
    """Exit code and document of a run that was started."""
    out, err = process.communicate(timeout=timeout)
    assert out or process.returncode < 0, err
    return process.returncode, json.loads(out) if out else {}


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true answer; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def states(result: RunResult | dict[str, Any]) -> dict[str, str]:
    """Step -> state."""
    document = result if isinstance(result, dict) else result.document
    return {step["step"]: step["state"] for step in document["steps"]}


def gives(result: RunResult | dict[str, Any]) -> dict[str, str]:
    """`step.artifact` -> sha256."""
    document = result if isinstance(result, dict) else result.document
    return {f"{s['step']}.{n}": a["sha256"] for s in document["steps"] for n, a in s["artifacts"].items()}


def kernels_of(folder: Path) -> list[int]:
    """Processes that work in a folder (Linux)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (
                    Path(os.readlink(entry / "cwd")) == folder
                    and b"mlops_nb.notebook" in (entry / "cmdline").read_bytes()
                ):
                    found.append(int(entry.name))
            except OSError:  # gone meanwhile, or not ours
                continue
    return found


def stop(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal to the runner alone, and wait for its end."""
    process.send_signal(number)
    process.wait(30)


def settle(project: Project, contents: dict[str, bytes] | None = None, **options: Any) -> str:
    """Enter a good result for every step as a run would, without a kernel: each gives `contents`, else its own name."""
    plan, ledger = project.plan(**options), Ledger.open(project.settings)
    run, planner = new_run_id(), plan.planner
    planner.ledger = ledger
    planner.fingerprints.save()
    ledger.begin_run(run, plan.pipeline.name, {})
    given: dict[str, Any] = {}
    for name, step in plan.pipeline.steps.items():
        decision = planner.decide(name, given)
        assert decision.key is not None and decision.parts is not None
        made = {}
        for give in step.gives:
            data = (contents or {}).get(f"{name}.{give.name}", f'"{name}.{give.name}"'.encode())
            made[give.name] = {"type": "Json", "sha256": planner.store.put_bytes(data), "size": len(data), "meta": {}}
        manifest = {"format": 1, "step": name, "gives": made, "metrics": {}}
        facts = {"position": step.position, "reasons": decision.reasons, "seconds": 1.0, "notebook": f"{name}.ipynb"}
        ledger.commit_step(
            run, name, key=decision.key, parts=planner.redactor.json(decision.parts), manifest=manifest, **facts
        )
        given[name] = made
    ledger.end_run(run, "ok")
    ledger.close()
    return run
