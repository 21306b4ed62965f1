"""`mlops-nb release`, by command, on a project with three versions."""

import pytest
from registry_support import make_project, package, people, register
from support import Project

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.registry.releases import pointed, why_stopped
from mlops_nb.serve.events import ServingEvents, events_path

TABLE = people()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "project"
    settings = make_project(folder)
    with open(folder / "settings.ini", "a") as file:
        file.write("[registry]\nbento_store = false\n")
    settings = settings._replace(registry=settings.registry._replace(bento_store=False))
    with Ledger.open(settings) as ledger:
        register(settings, ledger, [package(TABLE.iloc[: 100 + number]) for number in range(3)], TABLE.iloc[150:])
    return Project(folder, folder / ".mlops")


def shares(document):
    return {arm["version"]: arm["weight"] for arm in document["arms"]}


def test_a_canary_from_start_to_end(project):
    assert shares(project.json("release", "status")) == {1: 1.0}
    started = project.json("release", "start", "churn:2", "--canary", "10,50", "--reason", "spring")
    assert shares(started) == {1: 0.9, 2: 0.1}
    assert (started["rollout"]["kind"], started["history"][0]["why"]) == ("canary", "spring")
    assert shares(project.json("release", "step")) == {1: 0.5, 2: 0.5}
    assert shares(project.json("release", "step", "churn", "--to", "70")) == {1: 0.3, 2: 0.7}
    assert project.json("release", "pause", "churn")["rollout"]["state"] == "paused"
    assert project.json("release", "resume", "churn")["rollout"]["state"] == "running"
    shown = project.call("mlops-nb", "release", "status").stdout
    assert "churn, generation" in shown and "challenger" in shown and "70%" in shown and "resume canary" in shown
    done = project.json("release", "promote")
    assert (shares(done), done["rollout"]) == ({2: 1.0}, None)
    assert project.json("models", "churn:2")["aliases"] == ["champion"]


def test_an_abort_and_a_stop(project):
    project.json("release", "start", "churn:3", "--shadow")
    shadow = project.json("release", "status")["arms"][1]
    assert (shadow["version"], shadow["shadow"]) == (3, True)
    project.json("release", "abort", "--reason", "enough")
    assert len(project.json("release", "status")["arms"]) == 1
    assert project.json("release", "stop", "--reason", "wrong prices")["noted"] is True
    assert why_stopped(project.workspace / "releases", "churn") == "wrong prices"
    assert "is stopped: wrong prices" in project.call("mlops-nb", "release", "status").stdout
    ledger = project.workspace / "ledger.sqlite"
    ledger.rename(ledger.with_suffix(".away"))
    again = project.json("release", "again")
    ledger.with_suffix(".away").rename(ledger)
    assert again == {"schema": 1, "model": "churn", "stopped": "", "noted": False}, "needs no ledger"
    assert why_stopped(project.workspace / "releases", "churn") == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("start", "churn:3"), "Say one of --canary, --split, --switch, --shadow, --segment"),
        (("start", "churn:3", "--canary", "50,5"), "The steps of a canary grow"),
        (("start", "churn:3", "--canary", "5", "--by", "age"), "--by names the input of segments"),
        (("start", "churn:99", "--canary", "5"), "has no version or alias '99'"),
        (("step", "chrun"), "Did you mean"),
        (("step", "churn"), "No release of churn is under way"),
        (("stop", "churn"), "A stop needs a reason"),
        (("strat", "churn:3"), "start"),
    ],
)
def test_what_is_wrong_is_said(project, words, expected):
    done = project.call("mlops-nb", "release", *words)
    assert done.returncode == 2
    assert expected in done.stdout + done.stderr


def test_a_refusal_is_shown_with_its_reason_until_the_servers_are_asked_again(project):
    settings = load_settings(project.folder)
    name = pointed(project.workspace / "releases" / "churn")
    told = {"model": "churn", "standing": "release 000001-5d goes on", "worker": "17", "reason": "no key trusts it"}
    audit = ServingEvents(events_path(settings))
    audit.add("release.refused", release="000000-older", **told)
    assert project.json("release", "status")["refusal"] is None
    audit.add("release.refused", release=name, **told)
    found = project.json("release", "status")
    assert (found["refusal"]["reason"], found["refusal"]["release"]) == ("no key trusts it", name)
    shown = project.call("mlops-nb", "release", "status").stdout
    assert "refused by the servers" in shown and "mlops-nb release retry churn" in shown
    again = project.json("release", "retry", "churn", "--reason", "key trusted")
    assert (again["release"], again["noted"]) == (name, True)
    now = project.json("release", "status")
    assert now["refusal"] is None and now["refused"][-1]["release"] == name, "asked again, and what was is on record"
    assert (now["history"][0]["what"], now["history"][0]["why"]) == ("ask servers again", "key trusted")


def test_the_history_tells_of_stops(project):
    project.json("release", "stop", "churn", "--reason", "wrong prices")
    project.json("release", "again", "churn", "--reason", "mended")
    ServingEvents(events_path(load_settings(project.folder))).add(
        "release.asked", "mia", action="stop", model="churn", reason="over the service", request_id="a1"
    )
    told = [(one["what"], one["why"]) for one in project.json("release", "status")["history"][:3]]
    assert told == [("stop", "over the service"), ("answer again", "mended"), ("stop", "wrong prices")]


def test_a_shadow_is_not_tested_by_labels(project):
    project.json("release", "start", "churn:1", "--shadow")
    done = project.call("mlops-nb", "release", "test", "churn")
    project.json("release", "abort", "churn")
    assert done.returncode == 2 and "The shadow of churn answers nobody" in done.stdout + done.stderr
