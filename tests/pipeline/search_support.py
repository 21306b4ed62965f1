"""Small pipelines that are searched, and a process that searches one."""

import json
import os
import subprocess
import sys
from typing import Any

from pipeline_support import ROOT, Project

from mlops_nb.pipeline.graph import load_pipeline
from mlops_nb.pipeline.reporter import Reporter
from mlops_nb.pipeline.search import SearchResult, run_search
from mlops_nb.pipeline.sweep_file import SweepFile
from mlops_nb.pipeline.wanted import Wanted, what_is_wanted

IMPORTS = "from typing import Annotated, Literal\nfrom mlops_nb import Json, LogRange, Metrics, Model, Range, log"
RATE = "#| parameters\nrate: Annotated[float, LogRange(1e-4, 1)] = 0.1\nseed: Annotated[int, Range(0, 99)] = 0"
LOSS = "flow.metrics = Metrics({'loss': abs(rate - 0.01) + len(flow.split.part)})"
# A process of its own searches without the listeners of upper rooms, and prints the document.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[3])
from mlops_nb.core.registry import hooks
from mlops_nb.pipeline.reporter import EventWriter
from pipeline_support import Project
from search_support import search
hooks._listeners.clear()
from pathlib import Path
options = json.loads(sys.argv[2])
options["reporter"] = EventWriter.open(options.pop("events"))
found = search(Project(Path(sys.argv[1])), **options)
print(json.dumps(found.document))
sys.exit(found.exit_code)
"""


def write_churn(project: Project, *train: str, parameters: str = RATE) -> None:
    """A pipeline of two steps; `train` is searched."""
    project.step(
        "10_split", IMPORTS, "#| parameters\nrows: Annotated[int, Range(1, 9)] = 2", "flow.part = Json([0] * rows)"
    )
    project.step("20_train", IMPORTS, parameters, *(train or (LOSS,)))


class Heard(Reporter):
    """Keeps trials and warnings."""

    def __init__(self) -> None:
        self.trials: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    def trial(self, trial: dict[str, Any]) -> None:
        self.trials.append(trial)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def wanted(project: Project, metric: str = "train.loss", minimize: bool = True, **options: Any) -> Wanted:
    """What a search of the pipeline looks for; by default in all that `train` says."""
    options = {"over": ["train.*"], "trials": 6, "folder": project.folder, **options}
    file = options.pop("file", SweepFile())
    return what_is_wanted(project.settings, load_pipeline(project.settings, "churn"), metric, minimize, file, **options)


RUN = ("jobs", "budget", "prune_on", "opposite", "seed", "reporter", "command")


def search(project: Project, **options: Any) -> SearchResult:
    """A search in this process."""
    how = {name: options.pop(name) for name in RUN if name in options}
    return run_search(wanted(project, **options), **how)


def start_search(project: Project, **options: Any) -> subprocess.Popen[str]:
    """A search in a process of its own; its events go to the project's `events`."""
    here = str(ROOT / "tests/pipeline")
    options.setdefault("events", str(project.folder / "events"))
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(project.folder), json.dumps(options), here],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def events(project: Project, kind: str, file: str = "events") -> list[dict[str, Any]]:
    """Events of a kind that a search has written."""
    path = project.folder / file
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if (event := json.loads(line))["event"] == kind]
