"""New projects, clean notebooks, git's drivers and the shells' completion."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import BIN, ROOT

from mlops_nb.commands.clean import cleaned_bytes
from mlops_nb.commands.templates import copy_steps, folder

STEPS = ROOT / "nbs" / "pipelines" / "tabular"


def command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run `mlops-nb WORDS`."""
    line = [sys.executable, "-m", "mlops_nb", *words]
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A new project called churn."""
    place = tmp_path_factory.mktemp("new")
    done = command("new", "churn", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "churn"


def test_a_new_project_has_what_a_project_needs(made):
    present = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    wanted = {
        "settings.ini",
        "setup.py",
        "pyproject.toml",
        "bentofile.yaml",
        "README.md",
        ".gitignore",
        ".gitattributes",
    }
    wanted |= {".github/workflows/ci.yml", "nbs/lib/00_features.ipynb", "churn/features.py", "tests/test_churn.py"}
    wanted |= {f"nbs/pipelines/churn/{path.name}" for path in STEPS.glob("*.ipynb")}
    assert present == wanted | {"churn/__init__.py"}
    assert not any("PROJECT_NAME" in path.read_text(encoding="utf-8") for path in made.rglob("*") if path.is_file())


def test_its_settings_and_steps_are_sound(made):
    settings = json.loads(command("config", "--json", cwd=made).stdout)["settings"]
    assert {row["section"] for row in settings} >= {"workspace", "pipeline", "tracking"}
    done = command("lint", "--json", cwd=made)
    assert done.returncode == 0 and json.loads(done.stdout)["pipelines"] == ["churn"], done.stdout


def test_lint_and_plan_see_a_circle_at_the_same_place(project):
    step = project / "nbs" / "pipelines" / "demo" / "10_make.ipynb"
    text = step.read_text(encoding="utf-8").replace("list(range(rows))", "[flow.train.metrics] * rows")
    step.write_text(text, encoding="utf-8")
    done = command("lint", "--json", cwd=project)
    [finding] = json.loads(done.stdout)["findings"]
    refused = command("plan", "demo", "--json", cwd=project)
    error = json.loads(refused.stdout)["error"]
    assert (done.returncode, refused.returncode, finding["rule"]) == (1, 2, "circle")
    assert "make -> train -> make" in error["message"] == finding["message"]
    place = {"notebook": "nbs/pipelines/demo/10_make.ipynb", "cell": 4, "line": 1}
    assert {name: error[name] for name in place} == {name: finding[name] for name in place} == place


def test_its_module_is_what_its_notebook_exports(made, tmp_path):
    copy = shutil.copytree(made, tmp_path / "churn")
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    for tool in ("nbdev-export", "nbdev-clean"):
        done = subprocess.run([str(BIN / tool)], cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert [p for p, content in before.items() if p.read_bytes() != content] == []


def test_its_metadata_reach_setuptools(made):
    line = [sys.executable, "setup.py", "--name", "--version", "--requires"]
    done = subprocess.run(line, cwd=made, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[:2] == ["churn", "0.1.0"], done.stderr


def test_the_library_of_a_new_project_passes_its_own_test(made):
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "ratio or sound or columns"]
    done = subprocess.run(line, cwd=made, capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout


def test_the_packaged_steps_are_those_of_the_tabular_pipeline(tmp_path):
    copies = shutil.copytree(folder() / "pipeline", tmp_path / "pipeline")
    assert copy_steps(STEPS, copies) == [], "run: make export"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("My-Project", "mlops-nb new my_project"),
        ("class", "mlops-nb new my_class"),
        ("json", "mlops-nb new my_json"),
        ("../up", "mlops-nb new up"),
        ("mlops_nb", "mlops-nb new my_mlops_nb"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(tmp_path, name, hint):
    done = command("new", name, cwd=tmp_path)
    assert done.returncode == 2 and hint in done.stderr and list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "churn").mkdir()
    (tmp_path / "churn" / "mine.txt").write_text("mine")
    done = command("new", "churn", cwd=tmp_path)
    assert done.returncode == 2 and "not empty" in done.stderr
    assert [path.name for path in (tmp_path / "churn").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    code = "import os, sys; os.mkdir = None; from mlops_nb.cli import main; sys.exit(main(sys.argv[1:]))"
    code = code.replace("os.mkdir = None", "os.mkdir = lambda *a: (_ for _ in ()).throw(OSError(28, 'full', 'churn'))")
    line = [sys.executable, "-c", code, "new", "churn"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "The disk is full: churn" in done.stderr and "Traceback" not in done.stderr


NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))


def test_the_filter_leaves_this_repositorys_notebooks_as_they_are():
    changed = [path.name for path in NOTEBOOKS if cleaned_bytes(path.read_bytes())[0] != path.read_bytes()]
    assert changed == []


def test_the_filter_agrees_with_nbdev(tmp_path):
    notebook = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    for number, cell in enumerate(notebook["cells"]):
        cell["metadata"] = {"collapsed": True, "tags": ["hide-input"]} if number == 1 else {"scrolled": False}
        if cell["cell_type"] == "code":
            cell["execution_count"] = number
    notebook["metadata"] |= {"widgets": {}, "language_info": {"name": "python", "version": "3.11.0"}}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    ours = json.loads(cleaned_bytes(path.read_bytes())[0])
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run([str(BIN / "nbdev-clean"), "--fname", str(path)], cwd=tmp_path, capture_output=True, check=True)
    theirs = json.loads(path.read_text(encoding="utf-8"))
    theirs["metadata"].pop("widgets", None)  # nbdev keeps the state of widgets, which may hold data
    assert ours == theirs


def test_the_filter_drops_the_outputs_of_a_step_and_keeps_what_is_no_notebook():
    step = json.loads((STEPS / "10_ingest.ipynb").read_text(encoding="utf-8"))
    shown = {"output_type": "stream", "name": "stdout", "text": ["row 17: Ada, 36"]}
    next(cell for cell in step["cells"] if cell["cell_type"] == "code")["outputs"] = [shown]
    assert b"row 17" not in cleaned_bytes(json.dumps(step).encode())[0]
    for content in (b"<<<<<<< HEAD\n{}", b"\xff\xfe", b"[1, 2]", b'{"cells": 3}', b""):
        assert cleaned_bytes(content)[0] == content


def test_the_filter_knows_a_step_without_parameters_by_its_folder(project):
    shown = {"output_type": "stream", "name": "stdout", "text": ["row 17: Ada, 36"]}
    cell = {"cell_type": "code", "id": "a", "execution_count": 1, "metadata": {}, "outputs": [shown], "source": "1"}
    content = json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})

    def cleaned(path: str, cwd: Path) -> str:
        line = [sys.executable, "-m", "mlops_nb", "clean", path]
        return subprocess.run(line, cwd=cwd, input=content, capture_output=True, text=True, check=True).stdout

    for path, cwd in (("nbs/pipelines/demo/30_plain.ipynb", project), ("demo/nbs/pipelines/x/a.ipynb", project.parent)):
        assert "row 17" not in cleaned(path, cwd)
    assert "row 17" in cleaned("nbs/lib/00_features.ipynb", project) and "row 17" in cleaned("a.ipynb", project.parent)


def test_doctor_sets_up_git_once_and_for_all(project):
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    before = json.loads(command("doctor", "--json", cwd=project).stdout)["findings"]
    assert {f["level"] for f in before if f["check"] == "git"} == {"warn"}
    for _ in range(2):
        after = json.loads(command("doctor", "--fix", "--json", cwd=project).stdout)["findings"]
        assert {f["level"] for f in after if f["check"] == "git"} == {"ok"}
    attributes = (project / ".git" / "info" / "attributes").read_text().splitlines()
    assert len(attributes) == len(set(attributes)) > 0
    step = project / "nbs" / "pipelines" / "demo" / "10_make.ipynb"
    step.write_text(step.read_text().replace('"execution_count": null', '"execution_count": 12'), encoding="utf-8")
    subprocess.run(["git", "add", "-A"], cwd=project, check=True)
    stored = subprocess.run(
        ["git", "show", f":{step.relative_to(project)}"], cwd=project, capture_output=True, check=True
    )
    assert b'"execution_count": 12' not in stored.stdout and b'"execution_count": 12' in step.read_bytes()


@pytest.mark.parametrize("place", ["sub/demo", "my [new] demo\\s/demo"])
def test_doctor_leaves_the_notebooks_of_an_enclosing_repository_alone(project, tmp_path, place):
    root = tmp_path / "repository"
    root.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    folder = Path(shutil.copytree(project, root / place))
    after = json.loads(command("doctor", "--fix", "--json", cwd=folder).stdout)["findings"]
    assert {f["level"] for f in after if f["check"] == "git"} == {"ok"}
    step = folder / "nbs" / "pipelines" / "demo" / "10_make.ipynb"
    shown = {"output_type": "stream", "name": "stdout", "text": ["row 17: Ada, 36"]}
    step.write_text(step.read_text().replace('"outputs": []', f'"outputs": [{json.dumps(shown)}]'), encoding="utf-8")
    foreign = [shutil.copy(step, root / "own.ipynb"), shutil.copy(step, folder.parent / "own.ipynb")]
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)

    def stored(path: Path) -> bytes:
        line = ["git", "show", f":{Path(path).relative_to(root).as_posix()}"]
        return subprocess.run(line, cwd=root, capture_output=True, check=True).stdout

    assert b"row 17" not in stored(step)
    assert [stored(path) for path in foreign] == [step.read_bytes()] * 2


def test_doctor_outside_of_git_and_with_a_broken_setting(project):
    told = command("doctor", cwd=project).stdout
    assert "in no git repository" in told and "kernel" in told and "Traceback" not in told
    told = command("doctor", cwd=project, PATH="/nonexistent").stdout
    assert "is not installed: runs are recorded without their commit" in told and "in no git repository" not in told
    (project / "settings.ini").write_text("[tracking]\nmoed = off\n", encoding="utf-8")
    done = command("doctor", cwd=project)
    assert done.returncode == 1 and "Did you mean 'mode'?" in done.stdout


DIES = """
import os
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
Ledger.open(load_settings()).begin_run("20261123-101500-a1b2", "demo", {})
os._exit(9)
"""


def test_doctor_finds_and_records_runs_that_died(project):
    subprocess.run([sys.executable, "-c", DIES], cwd=project, check=False)

    def told(*words: str) -> list[dict]:
        findings = json.loads(command("doctor", *words, "--json", cwd=project).stdout)["findings"]
        return [finding for finding in findings if finding["check"] == "crashed runs"]

    [before] = told()
    assert before["level"] == "warn" and "20261123-101500-a1b2" in before["words"]
    assert [finding["level"] for finding in told("--fix")] == ["ok"] and told() == []
    [run] = json.loads(command("runs", "--json", cwd=project).stdout)["runs"]
    assert run["status"] == "crashed"


def completed(line: str, cwd: Path) -> list[str]:
    """What bash offers for a line, through the script that `completion bash` prints."""
    script = f"""
    mlops-nb() {{ {sys.executable} -m mlops_nb "$@"; }}
    eval "$(mlops-nb completion bash)"
    COMP_LINE={json.dumps(line)} COMP_POINT={len(line)}
    compopt() {{ :; }}
    _mlops_nb
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mlops-nb ru", ["run", "runs"]),
        ("mlops-nb run ", ["demo"]),
        ("mlops-nb --json run d", ["demo"]),
        ("mlops-nb run demo --from ", ["make", "train"]),
        ("mlops-nb run demo --from=tr", ["--from=train"[len("--from=") :]]),
        ("mlops-nb run demo -p tr", ["train.model=", "train.seed=", "train.fail="]),
        ("mlops-nb run demo -p train.model=", ["forest", "logistic"]),
        ("mlops-nb run demo --param train.fail=t", ["true"]),
        ("mlops-nb run demo --fo", ["--force"]),
        ("mlops-nb run demo --events set", ["settings.ini"]),
        ("mlops-nb completion f", ["fish"]),
        ("mlops-nb server st", ["start", "status", "stop"]),
        ("mlops-nb nonsense ", [""]),
    ],
)
def test_bash_completes(project, line, offered):
    assert completed(line, project) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_script(shell, tmp_path):
    script = tmp_path / "script"
    script.write_text(command("completion", shell, cwd=tmp_path).stdout)
    assert "mlops-nb complete" in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
