"""Two machines, each with a folder of its own, share a bucket (moto) and a ledger (Postgres)."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import object_stores
import pytest
from pipeline_support import Project, finish, gives, states, wait_for
from postgres_service import kill_backends, ledger_url, shared_server
from support import shared_folder

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.shared import notebook_copy, store_of
from mlops_nb.pipeline import attempt_shared
from mlops_nb.pipeline.opened import open_step

STEPS = {
    "10_split": ("#| parameters\nrows: int = 3  # how many", "flow.train = list(range(rows))\nprint('split it')"),
    "20_train": ("import time\nflow.model = sum(flow.split.train)\nprint('trained it')",),
    "30_report": ("flow.page = {'sum': flow.train.model}",),
}


class Machine(Project):
    """A checkout of the project on a machine."""

    def __init__(self, folder: Path, url: str, ledger: str):
        super().__init__(folder)
        ini = self.folder / "settings.ini"
        ini.write_text(f"{ini.read_text()}[workspace]\nurl = {url}\nledger = {ledger}\n")
        for name, cells in STEPS.items():
            self.step(name, *cells)

    def call(self, *words: str) -> dict:
        """`mlops-nb WORDS --json`; its document."""
        command = [str(Path(sys.executable).parent / "mlops-nb"), *words, "--json"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def bucket_server():
    with object_stores.moto() as address:
        yield address


@pytest.fixture
def store_address(bucket_server, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**object_stores.KEYS, "AWS_ENDPOINT_URL": bucket_server}.items():
        monkeypatch.setenv(name, value)
    return bucket_server


@pytest.fixture
def ledger(tmp_path_factory, request):
    with ledger_url(shared_folder(tmp_path_factory), request.node.name) as url:
        yield url


@pytest.fixture
def machines(store_address, ledger, tmp_path) -> tuple[Machine, Machine]:
    url = f"s3://{object_stores.make_bucket(store_address)}/churn"
    one, two = (Machine(tmp_path / name, url, ledger) for name in ("one", "two"))
    return one, two


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """What a first run left: the folder of its machine, the shared one, its database; and its result."""
    place, name = tmp_path_factory.mktemp("first"), f"first_{os.getpid()}"
    with ledger_url(shared_folder(tmp_path_factory), name) as url:
        ran = Machine(place / "one", f"file://{place / 'shared'}", url).run()
        yield place, name, ran


@pytest.fixture
def ran_on_disk(first_run, tmp_path, tmp_path_factory):
    """A copy of it, to be changed freely: two machines, their shared folder, and the first run."""
    place, name, ran = first_run
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    server, own = shared_server(shared_folder(tmp_path_factory)), f"{name}_{tmp_path.name}"[:63].lower()
    kill_backends(server, name)  # a database that is in use is no template
    server.sql(f"CREATE DATABASE {own} TEMPLATE {name}")
    url = f"file://{tmp_path / 'shared'}"
    one, two = (Machine(tmp_path / machine, url, server.url(own)) for machine in ("one", "two"))
    yield one, two, tmp_path / "shared", ran
    server.sql(f"DROP DATABASE IF EXISTS {own} WITH (FORCE)")


def test_what_one_machine_ran_another_reuses_reads_and_opens(machines):
    one, two = machines
    ran = one.run()
    assert states(ran) == {"split": "done", "train": "done", "report": "done"}
    assert not two.workspace.exists()
    again = two.run()
    assert states(again) == {"split": "cached", "train": "cached", "report": "cached"} and gives(again) == gives(ran)
    assert not [*(two.workspace / "objects").glob("??/*.ipynb")]
    step = ran.document["steps"][1]
    assert "trained it" in notebook_copy(two.settings, step["notebook"]).read_text()
    assert store_of(two.settings).read(gives(ran)["train.model"]) == b"3"
    run = ran.document["run"]
    assert "sum(flow.split.train)" in open_step(two.settings, run, "train").read_text()
    told = two.call("logs", run, "train")
    assert told["steps"][0]["text"].split() == ["[cell", "2]", "trained", "it"]
    compared = two.call("diff", run, again.document["run"])
    assert compared["identical"] is True, compared


def test_a_step_on_another_machine_reads_what_was_given_elsewhere(machines):
    one, two = machines
    one.run(to="split")
    ran = two.run()
    assert states(ran) == {"split": "cached", "train": "done", "report": "done"}
    assert states(one.run()) == {"split": "cached", "train": "cached", "report": "cached"}


def test_a_failed_step_can_be_looked_at_from_elsewhere(machines):
    one, two = machines
    one.step("20_train", "print('so far')\nflow.model = 1 / 0")
    ran = one.run()
    assert states(ran)["train"] == "failed"
    told = two.call("logs", ran.document["run"], "train")
    assert "so far" in told["steps"][0]["text"] and "ZeroDivisionError" in told["steps"][0]["text"]


def test_a_long_step_can_be_looked_at_from_elsewhere_while_it_runs(machines, monkeypatch):
    one, two = machines
    monkeypatch.setattr(attempt_shared, "PERIOD", 0.2)
    one.step(
        "20_train",
        "import pathlib, time",
        "print('half way')",
        f"""
while not pathlib.Path({str(one.folder / "go")!r}).exists():
    time.sleep(0.05)
flow.model = 1""",
    )
    import threading

    thread = threading.Thread(target=one.run)
    thread.start()

    def half_way() -> bool:
        with Ledger.open(two.settings, create=False) as ledger:
            running = [run for run in ledger.runs() if run["status"] == "running"]
        return bool(running) and "half way" in str(two.call("logs", running[0]["run"], "train"))

    try:
        wait_for(half_way)
    finally:
        (one.folder / "go").touch()
        thread.join(60)


def test_a_workspace_that_is_shared_needs_a_ledger_that_is(machines):
    one, _ = machines
    ini = one.folder / "settings.ini"
    ini.write_text("\n".join(line for line in ini.read_text().splitlines() if not line.startswith("ledger")))
    with pytest.raises(UsageError, match="the ledger is on this one alone"):
        one.run()


def test_a_run_survives_a_store_that_fails_now_and_then(machines, store_address, monkeypatch):
    one, two = machines
    with object_stores.unsteady(store_address) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        server.faults = [
            (method, fault) for method in ("PUT", "HEAD", "GET") for fault in ("503", "reset", "500", "lost")
        ]
        ran = one.run()
        assert states(ran) == {"split": "done", "train": "done", "report": "done"}
        assert not [fault for fault in server.faults if fault[0] == "PUT"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", store_address)
    assert gives(two.run()) == gives(ran)


def test_a_runner_killed_before_its_commit_leaves_nothing_that_counts(machines):
    one, two = machines
    code, _ = finish(one.start({"MLOPS_NB_FAULT": "before-commit:2"}))
    assert code == -9
    ran = two.run()
    assert states(ran) == {"split": "cached", "train": "done", "report": "done"}
    assert {s["step"] for s in ran.document["steps"]} == set(states(ran))


def age(folder: Path, days: float) -> None:
    """Make all files of a folder older."""
    for path in folder.rglob("*"):
        then = path.stat().st_mtime - days * 86400
        os.utime(path, (then, then))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_collector_takes_from_the_place_what_nothing_reaches_and_is_old(ran_on_disk):
    one, two, shared, first = ran_on_disk
    one.step("20_train", "flow.model = 'another'")
    second = one.run()
    before = files(shared)
    assert two.call("gc", "--keep-runs", "1", "--delete")["shared"] == 0 and files(shared) == before, "all is young"
    age(shared, 2)
    would = two.call("gc", "--keep-runs", "1")
    assert would["shared"] > 0 and files(shared) == before, "only said"
    assert two.call("gc", "--keep-runs", "1", "--delete")["shared"] == would["shared"]
    left = files(shared)
    lost = gives(first)["train.model"]
    assert f"objects/{lost[:2]}/{lost}" in before - left
    assert {f"objects/{one[:2]}/{one}" for one in gives(second).values()} <= left
    checked = two.call("fsck")
    assert checked["ok"], checked
    assert set(states(one.run()).values()) == {"cached"}
    shutil.rmtree(one.workspace)
    assert set(states(one.run()).values()) == {"cached"}


def test_what_is_made_again_just_before_it_is_collected_stays(ran_on_disk):
    one, _, shared, ran = ran_on_disk
    digest = gives(ran)["train.model"]
    age(shared, 2)
    age(one.workspace / "cache" / "shared", 2)
    store_of(one.settings).publish([digest])
    assert time.time() - (shared / f"objects/{digest[:2]}/{digest}").stat().st_mtime < 60


def test_fsck_tells_what_the_place_lacks(ran_on_disk):
    one, two, shared, ran = ran_on_disk
    digest = gives(ran)["train.model"]
    (shared / f"objects/{digest[:2]}/{digest}").unlink()
    found = two.call("fsck")
    assert [one["what"] for one in found["findings"] if one["level"] == "fail"] == ["object"]
    assert "artifact model" in found["findings"][0]["words"] and "is missing" in found["findings"][0]["words"]
    assert "on this machine and not at file://" in one.call("fsck")["findings"][0]["words"]
    assert states(two.run()) == {"split": "cached", "train": "done", "report": "cached"}
    assert two.call("fsck")["ok"]


def test_a_run_that_is_deleted_goes_from_the_place(ran_on_disk):
    one, two, shared, ran = ran_on_disk
    gone = ran.document["run"]
    kept = one.run(force=True).document["run"]
    done = two.call("runs", "delete", gone, "--delete")
    assert gone in str(done)
    left = files(shared)
    assert not [name for name in left if gone in name] and [name for name in left if kept in name]


def test_a_damaged_copy_is_fetched_again(ran_on_disk):
    _, two, _, ran = ran_on_disk
    digest = gives(ran)["train.model"]
    store_of(two.settings).path(digest)
    place = two.workspace / f"objects/{digest[:2]}/{digest}"
    place.chmod(0o644)
    place.write_bytes(b"4")
    assert set(states(two.run()).values()) == {"cached"}
    assert store_of(two.settings).read(digest) == b"3"


def test_a_bucket_that_is_gone_is_noticed_before_anything_runs(machines, store_address):
    one, _ = machines
    one.run(to="split")  # the bucket is proved, and this is remembered
    bucket = one.settings.workspace.url.split("/")[2]
    import boto3

    made = boto3.resource("s3", endpoint_url=store_address).Bucket(bucket)
    made.objects.all().delete()
    made.delete()
    before = sorted((one.workspace / "runs").iterdir())
    with pytest.raises(StorageError, match="there is no such bucket"):
        one.run()
    assert sorted((one.workspace / "runs").iterdir()) == before
