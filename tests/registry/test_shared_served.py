"""A pipeline run on one machine; its results and releases used, checked and served on another, over a bucket."""

import json
import shutil
import time

import object_stores
import pytest
from machines import machine
from postgres_service import ledger_url
from support import ROOT, ask, gives, serving, shared_folder, states


@pytest.fixture(scope="module")
def store():
    with object_stores.moto() as address, object_stores.unsteady(address) as server:
        yield server


@pytest.fixture(scope="module")
def machines(store, tmp_path_factory):
    place = tmp_path_factory.mktemp("machines")
    with ledger_url(shared_folder(tmp_path_factory), "shared_served") as ledger:
        url = f"s3://{object_stores.make_bucket(store.target)}/project"
        found = [machine(place / name, url, ledger) for name in ("one", "two")]
        for one in found:
            one.more = {**object_stores.KEYS, "AWS_ENDPOINT_URL": store.address, "AWS_EC2_METADATA_DISABLED": "true"}
            shutil.copy(ROOT / "bentofile.yaml", one.folder / "bentofile.yaml")
        yield found


@pytest.fixture(scope="module")
def ran(machines):
    one, two = machines
    document = one.run()
    (two.workspace / "keys").mkdir(parents=True)
    shutil.copy(one.workspace / "keys" / "trusted.json", two.workspace / "keys" / "trusted.json")  # as a person does
    return document


def test_another_machine_reuses_a_whole_run_and_releases_nothing_anew(machines, ran):
    _, two = machines
    again = two.run()
    assert set(states(again).values()) == {"cached"} and gives(again) == gives(ran)
    assert [(m["name"], m["version"], m["digest"]) for m in again["models"]] == [
        (m["name"], m["version"], m["digest"]) for m in ran["models"]
    ]
    assert (two.workspace / "releases" / "churn" / "current").read_text().startswith("000001-")


def test_what_another_machine_made_is_checked_and_told(machines, ran):
    _, two = machines
    checked = two.json("fsck")
    assert checked["ok"], checked["findings"]
    assert two.json("logs", ran["run"])["steps"]
    assert [model["signature"] for model in two.json("models")["models"]] == ["signed"]


def test_another_machine_serves_it_and_follows_what_is_stopped_there(machines, ran, store):
    one, two = machines
    shutil.rmtree(two.workspace / "releases", ignore_errors=True)
    with serving(two) as address:
        released = two.workspace / "releases" / "churn"
        record = json.loads(next(released.glob("*/versions/*/examples.json")).read_text())[0]
        assert ask(f"{address}/predict", record)[0] == 200
        assert one.call("mlops-nb", "release", "stop", "churn", "--reason", "wrong numbers").returncode == 0
        deadline = time.monotonic() + 30
        while ask(f"{address}/predict", record)[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.3)
        status, body = ask(f"{address}/predict", record)
        assert status == 503 and "wrong numbers" in json.dumps(body)
        assert one.call("mlops-nb", "release", "again", "churn").returncode == 0
        while ask(f"{address}/predict", record)[0] != 200 and time.monotonic() < deadline + 30:
            time.sleep(0.3)
        target, store.target = store.target, "http://127.0.0.1:9"  # the store is away: nobody notices
        time.sleep(6)
        assert ask(f"{address}/predict", record)[0] == 200
        store.target = target
