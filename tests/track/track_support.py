"""Small pipelines whose runs W&B's own reader looks at."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

from support import Project


def write_step(project: Project, pipeline: str, name: str, *sources: str) -> None:
    """A step notebook with some cells of code; one that begins with `#| parameters` declares them."""
    cells = []
    for number, source in enumerate(sources):
        tags = ["parameters"] if source.startswith("#| parameters") else []
        code = {"cell_type": "code", "id": f"c{number}", "metadata": {"tags": tags}, "source": source}
        cells.append({**code, "outputs": [], "execution_count": None})
    path = project.folder / "nbs" / "pipelines" / pipeline / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def new_project(folder: Path, settings: str = "") -> Project:
    """A project without steps, with its workspace inside."""
    (folder / "churn").mkdir(parents=True)
    (folder / "churn" / "settings.ini").write_text(f"[package]\nname = churn\n{settings}")
    return Project(folder / "churn", folder / "churn" / ".mlops")


def parts(project: Project, run: str, step: str) -> list[Path]:
    """The folders with parts of a step's W&B run, in the order in which they are synchronised."""
    return sorted((project.workspace / "wandb").glob(f"offline-run-*-{run}-{step}"))


@functools.cache
def inspect(folder: Path, *options: str):
    """The answer of `wandb leet inspect --json`: one document of a summary, else a list of records."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(folder)]
    quiet = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    text = subprocess.run(command, capture_output=True, check=True, text=True, env=quiet).stdout
    return json.loads(text) if options else [json.loads(line) for line in text.splitlines()]


def summary(project: Project, run: str, step: str) -> dict:
    """What W&B's reader makes of the part that the mirror wrote."""
    return inspect(parts(project, run, step)[-1], "--summary")
