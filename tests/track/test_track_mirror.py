"""The mirror as a whole: a runner that commits steps, W&B's own reader, secrets, kills, and no network."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.locks import process_start
from mlops_nb.core.settings import load_settings
from mlops_nb.core.store import Store
from mlops_nb.track import mirror
from mlops_nb.track.offline import find_run, step_environment

SECRET = "c4n4ry-51c4-tok3n"
PARAMETERS = {"ingest.source": "cancer", "train.model": "forest", "train.token": "env:SERVICE_WORD"}
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><circle r="4"/></svg>'


def write_notebook(path, text):
    """An executed notebook with one cell of prose and one output."""
    output = {"output_type": "stream", "name": "stdout", "text": text}
    code = {"cell_type": "code", "id": "b", "metadata": {}, "execution_count": 1, "source": "1", "outputs": [output]}
    prose = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": f"# {path.stem}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [prose, code], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def commit(settings, run_id, name, state="done", gives=None, needs=None, metrics=None, points=(), error=None):
    """A step as the runner leaves it: attempt folder, executed notebook, ledger; the step's document."""
    store, ledger = Store(settings.workspace.path / "objects"), Ledger.open(settings)
    attempt = settings.workspace.path / "attempts" / run_id / name
    notebook = settings.workspace.path / "runs" / run_id / f"10_{name}.ipynb"
    entries = {
        label: {"type": kind, "sha256": store.put_bytes(data), "size": len(data), "meta": {}}
        for label, (kind, data) in (gives or {}).items()
    }
    manifest = {"format": 1, "step": name, "gives": entries, "metrics": metrics or {}}
    step = {
        "id": name, "step": name, "variant": None, "state": state, "reasons": ["first run"], "seconds": 1.5,
        "notebook": str(notebook.relative_to(settings.project)), "artifacts": entries, "metrics": metrics or {},
        "error": error, "key": sha256_bytes(f"{name}{metrics}".encode()), "attempt": str(attempt),
    }  # fmt: skip
    position = ["ingest", "train", "evaluate"].index(name)
    if state != "cached":
        write_notebook(notebook, f"{SECRET}\n" if name == "train" else "fine\n")
        attempt.mkdir(parents=True)
        (attempt / "manifest.json").write_text(json.dumps(manifest))
        (attempt / "context.json").write_text(json.dumps({"needs": needs or {}}))
        (attempt / "points.ndjson").write_text("".join(json.dumps(point) + "\n" for point in points))
    ledger.begin_step(run_id, name, position=position, key=step["key"], reasons=step["reasons"], attempt=str(attempt))
    common = {"seconds": 1.5, "notebook": step["notebook"]}
    if state == "failed":
        ledger.fail_step(run_id, name, error=error, **common)
    else:
        cached = state == "cached"
        ledger.commit_step(
            run_id, name, key=step["key"], parts={}, manifest=manifest, points=list(points), cached=cached, **common
        )
    return step


def begin(settings, run_id):
    """A run as the runner announces it."""
    Ledger.open(settings).begin_run(run_id, "tabular", PARAMETERS)
    run = {
        "schema": 1,
        "run": run_id,
        "pipeline": "tabular",
        "status": "running",
        "steps": [],
        "parameters": PARAMETERS,
    }
    mirror.run_started(run, settings)
    return run


def end(settings, run, status="ok"):
    """The end of a run, waiting for W&B."""
    Ledger.open(settings).end_run(run["run"], status)
    mirror.run_finished({**run, "status": status}, settings)


def new_project(folder, mode="offline", more=""):
    """A project with settings and nothing else."""
    (folder / "churn").mkdir(parents=True)
    (folder / "churn" / "settings.ini").write_text(f"[package]\nname = churn\n[tracking]\nmode = {mode}\n{more}")
    return load_settings(folder / "churn", {})


def read(settings, run_id, step):
    """What W&B's own reader makes of a run."""
    folder = find_run(settings.workspace.path, f"{run_id}-{step}")
    assert folder, f"{step} has no W&B run"
    return inspect(folder, "--summary")


@functools.cache
def inspect(folder, *options):
    """The answer of `wandb leet inspect --json`: one document of a summary, else a list of records."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(folder)]
    quiet = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    text = subprocess.run(command, capture_output=True, check=True, text=True, env=quiet).stdout
    return json.loads(text) if options else [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def listener():
    """A server on the loopback that counts who calls it."""
    server, calls = socket.create_server(("127.0.0.1", 0)), []

    def accept():
        while True:
            try:
                calls.append(server.accept()[1])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
    server.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory, listener):
    """A run of three steps, the last one failed, with secrets planted wherever one could be."""
    settings = new_project(tmp_path_factory.mktemp("mirror"))
    address, calls = listener
    planted = {
        "SERVICE_WORD": SECRET, "SOME_API_KEY": SECRET, "WANDB_API_KEY": SECRET, "WANDB_RUN_ID": "mine",
        "WANDB_MODE": "online", "WANDB_BASE_URL": address, "HTTPS_PROXY": address, "HTTP_PROXY": address,
        "NO_PROXY": "",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in planted.items():
            patch.setenv(name, value)
        run = begin(settings, "20261101-120000-aaaa")
        ingest = commit(settings, run["run"], "ingest", gives={"rows": ("Json", b"[1, 2]")})
        mirror.step_committed(run, ingest, settings)
        points = [{"t": 1.0 + i, "step": i, "values": {"loss": 1 / (i + 1)}} for i in range(20)]
        train = commit(
            settings, run["run"], "train", metrics={"auc": 0.91, "baseline.auc": 0.5}, points=points,
            gives={"model": ("Json", b"{}"), "curve": ("Figure", SVG.encode())},
            needs={"ingest.rows": ingest["artifacts"]["rows"]},
        )  # fmt: skip
        mirror.step_committed(run, train, settings)
        error = {"type": "ValueError", "message": f"bad {SECRET}", "notebook": "50_evaluate.ipynb", "cell": 3}
        evaluate = commit(settings, run["run"], "evaluate", state="failed", error=error)
        mirror.step_committed(run, evaluate, settings)
        end(settings, run, "failed")
    return settings, run["run"], list(calls)


def test_the_reader_finds_config_metrics_and_curves(project):
    settings, run, _ = project
    seen = read(settings, run, "train")
    assert seen["config"]["model"] == "forest" and seen["config"]["mlops_nb"]["pipeline"] == "tabular"
    assert seen["summary"]["auc"] == 0.91 and seen["summary"]["baseline/auc"] == 0.5
    assert seen["summary"]["loss"] == 0.05 and seen["summary"]["seconds"] == 1.5
    assert (seen["project"], seen["name"], seen["state"], seen["exit_code"]) == ("churn", "train", "finished", 0)


def test_a_failed_step_is_seen_to_have_failed(project):
    settings, run, _ = project
    seen = read(settings, run, "evaluate")
    assert seen["state"] == "failed" and seen["exit_code"] == 1
    assert seen["notes"] == "ValueError: bad [redacted] (50_evaluate.ipynb, cell 3)"


def test_pages_are_beside_the_run(project):
    settings, run, _ = project
    folder = find_run(settings.workspace.path, f"{run}-train")
    found = {path.name.split("_")[0]: path.read_text() for path in folder.rglob("*.html")}
    assert set(found) == {"notebook", "curve"}
    assert "<title>10_train</title>" in found["notebook"] and "image/svg+xml" in found["curve"]


def test_artifacts_are_linked_by_reference(project):
    settings, run, _ = project
    folder = find_run(settings.workspace.path, f"{run}-train")
    found = [record["artifact"] for record in inspect(folder) if record["type"] == "artifact"]
    named = {item["name"]: item for item in found}
    assert set(named) == {"tabular-train-model", "tabular-train-curve", "tabular-ingest-rows"}
    assert named["tabular-ingest-rows"]["use_after_commit"] is True
    assert "use_after_commit" not in named["tabular-train-model"]
    [content] = named["tabular-train-curve"]["manifest"]["contents"]
    assert content["local_path"].startswith(".mlops/objects/"), "a copy, or a path of this machine"
    for name in ("tabular-train-model", "tabular-ingest-rows"):  # not shared unless asked for
        [content] = named[name]["manifest"]["contents"]
        assert content["ref"].startswith("mlops-nb://sha256/") and "local_path" not in content and content["size"]
    assert not list(settings.workspace.path.glob("wandb*/**/staging/*"))


def test_no_secret_is_anywhere_in_what_the_mirror_wrote(project):
    settings, _, _ = project
    written = [path for name in ("wandb", "tmp") for path in (settings.workspace.path / name).rglob("*")]
    assert any(path.suffix == ".wandb" for path in written)
    for path in written:
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_nothing_was_sent(project):
    _, _, calls = project
    assert calls == []


def test_nothing_is_left_lying_about(project):
    settings, _, _ = project
    workspace = settings.workspace.path
    assert [path.name for path in (workspace / "tmp").glob("wandb-*") if path.is_dir()] == []
    folders = sorted((workspace / "wandb").glob("offline-run-*"))
    assert len(folders) == 3 and (workspace / "wandb" / "latest-run").resolve() in folders
    assert sorted(path.name for path in workspace.glob("wandb*")) == ["wandb"]


def test_the_ledger_knows_what_is_written(project):
    settings, run, _ = project
    states = {row["step"]: row["state"] for row in Ledger.open(settings).mirrors(run)}
    assert states == dict.fromkeys(["ingest", "train", "evaluate"], "written")


def test_a_cached_run_starts_nothing_and_is_added_by_the_next(tmp_path, capsys):
    settings = new_project(tmp_path)
    ledger = Ledger.open(settings)
    first = begin(settings, "20261101-120000-aaaa")
    commit(settings, first["run"], "ingest")
    ledger.set_mirror_state(first["run"], "ingest", "written", "x")
    end(settings, first)
    assert mirror.pending(settings) == []
    cached = begin(settings, "20261101-120001-bbbb")
    mirror.step_committed(cached, commit(settings, cached["run"], "ingest", "cached"), settings)
    assert mirror._mirrors[cached["run"]].process is None
    end(settings, cached)
    assert not (settings.workspace.path / "wandb").exists()
    assert mirror.pending(settings) == [f"{cached['run']}/ingest"]

    fresh = begin(settings, "20261101-120002-cccc")
    mirror.step_committed(fresh, commit(settings, fresh["run"], "ingest", metrics={"n": 1}), settings)
    deadline = time.monotonic() + 30
    while not find_run(settings.workspace.path, f"{cached['run']}-ingest") and time.monotonic() < deadline:
        time.sleep(0.05)
    end(settings, fresh)
    assert read(settings, cached["run"], "ingest")["tags"] == ["tabular", "cached"]
    assert find_run(settings.workspace.path, f"{fresh['run']}-ingest")
    assert "W&B" not in capsys.readouterr().err.replace("Writing W&B runs ...", "")


def test_what_is_missing_can_be_written_without_a_run(tmp_path):
    settings = new_project(tmp_path)
    run = begin(settings, "20261101-120000-aaaa")
    commit(settings, run["run"], "ingest", "cached", metrics={"n": 1})
    Ledger.open(settings).end_run(run["run"], "ok")
    assert mirror.write_pending(settings) == ""
    assert find_run(settings.workspace.path, f"{run['run']}-ingest") and mirror.pending(settings) == []


def test_off_writes_nothing_and_later_runs_respect_it(tmp_path):
    off = new_project(tmp_path, "off")
    run = begin(off, "20261101-120000-aaaa")
    mirror.step_committed(run, commit(off, run["run"], "ingest"), off)
    end(off, run)
    assert not (off.workspace.path / "wandb").exists() and mirror._mirrors == {}
    later = off._replace(tracking=off.tracking._replace(mode="offline"))
    assert mirror.pending(later) == mirror.pending(off) == []


STEP = """
import wandb
wandb.init(config={"depth": 3})
for loss in (0.9, 0.4):
    wandb.log({"loss": loss})
"""


def test_a_step_that_logs_by_itself_stays_offline_and_shares_the_run(tmp_path, listener, monkeypatch):
    settings, (address, calls) = new_project(tmp_path), listener
    for name, value in {"WANDB_BASE_URL": address, "HTTPS_PROXY": address, "WANDB_MODE": "online"}.items():
        monkeypatch.setenv(name, value)
    run = begin(settings, "20261101-120000-aaaa")
    variables = {**os.environ, **step_environment(run["run"], "train", settings)}
    done = subprocess.run([sys.executable, "-c", STEP], env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    mirror.step_committed(run, commit(settings, run["run"], "train", metrics={"auc": 0.9}), settings)
    end(settings, run)
    assert calls == []
    parts = sorted((settings.workspace.path / "wandb").glob(f"offline-run-*-{run['run']}-train"))
    by_step, by_mirror = [inspect(part, "--summary") for part in parts]
    assert by_step["run_id"] == by_mirror["run_id"] == f"{run['run']}-train"
    assert by_step["summary"]["loss"] == 0.4 and by_step["config"] == {"depth": 3}
    assert by_mirror["summary"]["auc"] == 0.9 and "loss" not in by_mirror["summary"]
    assert (by_step["summary"]["_step"], by_mirror["summary"]["_step"]) == (1, 2)
    joined = [record["run"] for part in parts for record in inspect(part) if record["type"] == "run"]
    assert all(record["resume"] and record["run_group"] == run["run"] for record in joined)


RUNNER = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from test_track_mirror import begin, commit, mirror
from mlops_nb.core.settings import load_settings
settings = load_settings(Path({project!r}), {{}})
run = begin(settings, "20261101-120000-aaaa")
mirror.step_committed(run, commit(settings, run["run"], "ingest", metrics={{"rows": 3}}), settings)
writer = mirror._mirrors[run["run"]].process
if {kill_writer}:
    os.kill(writer.pid, signal.SIGKILL)
print(writer.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_runner(settings, kill_writer):
    """A runner that commits one step and is killed; its writer's process id."""
    here = Path(__file__).parent
    code = RUNNER.format(
        tests=str(here), root=str(here.parent.parent), project=str(settings.project), kill_writer=kill_writer
    )
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return int(done.stdout)


def test_a_killed_runner_still_gets_its_w_and_b_run_and_leaves_no_orphan(tmp_path):
    settings = new_project(tmp_path)
    writer = kill_a_runner(settings, kill_writer=False)
    deadline = time.monotonic() + 60
    while process_start(writer) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process_start(writer) is None
    assert read(settings, "20261101-120000-aaaa", "ingest")["summary"]["rows"] == 3


def test_what_a_killed_writer_left_is_written_by_the_next_run_and_a_broken_notebook_spoils_only_its_step(
    tmp_path, capsys
):
    settings = new_project(tmp_path)
    kill_a_runner(settings, kill_writer=True)
    assert find_run(settings.workspace.path, "20261101-120000-aaaa-ingest") is None
    ledger = Ledger.open(settings)
    assert ledger.reap() == ["20261101-120000-aaaa"]
    assert mirror.pending(settings) == ["20261101-120000-aaaa/ingest"]
    run = begin(settings, "20261101-120001-bbbb")
    broken = commit(settings, run["run"], "ingest")
    (settings.project / broken["notebook"]).write_text("{")
    mirror.step_committed(run, broken, settings)
    mirror.step_committed(run, commit(settings, run["run"], "train", metrics={"auc": 0.5}), settings)
    end(settings, run)
    assert read(settings, "20261101-120000-aaaa", "ingest")["summary"]["rows"] == 3
    assert find_run(settings.workspace.path, f"{run['run']}-train")
    assert "W&B runs of some steps were not written: ingest: " in capsys.readouterr().err
    assert [row["step"] for row in ledger.mirrors(run["run"], state="failed")] == ["ingest"]
    assert mirror.pending(settings) == [f"{run['run']}/ingest"]
    assert "ingest: " in mirror.write_pending(settings)
    assert [row["step"] for row in ledger.mirrors(run["run"], state="given up")] == ["ingest"]
    assert mirror.pending(settings) == []


def test_a_missing_wandb_is_one_warning(tmp_path, capsys, monkeypatch):
    settings = new_project(tmp_path)
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    run = begin(settings, "20261101-120000-aaaa")
    for name in ("ingest", "train"):
        mirror.step_committed(run, commit(settings, run["run"], name), settings)
    end(settings, run)
    words = capsys.readouterr().err.replace("Writing W&B runs ...\n", "")
    assert words.count("W&B runs were not written: ModuleNotFoundError: No module named 'wandb'.") == 1
    assert Ledger.open(settings).mirrors(run["run"]) == []


def test_a_workspace_that_refuses_is_one_warning(tmp_path, capsys):
    settings = new_project(tmp_path)
    run = begin(settings, "20261101-120000-aaaa")
    step = commit(settings, run["run"], "ingest")
    (settings.workspace.path / "tmp").write_text("a file in the folder's place")
    for _ in range(2):
        mirror.step_committed(run, step, settings)
    mirror.run_finished(run, settings)
    assert capsys.readouterr().err.count("W&B runs were not written") == 1


def test_the_command_says_that_it_waits_and_leaves_when_it_takes_too_long(tmp_path, capsys, monkeypatch):
    settings = new_project(tmp_path)
    monkeypatch.setattr(mirror, "PROGRAM", "import sys; sys.stdin.read(); import time; time.sleep(2)")
    monkeypatch.setattr(mirror, "SILENT", 0.1)
    waiting = mirror.Mirror(settings)
    waiting.tell({"run": "r"}, {"state": "done", "step": "train"})
    answer = waiting.finish(wait=0.3)
    assert answer == {"pid": waiting.process.pid}
    assert "Writing W&B runs" in capsys.readouterr().err
    assert waiting.process.wait(10) == 0


def test_importing_the_mirror_is_light():
    code = """
    import sys
    import mlops_nb.track.mirror, mlops_nb.track.tables
    heavy = {"wandb", "pandas", "numpy", "nbformat", "nbconvert", "sqlalchemy", "sklearn", "pydantic"}
    print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
