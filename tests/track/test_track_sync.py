"""The outbox against a stand-in for the service of W&B, with the client of W&B: what arrives, and what does not."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from postgres_service import ledger_url
from support import BIN, free_port, shared_folder
from test_track_mirror import SVG, begin, commit, end, mirror, new_project
from wandb_service import KEY, Fault, Service

from mlops_nb.commands.checks import check_tracking
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.locks import FileLock
from mlops_nb.core.settings import load_settings
from mlops_nb.track import outbox, service, upload
from mlops_nb.track.offline import find_run, step_environment
from mlops_nb.track.service import NotAllowed
from mlops_nb.track.sync import lock_file, sync, sync_status
from mlops_nb.track.transaction_log import contents, run_file

FIRST, SECOND = "20261101-120000-aaaa", "20261101-120100-bbbb"
POINTS = 20
EVERYTHING = "share = metrics, parameters, reports, tables, models, files\n"
ROWS = POINTS + 1  # metrics and pages stand behind the curve
OTHER_PYTHON = os.environ.get("MLOPS_NB_TEST_WANDB_PYTHON")  # one with another version of wandb
REAL_KEY = os.environ.get("MLOPS_NB_TEST_WANDB_KEY")  # of a test account at W&B


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two runs as the mirror leaves them: the second takes its rows from the first, and its last step failed."""
    settings = new_project(tmp_path_factory.mktemp("sync"), more=EVERYTHING)
    first = begin(settings, FIRST)
    ingest = commit(settings, FIRST, "ingest", gives={"rows": ("Json", b"[1, 2]")})
    mirror.step_committed(first, ingest, settings)
    points = [{"t": 1.0 + i, "step": i, "values": {"loss": 1 / (i + 1)}} for i in range(POINTS)]
    needs = {"ingest.rows": ingest["artifacts"]["rows"]}
    gives = {"model": ("Json", b"{}"), "curve": ("Figure", SVG.encode())}
    train = commit(settings, FIRST, "train", metrics={"auc": 0.9}, points=points, gives=gives, needs=needs)
    mirror.step_committed(first, train, settings)
    end(settings, first)
    second = begin(settings, SECOND)
    mirror.step_committed(second, commit(settings, SECOND, "ingest", "cached"), settings)
    error = {"type": "ValueError", "message": "bad"}
    train = commit(settings, SECOND, "train", gives={"model": ("Json", b"[]")}, needs=needs)
    mirror.step_committed(second, train, settings)
    needs = {"train.model": train["artifacts"]["model"]}
    evaluate = commit(settings, SECOND, "evaluate", state="failed", error=error, needs=needs)
    mirror.step_committed(second, evaluate, settings)
    end(settings, second, "failed")
    return settings


@pytest.fixture
def settings(recorded, tmp_path, monkeypatch):
    """A copy of these runs; nobody is logged in."""
    shutil.copytree(recorded.project, tmp_path / "churn", symlinks=True)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return load_settings(tmp_path / "churn", {})


@pytest.fixture
def wandb(monkeypatch):
    """The stand-in with a key for it; no question may be unknown to it."""
    with Service() as stand_in:
        monkeypatch.setenv("WANDB_BASE_URL", stand_in.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield stand_in
    assert stand_in.unknown == []


@pytest.fixture
def hasty(monkeypatch):
    """Waits of seconds are short, in this process."""
    monkeypatch.setattr(service, "PAUSES", (0.05, 0.05, 0.05, 0.05))
    monkeypatch.setattr(outbox, "SETTLE", (0.0, 0.05))
    monkeypatch.setattr(outbox, "PAUSE", 0.05)


def states(settings):
    return {f"{row['run'][-4:]}/{row['step']}": row["state"] for row in Ledger.open(settings).deliveries()}


def command(settings, *words, **extra):
    """`mlops-nb sync`; the finished process."""
    done = subprocess.run(
        [BIN / "mlops-nb", "sync", *words], cwd=settings.project, env={**os.environ, **extra},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


ALL = ["aaaa/ingest", "aaaa/train", "bbbb/ingest", "bbbb/train", "bbbb/evaluate"]


def test_everything_arrives_in_order_of_lineage_and_is_verified(settings, wandb):
    done = command(settings, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["counts"] == {"verified": 5, "pending": 0, "failed": 0} and document["stopped"] is None
    assert [f"{row['run'][-4:]}/{row['step']}" for row in document["steps"]][-1] == "bbbb/evaluate"
    assert wandb.committed[0] == (f"{FIRST}-ingest", "tabular-ingest-rows")
    assert {artifact.run for artifact in wandb.artifacts.values() if artifact.collection == "tabular-ingest-rows"} == {
        f"{FIRST}-ingest"
    }, "the consumer is taken for the maker"
    assert wandb.used(f"{FIRST}-train") == wandb.used(f"{SECOND}-train") == ["tabular-ingest-rows"]
    assert wandb.used(f"{SECOND}-evaluate") == ["tabular-train-model"]
    assert (wandb.run(f"{FIRST}-train").state, wandb.run(f"{SECOND}-evaluate").state) == ("finished", "failed")
    train = wandb.run(f"{FIRST}-train")
    assert [row["_step"] for row in train.history] == list(range(ROWS))
    assert train.summary["auc"] == 0.9 and train.fields["groupName"] == FIRST
    assert "program" not in train.fields and "host" not in train.fields, "the service was told about this machine"
    assert any(name.startswith("media/html/notebook") for name in train.files)

    asked = len(wandb.operations)
    again = command(settings)
    assert again.returncode == 0 and wandb.operations[asked:] == ["OutboxViewer"], "what is there is not sent again"
    assert "5 of 5 steps are in W&B" in again.stdout


def test_one_run_is_sent_with_what_it_is_made_of(settings, wandb):
    second = json.loads(command(settings, SECOND, "--status", "--json").stdout)
    assert len(second["steps"]) == 5, "it is made of what the first run computed"
    done = command(settings, FIRST[:14], "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["counts"] == {"verified": 2, "pending": 0, "failed": 0}
    assert set(states(settings).values()) == {"verified", "pending"}


def test_status_needs_neither_network_nor_key(settings):
    done = command(settings, "--status")
    assert done.returncode == 0
    assert "no key" in done.stdout and "0 of 5 steps are in W&B; 5 pending" in done.stdout
    first = command(settings, FIRST, "--status", "--json")
    document = json.loads(first.stdout)
    assert document["counts"] == {"verified": 0, "pending": 2, "failed": 0} and document["key"] is None
    assert [row["step"] for row in document["steps"]] == ["ingest", "train"]


def test_an_artifact_and_an_edge_that_were_acknowledged_and_lost_are_sent_again(settings, wandb, hasty):
    wandb.lose, wandb.lose_edges = {"tabular-train-model": 1}, 1
    document = sync(settings)
    assert document["counts"] == {"verified": 5, "pending": 0, "failed": 0}
    attempts = {f"{row['run'][-4:]}/{row['step']}": row["attempts"] for row in Ledger.open(settings).deliveries()}
    assert attempts["aaaa/train"] == 2 and attempts["aaaa/ingest"] == 1
    assert len(wandb.run(f"{FIRST}-train").history) == ROWS, "the curve is there twice"
    assert wandb.used(f"{FIRST}-train") == ["tabular-ingest-rows"]


def test_what_never_arrives_is_failed_and_its_consumers_wait(settings, wandb, hasty):
    wandb.lose = {"tabular-ingest-rows": 100}
    document = sync(settings)
    assert states(settings) == {
        "aaaa/ingest": "failed", "aaaa/train": "pending", "bbbb/ingest": "verified",
        "bbbb/train": "pending", "bbbb/evaluate": "pending",
    }  # fmt: skip
    told = {f"{row['run'][-4:]}/{row['step']}": row["error"] for row in document["steps"]}
    assert told["aaaa/ingest"].startswith("tabular-ingest-rows has not arrived")
    assert told["bbbb/train"] == f"waits for {FIRST}/ingest" and told["bbbb/evaluate"] == f"waits for {SECOND}/train"
    assert [run.name for run in wandb.runs.values()] == [f"{FIRST}-ingest", f"{SECOND}-ingest"]
    (failed,) = [row for row in sync_status(settings)["steps"] if row["state"] == "failed"]
    assert failed["attempts"] == outbox.ATTEMPTS and failed["next_try"]
    patient = sync(settings, patient=True)
    assert patient["counts"]["failed"] == 1 and not patient["stopped"], "it was not due"
    wandb.lose = {}
    assert sync(settings, [FIRST])["counts"]["verified"] == 2


def test_a_refused_key_stops_at_once_and_is_written_nowhere(settings, wandb):
    wrong = "c4n4ry" + "x" * 40
    wandb.faults = [Fault(500, times=0)]
    done = command(settings, WANDB_API_KEY=wrong)
    assert done.returncode == 2 and wandb.operations == []
    assert "does not accept the key from WANDB_API_KEY (HTTP 401)" in done.stderr and "wandb login" in done.stderr
    assert set(states(settings).values()) == {"pending"}
    assert wrong not in done.stdout + done.stderr
    for path in settings.project.rglob("*"):
        assert not path.is_file() or wrong.encode() not in path.read_bytes(), path


def test_a_key_that_is_refused_half_way_leaves_the_rest_pending_and_is_written_nowhere(settings, wandb, hasty):
    wandb.faults = [Fault(401, operation="UpsertBucket"), Fault(403, operation="OutboxRun")]
    with pytest.raises(NotAllowed, match="HTTP 403"):
        sync(settings)
    assert set(states(settings).values()) == {"pending"}
    for path in settings.project.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_a_login_of_wandb_is_found(settings, wandb, tmp_path, monkeypatch, hasty):
    monkeypatch.delenv("WANDB_API_KEY")
    host = wandb.url.removeprefix("http://")
    (tmp_path / "netrc").write_text(f"machine {host} login user password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert sync_status(settings)["key"] == str(tmp_path / "netrc")
    assert sync(settings, [FIRST])["counts"]["verified"] == 2


def test_no_key_says_what_to_do(settings):
    done = command(settings)
    assert done.returncode == 2 and "There is no key" in done.stderr and "wandb login" in done.stderr


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(429, times=3, headers={"Retry-After": "1"})],
        [Fault(500, times=2), Fault(503, times=2, path="/storage/"), Fault(502, times=2, path="/files/")],
    ],
    ids=["429", "5xx"],
)
def test_passing_trouble_passes(settings, wandb, hasty, faults):
    wandb.faults = faults
    assert sync(settings, [FIRST])["counts"] == {"verified": 2, "pending": 0, "failed": 0}
    assert len(wandb.run(f"{FIRST}-train").history) == ROWS


def test_lasting_trouble_leaves_everything_pending(settings, wandb, hasty):
    wandb.faults = [Fault(500)]
    document = sync(settings)
    assert "answers HTTP 500" in document["stopped"]["message"] and document["counts"]["pending"] == 5
    wandb.faults = []
    assert sync(settings, [FIRST])["counts"]["verified"] == 2


def test_storage_that_refuses_files_is_told_with_the_clients_own_words(settings, wandb, hasty, monkeypatch):
    quick = {name: "1" for name in upload.LIMITS if name.endswith("RETRY_MAX")}
    monkeypatch.setattr(upload, "LIMITS", {**upload.LIMITS, **quick})
    wandb.faults = [Fault(500, path="/storage/artifact/")]
    document = sync(settings, [FIRST])
    (ingest, train) = document["steps"]
    assert ingest["state"] == "failed" and train["error"] == f"waits for {FIRST}/ingest"
    assert ingest["error"].startswith("tabular-ingest-rows has not arrived; ") and "500" in ingest["error"]


def test_a_server_that_is_down_leaves_everything_pending(settings, monkeypatch, hasty):
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    document = sync(settings)
    assert "does not answer" in document["stopped"]["message"] and document["counts"]["pending"] == 5
    done = command(settings, "--timeout", "1")
    assert done.returncode == 1 and "stopped: The time is up: http" in done.stdout and "5 pending" in done.stdout


def test_a_server_that_goes_down_half_way_leaves_the_rest_pending(settings, wandb, hasty):
    def stop(row):
        if row["state"] == "verified":
            wandb.stop()

    document = sync(settings, tell=stop)
    assert document["stopped"] and document["counts"] == {"verified": 1, "pending": 4, "failed": 0}
    with Service(wandb.server.server_port) as back:
        back.runs, back.artifacts, back.uses = wandb.runs, wandb.artifacts, wandb.uses
        assert sync(settings, [FIRST])["counts"]["verified"] == 2
        assert len(back.run(f"{FIRST}-train").history) == ROWS and back.unknown == []


def test_a_server_that_never_answers_is_waited_for_as_long_as_was_said(settings, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        began = time.monotonic()
        document = sync(settings, seconds=1.0)
    assert time.monotonic() - began < 10
    assert address in document["stopped"]["message"] and "does not answer" in document["stopped"]["message"]


def test_a_slow_server_is_waited_for_and_a_client_that_hangs_is_ended(settings, wandb, hasty, monkeypatch):
    wandb.delay = 0.3
    assert sync(settings, [FIRST])["counts"]["verified"] == 2
    monkeypatch.setattr(upload, "PATIENCE", 3.0)
    monkeypatch.setattr(outbox, "ATTEMPTS", 1)
    wandb.faults = [Fault(500, operation="UpsertBucket")]
    document = sync(settings)
    hung = next(row for row in document["steps"] if row["state"] == "failed")
    assert "the client had not finished after 3 seconds" in hung["error"]
    assert children_of(os.getpid()) == []


def children_of(pid):
    """Command lines of W&B's processes below a process."""
    found = psutil.Process(pid).children(recursive=True)
    return [process for process in found if process.is_running() and "wandb" in " ".join(process.cmdline())]


@pytest.mark.parametrize("point", ["before-upload", "after-upload", "after-delivery"])
def test_a_sync_that_is_killed_is_taken_up_by_the_next(settings, wandb, point):
    killed = command(settings, FIRST, MLOPS_NB_FAULT=f"{point}:2")
    assert killed.returncode == -signal.SIGKILL
    before = states(settings)
    assert before["aaaa/ingest"] == "verified"
    assert before["aaaa/train"] == ("verified" if point == "after-delivery" else "uploading")
    sent = wandb.operations.count("UpsertBucket")
    done = command(settings, FIRST, "--json")
    assert json.loads(done.stdout)["counts"]["verified"] == 2
    train = wandb.run(f"{FIRST}-train")
    assert len(train.history) == ROWS and wandb.used(train.name) == ["tabular-ingest-rows"]
    if point != "before-upload":
        assert wandb.operations.count("UpsertBucket") == sent, "what had arrived was sent again"


def test_a_client_does_not_outlive_a_sync_that_is_killed_while_it_uploads(settings, wandb):
    wandb.faults = [Fault(500, operation="RunResumeStatus")]
    process = subprocess.Popen(
        [BIN / "mlops-nb", "sync"], cwd=settings.project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (clients := [p for p in children_of(process.pid) if "wandb-core" in " ".join(p.cmdline())]):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    clients = children_of(process.pid)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(clients, timeout=20)
    assert alive == []
    wandb.faults = []
    assert json.loads(command(settings, FIRST, "--json").stdout)["counts"]["verified"] == 2


def test_two_syncs_at_once(settings, wandb):
    with FileLock(lock_file(settings)):
        second = command(settings)
        looking = command(settings, "--status", "--json")
        waiting = subprocess.Popen(
            [BIN / "mlops-nb", "sync", FIRST, "--wait", "--json"], cwd=settings.project, stdout=subprocess.PIPE
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
    assert second.returncode == 4
    assert f"Another sync is going on, process {os.getpid()}" in second.stderr and "--wait" in second.stderr
    assert json.loads(looking.stdout)["syncing"] == os.getpid()
    assert json.loads(waiting.communicate(timeout=60)[0])["counts"]["verified"] == 2


def test_files_that_are_gone_are_told_once(settings, wandb, hasty):
    shutil.rmtree(find_run(settings.workspace.path, f"{FIRST}-train"))
    document = sync(settings, [FIRST])
    assert "its W&B files are gone" in document["steps"][1]["error"]
    assert document["counts"] == {"verified": 1, "pending": 0, "failed": 0}
    assert sync(settings, [FIRST])["steps"] == []


STEP = """
import wandb
wandb.init(config={"depth": 3})
for loss in (0.9, 0.4):
    wandb.log({"loss": loss})
"""


@pytest.mark.parametrize("lost", [{}, {"tabular-train-model": 1}], ids=["at once", "in two attempts"])
def test_a_step_that_logs_by_itself_is_one_run(tmp_path, wandb, hasty, lost):
    settings = new_project(tmp_path)
    run = begin(settings, FIRST)
    variables = {**os.environ, **step_environment(FIRST, "train", settings)}
    subprocess.run([sys.executable, "-c", STEP], env=variables, check=True)
    points = [{"t": 1.0 + i, "step": None, "values": {"score": i}} for i in range(3)]
    gives = {"model": ("Json", b"{}")}
    mirror.step_committed(
        run, commit(settings, FIRST, "train", metrics={"auc": 0.9}, points=points, gives=gives), settings
    )
    end(settings, run)
    parts = sorted((settings.workspace.path / "wandb").glob(f"offline-run-*-{FIRST}-train"))
    rows = [contents(run_file(part)).points for part in parts]
    wandb.lose = dict(lost)
    assert sync(settings)["counts"] == {"verified": 1, "pending": 0, "failed": 0}
    (seen,) = wandb.runs.values()
    assert len(rows) == 2 and len(seen.history) == sum(rows)
    assert [row["_step"] for row in seen.history] == sorted({row["_step"] for row in seen.history})
    assert [row["loss"] for row in seen.history if "loss" in row] == [0.9, 0.4]
    assert [row["score"] for row in seen.history if "score" in row] == [0, 1, 2]
    assert (seen.summary["loss"], seen.summary["auc"], seen.state) == (0.4, 0.9, "finished")
    assert seen.config["depth"]["value"] == 3 and seen.config["mlops_nb"]["value"]["step"] == "train"


def test_with_mode_mirror_a_run_is_sent_by_itself(tmp_path, wandb):
    settings = new_project(tmp_path, "mirror")
    run = begin(settings, FIRST)
    mirror.step_committed(run, commit(settings, FIRST, "ingest", gives={"rows": ("Json", b"[]")}), settings)
    wandb.delay = 0.1
    end(settings, run)
    assert states(settings) != {"aaaa/ingest": "verified"}, "the run's end waited for the service"
    deadline = time.monotonic() + 60
    while states(settings) != {"aaaa/ingest": "verified"}:
        assert time.monotonic() < deadline, (settings.workspace.path / "tmp" / "wandb-sync.log").read_text()
        time.sleep(0.2)
    assert wandb.arrived(f"{FIRST}-ingest") == {"tabular-ingest-rows": "COMMITTED"}


def test_with_mode_mirror_and_no_service_a_run_is_not_affected(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    settings = new_project(tmp_path, "mirror")
    run = begin(settings, FIRST)
    mirror.step_committed(run, commit(settings, FIRST, "ingest"), settings)
    end(settings, run)
    assert "not written" not in capsys.readouterr().err
    log, deadline = settings.workspace.path / "tmp" / "wandb-sync.log", time.monotonic() + 30
    while "There is no key" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert states(settings) == {"aaaa/ingest": "pending"}


def test_doctor_says_whether_runs_get_to_w_and_b(settings, tmp_path, monkeypatch):
    mirrored = settings._replace(tracking=settings.tracking._replace(mode="mirror"))
    assert "there is no key for it" in next(check_tracking(mirrored, False)).words
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert (
        next(check_tracking(mirrored, False)).words == "runs are sent to https://api.wandb.ai, key from WANDB_API_KEY"
    )
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine")
    assert next(check_tracking(mirrored, False)).level == "fail"


QUESTIONS = """
import json, wandb.apis._generated.operations as general, wandb.sdk.artifacts._generated.operations as artifacts
from wandb.apis.public.runs import RUN_FRAGMENT
questions = [text for module in (general, artifacts) for name, text in vars(module).items() if name.endswith("_GQL")]
print(json.dumps([*questions, "query Run { run { ...RunFragment } } " + RUN_FRAGMENT]))
"""


def test_the_outbox_asks_for_fields_that_wandb_asks_for():
    """Paths of fields in our questions, each of which W&B's own client asks for, too."""
    done = subprocess.run([sys.executable, "-c", QUESTIONS], capture_output=True, text=True, check=True)
    known = set().union(*map(selections, json.loads(done.stdout)))
    for query in (service.VIEWER, service.RUN, service.VERSIONS):
        assert selections(query) <= known, selections(query) - known


def selections(query):
    """(field, field below it) of a question in GraphQL; fragments stand for what is in them."""
    text = re.sub(r"\([^()]*\)", "", re.sub(r"\w+:\s*(?=\w+[\s({])", "", query))
    text = re.sub(r"fragment (\w+) on \w+", r"...\1", text)
    below, above, last = {}, [], ""
    for word in re.findall(r"\.\.\.\s*\w+|\w+|[{}]", text):
        if word == "{":
            above.append(last)
        elif word == "}":
            above.pop()
        elif above:
            below.setdefault(above[-1], set()).add(word)
        last = word

    def names(owner):
        for word in below.get(owner, ()):
            yield from names(word) if word.startswith("...") else [word]

    return {(owner, name) for owner in below if owner[0].islower() for name in names(owner)}


def test_what_another_machine_has_to_send_is_left_to_it(settings, wandb, tmp_path, tmp_path_factory):
    with ledger_url(shared_folder(tmp_path_factory), f"sync_{os.getpid()}", empty=True) as url:
        copied = subprocess.run(
            [BIN / "mlops-nb", "ledger", "copy", "sqlite", url], cwd=settings.project, capture_output=True, check=False
        )
        assert copied.returncode == 0, copied.stderr
        here = {"MLOPS_NB_WORKSPACE_LEDGER": url}
        there = {**here, "MLOPS_NB_WORKSPACE_PATH": str(tmp_path / "another")}
        looked = json.loads(command(settings, "--status", "--json", **there).stdout)
        (waiting,) = looked["elsewhere"].values()
        assert waiting == [FIRST, SECOND] and looked["steps"] == [] and not any(looked["counts"].values())
        (machine,) = looked["elsewhere"]
        asked = command(settings, FIRST, **there)
        assert asked.returncode == 1 and f"On {machine}, in the project's folder: mlops-nb sync {FIRST}" in asked.stdout
        assert command(settings, **there).returncode == 0 and not wandb.runs
        sent = json.loads(command(settings, "--json", **here).stdout)
        assert sent["counts"] == {"verified": 5, "pending": 0, "failed": 0} and sent["elsewhere"] == {}
        assert json.loads(command(settings, "--status", "--json", **there).stdout)["counts"]["verified"] == 5


@pytest.mark.skipif(not OTHER_PYTHON, reason="MLOPS_NB_TEST_WANDB_PYTHON names no interpreter with another wandb")
def test_another_version_of_wandb_delivers_the_same(settings, wandb, hasty, monkeypatch):
    monkeypatch.setattr(sys, "executable", OTHER_PYTHON)
    wandb.lose, wandb.lose_edges = {"tabular-train-model": 1}, 1
    assert sync(settings)["counts"]["verified"] == 5
    assert len(wandb.run(f"{FIRST}-train").history) == ROWS


@pytest.mark.skipif(not REAL_KEY, reason="MLOPS_NB_TEST_WANDB_KEY holds no key of a test account at W&B")
def test_the_real_service_has_everything(tmp_path, monkeypatch):
    """A run under a fresh id, in a project of its own at W&B."""
    monkeypatch.setenv("WANDB_API_KEY", REAL_KEY)
    (tmp_path / "real").mkdir()
    settings = new_project(tmp_path / "real")
    settings = settings._replace(tracking=settings.tracking._replace(project="mlops-nb-test"))
    fresh = time.strftime("%Y%m%d-%H%M%S-real")
    run = begin(settings, fresh)
    ingest = commit(settings, fresh, "ingest", gives={"rows": ("Json", fresh.encode())})
    mirror.step_committed(run, ingest, settings)
    needs = {"ingest.rows": ingest["artifacts"]["rows"]}
    mirror.step_committed(run, commit(settings, fresh, "train", metrics={"auc": 0.9}, needs=needs), settings)
    end(settings, run)
    assert sync(settings, seconds=300)["counts"] == {"verified": 2, "pending": 0, "failed": 0}
