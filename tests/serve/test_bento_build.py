"""`bentoml build` packs the release, and the Bento serves in an environment made from its own requirements alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serve_support import environment, make_project, people, release, serving
from support import BIN, ROOT

WRITE_REQUIREMENTS = """
from pathlib import Path
from mlops_nb.registry.requirements import requirements
Path(".mlops/releases/requirements.txt").write_text(requirements(Path.cwd()))
"""
LAPTOP_ONLY = ("papermill", "wandb", "jupyterlab", "nbformat", "matplotlib", "sqlalchemy", "pyarrow", "mlops-nb")


def call(folder, env, *command):
    """Run a command; what it printed."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the package's source, as this repository, two models, and much that a Bento should not take."""
    project = make_project(tmp_path_factory.mktemp("bento") / "project")
    shutil.copytree(ROOT / "mlops_nb", project / "mlops_nb", ignore=shutil.ignore_patterns("__pycache__"))
    release(project)
    release(project, "account")
    for name in ("nbs/10_step.ipynb", "data/secret.csv", ".env", ".mlops/ledger.sqlite", ".mlops/objects/ab/abcd"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("not for a Bento")
    (project / ".mlops/keys/project.pem").write_text("not for a Bento")
    (project / ".mlops/releases/churn/.000001-aaaaaaaaaaaa.0123.tmp").mkdir()
    (project / ".mlops/releases/churn/.000001-aaaaaaaaaaaa.0123.tmp/release.json").write_text("half")
    call(project, environment(project.parent / "home"), sys.executable, "-c", WRITE_REQUIREMENTS)
    return project


@pytest.fixture(scope="module")
def bento(project):
    """The Bento built from that project, in a home outside of it."""
    env = environment(project.parent / "home", MLOPS_NB_SERVING_MODEL="churn")
    tag = call(project, env, sys.executable, "-m", "bentoml", "build", "--output", "tag").strip()
    name, _, version = tag.removeprefix("__tag__:").partition(":")
    return project.parent / "home" / "bentos" / name / version


@pytest.fixture(scope="module")
def fresh_python(bento):
    """An environment with what the Bento's requirements name, and nothing else."""
    venv = bento.parents[3] / "venv"
    requirements = str(bento / "env/python/requirements.txt")
    env = environment(bento.parents[3] / "home")
    if (BIN / "uv").exists():
        call(bento.parent, env, str(BIN / "uv"), "venv", "--quiet", "--python", sys.executable, str(venv))
        python = str(venv / "bin/python")
        call(bento.parent, env, str(BIN / "uv"), "pip", "install", "--quiet", "--python", python, "-r", requirements)
    else:
        call(bento.parent, env, sys.executable, "-m", "venv", str(venv))
        python = str(venv / "bin/python")
        call(bento.parent, env, python, "-m", "pip", "install", "--quiet", "-r", requirements)
    return python


def test_it_holds_the_release_and_the_package_and_nothing_else(bento):
    files = {str(file.relative_to(bento / "src")) for file in (bento / "src").rglob("*") if file.is_file()}
    tops = {Path(file).parts[0] for file in files}
    assert tops == {"settings.ini", "bentofile.yaml", "mlops_nb", ".mlops"}
    kept = {file for file in files if file.startswith(".mlops")}
    keys = {".mlops/keys/trusted.json"}
    assert keys <= kept and all(file.startswith(".mlops/releases/") and ".tmp" not in file for file in kept - keys)
    assert {".mlops/releases/requirements.txt", ".mlops/releases/churn/current"} <= kept
    assert not any("account" in Path(file).parts for file in kept)
    assert {Path(file).suffix for file in files if file.startswith("mlops_nb")} == {".py"}
    assert "churn" in (bento / "bento.yaml").read_text()
    assert "account balance" in (bento / "apis/openapi.yaml").read_text()


def test_its_requirements_are_exact_and_few(bento):
    lines = (bento / "env/python/requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin and "://" not in pin for pin in pins)
    names = {pin.partition("==")[0].lower() for pin in pins}
    assert {"bentoml", "msgspec", "scikit-learn", "skops", "uvicorn", "httptools"} <= names
    assert not names & set(LAPTOP_ONLY)


def test_a_bento_without_its_release_is_not_built(project, tmp_path):
    elsewhere = tmp_path / "workspace"
    shutil.copytree(project / ".mlops", elsewhere)
    copy = make_project(tmp_path / "project")
    shutil.copytree(project / "mlops_nb", copy / "mlops_nb")
    env = environment(tmp_path / "home", MLOPS_NB_WORKSPACE_PATH=str(elsewhere), MLOPS_NB_SERVING_MODEL="churn")
    command = [sys.executable, "-m", "bentoml", "build"]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert "The Bento would hold no release that can be served" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_serves_in_a_fresh_environment(bento, fresh_python, tmp_path):
    env = environment(tmp_path / "another-home", MLOPS_NB_WORKSPACE_PATH=str(tmp_path / "nowhere"))
    record = {"age": 41, "married": True, "job": "clerk", "since": "2021-03-01"}
    with serving(tmp_path, tmp_path / "server.log", env, target=str(bento), python=fresh_python) as server:
        answer = server.ask("/predict", [record] * 2)
        assert answer.status == 200, answer.text
        assert answer.json["predictions"][0]["prediction"] in set(people()["churned"])
        assert server.ask("/docs.json").json["info"]["title"] == "churn"
