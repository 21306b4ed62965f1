"""A workspace with three runs, made once."""

import shutil
import subprocess

import pytest
from upkeep_support import Project, make_project, run


@pytest.fixture(scope="session")
def three_runs(tmp_path_factory) -> tuple[Project, list[dict]]:
    """The project and its runs: a good one, a good one with another seed, and one that failed."""
    project = make_project(tmp_path_factory.mktemp("three") / "demo")
    first = run(project)
    second = run(project, "-p", "train.seed=1")
    failed = run(project, "-p", "train.fail=true", expect=1)
    return project, [first, second, failed]


@pytest.fixture
def demo(three_runs, tmp_path) -> Project:
    """A copy of it, to be changed freely."""
    folder = tmp_path / "demo"
    subprocess.run(["cp", "-a", str(three_runs[0].folder), str(folder)], check=True)
    yield Project(folder, folder / ".mlops")
    shutil.rmtree(folder)
