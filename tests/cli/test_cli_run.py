"""Running through the command line: what a person sees, what a program gets, how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli_start import HEAVY, bare_pythons, loaded_by


def command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m mlops_nb WORDS`."""
    line = [sys.executable, "-m", "mlops_nb", *words]
    environment = {**os.environ, **environment}
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def first(template_project, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess, Path]:
    """A project after its first run, what the run printed, and its events."""
    folder = tmp_path_factory.mktemp("ran")
    project = Path(shutil.copytree(template_project, folder / "demo"))
    events = folder / "events.ndjson"
    done = command("run", "demo", "-p", "train.seed=4", "--events", str(events), cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project, done, events


@pytest.fixture
def ran(first, tmp_path) -> Path:
    """A copy of the project after its first run."""
    return Path(shutil.copytree(first[0], tmp_path / "demo", symlinks=True))


def test_a_run_tells_each_step_and_what_to_do_next(first):
    _, done, _ = first
    assert "\x1b[" not in done.stdout
    lines = done.stdout.splitlines()
    for step in ("make", "train"):
        [told] = [line for line in lines if "✓ done" in line and f" {step} " in line]
        assert " s" in told and "never run" in told
    assert any(line.startswith("notebooks") and ".mlops/runs/" in line for line in lines)
    assert "Leaderboard" not in done.stdout, "no model came of it, so there is nothing to rank"
    assert "mlops-nb show" in done.stdout


def test_events_are_lines_of_json(first):
    _, _, path = first
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "run_started" and names[-1] == "run_finished" and names.count("step_finished") == 2
    assert {event["heading"] for event in events if event["event"] == "cell"} >= {"Score"}


def test_a_second_run_is_all_cached_light_and_quick(ran):
    words = ["run", "demo", "-p", "train.seed=4"]
    assert not HEAVY & loaded_by(*words, cwd=ran)
    done = command(*words, "--json", cwd=ran)
    document = json.loads(done.stdout)
    assert [step["state"] for step in document["steps"]] == ["cached", "cached"] and document["status"] == "ok"
    told = command(*words, cwd=ran).stdout
    assert told.count("↺ cached") == 2 and "up to date" in told
    assert bare_pythons(words, ran) <= 5
    assert bare_pythons(["plan", "demo"], ran) <= 5


def test_a_plan_names_what_changed_and_imports_nothing_heavy(ran):
    assert not HEAVY & loaded_by("plan", "demo", cwd=ran)
    done = command("plan", "demo", "-p", "train.seed=5", cwd=ran)
    assert "↺ cached" in done.stdout and "▶ run" in done.stdout and "seed" in done.stdout
    assert "1 of 2 steps would run" in done.stdout
    document = json.loads(command("plan", "demo", "-p", "train.seed=5", "--json", cwd=ran).stdout)
    assert [(s["step"], s["action"]) for s in document["steps"]] == [("make", "cached"), ("train", "run")]
    assert document["steps"][1]["needs"] == ["make.numbers"] and document["steps"][1]["gives"] == ["metrics"]


def test_json_is_one_document_while_progress_goes_to_standard_error(ran):
    done = command("--json", "run", "demo", "--only", "make", "--force", cwd=ran)
    document = json.loads(done.stdout)
    assert document["schema"] == 1 and [step["state"] for step in document["steps"]] == ["done"]
    assert "make" in done.stderr and "forced" in done.stderr
    notebook = ran / document["steps"][0]["notebook"]
    assert json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def test_a_failed_step_ends_with_1_and_says_where(ran):
    done = command("run", "demo", "-p", "train.fail=true", "-p", "train.model=logistic", cwd=ran, GITHUB_ACTIONS="true")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "✗ failed" in done.stdout and "cannot fit logistic" in done.stdout
    assert "cell 5" in done.stdout and "20_train.ipynb" in done.stdout and "Score" in done.stdout
    [noted] = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("::error ")]
    assert "file=nbs/pipelines/demo/20_train.ipynb" in noted and "cannot fit logistic" in noted
    document = json.loads(command("show", "latest", "--json", cwd=ran).stdout)
    assert document["status"] == "failed" and document["steps"][-1]["error"]["cell"] == 5
    told = command("show", "latest", cwd=ran).stdout
    assert "✗ failed" in told and "cannot fit logistic" in told and "20_train.ipynb" in told


def test_three_warnings_of_a_step_are_told_and_the_others_counted(project):
    path = project / "nbs" / "pipelines" / "demo" / "10_make.ipynb"
    cells = [
        "from mlops_nb import Json, flow, note",
        "for number in [1, 2, 3, 3, 4, 5]:\n    note(f'Row {number} has no price.', 'prices')",
        "note('Five rows were read.', level='info')",
        "flow.numbers = Json([1])",
    ]
    document = json.loads(path.read_text(encoding="utf-8"))
    blank = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    document["cells"] = [blank | {"id": f"cell-{place}", "source": source} for place, source in enumerate(cells)]
    path.write_text(json.dumps(document), encoding="utf-8")
    for _ in "computed", "reused":
        told = command("run", "demo", cwd=project).stdout
        assert [line for line in told.splitlines() if line.startswith("!")] == [
            "! make: prices: Row 1 has no price.",
            "! make: prices: Row 2 has no price.",
            "! make: prices: Row 3 has no price.",
            "! make: 2 more warnings, see the notebook",
        ]
    assert "! make: prices: Row 5 has no price." in command("show", "latest", "make", cwd=project).stdout
    findings = json.loads(command("show", "latest", "make", "--json", cwd=project).stdout)["findings"]
    assert [finding["level"] for finding in findings] == ["warning"] * 5 + ["info"]
    command("run", "demo", "--force", cwd=project, GITHUB_ACTIONS="true")
    annotated = command("run", "demo", cwd=project, GITHUB_ACTIONS="true").stdout
    assert "::warning" in annotated and "Row 1 has no price." in annotated


def test_ctrl_c_ends_with_130_and_leaves_a_record(ran):
    step = ran / "nbs" / "pipelines" / "demo" / "20_train.ipynb"
    step.write_text(step.read_text(encoding="utf-8").replace("if fail:", "import time\\ntime.sleep(60)\\nif fail:"))
    line = [sys.executable, "-m", "mlops_nb", "run", "demo", "--json"]
    running = subprocess.Popen(line, cwd=ran, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    assert running.stderr is not None
    for told in running.stderr:
        if ("running" in told and "train" in told) or time.monotonic() > deadline:
            break
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 130, err
    assert json.loads(out)["status"] == "interrupted"
    [run] = json.loads(command("runs", "-n", "1", "--json", cwd=ran).stdout)["runs"]
    assert run["status"] == "interrupted"


def test_a_reader_that_goes_away_does_not_end_the_run(ran):
    line = f"{sys.executable} -m mlops_nb run demo -p train.seed=9 | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=ran, capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1 and "BrokenPipe" not in done.stderr
    [run] = json.loads(command("runs", "-n", "1", "--json", cwd=ran).stdout)["runs"]
    assert run["status"] == "ok" and run["parameters"]["train.seed"] == 9


def test_looking_back(first):
    project, _, _ = first
    [run] = json.loads(command("runs", "--json", cwd=project).stdout)["runs"]
    assert run["metrics"] == {"train.score": 7} and run["parameters"]["train.seed"] == 4
    assert run["run"] in command("runs", "--pipeline", "demo", cwd=project).stdout
    told = command("show", run["run"][:15], cwd=project).stdout
    assert "train.score" in told and "make.numbers" in told and "10_make.ipynb" in told
    alone = command("show", "latest", "make", cwd=project).stdout
    assert "notebook  .mlops/runs/" in alone and "never run" in alone
    wrong = command("show", "latest", "mkae", cwd=project)
    assert wrong.returncode == 2 and "Did you mean 'make'?" in wrong.stderr
    assert "No models yet" in command("models", cwd=project).stdout
    offered = command("complete", "bash", "mlops-nb show ", cwd=project).stdout.splitlines()
    assert offered[0] == "latest" and run["run"] in offered


def test_events_to_a_place_that_is_not_there(project):
    done = command("run", "demo", "--events", "no/such/folder/x", "--json", cwd=project)
    assert done.returncode == 2 and "no/such/folder" in json.loads(done.stdout)["error"]["message"]
