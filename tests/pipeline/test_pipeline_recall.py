"""What a step reaches is recalled from one process to the next, and never when something on the way has changed."""

import os
import time

import pytest
from pipeline_support import Project
from test_pipeline_fingerprint import fake_distribution

from mlops_nb.notebook.source import read_step
from mlops_nb.pipeline import fingerprint
from mlops_nb.pipeline.fingerprint import Fingerprints

CODE = ["from churn.models import fit\nimport tiny_one", "flow.model = fit(3)"]
MODULES = {
    "churn/__init__.py": "",
    "churn/models.py": "from importlib import import_module\nfrom churn.features import scale\n"
    "def fit(x): return import_module(f'churn.plugins.{x}').run(scale(x))\n",
    "churn/features.py": "def scale(x): return x / 120\n",
    "churn/plugins/__init__.py": "",
    "churn/plugins/first.py": "def run(x): return x\n",
}


@pytest.fixture
def clock(monkeypatch):
    """A clock that is ten seconds ahead, so that files count as left alone."""
    real = time.time_ns
    monkeypatch.setattr("mlops_nb.pipeline.statcache.time.time_ns", lambda: real() + 10_000_000_000)
    return real


@pytest.fixture
def walks(monkeypatch):
    """How often names were really followed."""
    found = []
    real = fingerprint.reach
    monkeypatch.setattr(fingerprint, "reach", lambda *given: found.append(1) or real(*given))
    return found


@pytest.fixture
def project(tmp_path, monkeypatch, clock):
    site = tmp_path / "site-packages"
    fake_distribution(site, "tiny_one", "1.0")
    monkeypatch.syspath_prepend(site)
    project = Project(tmp_path / "project")
    project.workspace.mkdir()
    for name, text in MODULES.items():
        project.file(name, text)
    project.step("10_fit", *CODE)
    return project


def parts(project):
    """The parts of the step's key, as a process of its own would find them."""
    found = Fingerprints(project.settings)
    made = found.parts(read_step(project.folder / "nbs/pipelines/churn/10_fit.ipynb"), {}, {})
    found.save()
    return made


def test_a_second_look_follows_no_names(project, walks):
    assert parts(project) == parts(project) and len(walks) == 1
    os.utime(project.folder / "churn/features.py")
    assert parts(project) == parts(project) and len(walks) == 2
    project.step("10_fit", "# Prose", *CODE)
    assert [cell for cell, _ in parts(project)["cells"]] == [1, 3, 4]


@pytest.mark.parametrize(
    ("name", "text", "reached"),
    [
        ("churn/features.py", "def scale(x): return x / 130\n", "churn.features:scale"),
        ("churn/features/__init__.py", "def scale(x): return 1\n", "churn.features.__init__:scale"),
        ("churn/plugins/second.py", "def run(x): return -x\n", "churn.plugins.second:run"),
        ("churn/plugins/deep/third.py", "def run(x): return -x\n", "churn.plugins.deep.third:run"),
        ("tiny_one.py", "def hidden(): ...\nhidden()\n", "tiny_one:"),
        ("tiny_one/__init__.py", "print('hidden')\n", "tiny_one.__init__:"),
    ],
)
def test_whatever_changed_on_the_way_is_seen(project, walks, name, text, reached):
    before = parts(project)
    path = project.file(name, text)
    after = parts(project)
    assert before["definitions"].get(reached) != after["definitions"].get(reached) is not None
    path.unlink()
    if name in MODULES:
        assert "churn.features:scale" not in parts(project)["definitions"]
    else:
        assert parts(project) == before
    assert len(walks) == 3


def test_a_module_on_the_python_path_comes_and_goes(project, walks, tmp_path, monkeypatch):
    project.step("10_fit", "import elsewhere", "flow.x = elsewhere.f()")
    (tmp_path / "shared").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "shared")
    assert parts(project) == parts(project) and len(walks) == 1
    (tmp_path / "shared/elsewhere.py").write_text("def f(): ...\ndef g(): ...\n")
    assert list(parts(project)["definitions"]) == ["elsewhere:f"]
    monkeypatch.setattr("sys.path", [folder for folder in os.sys.path if not folder.endswith("shared")])
    assert parts(project)["definitions"] == {}


def test_a_file_that_was_just_written_is_not_trusted(project, walks, monkeypatch, clock):
    os.utime(project.folder / "churn/features.py")
    moment = clock()
    monkeypatch.setattr("mlops_nb.pipeline.statcache.time.time_ns", lambda: moment)
    for _ in range(3):
        parts(project)
    assert len(walks) == 3


@pytest.mark.parametrize("content", ["{ torn", "[]", '{"format": 0, "paths": 3}'])
def test_a_damaged_memory_is_rebuilt(project, walks, content):
    before = parts(project)
    (project.workspace / "cache/reach.json").write_text(content)
    assert parts(project) == before and len(walks) == 2
    assert parts(project) == before and len(walks) == 2
