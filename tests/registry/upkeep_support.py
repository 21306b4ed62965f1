"""A small project that has run a few times, to be collected, damaged and rebuilt."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import Project

MAKE = ("from mlops_nb import Json, flow", "#| parameters\nrows: int = 3\nwait: str = ''")
WAIT = "import os, time\nopen('started', 'w').close()\nwhile wait and not os.path.exists(wait):\n    time.sleep(0.05)"
GIVE = "flow.numbers = Json(list(range(rows)))"
TRAIN = (
    "from mlops_nb import Metrics, flow",
    "#| parameters\nseed: int = 0\nfail: bool = False",
    "flow.half = [len(flow.make.numbers), seed]",
    "if fail:\n    raise ValueError('asked to fail')",
    "flow.metrics = Metrics({'score': sum(flow.make.numbers) + seed})",
)


def write_step(path: Path, *sources: str) -> None:
    """A step notebook."""
    tags = [{"tags": ["parameters"]} if source.startswith("#| parameters") else {} for source in sources]
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": tag, "source": text, "outputs": [], "execution_count": None}
        for n, (text, tag) in enumerate(zip(sources, tags, strict=True))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook), encoding="utf-8")


def make_project(folder: Path) -> Project:
    """A project of two steps."""
    steps = folder / "nbs" / "pipelines" / "demo"
    write_step(steps / "10_make.ipynb", *MAKE, WAIT, GIVE)
    write_step(steps / "20_train.ipynb", *TRAIN)
    ini = "[package]\nname = demo\n[tracking]\nmode = off\n[registry]\nbento_store = false\n"
    (folder / "settings.ini").write_text(ini, encoding="utf-8")
    return Project(folder, folder / ".mlops")


def run(project: Project, *words: str, expect: int = 0, **extra: str) -> dict[str, Any]:
    """Run its pipeline."""
    return project.json("run", "demo", *words, expect=expect, **extra)


def start(project: Project, *words: str, **extra: str) -> subprocess.Popen[str]:
    """A command of the project that goes on."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlops_nb", *words],
        cwd=project.folder,
        env={**project.environment, **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def faults(project: Project) -> list[tuple[str, str]]:
    """What fsck finds to be mended."""
    done = project.call("mlops-nb", "fsck", "--json")
    document = json.loads(done.stdout)
    found = [(one["what"], one["words"]) for one in document["findings"] if one["level"] == "fail"]
    assert done.returncode == int(bool(found)) and document["ok"] == (not found), done.stdout
    assert all(one["remedy"] for one in document["findings"])
    return found


def object_of(project: Project, digest: str) -> Path:
    """Where an object lies."""
    return project.workspace / "objects" / digest[:2] / digest


def overwrite(path: Path, data: bytes) -> None:
    """Change a file that may be read-only."""
    os.chmod(path, 0o644)
    path.write_bytes(data)
