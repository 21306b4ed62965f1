"""The whole pipeline on one machine; its results, versions and releases used, checked and served on another."""

import json
import shutil
import time

import object_stores
import pytest
from postgres_service import ledger_url
from support import ROOT, Project, ask, gives, serving, shared_folder, states


class Machine(Project):
    """The project on a machine with a folder of its own."""

    shared: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.shared, "XDG_CONFIG_HOME": str(self.workspace.parent / "config")}


@pytest.fixture(scope="module")
def store():
    with object_stores.moto() as address, object_stores.unsteady(address) as server:
        yield server


@pytest.fixture(scope="module")
def machines(store, tmp_path_factory):
    place = tmp_path_factory.mktemp("machines")
    with ledger_url(shared_folder(tmp_path_factory), "shared_workspace") as ledger:
        url = f"s3://{object_stores.make_bucket(store.target)}/project"
        shared = {"MLOPS_NB_WORKSPACE_URL": url, "MLOPS_NB_WORKSPACE_LEDGER": ledger}
        shared |= {**object_stores.KEYS, "AWS_ENDPOINT_URL": store.address, "AWS_EC2_METADATA_DISABLED": "true"}
        found = []
        for name in ("one", "two"):
            machine = Machine(ROOT, place / name / "workspace")
            machine.shared = shared
            machine.workspace.mkdir(parents=True)
            found.append(machine)
        yield found


@pytest.fixture(scope="module")
def ran(machines):
    one, two = machines
    document = one.run("-p", "train.model=logistic")  # the fastest
    (two.workspace / "keys").mkdir()
    shutil.copy(one.workspace / "keys" / "trusted.json", two.workspace / "keys" / "trusted.json")  # as a person does
    return document


def test_another_machine_reuses_a_whole_run_and_releases_nothing_anew(machines, ran):
    _, two = machines
    again = two.run("-p", "train.model=logistic")
    assert set(states(again).values()) == {"cached"} and gives(again) == gives(ran)
    assert [(m["name"], m["version"], m["digest"]) for m in again["models"]] == [
        (m["name"], m["version"], m["digest"]) for m in ran["models"]
    ]
    name = ran["models"][0]["name"]
    assert (two.workspace / "releases" / name / "current").read_text().startswith("000001-")


def test_what_another_machine_made_is_checked_compared_and_told(machines, ran):
    _, two = machines
    checked = two.json("fsck")
    assert checked["ok"], checked["findings"]
    assert two.json("logs", ran["run"])["steps"]
    assert [model["signature"] for model in two.json("models")["models"]] == ["signed"]


def test_another_machine_serves_it_and_follows_what_is_stopped_there(machines, ran, store):
    one, two = machines
    shutil.rmtree(two.workspace / "releases", ignore_errors=True)
    name = ran["models"][0]["name"]
    with serving(two) as address:
        released = two.workspace / "releases" / name
        record = json.loads(next(released.glob("*/versions/*/examples.json")).read_text())[0]
        assert ask(f"{address}/predict", record)[0] == 200
        assert one.call("mlops-nb", "release", "stop", name, "--reason", "wrong numbers").returncode == 0
        deadline = time.monotonic() + 30
        while ask(f"{address}/predict", record)[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.3)
        status, body = ask(f"{address}/predict", record)
        assert status == 503 and "wrong numbers" in json.dumps(body)
        assert one.call("mlops-nb", "release", "again", name).returncode == 0
        while ask(f"{address}/predict", record)[0] != 200 and time.monotonic() < deadline + 30:
            time.sleep(0.3)
        target, store.target = store.target, "http://127.0.0.1:9"  # the store is away: nobody notices
        time.sleep(6)
        assert ask(f"{address}/predict", record)[0] == 200
        store.target = target
