"""From the built wheel, in an empty environment outside the repository: a project, a run, a prediction."""

import os
import shutil
import subprocess
import sys

import pytest
from support import BIN, ROOT, Project, ask, serving, states


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns(".venv", ".mlops", ".git", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A virtual environment with the wheel and what it requires, at the locked versions."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", *(["--without-pip"] if (BIN / "uv").exists() else []), str(folder)], check=True
    )
    python = str(folder / "bin" / "python")
    if (BIN / "uv").exists():
        install = [str(BIN / "uv"), "pip", "install", "--quiet", "--python", python]
    else:
        install = [python, "-m", "pip", "install", "--quiet"]
    constraints = wheel.parent / "constraints.txt"
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    constraints.write_text("\n".join(line.rstrip(" \\") for line in lines if "==" in line), encoding="utf-8")
    subprocess.run([*install, "--constraint", str(constraints), str(wheel)], check=True, cwd=folder.parent)
    return folder


def test_new_run_serve_predict(environment, tmp_path):
    binaries = environment / "bin"
    outside = Project(tmp_path, tmp_path / "unused", binaries)
    made = subprocess.run(
        [str(binaries / "mlops-nb"), "new", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert outside.call("python", "-c", "import mlops_nb; print(mlops_nb.__file__)").stdout.startswith(str(environment))
    project = Project(tmp_path / "demo", tmp_path / "demo" / ".mlops", binaries)
    assert project.json("lint") is not None
    document = project.json("run", "demo")
    assert set(states(document).values()) == {"done"} and document["models"][0]["aliases"] == ["champion"]
    assert set(states(project.json("run", "demo")).values()) == {"cached"}
    other = project.json("run", "demo", "-p", "train.model=logistic")  # compared with the champion
    assert other["status"] == "ok" and other["models"][0]["version"] == 2, other
    with serving(project) as address:
        schema = ask(f"{address}/schema")[1]
        record = {feature["name"]: feature["example"] for feature in schema["features"]}
        status, answer = ask(f"{address}/predict", record)
    best = 2 if "champion" in other["models"][0]["aliases"] else 1
    assert status == 200 and answer["version"] == best


def test_the_core_does_not_bring_the_laboratory(environment):
    listing = [
        str(environment / "bin" / "python"),
        "-c",
        "from importlib.metadata import distributions as d; print(*sorted(x.name.lower() for x in d()))",
    ]
    names = subprocess.run(listing, capture_output=True, text=True, check=True, env={**os.environ}).stdout.split()
    assert "mlops-nb" in names
    assert not {"jupyterlab", "nbdev", "pytest", "hypothesis", "pyright"} & set(names)
