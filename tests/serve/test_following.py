"""A running server follows its releases: canary, switch, segments, a refusal, a stop; and loses no request."""

import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from serve_support import (
    KINDS,
    SIGNER,
    contents_of,
    environment,
    fitted,
    make_project,
    people,
    serving,
    signature,
    trust,
    workers,
)

from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.model.background import draw_background
from mlops_nb.model.schema import describe_inputs
from mlops_nb.registry.keyring import public_text
from mlops_nb.registry.keys import TrustedKey
from mlops_nb.registry.releases import SEVERAL, Arm, Document, answer_again, ask_again, publish, stop_answers
from mlops_nb.serve.events import AUDIT, ServingEvents
from mlops_nb.serve.slots import Splitter

RECORD = {"age": 41, "account balance": 120.5, "married": True, "job": "clerk", "since": "2021-03-01"}


def version(number, model="churn", foreign=False):
    """The signed files of one version, below its folder."""
    table = people().sample(150, random_state=number)
    inputs = describe_inputs(table, KINDS, target="churned", task="binary")
    examples = json.loads(table[list(KINDS)].head(3).to_json(orient="records", date_format="iso"))
    files = contents_of(fitted(table, foreign), inputs, examples)
    files["versions/1/background.json"] = draw_background(table, inputs, 10).content()
    files["versions/1/model.sig"] = signature(files, f"{model}:{number}")
    return {name.replace("versions/1/", f"versions/{number}/"): content for name, content in files.items()}


VERSIONS = {}


def release(project, generation, weights, model="churn", foreign=(), **facts):
    """Publish a release; `weights` maps version -> (arm, weight)."""
    contents = {}
    for number in weights:
        key = (model, number, number in foreign)
        VERSIONS[key] = VERSIONS.get(key) or version(number, model, number in foreign)
        contents |= VERSIONS[key]
    arms = tuple(
        Arm(number, f"{number:02d}" * 32, weight, f"versions/{number}", name, shadow=name == "shadow")
        for number, (name, weight) in weights.items()
    )
    files = {name: sha256_bytes(content) for name, content in contents.items()}
    document = Document(model, "binary", arms, files, generation=generation, **{"format": SEVERAL, **facts})
    return publish(project / ".mlops" / "releases", document, contents)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with one release, to be served by two workers."""
    project = make_project(tmp_path_factory.mktemp("following") / "project")
    with open(project / "settings.ini", "a") as settings:
        settings.write("[serving]\nworkers = 2\n")
    trust(project, TrustedKey("project", public_text(SIGNER)))
    release(project, 1, {1: ("champion", 1.0)})
    return project


@pytest.fixture(scope="module")
def server(project, tmp_path_factory):
    """Two workers that serve it."""
    folder = tmp_path_factory.mktemp("server")
    with serving(project, folder / "server.log", environment(folder / "home")) as running:
        yield running


class Load:
    """Users that ask without a pause; what they were told."""

    def __init__(self, server, threads=3):
        self.server, self.stop, self.answers = server, threading.Event(), []
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(threads)]

    def run(self, number):
        turn = 0
        while not self.stop.is_set():
            turn += 1
            headers = {"content-type": "application/json", "x-user-id": f"user-{number}-{turn % 50}"}
            answer = self.server.ask("/predict", RECORD, headers=headers)
            self.answers.append((headers["x-user-id"], answer.status, answer.text))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def wait_for(server, generation, seconds=5.0):
    """Return when no answer of many comes from an earlier release; how long it took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds + 5:
        found = {server.ask("/predict", RECORD).json.get("generation") for _ in range(20)}
        if found == {generation}:
            return time.monotonic() - began
    raise AssertionError(f"not all workers answer by release {generation}: {found}\n{server.log.read_text()[-3000:]}")


def arms(server, users, **headers):
    """Who gets which version."""
    sent = {"content-type": "application/json", **headers}
    return {user: server.ask("/predict", RECORD, headers={**sent, "x-user-id": user}).json["version"] for user in users}


def test_releases_change_under_load_without_a_failed_request(project, server):
    users = [f"user-{number}" for number in range(60)]
    with Load(server) as load:
        release(project, 2, {1: ("champion", 0.8), 2: ("challenger", 0.2)}, salt="spring")
        assert wait_for(server, 2) < 5
        first = arms(server, users)
        release(project, 3, {1: ("champion", 0.4), 2: ("challenger", 0.6)}, salt="spring")
        assert wait_for(server, 3) < 5
        second = arms(server, users)
        release(project, 4, {2: ("champion", 1.0)}, format=1)
        assert wait_for(server, 4) < 5
    assert {status for _, status, _ in load.answers} == {200}, collections.Counter(load.answers).most_common(3)
    splitter = Splitter({"champion": 0.8, "challenger": 0.2}, "spring")
    assert first == {user: 2 if splitter.draw(user) == "challenger" else 1 for user in users}
    assert 0 < sum(number == 2 for number in first.values()) < sum(number == 2 for number in second.values())
    assert all(second[user] == 2 for user in users if first[user] == 2), "who had the challenger keeps it"
    assert set(arms(server, users).values()) == {2}


def test_a_release_that_one_worker_cannot_load_is_refused_by_all(project, server):
    before = server.ask("/predict", RECORD).json["generation"]
    with Load(server) as load:
        place = release(project, 5, {2: ("champion", 0.5), 3: ("challenger", 0.5)}, foreign=(3,), salt="bad")
        deadline = time.monotonic() + 10
        while f"{place.name} was refused" not in server.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.5)
        generations = {server.ask("/predict", RECORD).json["generation"] for _ in range(30)}
    assert generations == {before}
    assert {status for _, status, _ in load.answers} == {200}
    log = server.log.read_text()
    assert log.count(f"release churn/{place.name} was refused") == 1
    assert "goes on" in log and "os.getenv" in log
    (event,) = ServingEvents(project / ".mlops" / AUDIT).read("release.refused")
    assert (event["details"]["release"], "os.getenv" in event["details"]["reason"]) == (place.name, True)
    victim, *_ = workers(server)
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (now := workers(server)) and (victim in now or len(now) < 2) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(4)  # it loads what was accepted, and looks at what was refused
    assert {server.ask("/predict", RECORD).json["generation"] for _ in range(30)} == {before}, "begins with the old one"
    assert len(workers(server)) == 2
    release(project, 6, {2: ("champion", 1.0)}, format=1)
    assert wait_for(server, 6) < 5


def test_a_file_changed_after_publication_is_refused_until_servers_are_asked_again(project, server):
    pointer = project / ".mlops" / "releases" / "churn" / "current"
    before = pointer.read_text()
    place = release(project, 7, {2: ("champion", 0.5), 4: ("challenger", 0.5)}, salt="worse")
    pointer.write_text(before)  # quickly, before anybody looks
    model = place / "versions/4/model.skops"
    good = model.read_bytes()
    model.write_bytes(b"x")
    pointer.write_text(place.name)
    deadline = time.monotonic() + 10
    while f"{place.name} was refused" not in server.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    found = {server.ask("/predict", RECORD).json["generation"] for _ in range(20)}
    assert found in ({6}, {7})  # 7: both workers had read it before it was changed
    model.write_bytes(good)
    assert ask_again(pointer.parent.parent, "churn") == place.name
    assert wait_for(server, 7) < 5
    release(project, 8, {2: ("champion", 1.0)}, format=1)
    assert wait_for(server, 8) < 5


def test_segments_and_what_the_service_says_of_its_arms(project, server):
    segments = (("eu", "challenger"),)
    release(project, 9, {2: ("champion", 1.0), 1: ("challenger", 0.0)}, segments=segments)
    assert wait_for(server, 9) < 5
    assert set(arms(server, ["a", "b"]).values()) == {2}
    assert set(arms(server, ["a", "b"], **{"x-segment": "eu"}).values()) == {1}
    (model,) = server.ask("/models").json["models"]
    assert [(arm["arm"], arm["version"], arm["weight"]) for arm in model["arms"]] == [
        ("champion", 2, 1.0),
        ("challenger", 1, 0.0),
    ]
    release(project, 10, {2: ("champion", 1.0), 1: ("challenger", 0.0)}, segments=(("clerk", "challenger"),), by="job")
    assert wait_for(server, 10) < 5
    assert server.ask("/predict", RECORD).json["version"] == 1
    assert server.ask("/predict", {**RECORD, "job": "nurse"}).json["version"] == 2
    mixed = server.ask("/predict", [RECORD, {**RECORD, "job": "nurse"}])
    assert (mixed.status, "one request for each" in mixed.json["detail"]) == (422, True)


def test_reasons_are_told_also_when_the_release_that_was_loaded_is_gone(project, server):
    for generation in range(11, 16):
        release(project, generation, {2: ("champion", 1 - generation / 100), 1: ("challenger", generation / 100)})
    assert wait_for(server, 15) < 5
    for old in (project / ".mlops" / "releases" / "churn").glob("0000*"):
        if not old.name.startswith("000015"):
            shutil.rmtree(old)
    users = [f"user-{number}" for number in range(30)]
    sent = {"content-type": "application/json"}
    told = [server.ask("/predict?explain=1", RECORD, headers={**sent, "x-user-id": user}) for user in users]
    assert {answer.status for answer in told} == {200}, told[0].text
    assert {answer.json["version"] for answer in told} == {1, 2}


def test_a_stop_is_followed_and_taken_back(project, server):
    stop_answers(project / ".mlops" / "releases", "churn", "wrong prices since 14:00")
    time.sleep(2.5)
    answers = [server.ask("/predict", RECORD) for _ in range(10)]
    assert {answer.status for answer in answers} == {503}
    assert "churn was stopped: wrong prices since 14:00" in answers[0].json["detail"]
    assert answer_again(project / ".mlops" / "releases", "churn")
    time.sleep(2.5)
    assert {server.ask("/predict", RECORD).status for _ in range(10)} == {200}


def test_two_models_in_one_service(project, tmp_path):
    own = tmp_path / "project"
    shutil.copytree(project, own)
    release(own, 1, {1: ("champion", 1.0)}, model="income", format=1)
    env = environment(tmp_path / "home", MLOPS_NB_SERVING_MODEL="income, churn", MLOPS_NB_SERVING_WORKERS="1")
    with serving(own, tmp_path / "log", env) as server:
        assert server.ask("/predict", RECORD).json["model"] == "income"
        assert server.ask("/models/churn/predict", RECORD).json["model"] == "churn"
        assert server.ask("/models/churn/schema").json["model"] == "churn"
        assert server.ask("/models/churn/docs.json").json["info"]["title"] == "churn"
        missing = server.ask("/models/chrun/predict", RECORD)
        assert (missing.status, "The models are churn, income" in missing.json["detail"]) == (404, True)


def test_a_worker_votes_and_a_dead_one_is_not_waited_for(tmp_path):
    code = """
        import os, sys, time
        from pathlib import Path
        from mlops_nb.serve.following import Ballot
        ballot = Ballot(Path(sys.argv[1]))
        print("ready", flush=True)
        time.sleep(60)
    """
    from mlops_nb.serve.following import Ballot

    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        ballot = Ballot(tmp_path)
        assert ballot.living() == {str(other.pid), str(os.getpid())}
        assert ballot.settle("churn", "000001-a") == "000001-a"
        assert ballot.settle("churn", "000002-b") == "000001-a"
        other.kill()
        other.wait()
        assert ballot.living() == {str(os.getpid())}


def test_the_first_to_know_decides_and_all_obey(tmp_path):
    from mlops_nb.serve.following import READY, Ballot

    ballot = Ballot(tmp_path)
    ballot.vote("churn", "000002-a@1", READY)
    assert ballot.decided("churn", "000002-a@1") == ""
    assert ballot.decide("churn", "000002-a@1", "it is damaged") == "it is damaged"
    assert ballot.decide("churn", "000002-a@1", READY) == "it is damaged", "also for one who counted other votes"
    assert ballot.decided("churn", "000002-a@1") == "it is damaged"


@pytest.mark.parametrize(
    ("weights", "facts", "words"),
    [
        ({1: ("champion", 0.0), 2: ("challenger", 0.0)}, {}, "which are not together 1"),
        ({1: ("champion", 0.5), 2: ("champion", 0.5)}, {}, "one name twice"),
        ({1: ("shadow", 0.0)}, {}, "none of them answers"),
        ({1: ("champion", 1.0)}, {"segments": (("eu", "nobody"),)}, "which is no arm"),
    ],
)
def test_a_release_by_which_somebody_would_get_no_answer_is_refused(tmp_path, weights, facts, words):
    from mlops_nb.core.errors import StorageError
    from mlops_nb.registry.releases import Release
    from mlops_nb.serve.following import check_arms

    place = release(tmp_path, 1, weights, **facts)
    with pytest.raises(StorageError, match=words):
        check_arms(Release(place))
