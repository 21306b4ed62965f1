"""Reasons on request: what is told, what is stored, what is refused."""

import json
import resource

import pytest
from test_serve_app import JSON, RECORD, ask, behind

from mlops_nb.registry.releases import read_release
from mlops_nb.serve.app import App
from mlops_nb.serve.decisions import MOST_EXPLAINED, DecisionLog, read_decisions
from mlops_nb.serve.predictor import load_model
from mlops_nb.serve.slots import Slots, only


@pytest.fixture(scope="module")
def model(served_project):
    return load_model(read_release(served_project / ".mlops" / "releases", "churn"), max_rows=1000)


def post(app, query="", record=RECORD, **headers):
    return ask(app, f"/predict{query}", "POST", json=record, headers={**JSON, **headers})


def test_reasons_add_up_and_are_stored_as_told(model, tmp_path):
    app = App(behind, Slots(only(model)), decisions=DecisionLog(tmp_path, "inputs"))
    plain, told = post(app).json(), post(app, "?explain=5", **{"x-request-id": "case-7"}).json()
    assert told["probabilities"] == plain["probabilities"] and "reasons" not in plain
    facts = told["explained"]
    assert facts["answer"] == pytest.approx(
        facts["base"] + sum(reason["added"] for reason in told["reasons"]), abs=1e-6
    )
    assert (
        facts["means"].startswith("base is the mean over rows of the training data") and facts["unit"] in facts["means"]
    )
    (stored,) = read_decisions(tmp_path, "case-7")
    assert stored["reasons"] == told["reasons"] and stored["inputs"] == RECORD | {"age": 41}
    assert (stored["model"], stored["version"], stored["prediction"]) == ("churn", 1, told["prediction"])
    assert len(read_decisions(tmp_path)) == 1, "answers without reasons are not stored"


def test_each_record_of_a_list_has_its_reasons(model, tmp_path):
    app = App(behind, Slots(only(model)), decisions=DecisionLog(tmp_path))
    told = post(app, "?explain=2", [RECORD, RECORD | {"age": 20, "job": None}]).json()
    assert [len(one["reasons"]) for one in told["predictions"]] == [2, 2]
    stored = read_decisions(tmp_path)
    assert [one["row"] for one in stored] == [0, 1] and "inputs" not in stored[0]
    assert stored[0]["inputs_sha256"] != stored[1]["inputs_sha256"]


WRONG = ["=0", "=-1", "=6", "=x", "=", "=1&explain=2", "=%F0%9F"]


@pytest.mark.parametrize("query", [*(f"?explain{wrong}" for wrong in WRONG), "?Explain=2", "?explane=2"])
def test_what_is_no_number_of_reasons_is_refused(model, tmp_path, query):
    app = App(behind, Slots(only(model)), decisions=DecisionLog(tmp_path))
    answer = post(app, query)
    assert answer.status_code == 422 and "explain" in answer.json()["detail"]
    assert not read_decisions(tmp_path)


def test_too_many_records_to_explain(model, tmp_path):
    app = App(behind, Slots(only(model)), decisions=DecisionLog(tmp_path))
    answer = post(app, "?explain=1", [RECORD] * (MOST_EXPLAINED + 1))
    assert answer.status_code == 413 and "101 records" in answer.json()["detail"]
    assert post(app, "", [RECORD] * (MOST_EXPLAINED + 1)).status_code == 200


def test_a_decision_that_cannot_be_stored_is_not_given(model, tmp_path):
    (tmp_path / "decisions").write_text("a file in the way")
    app = App(behind, Slots(only(model)), decisions=DecisionLog(tmp_path / "decisions"))
    answer = post(app, "?explain=1")
    assert answer.status_code == 503 and "could not be stored" in answer.json()["detail"]
    assert post(app).status_code == 200
    off = App(behind, Slots(only(model)), decisions=DecisionLog(tmp_path / "decisions", "off"))
    assert post(off, "?explain=1").status_code == 200


def test_a_line_cut_short_hides_no_other(model, tmp_path):
    app = App(behind, Slots(only(model)), decisions=DecisionLog(tmp_path))
    post(app, "?explain=1")
    (file,) = tmp_path.glob("churn/*.jsonl")
    file.write_bytes(file.read_bytes() + b'{"request_id": "cut')
    assert len(read_decisions(tmp_path)) == 1 and json.loads(file.read_bytes().splitlines()[0])["version"] == 1


def test_a_server_tells_and_stores_reasons(server, served_project):
    told = server.ask("/predict?explain=3", RECORD).json
    assert len(told["reasons"]) == 3 and told["reasons"][0]["text"].startswith("age 41")
    stored = read_decisions(served_project / ".mlops" / "decisions", told["request_id"])
    assert stored[0]["prediction"] == told["prediction"]
    document = server.ask("/docs.json").json
    (parameter,) = document["paths"]["/predict"]["post"]["parameters"]
    assert parameter["name"] == "explain" and parameter["schema"]["maximum"] == 5


def test_a_disk_that_fills_up_takes_no_half_line(model, tmp_path):
    app = App(behind, Slots(only(model)), decisions=DecisionLog(tmp_path))
    assert post(app, "?explain=1").status_code == 200
    (file,) = tmp_path.rglob("*.jsonl")
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))
    try:
        assert post(app, "?explain=1").status_code == 503
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    file.write_bytes(before + before[:30])  # a process was killed in the middle of a line
    assert post(app, "?explain=1").status_code == 200
    assert len(read_decisions(tmp_path)) == 2
