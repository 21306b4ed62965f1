"""One server for all tests of this folder, in a process that can import only what serving needs."""

import os

import pytest
from serve_support import block_imports, environment, make_project, release, serving


@pytest.fixture(scope="session")
def served_project(tmp_path_factory):
    """A project with one released model."""
    project = make_project(tmp_path_factory.mktemp("served") / "project")
    release(project)
    return project


@pytest.fixture(scope="session")
def server(served_project, tmp_path_factory):
    """`bentoml serve` on that project."""
    folder = tmp_path_factory.mktemp("server")
    only_serving = block_imports(folder / "path")
    path = os.pathsep.join(filter(None, [str(only_serving), os.environ.get("PYTHONPATH")]))
    env = environment(folder / "home", PYTHONPATH=path, __BENTOML_DEBUG_USAGE="true")
    with serving(served_project, folder / "server.log", env) as running:
        yield running
