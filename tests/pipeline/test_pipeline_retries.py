"""A step that failed of something that can pass is tried again; what the code itself says is not."""

import json
import signal

import pytest
from pipeline_support import Project, stop, wait_for

COUNT = "from pathlib import Path\nmark = Path('tries.txt')\ntries = len(mark.read_text()) if mark.exists() else 0"
COUNT += "\nmark.write_text('x' * (tries + 1))"


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / "project")
    ini = project.folder / "settings.ini"
    ini.write_text(ini.read_text() + "[pipeline]\nretries = 2\nbackoff = 0\n")
    return project


def failing(project, failure, times):
    """A step that fails so often, and then gives."""
    project.step("10_make", COUNT, f"if tries < {times}:\n    {failure}", "flow.tries = tries + 1")


@pytest.mark.parametrize("failure", ["import os; os.kill(os.getpid(), 9)", "raise ConnectionError('no answer')"])
def test_what_can_pass_is_tried_again(project, failure):
    failing(project, failure, 1)
    result = project.run()
    [step] = result.document["steps"]
    assert (result.exit_code, step["state"], step["attempts"], step["error"]) == (0, "done", 2, None)
    assert step["reasons"][0] == "never run" and step["reasons"][1].startswith("attempt 2, after ")
    run = project.ledger.run(result.document["run"])
    assert (run["steps"][0]["attempts"], run["steps"][0]["attempt"]) == (2, f"attempts/{run['run']}/make.2")
    kept = (project.workspace / "runs" / run["run"]).glob("*.ipynb")
    notebooks = {path.name: json.loads(path.read_text()) for path in kept}
    assert set(notebooks) == {"10_make.ipynb", "10_make.failed-1.ipynb"}
    assert (project.workspace / "attempts" / run["run"] / "make" / "error.json").exists()
    assert project.run().document["steps"][0]["state"] == "cached"


def test_it_is_not_tried_for_ever(project):
    failing(project, "raise ConnectionError('no answer')", 9)
    result = project.run()
    [step] = result.document["steps"]
    assert (result.exit_code, step["state"], step["attempts"], step["error"]["type"]) == (
        1,
        "failed",
        3,
        "ConnectionError",
    )
    assert project.ledger.run(result.document["run"])["steps"][0]["attempts"] == 3
    assert (project.folder / step["notebook"]).name == "10_make.ipynb"


@pytest.mark.parametrize(
    "failure",
    [
        "assert False",
        "from mlops_nb.core.errors import Refused; raise Refused('No.', 'Mend it.')",
        "nobody_knows",
        "1 / 0",
        "import sys; sys.exit(4)",
        "input('how many?')",
    ],
)
def test_what_the_code_says_is_not_tried_again(project, failure):
    failing(project, failure, 1)
    [step] = project.run().document["steps"]
    assert (step["state"], step["attempts"]) == ("failed", 1)
    assert (project.folder / "tries.txt").read_text() == "x"


def test_a_pause_before_the_next_try_can_be_interrupted(project):
    ini = project.folder / "settings.ini"
    ini.write_text(ini.read_text().replace("backoff = 0", "backoff = 600"))
    failing(project, "raise ConnectionError('no answer')", 9)
    process = project.start()
    wait_for(lambda: list(project.workspace.glob("runs/*/10_make.failed-1.ipynb")))
    stop(process, signal.SIGINT)
    [run] = project.ledger.runs()
    assert run["status"] == "interrupted" and (project.folder / "tries.txt").read_text() == "x"
