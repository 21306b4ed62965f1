"""Asking for help, a plan or a completion is light, and every answer keeps its promises."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_nb.commands.catalogue import COMMANDS

HEAVY = {
    "cryptography",
    "pandas",
    "sklearn",
    "numpy",
    "wandb",
    "bentoml",
    "papermill",
    "nbformat",
    "sqlalchemy",
    "pydantic",
    "pyarrow",
}
HEAVY |= {"click", "rich", "matplotlib", "nbclient", "alembic", "jupyter_client", "psutil", "msgspec"}


def command(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m mlops_nb WORDS`."""
    return subprocess.run(
        [sys.executable, "-m", "mlops_nb", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def loaded_by(*words: str, cwd: Path) -> set[str]:
    """The top-level packages that a command imports."""
    code = (
        "import sys; from mlops_nb.cli import main; code = main(sys.argv[1:]);"
        "print(' '.join({name.partition('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, check=False)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_nothing_heavy(name, tmp_path):
    assert not HEAVY & loaded_by(*[name] * bool(name), "--help", cwd=tmp_path)


def test_completion_imports_nothing_heavy(project):
    assert not HEAVY & loaded_by("complete", "bash", "mlops-nb run demo -p train.", cwd=project)
    assert not HEAVY & loaded_by("complete", "bash", "mlops-nb show la", cwd=project)


STANDARD = "import ast, configparser, hashlib, json, pathlib, sqlite3, subprocess, typing"


def spent(words: list[str], cwd: Path) -> float:
    """CPU seconds of one Python process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bare_pythons(words: list[str], cwd: Path, rounds: int = 8) -> float:
    """How many Pythons that do nothing a command costs; the least of several pairs, measured in turn.

    An editable install, which `make setup` makes, loads some of the standard library in every Python; where there is
    none, a bare Python loads the parts that any plan needs.
    """
    editable = any(name.startswith("__editable___mlops_nb") for name in sys.modules)
    bare = ["-c", "pass" if editable else STANDARD]
    command = ["-m", "mlops_nb", *words]
    pairs = [spent(command, cwd) / spent(bare, cwd) for _ in range(rounds + 1)]
    return min(pairs[1:])


def test_help_costs_at_most_five_bare_pythons(tmp_path):
    assert bare_pythons(["--help"], tmp_path) <= 5


def test_every_command_explains_itself_with_examples():
    for name, entry in COMMANDS.items():
        done = command(name, "-h")
        assert done.returncode == 0 and entry.summary in done.stdout, name
        if entry.group:
            assert "Examples" in done.stdout and f"mlops-nb {name}" in done.stdout, name
        assert max(map(len, done.stdout.splitlines())) <= 130, name


def document(done: subprocess.CompletedProcess) -> dict:
    """The one document on standard output."""
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["rnu", "tabular"], "Did you mean 'run'?"),
        (["run", "tabular", "--forse"], "Did you mean '--force'?"),
        (["run"], "mlops-nb run PIPELINE [options]"),
        (["runs", "-n", "many"], "Give a whole number from 0 to 1,000,000,000."),
        (["show"], "mlops-nb show RUN [STEP]"),
        (["run", "demo", "train.seed=1"], "Parameters are set by -p step.name=value."),
        (["plan", "dmeo"], "Did you mean 'demo'?"),
        (["lint", "dmeo"], "Did you mean 'demo'?"),
        (["run", "demo", "-p", "train.sede=1"], "seed"),
        (["run", "demo", "-p", "train.seed"], "-p step.parameter=value"),
        (["plan", "demo", "--from", "trian"], "Did you mean 'train'?"),
        (["plan", "demo", "--only", "make", "--to", "train", "--from", "train"], "--from train --to train --only make"),
        (["runs", "--pipeline", "dmeo"], "Did you mean 'demo'?"),
        (["runs", "-n", "-1"], "Give a whole number from 0 to 1,000,000,000."),
        (["run", "demo", "--sweep", "train.sede=1,2"], "seed"),
        (["plan", "demo", "--sweep", "train.seed"], "--sweep step.parameter=value,value"),
        (["run", "demo", "--jsn"], "Did you mean '--json'?"),
        (["--jsn", "run", "demo"], "Did you mean '--json'?"),
        (["help", "rnu"], "Did you mean 'run'?"),
    ],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_mistake_is_one_document_and_two_sentences(project, words, hint, place):
    done = command(*(["--json", *words] if place == "before" else [*words, "--json"]), cwd=project)
    answer = document(done)
    assert done.returncode == answer["exit"] == 2 and answer["schema"] == 1
    assert set(answer["error"]) >= {"type", "message", "hint", "notebook", "cell", "line"}
    assert hint in answer["error"]["message"] + answer["error"]["hint"]
    assert "Traceback" not in done.stderr and answer["error"]["message"] in done.stderr


def test_help_is_a_command_too():
    assert command("help").stdout == command("--help").stdout and "Start here" in command("help").stdout
    assert command("help", "run").stdout == command("run", "-h").stdout


def test_help_with_a_pipeline_lists_its_parameters(project):
    for name in ("run", "plan"):
        told = command(name, "demo", "-h", cwd=project)
        assert told.stdout.startswith(command(name, "-h").stdout)
        [line] = [line for line in told.stdout.splitlines() if line.startswith("train.model")]
        assert line.split() == ["train.model", "forest", "forest,", "logistic", "algorithm", "to", "fit"]
    rows = document(command("plan", "demo", "-h", "--json", cwd=project))["parameters"]
    assert [row["name"] for row in rows] == ["make.rows", "train.model", "train.seed", "train.fail"]
    assert (rows[1]["choices"], rows[0]["default"], rows[0]["type"]) == (["forest", "logistic"], 3, "int")
    assert "parameters" not in document(command("lint", "demo", "-h", "--json", cwd=project))
    assert not HEAVY & loaded_by("run", "demo", "-h", cwd=project)
    assert "Did you mean 'demo'?" in command("run", "dmeo", "-h", cwd=project).stderr


def test_debug_shows_the_traceback():
    assert "Traceback" in command("rnu", "--debug").stderr


def test_outside_of_a_project_new_is_offered(tmp_path):
    done = command("runs", cwd=tmp_path)
    assert done.returncode == 2 and "mlops-nb new" in done.stderr


def test_help_and_version_are_documents_too():
    assert "PIPELINE" in document(command("run", "-h", "--json"))["help"]
    assert document(command("--version", "--json"))["version"] == document(command("--json", "-V"))["version"]


def test_our_own_mistake_says_where_its_traceback_is(tmp_path, monkeypatch):
    code = (
        "import sys; import mlops_nb.cli as cli; cli.respond = lambda *_: {}['the secret is s3cr3t-value'];"
        "sys.exit(cli.main(['runs', '--json']))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "MY_API_KEY": "s3cr3t-value"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit"] == 1 and "KeyError" in answer["error"]["message"]
    [kept] = tmp_path.glob("mlops-nb-*.txt")
    assert str(kept) in answer["error"]["hint"] and "Traceback" not in done.stderr
    assert "KeyError" in kept.read_text() and "s3cr3t-value" not in kept.read_text()


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    line = f"{sys.executable} -m mlops_nb --help | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


def test_output_closed_by_the_caller():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m mlops_nb --version >&-"], capture_output=True, check=False
    )
    assert done.returncode == 0


def test_no_color_in_a_pipe_or_where_it_is_not_wanted(project):
    assert "\x1b[" not in command("config", cwd=project).stdout
    assert "\x1b[" in command("config", cwd=project, FORCE_COLOR="1").stdout
    assert "\x1b[" not in command("config", cwd=project, FORCE_COLOR="1", NO_COLOR="1").stdout


def test_letters_that_an_encoding_lacks_do_no_harm():
    done = command("rnu", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "There is no command 'rnu'." in done.stderr


def test_what_libraries_print_does_not_reach_the_document():
    code = (
        "import sys, os, subprocess; import mlops_nb.cli as cli\n"
        "real = cli.respond\n"
        "def noisy(*words):\n"
        "    print('noise'); os.write(1, b'more'); subprocess.run(['echo', 'child']); return real(*words)\n"
        "cli.respond = noisy\n"
        "sys.exit(cli.main(['--version', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["schema"] == 1
    assert all(word in done.stderr for word in ("noise", "more", "child"))
