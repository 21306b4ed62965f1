"""Requests that wait at the same time share a call of the model, and nobody can tell by the answer."""

import asyncio
import json
import logging
import time

import numpy as np
import pytest

from mlops_nb.registry.releases import read_release
from mlops_nb.serve.app import App
from mlops_nb.serve.intake import TOGETHER, Intake
from mlops_nb.serve.meter import Meter
from mlops_nb.serve.numbers import Numbers
from mlops_nb.serve.outputs import Outputs
from mlops_nb.serve.prediction_log import PredictionLog
from mlops_nb.serve.predictor import ReleasedModel, load_model
from mlops_nb.serve.requests import RequestReader
from mlops_nb.serve.segments import SegmentReader, segments_of
from mlops_nb.serve.slots import Slot, Slots, Table, only

FEATURE = {"name": "a", "kind": "number", "nullable": False, "low": 0, "high": 9, "example": 1}


class Slow:
    """Doubles, and takes a while for it; fails for 13, and answers nothing finite for 14."""

    model, version, generation, digest, together = "doubler", 1, 1, "5d" * 32, 500
    schema = {"task": "regression", "target": "sum", "features": [FEATURE]}  # noqa: RUF012
    example = {"a": 1}  # noqa: RUF012
    reader = RequestReader(schema, max_rows=200)

    def __init__(self, seconds=0.02):
        self.seconds, self.calls = seconds, []

    def outputs(self, records):
        self.calls.append(records.rows)
        time.sleep(self.seconds)
        values = np.array(records.columns["a"], dtype=float)
        if 13 in values:
            raise ValueError("13 is unlucky")
        return Outputs(None, np.where(values == 14, np.nan, 2 * values)).check()

    def predict(self, records):
        return self.outputs(records).answers()


def app_of(model, log=None, **options):
    table = model if isinstance(model, Table) else only(model)
    return App(None, Slots(table), 10_000, Intake(meter=Meter(Numbers()), **options), log=log)


async def ask(app, record, **headers):
    """Status and document of one answer."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": json.dumps(record).encode(), "more_body": False}

    async def send(message):
        sent.append(message)

    named = [(b"content-type", b"application/json"), *((k.replace("_", "-").encode(), v) for k, v in headers.items())]
    await app({"type": "http", "method": "POST", "path": "/predict", "headers": named}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def ask_all(app, records):
    """Answers to requests that all come at the same time."""

    async def asked():
        return await asyncio.gather(*(ask(app, record) for record in records))

    return asyncio.run(asked())


@pytest.fixture
def quiet():
    logging.getLogger("bentoml.mlops_nb").disabled = True
    yield
    logging.getLogger("bentoml.mlops_nb").disabled = False


def test_who_comes_meanwhile_shares_the_next_call():
    model = Slow()
    answers = ask_all(app_of(model), [{"a": number} for number in range(12)])
    assert [(status, told["prediction"]) for status, told in answers] == [(200, 2.0 * n) for n in range(12)]
    assert len({told["request_id"] for _, told in answers}) == 12
    assert len(model.calls) <= 3 and sum(model.calls) == 12


def test_a_request_of_several_records_gets_its_own():
    model = Slow()
    answers = ask_all(app_of(model), [[{"a": 1}, {"a": 2}], {"a": 3}, [{"a": 4}], [{"a": 0}] * 100])
    assert [one["prediction"] for one in answers[0][1]["predictions"]] == [2.0, 4.0]
    assert answers[1][1]["prediction"] == 6.0
    assert [one["prediction"] for one in answers[2][1]["predictions"]] == [8.0]
    assert len(answers[3][1]["predictions"]) == 100
    assert 100 in model.calls  # a large one is asked for by itself


@pytest.mark.parametrize("poison", [13, 14])
def test_a_bad_neighbour_costs_nobody_an_answer(poison, quiet):
    model = Slow(0.005)
    answers = ask_all(app_of(model), [{"a": n} for n in (1, 2, poison, 4, 5)] + [{"a": "x"}])
    assert [status for status, _ in answers] == [200, 200, 500, 200, 200, 422]
    assert "unlucky" not in json.dumps(answers[2][1])


def test_the_base_stands_in_for_each_of_them_that_fails(quiet):
    class Broken(Slow):
        version = 2

        def outputs(self, records):
            raise ValueError("out of order")

    facts = {"model": "doubler", "digest": "5d" * 32, "generation": 1}
    arms = [
        Slot(version=1, arm="champion", weight=0.0, predictor=Slow(0.001), **facts),
        Slot(version=2, arm="challenger", weight=1.0, predictor=Broken(), **facts),
    ]
    app = app_of(Table(arms))
    answers = ask_all(app, [{"a": n} for n in range(6)])
    assert [(status, told["version"], told["prediction"]) for status, told in answers] == [
        (200, 1, 2.0 * n) for n in range(6)
    ]
    assert 'mlops_nb_stand_ins_total{arm="challenger",model="doubler",version="2"} 6.0' in app.meter.text().decode()


def test_each_answer_is_stored_before_it_is_given(tmp_path):
    log = PredictionLog(tmp_path)
    answers = ask_all(app_of(Slow(), log), [{"a": number} for number in range(9)])
    log.close()
    (segment,) = segments_of(tmp_path / "segments")
    stored = {one.request_id: (one.rows, one.predictions) for one in list(SegmentReader(segment))[1:]}
    assert stored == {
        told["request_id"]: ([[float(n)]], [{"prediction": told["prediction"]}]) for n, (_, told) in enumerate(answers)
    }


def test_a_crowd_is_served_in_parts_and_those_in_it_may_be_too_late():
    model = Slow(0.05)
    app = app_of(model, limit=3 * TOGETHER)
    answers = ask_all(app, [{"a": 1}] * (2 * TOGETHER + 10))
    assert {status for status, _ in answers} == {200}
    assert max(model.calls) <= TOGETHER and app.intake.inside == 0
    app = app_of(model := Slow(0.3), seconds=0.1)

    async def late_and_later():
        late = [asyncio.create_task(ask(app, {"a": 1})) for _ in range(5)]
        while not all(task.done() for task in late):
            await asyncio.sleep(0.02)
            app.intake.sweep()
        taken, app.intake.seconds = app.intake.inside, 5
        return await asyncio.gather(*late), taken, await ask(app, {"a": 2})

    answers, taken, later = asyncio.run(late_and_later())
    assert {status for status, _ in answers} == {504} and taken == 5  # places are kept until the thread has ended
    assert later[0] == 200 and sum(model.calls) < 6  # nobody was worked for who had left before
    assert (app.intake.inside, app.intake._crowds) == (0, {})


def test_a_flood_is_shed_as_ever():
    app = app_of(Slow(0.05), limit=10)
    answers = ask_all(app, [{"a": 1}] * 40)
    statuses = [status for status, _ in answers]
    assert statuses.count(200) == 10 and statuses.count(503) == 30 and app.intake.inside == 0


def test_a_real_model_answers_the_same_to_the_last_bit(served_project):
    model = load_model(read_release(served_project / ".mlops" / "releases", "churn"))
    assert model.inline or model.together
    model.inline, model.together = 0, 2_000
    jobs, dates = (
        ("clerk", "nurse", "cook", None, "king"),
        ("2021-03-01", "2021-12-24T18:00:00+01:00", "2022-05-05T10:00:00Z"),
    )
    records = [
        {"age": 20 + n, "account balance": None if n % 4 == 0 else 100.5 * n, "married": bool(n % 2)}
        | {"job": jobs[n % 5], "since": dates[n % 3]}
        for n in range(40)
    ]
    told = [answer for _, answer in ask_all(app_of(model), records)]
    alone = [model.predict(model.reader.read(json.dumps(record).encode()))[0] for record in records]
    assert [(one["prediction"], one["probabilities"]) for one in told] == [
        (one["prediction"], one["probabilities"]) for one in alone
    ]


def test_only_a_model_that_is_the_same_beside_others_shares_its_calls():
    """A matrix product of several rows may differ from that of one in the last bit."""

    class Engine:
        def __init__(self, drift):
            self.drift = drift

        def outputs(self, records):
            numbers = np.array(records.columns["a"], dtype=float)
            return Outputs(None, numbers + self.drift * records.rows)

    for drift, same in ((0.0, True), (1e-15, False)):
        model = object.__new__(ReleasedModel)
        model.engine, model.reader, model.examples = Engine(drift), Slow.reader, [{"a": 1}, {"a": 2}, {"a": 3}]
        assert model._is_the_same_beside_others() is same
