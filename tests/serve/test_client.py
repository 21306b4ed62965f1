"""The Python client against a real service, and against one that is anything but steady."""

import asyncio
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from in_process import running
from serve_support import KINDS, fitted, people
from support import free_port
from unsteady import certificates, unsteady

from mlops_nb import AsyncClient, Client, ServiceError
from mlops_nb.core.errors import UsageError
from mlops_nb.registry.releases import read_release
from mlops_nb.serve.decisions import MOST_EXPLAINED
from mlops_nb.serve.exchange import EXPLAINED_AT_ONCE
from mlops_nb.serve.predictor import load_model

RECORD = {"age": 41, "account balance": 120.5, "married": True, "job": "clerk", "since": "2021-03-01"}


def by_threads(url, ask, *arguments, **options):
    """One question by `Client`."""
    named = {name: options.pop(name) for name in ("explain", "user", "segment", "request_id") if name in options}
    with Client(url, **options) as client:
        said = getattr(client, ask)(*arguments, **named)
        return list(said) if ask == "predict_many" else said


def by_coroutines(url, ask, *arguments, **options):
    """One question by `AsyncClient`."""
    named = {name: options.pop(name) for name in ("explain", "user", "segment", "request_id") if name in options}

    async def asked():
        async with AsyncClient(url, **options) as client:
            said = getattr(client, ask)(*arguments, **named)
            return [one async for one in said] if ask == "predict_many" else await said

    return asyncio.run(asked())


@pytest.fixture(params=[by_threads, by_coroutines])
def asked(request):
    """Both clients promise the same."""
    return request.param


@pytest.fixture(scope="module")
def url(server):
    return f"http://127.0.0.1:{server.port}"


def test_one_record_with_reasons(asked, url):
    answer = asked(url, "predict", RECORD, explain=2, request_id="order-17")
    assert answer.prediction == max(answer.probabilities, key=answer.probabilities.get)
    assert answer.probability == max(answer.probabilities.values())
    assert (answer.model, answer.version, answer.request_id, len(answer.reasons)) == ("churn", 1, "order-17", 2)
    assert answer.reasons[0].text in repr(answer) and answer.reasons[0].text in answer._repr_html_()
    assert answer.explained.output == "yes"


@pytest.fixture(scope="module")
def streaming_url(served_project):
    """The same model in a service that reads Arrow streams; the other one has no pyarrow."""
    model = load_model(read_release(served_project / ".mlops" / "releases", "churn"))
    with running(model) as address:
        yield address


@pytest.mark.parametrize("service", ["url", "streaming_url"])
def test_tables_are_answered_as_the_model_answers(asked, service, request):
    table = people()
    chances = fitted(table, foreign=False).predict_proba(table[list(KINDS)])
    for sent in (table[list(KINDS)], pl.from_pandas(table[list(KINDS)].astype({"job": "object"}))):
        said = asked(request.getfixturevalue(service), "predict", sent)
        assert np.allclose([list(one.probabilities.values()) for one in said], chances, atol=1e-12)
    assert [one.row for one in said] == list(range(len(table)))
    assert said.frame()["probability yes"].tolist() == pytest.approx(chances[:, 1])


def test_a_stream_keeps_its_order_and_is_not_kept(asked, url):
    taken, answered = [], []

    def source():
        for age in range(1000):
            taken.append(age)
            yield {**RECORD, "age": age % 90}

    answered = asked(url, "predict_many", source())
    single = asked(url, "predict", [{**RECORD, "age": age} for age in range(90)])
    assert [one.probability for one in answered] == [single[age % 90].probability for age in range(1000)]

    taken.clear()
    with Client(url) as client:
        stream = client.predict_many(source(), batch=20, concurrency=3)
        next(stream)
        assert len(taken) <= 20 * 4
        stream.close()


def test_a_batch_too_large_for_the_service_is_divided(asked, url):
    records = [{**RECORD, "job": "x" * 400} for _ in range(3000)]
    sent = len(json.dumps(records))
    assert sent > 1_048_576
    with Client(url) as client:
        said = list(client.predict_many(records, batch=3000))
    assert len(said) == 3000
    with pytest.raises(ServiceError) as refused:
        asked(url, "predict", records)
    assert refused.value.status == 413


def test_errors_name_the_record_in_the_stream(asked, url):
    records = [{**RECORD, "age": "abc" if number == 612 else 41} for number in range(700)]
    with pytest.raises(ServiceError) as refused:
        asked(url, "predict_many", records)
    error = refused.value
    assert (error.status, error.attempts) == (422, 1)
    assert error.errors == [{"row": 612, "field": "age", "value": "abc", "expected": "a whole number"}]
    assert "record 612, age: 'abc', expected a whole number" in str(error)


@pytest.mark.parametrize("rows", [1, 60])
def test_an_infinite_number_is_refused_and_not_sent_as_missing(asked, streaming_url, rows):
    table = pd.DataFrame([RECORD] * (rows - 1) + [{**RECORD, "account balance": float("inf")}])
    with pytest.raises(ServiceError) as refused:
        asked(streaming_url, "predict", table)
    error = refused.value.errors[0]
    assert (error["row"], error["field"]) == (rows - 1, "account balance")


def test_schema_and_readiness(asked, url):
    schema = asked(url, "schema")
    assert [one.name for one in schema.features] == list(KINDS)
    assert (schema.model, schema.task, schema.classes) == ("churn", "binary", ["no", "yes"])
    assert asked(url, "predict", schema.example).prediction in schema.classes
    assert asked(url, "ready") is True
    assert asked(f"http://127.0.0.1:{free_port()}", "ready") is False
    assert "age: integer" in repr(schema)


def test_what_was_true_is_told_later_and_twice(asked, url):
    answers = asked(url, "predict", [RECORD, {**RECORD, "age": 80}])
    where = {"request_id": answers[1].request_id, "row": 1}
    assert asked(url, "feedback", answers[1], "yes") == {**where, "status": "stored"}
    assert asked(url, "feedback", answers[1], "yes")["status"] == "duplicate"
    assert asked(url, "feedback", answers[1].request_id, "no", 1)["status"] == "corrected"
    with pytest.raises(ServiceError, match="no such request") as refused:
        asked(url, "feedback", "nobody-asked", "yes")
    assert refused.value.status == 404


@pytest.mark.parametrize("script", [["drop"], ["half"], ["slow 1"], ["refuse 503"], ["drop", "refuse 502", "half"]])
def test_a_bad_moment_is_not_noticed(asked, script):
    with unsteady(*script) as (address, service):
        answer = asked(address, "predict", {"x": 21}, timeout=0.4)
    assert (answer.prediction, answer.arm) == (42, "champion")
    assert len(service.seen) == len(script) + 1
    assert {one["x-request-id"] for one in service.seen} == {answer.request_id}
    assert len({one["body"] for one in service.seen}) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_the_service_says_when_to_come_back(asked, status):
    with unsteady(f"refuse {status} 1") as (address, service):
        asked(address, "predict", {"x": 1})
    first, second = (one["at"] for one in service.seen)
    assert 1 <= second - first < 2


def test_nobody_waits_for_an_hour(asked):
    with unsteady("refuse 503 3600") as (address, service), pytest.raises(ServiceError, match="Not now") as refused:
        asked(address, "predict", {"x": 1})
    assert (refused.value.status, refused.value.attempts, len(service.seen)) == (503, 1, 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 500])
def test_a_refusal_is_final(status):
    with unsteady(f"refuse {status}") as (address, service), pytest.raises(ServiceError) as refused:
        by_threads(address, "predict", {"x": 1})
    assert (refused.value.status, len(service.seen)) == (status, 1)


def test_a_service_that_is_not_there(asked):
    with pytest.raises(ServiceError) as refused:
        asked(f"http://127.0.0.1:{free_port()}", "predict", {"x": 1}, retries=1)
    error = refused.value
    assert (error.status, error.attempts) == (0, 2)
    assert "gave no answer" in str(error) and "2 attempts" in str(error) and "→ Check the address" in str(error)


@pytest.mark.parametrize("script", [[], ["refuse 415"], ["drop", "refuse 415", "refuse 503"]])
def test_a_table_travels_as_a_stream_where_one_is_taken(asked, script):
    for table in (pd.DataFrame({"x": range(60)}), pl.DataFrame({"x": range(60)}), pa.table({"x": range(60)})):
        with unsteady(*script) as (address, service):
            said = asked(address, "predict_many", table)
        assert [one.prediction for one in said] == [2 * x for x in range(60)]
        kinds = [one["content-type"].rpartition("/")[2] for one in service.seen]
        stream = "vnd.apache.arrow.stream"
        assert kinds == {0: [stream], 1: [stream, "json"], 3: [stream, stream, "json", "json"]}[len(script)]


def test_connections_are_kept():
    with unsteady() as (address, service), Client(address) as client:
        for number in range(30):
            assert client.predict({"x": number}).prediction == 2 * number
    assert len(service.connections) == 1


def test_threads_may_share_a_client():
    with unsteady(*["drop", "fine", "refuse 503 0"] * 10) as (address, _), Client(address) as client:
        said = {}
        threads = [
            threading.Thread(target=lambda n=number: said.update({n: client.predict({"x": n}).prediction}))
            for number in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said == {number: 2 * number for number in range(40)}


def test_key_user_and_segment_travel_in_headers(asked, monkeypatch):
    monkeypatch.setenv("SERVICE_KEY", "k-one")
    with unsteady() as (address, service):
        asked(address, "predict", {"x": 1}, key="env:SERVICE_KEY", user="Zoë 17", segment="north")
        monkeypatch.setenv("SERVICE_KEY", "k-two")
        asked(address, "predict", {"x": 1}, key="env:SERVICE_KEY")
        asked(address, "predict", {"x": 1}, key=lambda: "a token")
    keys = [one["authorization"] for one in service.seen]
    assert keys == ["Bearer k-one", "Bearer k-two", "Bearer a token"]
    assert (service.seen[0]["x-user-id"], service.seen[0]["x-segment"]) == ("Zo%C3%AB 17", "north")
    assert "k-two" not in repr(Client(address, "env:SERVICE_KEY"))
    with pytest.raises(UsageError, match="something else than a reference"):
        Client(address, "k-two")


def test_an_authority_of_ones_own(asked, tmp_path):
    authority, server = certificates(tmp_path)
    with unsteady(tls=server) as (address, service):
        assert asked(address, "predict", {"x": 21}, ca=authority).prediction == 42
        started = time.monotonic()
        with pytest.raises(ServiceError, match=r"certificate of .* is not trusted") as refused:
            asked(address, "predict", {"x": 1})
    assert (refused.value.attempts, len(service.seen)) == (1, 1)
    assert time.monotonic() - started < 5


def test_both_sides_agree_on_how_many_are_explained():
    assert EXPLAINED_AT_ONCE == MOST_EXPLAINED


def test_the_client_needs_no_library_of_tables():
    code = (
        "import sys; from mlops_nb import Client; Client('http://localhost:1');"
        "print({'pandas', 'numpy', 'sklearn', 'bentoml'} & set(sys.modules) or 'none')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "none"


@pytest.mark.parametrize("ask", ["predict", "predict_many"])
def test_a_misspelt_keyword_is_refused_before_anything_is_sent(ask):
    """Silence would let a canary draw the user anew at each request."""
    with Client("http://localhost:1") as client, pytest.raises(UsageError, match="nothing like 'usr'") as told:
        list(getattr(client, ask)([RECORD], usr="mia"))
    assert "Did you mean 'user'?" in told.value.hint

    async def asked():
        async with AsyncClient("http://localhost:1") as client:
            await client.predict(RECORD, sgment="eu")

    with pytest.raises(UsageError, match="nothing like 'sgment'"):
        asyncio.run(asked())
