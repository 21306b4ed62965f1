"""A project whose ledger is in Postgres: its runs, commands, upkeep, and moving the ledger there and back."""

import json
import os
import sqlite3
import subprocess
import time

import pytest
from postgres_service import kill_backends, ledger_url, own_server, shared_server
from support import gives, shared_folder, states
from upkeep_support import make_project, run, start

COUNTS = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM results), (SELECT count(*) FROM run_steps)"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What all test processes share."""
    return shared_folder(tmp_path_factory)


@pytest.fixture
def name(request):
    """A database's name of the test's own."""
    return f"shared_{os.getpid()}_{abs(hash(request.node.name)) % 10**8}"


@pytest.fixture
def url(shared, name):
    """The address of a database with nothing in it."""
    with ledger_url(shared, name, empty=True) as address:
        yield address


def project_at(folder, url: str):
    """A project of two steps with its ledger at an address."""
    project = make_project(folder)
    ini = project.folder / "settings.ini"
    ini.write_text(f"{ini.read_text()}[workspace]\nledger = {url}\n")
    return project


def wait_for(ready, process, seconds: float = 60.0) -> None:
    """Wait until something is true while a command goes on."""
    end = time.monotonic() + seconds
    while not (found := ready()) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.1)
    assert found, process.communicate()


def test_a_server_that_is_restarted_in_mid_run_costs_nothing(tmp_path):
    server = own_server()
    try:
        server.sql("CREATE DATABASE churn")
        project = project_at(tmp_path / "a", server.url("churn"))
        undisturbed = make_project(tmp_path / "b")
        go = tmp_path / "go"
        process = start(project, "run", "demo", "-p", f"make.wait={go}", "--json")
        wait_for(lambda: [*project.folder.rglob("started")], process)
        server.control("restart", "-m", "immediate")
        go.touch()
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        document = json.loads(out)
        assert states(document) == {"make": "done", "train": "done"}
        other = run(undisturbed, "-p", f"make.wait={go}")
        assert gives(document) == gives(other)
        assert not (project.workspace / "ledger.sqlite").exists()
        assert states(run(project, "-p", f"make.wait={go}")) == {"make": "cached", "train": "cached"}
        assert server.sql("SELECT status, count(*) FROM runs GROUP BY 1", "churn") == "ok|2"
        assert server.sql("SELECT count(*) FROM leases", "churn") == "0"
        server.control("stop", "-m", "fast")
        failed = project.json("runs", expect=2)
        assert "nothing listens there" in failed["error"]["message"]
    finally:
        server.end()


def test_a_ledger_moves_to_postgres_and_back(tmp_path, url, shared, name):
    project = make_project(tmp_path / "demo")
    first = run(project)
    run(project, "-p", "train.seed=1")
    project.json("runs", "tag", first["run"], "good")
    before = sqlite3.connect(project.workspace / "ledger.sqlite")
    copied = project.json("ledger", "copy", "sqlite", url)
    server = shared_server(shared)
    counts = before.execute(COUNTS).fetchone()
    assert server.sql(COUNTS, name) == "|".join(map(str, counts))
    assert server.sql("SELECT id, started, seconds FROM runs ORDER BY id", name) == "\n".join(
        f"{row[0]}|{row[1]}|{row[2]!r}" for row in before.execute("SELECT id, started, seconds FROM runs ORDER BY id")
    )
    assert {table["table"]: table["rows"] for table in copied["tables"]}["run_annotations"] == 1
    again = project.json("ledger", "copy", "sqlite", url, expect=2)
    assert "is not empty" in again["error"]["message"]
    there = {"MLOPS_NB_WORKSPACE_LEDGER": url}
    assert states(run(project, **there)) == {"make": "cached", "train": "cached"}
    third = run(project, "-p", "train.seed=2", **there)
    assert states(third) == {"make": "cached", "train": "done"}
    status = project.json("ledger", **there)
    assert (status["kind"], status["rows"]["runs"], status["running"]) == ("postgres", 4, [])
    (project.workspace / "ledger.sqlite").rename(tmp_path / "old.sqlite")
    back = project.json("ledger", "copy", url, "sqlite")
    moved = sqlite3.connect(project.workspace / "ledger.sqlite")
    assert server.sql(COUNTS, name) == "|".join(map(str, moved.execute(COUNTS).fetchone()))
    assert moved.execute("PRAGMA foreign_key_check").fetchall() == []
    assert moved.execute("SELECT sha256 FROM artifacts WHERE sha256 = ?", [gives(third)["train.half"]]).fetchone()
    assert {table["table"] for table in back["tables"]} == {table["table"] for table in copied["tables"]}
    assert states(run(project, "-p", "train.seed=2")) == {"make": "cached", "train": "cached"}


def test_upkeep_of_a_shared_ledger(tmp_path, url, shared, name):
    project = project_at(tmp_path / "demo", url)
    go = tmp_path / "go"
    process = start(project, "run", "demo", "-p", f"make.wait={go}", "--json")
    wait_for(lambda: [*project.folder.rglob("started")], process)
    elsewhere = tmp_path / "another"  # another machine's folder, with the same ledger
    elsewhere.mkdir()
    refused = project.json("gc", "--delete", expect=4, MLOPS_NB_WORKSPACE_PATH=str(elsewhere))
    assert "is going on" in refused["error"]["message"]
    assert project.json("ledger")["running"] and project.json("ledger")["connected"]
    refused = project.json("ledger", "copy", url, "sqlite", expect=4, MLOPS_NB_WORKSPACE_PATH=str(elsewhere))
    assert refused["error"]["type"] == "Busy"
    kill_backends(shared_server(shared), name)  # a firewall that forgets
    go.touch()
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    done = json.loads(out)
    run(project, "-p", "make.rows=4")
    assert project.json("fsck")["ok"]
    gone = project.json("runs", "delete", done["run"], "--delete")
    assert gone["runs"] == [done["run"]]
    assert project.json("gc", "--keep-runs", "1", "--delete")["deleted"]
    assert project.json("fsck")["ok"]
    rebuilt = project.json("fsck", "--rebuild")
    assert rebuilt["rebuilt"]["kept"].startswith("ledger_before_")
    assert states(run(project, "-p", "make.rows=4")) == {"make": "cached", "train": "cached"}
    events = shared_server(shared).sql("SELECT count(*) FROM events", name)
    assert int(events) >= 1


def test_a_command_line_shows_no_password(tmp_path):
    project = make_project(tmp_path / "demo")
    secret = "postgresql://ada:s3cr3t@127.0.0.1:1/churn"
    refused = project.call("mlops-nb", "ledger", "copy", "sqlite", secret)
    assert refused.returncode == 2 and "s3cr3t" not in refused.stdout + refused.stderr
    for words in (["runs"], ["config"], ["config", "--json"], ["doctor"], ["ledger"], ["plan", "demo"]):
        done = project.call("mlops-nb", *words, MLOPS_NB_WORKSPACE_LEDGER=secret)
        assert isinstance(done, subprocess.CompletedProcess)
        assert "s3cr3t" not in done.stdout + done.stderr, words
