"""A release from beginning to end on a running service: started, watched, asked for over HTTP, simulated, compared."""

import json
import time
import urllib.error
import urllib.request

import pytest
from registry_support import make_project, package, people, register
from support import ROOT, Project, serving

from mlops_nb.core.ledger import Ledger
from mlops_nb.serve.events import AUDIT, ServingEvents

TABLE = people()
CONTENTS = [package(TABLE.iloc[:60]), package(TABLE.iloc[:100])]
RECORDS = TABLE[["age", "balance"]].to_dict("records")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "project"
    settings = make_project(folder)
    with open(folder / "settings.ini", "a") as file:
        file.write("[registry]\nbento_store = false\n[access]\nmode = on\n")
    (folder / "bentofile.yaml").write_bytes((ROOT / "bentofile.yaml").read_bytes())
    settings = settings._replace(registry=settings.registry._replace(bento_store=False))
    with Ledger.open(settings) as ledger:
        register(settings, ledger, CONTENTS, TABLE.iloc[150:])
    return Project(folder, folder / ".mlops")


@pytest.fixture(scope="module")
def keys(project):
    return {role: project.json("access", "create", role, "--role", role)["key"] for role in ("predictor", "operator")}


@pytest.fixture(scope="module")
def service(project, keys):
    with serving(project) as address:

        def asked(path, body=None, role="operator", **headers):
            return ask(address, keys[role], path, body, **headers)

        asked.address = address
        yield asked


def ask(address, key, path, body=None, **headers):
    sent = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, sent), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def follows(service, generation):
    """Wait until the service has followed."""
    deadline = time.monotonic() + 10
    while (told := service("/release")[1]["models"][0])["generation"] != generation:
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
    return told


def test_from_the_first_share_to_the_last(project, service, keys, tmp_path):
    for number, record in enumerate(RECORDS[:40]):
        assert service("/predict", record, role="predictor", x_user_id=f"user-{number}")[0] == 200
    simulated = project.json("release", "simulate", "churn:2", "--canary", "10,50")
    assert simulated["records"] == 40
    when = "requests >= 20, errors <= 0.2, p99 <= 30s"
    started = project.json("release", "start", "churn:2", "--canary", "50,100", "--every", "0s", "--when", when)
    follows(service, started["generation"])
    words = ("release", "watch", "churn", "--once", "--promote", "--url", service.address, "--key", "env:WATCH_KEY")
    watched = {"WATCH_KEY": keys["operator"]}
    assert project.json(*words, **watched)["looks"][0]["verdict"] == "wait"
    versions = {}
    for number, record in enumerate(RECORDS[:100]):
        status, answer = service("/predict", record, role="predictor", x_user_id=f"user-{number}")
        assert status == 200
        versions[answer["request_id"]] = answer["version"]
        truth = TABLE["churned"].iloc[number]
        fed = service("/feedback", {"request_id": answer["request_id"], "label": truth}, role="operator")
        assert fed[0] == 200, fed
    assert set(versions.values()) == {1, 2}
    tested = project.json("release", "test", "churn")
    assert [arm["outcomes"] for arm in tested["arms"]] == [sum(version == 2 for version in versions.values())]
    found = project.json(*words, **watched)
    assert (found["looks"][0]["action"], found["state"]) == ("step", "running"), found
    status, told = service("/release/act", {"action": "pause", "reason": "lunch"})
    assert (status, told["release"]["rollout"]["state"], told["by"]) == (200, "paused", "operator"), told
    assert project.json("release", "status")["history"][0]["who"].startswith("operator")
    status, told = service("/release/act", {"action": "promote", "model": "churn", "reason": "good enough"})
    assert (status, told["release"]["arms"][0]["version"]) == (200, 2), told
    follows(service, told["release"]["generation"])
    assert service("/predict", RECORDS[0], role="predictor")[1]["version"] == 2
    status, told = service("/release/act", {"action": "step", "reason": "more"})
    assert (status, "No release of churn is under way" in told["detail"]) == (409, True)
    asked = ServingEvents(project.workspace / AUDIT).read("release.asked")
    assert [(one["who"], one["details"]["action"]) for one in asked] == [
        ("operator", "pause"),
        ("operator", "promote"),
        ("operator", "step"),
    ]


def test_who_may_not(service):
    assert service("/release", role="predictor")[0] == 403
    assert service("/release/act", {"action": "stop", "reason": "x"}, role="predictor")[0] == 403
    assert service("/release/act", {"action": "stop"})[0] == 422


def test_a_stop_and_back(service):
    assert service("/release/act", {"action": "stop", "reason": "wrong prices"})[0] == 200
    deadline = time.monotonic() + 10
    while service("/predict", RECORDS[0], role="predictor")[0] != 503:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert service("/release")[1]["models"][0]["stopped"] == "wrong prices"
    assert service("/release/act", {"action": "again", "reason": "mended"})[0] == 200
    while service("/predict", RECORDS[0], role="predictor")[0] != 200:
        assert time.monotonic() < deadline + 10
        time.sleep(0.2)
