"""`mlops-nb search` from a shell."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_support import Project, wait_for
from search_support import IMPORTS, LOSS, RATE, events, write_churn

COMMAND = str(Path(sys.executable).parent / "mlops-nb")


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path / "project")
    write_churn(made)
    made.step("30_package", IMPORTS, "flow.done = Json(flow.train.metrics['loss'])")
    return made


def call(project, *words):
    """Run `mlops-nb search churn WORDS`."""
    command = [COMMAND, "search", "churn", *words]
    return subprocess.run(command, cwd=project.folder, capture_output=True, text=True, timeout=120, check=False)


def test_a_person_reads_a_plan_a_line_for_each_trial_and_the_end(project):
    done = call(project, "--metric", "train.loss", "--over", "train.*", "--trials", "3")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "churn by train.loss, less is better" in text
    assert "train.rate  0.0001 to 1, in equal ratios (default 0.1)" in text
    assert "package: train.loss does not need it" in text
    assert text.count("✓ ok       ") == 3 and "3/3" in text and "3 trials are done; in all: 3 ok" in text
    assert "next       mlops-nb run churn -p train.rate=" in text or "no trial was better" in text
    assert "seed=" not in text


def test_a_program_reads_one_document(project):
    done = call(project, "--metric", "train.loss", "--over", "train.rate", "--trials", "2", "--json", "--events", "log")
    document = json.loads(done.stdout)
    assert {"schema", "run", "metric", "trials", "best"} <= set(document)
    assert document["schema"] == 1 and document["metric"] == "train.loss"
    assert [set(trial) for trial in document["trials"]] == [{"run", "parameters", "value", "state"}] * 2
    assert document["best"]["run"] in {trial["run"] for trial in document["trials"]}
    assert [event["trial"] for event in events(project, "trial", "log")] == [1, 2]
    best = document["best"]["parameters"]["train.rate"]
    run = [COMMAND, "run", "churn", "-p", f"train.rate={best}", "--json"]
    after = json.loads(subprocess.run(run, cwd=project.folder, capture_output=True, text=True, check=True).stdout)
    assert {step["step"]: step["state"] for step in after["steps"]} == {
        "split": "cached",
        "train": "cached",
        "package": "done",
    }


def test_ctrl_c_keeps_the_best_and_says_how_to_go_on(project):
    write_churn(project, "import time; time.sleep(0.4)", LOSS, parameters=RATE)
    words = ["--metric", "train.loss", "--over", "train.*", "--trials", "50", "--events", "log"]
    running = subprocess.Popen(
        [COMMAND, "search", "churn", *words],
        cwd=project.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: events(project, "trial", "log"), 90)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "best        train.loss" in out and "Run the same command again" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "it is open what is to be better"),
        (("--metric", "train.loss", "--trials", "0"), "--trials 0 asks for no trial"),
        (("--metric", "train.loss", "--budget", "0"), "--budget 0 leaves no time"),
        (("--metric", "train.loss", "--budget", "soon"), "a time such as 300s, 5m or 1h"),
        (("--metric", "train.loss", "--minimize", "--maximize"), "contradict each other"),
        (("--metric", "train.loss", "--over", "train.*", "--prune-on", "split.x"), "names no curve of a trial"),
    ],
)
def test_words_that_cannot_work_are_refused(project, words, message):
    done = call(project, *words, "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert message in error["message"] + error["hint"]
