"""Running through the command line: what a person sees, what a program gets, how it ends."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import notebook
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


def test_parameters_from_a_file(ran):
    (ran / "params.yaml").write_text("train:\n  seed: 5\n  model: logistic\n", encoding="utf-8")
    told = command("plan", "demo", "-P", "params.yaml", "-p", "train.seed=4", cwd=ran).stdout
    assert "parameter model: 'forest' -> 'logistic'" in told and "seed" not in told
    (ran / "params.yaml").write_text("train:\n  sed: 5\n", encoding="utf-8")
    done = command("run", "demo", "-P", "params.yaml", "--json", cwd=ran)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2 and error["message"].startswith("params.yaml, line 2: Step 'train' has no parameter")
    assert "yaml" not in loaded_by("plan", "demo", cwd=ran)


def test_downstream_says_the_same_as_from(ran):
    words = ["plan", "demo", "-p", "train.seed=4", "--force", "--json"]
    plans = [json.loads(command(*words, flag, "train", cwd=ran).stdout) for flag in ("--from", "--downstream")]
    assert plans[0] == plans[1]
    assert [(step["step"], step["action"]) for step in plans[0]["steps"]] == [("make", "cached"), ("train", "run")]


def test_a_plan_tells_the_first_reasons_and_all_of_them_when_asked(ran):
    path = ran / "nbs/pipelines/demo/20_train.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number in range(9):
        cell = {"cell_type": "code", "id": f"new{number}", "metadata": {}, "source": f"x{number} = 1"}
        notebook["cells"].append({**cell, "outputs": [], "execution_count": None})
    path.write_text(json.dumps(notebook), encoding="utf-8")
    brief = command("plan", "demo", "-p", "train.seed=4", cwd=ran).stdout
    assert brief.count("is new") == 3 and "and 6 more reasons" in brief and "-v shows every reason" in brief
    full = command("plan", "demo", "-p", "train.seed=4", "-v", cwd=ran).stdout
    assert full.count("is new") == 9 and "more" not in full
    document = json.loads(command("plan", "demo", "-p", "train.seed=4", "--json", cwd=ran).stdout)
    assert len(document["steps"][1]["reasons"]) == 9


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
    why, end = done.stdout.index("✗ train: ValueError: cannot fit"), done.stdout.index("1 cached, 1 failed")
    assert why < end and done.stdout.count("✗ train: ValueError") == 1, "told at once, and once"
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
    document = json.loads(out)
    assert document["status"] == "interrupted" and document["steps"][-1]["seconds"] > 0.5
    assert "■ interrupted  train" in err and "failed" not in err
    assert "■ interrupted" in command("show", "latest", cwd=ran).stdout.split("parameter")[0]
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


def test_a_library_notebook_that_was_not_exported_is_named_by_plan_and_lint(ran):
    head = "# AUTOGENERATED! DO NOT EDIT! File to edit: nbs/lib/helper.ipynb.\n\n# %% nbs/lib/helper.ipynb #cell-0\n"
    (ran / "helper.py").write_text(f"{head}def double(x): return 2 * x\n", encoding="utf-8")
    (ran / "nbs/lib").mkdir()
    library = ran / "nbs/lib/helper.ipynb"
    library.write_text(notebook("#| export\ndef double(x): return 2 * x"), encoding="utf-8")
    step = ran / "nbs/pipelines/demo/20_train.ipynb"
    changed = step.read_text(encoding="utf-8").replace("import Metrics, flow", "import Metrics, flow\\nimport helper")
    step.write_text(changed, encoding="utf-8")
    for words in (["plan", "demo"], ["lint"]):
        assert json.loads(command(*words, "--json", cwd=ran).stdout)["warnings"] == []
    library.write_text(notebook("#| export\ndef double(x): return 4 * x"), encoding="utf-8")
    for words in (["plan", "demo"], ["lint"]):
        done = command(*words, "--json", cwd=ran, GITHUB_ACTIONS="true")
        [warning] = json.loads(done.stdout)["warnings"]
        assert done.returncode == 0 and warning.startswith("Changed since its export: nbs/lib/helper.ipynb.")
        assert f"! {warning}" in done.stderr and f"::warning::{warning}" in done.stderr
        assert f"! {warning}" in command(*words, cwd=ran).stdout
    assert not HEAVY & loaded_by("plan", "demo", cwd=ran)


def test_events_that_cannot_be_written_any_more_are_a_warning(ran):
    done = command("run", "demo", "-p", "train.seed=5", "--events", "/dev/full", cwd=ran)
    assert done.returncode == 0 and done.stdout.count("! Events are not written any more: No space left") == 1
    assert "✓ ok" in done.stdout and "Traceback" not in done.stdout + done.stderr
    line = f"{sys.executable} -m mlops_nb run demo -p train.seed=6 --events stderr 2> >(head -1 >first)"
    done = subprocess.run(["bash", "-c", line], cwd=ran, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("! Events are not written any more: Broken pipe") == 1
    assert json.loads((ran / "first").read_text())["event"] == "run_started"
    done = command("run", "demo", "--events", "/dev/full", "--json", cwd=ran)
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "ok"


DEFECT = """
import sys
from mlops_nb.cli import main
from mlops_nb.core.registry import hooks
hooks.on("run_completing", lambda **facts: {}["nothing"])
sys.exit(main(sys.argv[1:]))
"""


def test_a_defect_in_a_run_is_told_with_the_run(ran):
    line = [sys.executable, "-c", DEFECT, "run", "demo", "-p", "train.seed=5", "--json"]
    done = subprocess.run(line, cwd=ran, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    assert done.returncode == 1 and document["status"] == "failed" and document["error"]["type"] == "KeyError"
    assert [step["state"] for step in document["steps"]] == ["cached", "done"]
    kept = Path(document["error"]["hint"].rpartition(" ")[2])
    assert "in <lambda>" in kept.read_text(encoding="utf-8") and str(kept) in done.stderr
    kept.unlink()
    assert json.loads(command("show", "latest", "--json", cwd=ran).stdout)["status"] == "failed"


def test_a_run_that_never_began_is_not_told_as_a_run(ran):
    ledger = ran / ".mlops" / "ledger.sqlite"
    with sqlite3.connect(ledger, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        done = command("run", "demo", "-p", "train.seed=5", cwd=ran)
        document = json.loads(command("run", "demo", "-p", "train.seed=5", "--json", cwd=ran).stdout)
    assert done.returncode == document["exit"] != 0 and document["error"]["message"] and "run" not in document
    assert document["error"]["message"] in done.stderr and "mlops-nb show" not in done.stdout


def test_a_folder_with_a_difficult_name_no_home_and_a_strict_umask(template_project, tmp_path):
    project = Path(shutil.copytree(template_project, tmp_path / "Größe 100% [neu] #1" / "demo"))
    bare = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    bare["MLOPS_NB_TRACKING_MODE"] = "offline"

    def told(*words: str) -> dict:
        line = [sys.executable, "-m", "mlops_nb", *words, "--json"]
        done = subprocess.run(line, cwd=project, env=bare, umask=0o077, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = told("run", "demo")
    assert [step["state"] for step in first["steps"]] == ["done", "done"] and first["status"] == "ok"
    assert {step["action"] for step in told("plan", "demo")["steps"]} == {"cached"}
    assert [run["run"] for run in told("runs")["runs"]] == [first["run"]]
    assert told("show", "latest")["status"] == "ok"
    assert all((project / step["notebook"]).is_file() for step in first["steps"])
    findings = {finding["check"]: finding["level"] for finding in told("doctor")["findings"]}
    assert (findings["ledger"], findings["tracking"]) == ("ok", "ok") and findings["workspace"] != "fail"
    assert len(list((project / ".mlops").rglob("run-*.wandb"))) == 2
    files = [path for path in (project / ".mlops").rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if path.stat().st_mode & 0o077] == []


def test_a_sweep_is_told_with_its_variants_and_compares_its_children(ran):
    done = command("run", "demo", "--sweep", "train.model=forest,logistic", "-p", "train.seed=4", cwd=ran)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any("✓ done" in line and " train[model=logistic] " in line for line in lines)
    assert any("↺ cached" in line and " train[model=forest] " in line for line in lines)
    [head] = [number for number, line in enumerate(lines) if line.startswith("Leaderboard")]
    assert lines[head + 1].split()[1:3] == ["run", "train.model"]
    assert {line.split()[2] for line in lines[head + 2 : head + 4]} == {"forest", "logistic"}
    listed = json.loads(command("runs", "--json", cwd=ran).stdout)["runs"]
    parents = {run["run"]: run["parent"] for run in listed}
    [parent] = {value for value in parents.values() if value}
    assert command("runs", cwd=ran).stdout.count(f"└ {parent}-") == 2
    shown = command("show", "latest", cwd=ran).stdout
    assert shown == command("show", parent, cwd=ran).stdout
    assert f"{parent}-1" in shown and f"{parent}-2" in shown


def test_a_sweep_with_a_failed_child_ends_with_1_and_one_document(ran):
    done = command("run", "demo", "--sweep", "train.fail=true,false", "--json", "--events", "stderr", cwd=ran)
    document = json.loads(done.stdout)
    assert done.returncode == 1 and document["status"] == "failed" and len(document["children"]) == 2
    states = {(step["step"], *(step["variant"] or {}).values()): step["state"] for step in document["steps"]}
    assert states[("train", True)] == "failed" and states[("train", False)] in ("done", "cached")
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {"train.fail": True} in [event.get("variant") for event in events if event["event"] == "cell"]
    assert "✗ train[fail=true]: ValueError" in done.stderr
