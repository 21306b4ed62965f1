"""The README is short, is what its notebook says, and each of its commands works as it stands there."""

import json
import re
import shutil
import subprocess

import pytest
from support import ROOT, serving

from mlops_nb.commands.catalogue import COMMANDS
from mlops_nb.commands.grammar import parse, with_subcommand
from mlops_nb.commands.readme import readme

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for block in FENCES for line in block.splitlines() if line.strip()]
NAMED = re.findall(r"`(mlops-nb [^`]+)`", TEXT)
ELSEWHERE = {
    "make run": "test_default_run: what the target runs, after the set-up that these tests run in",
    "source .venv/bin/activate": "the shell's own",
    "mlops-nb run tabular -p ingest.source=my.csv -p ingest.target=churned": "test_tables: the same, another path",
    "bentoml serve": "test_default_run and test_wheel: `serving`",
    "pip install .": "test_wheel: builds the wheel and installs it",
    "cd ..": "the shell's own",
    "mlops-nb new churn": "test_cli_project: `made`; test_wheel",
    "cd churn": "the shell's own",
    "mlops-nb run churn": "test_wheel: runs the pipeline of a new project",
    "mlops-nb doctor --fix": "test_cli_project",
}


def words(text: str) -> int:
    return len(text.split())


def test_the_readme_is_what_its_notebook_says():
    assert readme(ROOT / "nbs" / "index.ipynb") == TEXT, "run: make export"


def test_the_readme_is_short_and_shows_before_it_tells():
    assert words(TEXT) <= 700
    assert words(TEXT[: TEXT.index("](nbs/images/")]) <= 35
    assert words(TEXT[: TEXT.index("```")]) <= 220


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        path = ROOT / target
        assert path.is_file(), target
        if path.suffix in {".png", ".svg"}:
            assert path.stat().st_size < 150_000


def test_every_command_is_one_that_exists():
    for line in [*LINES, *NAMED]:
        name, *rest = line.split()
        if name == "mlops-nb" and rest[0] != "papermill":
            command, *words = with_subcommand(COMMANDS, rest)
            assert command in COMMANDS
            if words or command == rest[0]:  # else it is only named
                parse(COMMANDS[command], words)


def test_no_command_is_forgotten_here():
    tested = {line for line in LINES if line.startswith(("curl ", "mlops-nb plan", "mlops-nb runs", "mlops-nb show"))}
    assert set(LINES) - tested == set(ELSEWHERE)


@pytest.mark.parametrize("start", ["mlops-nb plan", "mlops-nb runs", "mlops-nb show"])
def test_looking_commands_run(default_run, start):
    project, _ = default_run
    [line] = [line for line in LINES if line.startswith(start)]
    done = project.call(*line.split())
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_the_functions_for_notebooks_answer(default_run):
    project, _ = default_run
    named = set(re.findall(r"`(\w+)\([^`]*\)`", TEXT))
    assert {"log", "curves", "leaderboard", "compare", "lineage"} <= named
    calls = 'curves(), leaderboard(), compare("latest", "latest"), lineage("latest")'
    code = f"from mlops_nb import {', '.join(sorted(named))}\nprint([len(repr(found)) > 20 for found in ({calls})])"
    done = project.call("python", "-c", code)
    assert done.stdout == "[True, True, True, True]\n", done.stderr


def test_the_request_is_answered(default_run):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    project, document = default_run
    [line] = [line for line in LINES if line.startswith("curl ")]
    with serving(project) as address:
        told = subprocess.run(
            ["bash", "-c", "set -o pipefail; " + line.replace("localhost:3000", address.removeprefix("http://"))],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    answer = json.loads(told)
    assert answer["model"] == document["models"][0]["name"] and answer["prediction"] in answer["probabilities"]
