"""A step of a run, opened to work in, and what its cells printed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from cli_support import notebook
from nbclient import NotebookClient

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings

SLOW = "import time\nfor n in range(6):\n    print(f'epoch {n}', flush=True)\n    time.sleep(0.5)"


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """A command that goes on."""
    line = [sys.executable, "-m", "mlops_nb", *words]
    return subprocess.Popen(line, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command(*words: str, cwd: Path, expect: int = 0) -> str:
    """What a command prints."""
    process = start(*words, cwd=cwd)
    out, err = process.communicate(timeout=120)
    assert process.returncode == expect, out + err
    return out


def execute(path: Path, *more: str, folder: Path) -> list[str]:
    """What the last cells print, after the notebook was executed by an ordinary kernel in some other folder."""
    opened = nbformat.read(path, 4)
    nbformat.validate(opened)
    opened.cells += [nbformat.v4.new_code_cell(source) for source in more]
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(opened, kernel_name="python3", allow_errors=True, resources=resources).execute()
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in opened.cells[-len(more) :]]


@pytest.fixture
def failed(project):
    """A run whose second step failed, and after it a good one with other data."""
    words = ("-p", "make.rows=5", "-p", "train.fail=true", "-p", "train.seed=9")
    run = json.loads(command("run", "demo", *words, "--json", cwd=project, expect=1))["run"]
    command("run", "demo", "--json", cwd=project)
    return project, run


def test_a_failed_step_is_opened_with_the_inputs_of_its_run(failed, tmp_path):
    project, run = failed
    step = project / "nbs" / "pipelines" / "demo" / "20_train.ipynb"
    step.write_text(notebook("from mlops_nb import flow", "flow.metrics = flow.make.numbers"), encoding="utf-8")
    ledger = Ledger.open(load_settings(project, environ={}), create=False)
    before = ledger.run(run), sorted(p for p in (project / ".mlops" / "attempts").rglob("*"))
    document = json.loads(command("open", run[:-1], "train", "--json", cwd=project))
    path = Path(command("open", run, "train", cwd=project).strip())
    assert project / document["notebook"] == path and document["run"] == run
    again = "flow.metrics = Metrics({'score': 0})"
    shown = execute(path, "print(numbers, fail, seed)", again, again, "print(type(fail))", folder=tmp_path)
    assert shown[0] == "[0, 1, 2, 3, 4] True 9\n" and shown[3] == "<class 'bool'>\n", "as it ran, not as it is today"
    given = json.loads((path.parent / "manifest.json").read_bytes())["gives"]
    assert list(given) == ["metrics"]
    assert (ledger.run(run), sorted(p for p in (project / ".mlops" / "attempts").rglob("*"))) == before
    ledger.close()


def test_a_cached_step_is_opened_too(failed, tmp_path):
    project, _ = failed
    command("run", "demo", "--json", cwd=project)
    path = Path(command("open", "latest", "train", cwd=project).strip())
    assert execute(path, "print(numbers, seed)", folder=tmp_path) == ["[0, 1, 2] 0\n"]
    assert "injected-parameters" not in path.read_text(encoding="utf-8"), "every parameter was at its default"


def test_what_cannot_be_opened(failed):
    project, run = failed
    message = json.loads(command("open", run, "trian", "--json", cwd=project, expect=2))["error"]["message"]
    assert "no notebook of a step 'trian'" in message
    error = json.loads(command("open", "nothing", "train", "--json", cwd=project, expect=2))["error"]
    assert error["type"] == "UsageError"
    make = project / "nbs" / "pipelines" / "demo" / "10_make.ipynb"
    make.write_text(notebook("from mlops_nb import flow", "flow.numbers = 1 / 0"), encoding="utf-8")
    command("run", "demo", "--json", cwd=project, expect=1)
    error = json.loads(command("open", "latest", "train", "--json", cwd=project, expect=2))["error"]
    assert "had nothing to read" in error["message"] and error["hint"].endswith("make")


def test_logs_of_a_run_that_has_ended(failed):
    project, run = failed
    document = json.loads(command("logs", run, "--json", cwd=project))
    assert [(step["step"], step["state"]) for step in document["steps"]] == [("make", "done"), ("train", "failed")]
    assert "ValueError: cannot fit forest" in document["steps"][1]["text"]
    shown = command("logs", run, "train", cwd=project)
    assert shown.startswith("── train (failed)\n[cell 5: Score]\n") and "\x1b" not in shown
    assert "cannot fit forest" in shown and "cell 5, line 2" in shown
    assert (
        "no step 'trian'"
        in json.loads(command("logs", run, "trian", "--json", cwd=project, expect=2))["error"]["message"]
    )


def test_logs_follow_a_step_until_it_ends(project):
    step = project / "nbs" / "pipelines" / "demo" / "10_make.ipynb"
    step.write_text(notebook("from mlops_nb import flow", SLOW, "flow.numbers = [1]"), encoding="utf-8")
    running = start("run", "demo", "--json", cwd=project)
    deadline = time.monotonic() + 60
    settings = load_settings(project, environ={})
    with Ledger.open(settings) as ledger:
        while not any(ledger.run(run["run"])["steps"] for run in ledger.runs()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    following = start("logs", "latest", "make", "-f", cwd=project)
    lines = [following.stdout.readline() for _ in range(3)]
    assert lines == ["── make (running)\n", "[cell 2]\n", "epoch 0\n"]
    assert running.poll() is None, "told while it was going on"
    rest = following.stdout.read()  # its buffer may hold more than the three lines
    assert following.wait(60) == 0, following.stderr.read()
    assert rest.splitlines() == [f"epoch {n}" for n in range(1, 6)]
    whole = start("logs", "-f", cwd=project)
    assert running.wait(60) == 0
    out, _ = whole.communicate(timeout=60)
    assert out.splitlines()[:3] == [out.splitlines()[0], "[cell 2]", "epoch 0"] and whole.returncode == 0
