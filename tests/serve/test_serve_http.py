"""What a running `bentoml serve` answers, to good requests and to bad ones."""

import http.client
import json
import socket
import threading

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_support import KINDS, fitted, people

RECORD = {"age": 41, "account balance": 120.5, "married": True, "job": "clerk", "since": "2021-03-01"}


def told(server, body, status=422):
    """The problem that answers `body`; every problem has the same shape."""
    answer = server.ask("/predict", body)
    assert answer.status == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert set(problem) == {"title", "status", "detail", "errors", "request_id"}
    assert problem["status"] == status
    assert answer.headers["x-request-id"] == problem["request_id"]
    return problem


def test_one_record(server):
    answer = server.ask("/predict", RECORD)
    assert answer.status == 200, answer.text
    said = answer.json
    assert set(said) == {"prediction", "probabilities", "model", "version", "arm", "generation", "request_id"}
    assert said["prediction"] == max(said["probabilities"], key=said["probabilities"].get)
    assert abs(sum(said["probabilities"].values()) - 1) < 1e-9
    assert (said["model"], said["version"]) == ("churn", 1)


def test_batch_equals_single_records(server):
    records = [{**RECORD, "age": age} for age in (20, 45, 80)]
    batch = server.ask("/predict", records).json
    singles = [server.ask("/predict", record).json for record in records]
    assert [row["probabilities"] for row in batch["predictions"]] == [row["probabilities"] for row in singles]
    assert set(batch) == {"predictions", "model", "version", "arm", "generation", "request_id"}


def test_every_row_of_the_table_is_answered_as_the_model_answers(server):
    table = people()
    sent = json.loads(table[list(KINDS)].to_json(orient="records", date_format="iso", double_precision=15))
    served = [list(row["probabilities"].values()) for row in server.ask("/predict", sent).json["predictions"]]
    assert table.isna().any(axis=1).sum() > 30
    assert np.allclose(served, fitted(table, foreign=False).predict_proba(table[list(KINDS)]), atol=1e-12)


def test_request_id_of_the_client_comes_back(server):
    answer = server.ask("/predict", RECORD, headers={**server.headers, "x-request-id": "order-17"})
    assert answer.json["request_id"] == answer.headers["x-request-id"] == "order-17"


@pytest.mark.parametrize(
    "change",
    [
        {"job": "astronaut"},
        {"job": None},
        {"account balance": None},
        {"age": 41.0},
        {"since": "2021-03-01T10:00:00+02:00"},
        {"account balance": -3},
    ],
)
def test_accepted(server, change):
    assert server.ask("/predict", {**RECORD, **change}).status == 200


def test_absent_means_null_where_training_had_missing_values(server):
    absent = {name: value for name, value in RECORD.items() if name != "account balance"}
    with_null = server.ask("/predict", {**RECORD, "account balance": None}).json
    assert server.ask("/predict", absent).json["probabilities"] == with_null["probabilities"]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("age", "41", "a whole number"),
        ("age", 41.5, "a whole number"),
        ("age", None, "a whole number, not null"),
        ("age", True, "a whole number"),
        ("age", 10**30, "a whole number between -1e+15 and 1e+15"),
        ("account balance", 1e300, "a number between -1e+15 and 1e+15"),
        ("account balance", [1], "a number or null"),
        ("account balance", {"a": {"b": 1}}, "a number or null"),
        ("married", 1, "true or false"),
        ("married", "yes", "true or false"),
        ("job", 3, "a text or null"),
    ],
)
def test_wrong_value(server, field, value, expected):
    errors = told(server, [RECORD, {**RECORD, field: value}])["errors"]
    assert [(error["row"], error["field"], error["expected"]) for error in errors] == [(1, field, expected)]


def test_wrong_date(server):
    (error,) = told(server, {**RECORD, "since": "01.03.2021"})["errors"]
    assert (error["row"], error["field"], error["value"]) == (0, "since", "01.03.2021")
    assert "ISO 8601" in error["expected"]


def test_missing_and_unknown_fields(server):
    errors = told(server, {"aeg": 41, "married": True, "since": "2021-03-01"})["errors"]
    assert [(error["field"], error["expected"]) for error in errors] == [
        ("aeg", "no such field. Did you mean 'age'?"),
        ("age", "a whole number; the field is missing"),
    ]


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_not_finite(server, text):
    body = json.dumps(RECORD).encode().replace(b"120.5", text)
    (error,) = told(server, body)["errors"]
    assert (error["field"], error["value"]) == ("account balance", text.decode())
    assert "finite" in error["expected"]


def test_at_most_twenty_errors_are_listed_and_all_are_counted(server):
    problem = told(server, [{**RECORD, "age": "x"}] * 50)
    assert len(problem["errors"]) == 20
    assert "50 values" in problem["detail"]
    assert "50 of 50 records" in problem["detail"]


def test_an_answer_does_not_grow_with_the_request(server):
    answer = server.ask("/predict", {**RECORD, "job": 1, "x" * 50_000: ["y" * 100] * 1000})
    assert answer.status == 422
    assert len(answer.text) < 5_000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"   ", 400),
        (b"{", 400),
        (b'{"age": 41,}', 400),
        (b"\xff\xfe", 400),
        (b"{'age': 41}", 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000, 400),
        (b"[]", 422),
        (b"null", 422),
        (b"41", 422),
        (b'"age"', 422),
        (b"[[]]", 422),
        (b"[null]", 422),
        (b"{}", 422),
        (b'{"age": ' + b"9" * 500_000 + b"}", 422),
    ],
)
def test_bodies_that_are_no_records(server, body, status):
    told(server, body, status)


def test_too_large(server):
    assert "1048576 bytes" in told(server, b" " * (1 << 20) + b"{}", 413)["detail"]


def test_too_large_without_saying_so(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    pieces = (b"x" * 65536 for _ in range(64))
    try:
        connection.request("POST", "/predict", pieces, {"content-type": "application/json"}, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        return  # the server hung up before all of it was sent
    assert connection.getresponse().status == 413


def test_too_many_records(server):
    assert (
        "at most 10000" in told(server, [{"age": 41, "married": True, "since": "2021-03-01"}] * 10_001, 413)["detail"]
    )


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
        {"content-type": "application/vnd.bentoml+pickle"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_other_content_types(server, headers):
    body = json.dumps(RECORD).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/predict", body, headers)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["content-type"]) == (415, "application/problem+json")


def test_json_with_a_charset(server):
    assert server.ask("/predict", RECORD, headers={"content-type": "application/json; charset=UTF-8"}).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_other_methods(server, method):
    answer = server.ask("/predict", method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/predict/", "/admin", "/../settings.ini", "/static_content/../../x", "/%00"])
def test_unknown_paths(server, path):
    answer = server.ask(path)
    assert answer.status == 404


def test_a_client_that_hangs_up_does_no_harm(server):
    for text in (
        b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
        b"x",
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(text)
    assert server.ask("/predict", RECORD).status == 200
    assert "Traceback" not in server.log.read_text()


def test_health(server):
    assert server.ask("/livez").status == server.ask("/healthz").status == 200
    assert server.ask("/readyz").json == {"status": "ready", "model": "churn", "version": 1}


def test_schema_tells_the_fields_and_a_record_that_works(server):
    schema = server.ask("/schema").json
    assert [feature["name"] for feature in schema["features"]] == list(RECORD)
    assert (schema["model"], schema["version"], schema["classes"]) == ("churn", 1, ["no", "yes"])
    assert server.ask("/predict", schema["example"]).status == 200


def test_openapi_shows_the_models_own_fields_and_its_example_works(server):
    document = server.ask("/docs.json").json
    operation = document["paths"]["/predict"]["post"]
    record = document["components"]["schemas"]["Record"]
    assert list(record["properties"]) == list(RECORD)
    assert record["required"] == ["age", "married", "since"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert server.ask("/predict", example).status == 200


@pytest.mark.parametrize(("path", "policy"), [("/", "default-src 'none'"), ("/docs", "default-src 'self'")])
def test_the_pages_ask_nobody_else(server, path, policy):
    page = server.ask(path)
    assert page.status == 200
    assert "http" not in page.text
    assert policy in page.headers["content-security-policy"]


def test_the_documentation_brings_its_own_files(server):
    for path in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert server.ask(f"/static_content/{path}").status == 200
    assert "validatorUrl: null" in server.ask("/docs.js").text


def counts(server):
    """Answers counted so far, by route and status."""
    families = {family.name: family for family in text_string_to_metric_families(server.ask("/metrics").text)}
    samples = [sample for sample in families["mlops_nb_requests"].samples if sample.name.endswith("_total")]
    return {(sample.labels["route"], sample.labels["status"]): sample.value for sample in samples}


def test_metrics_count_by_route_and_version_and_do_not_grow(server):
    server.ask("/predict", RECORD)
    server.ask("/predict", {})
    before = counts(server)
    server.ask("/predict", RECORD)
    server.ask("/predict", {})
    for number in range(30):
        server.ask(f"/random-{number}")
    after = counts(server)
    assert after["/predict", "200"] == before["/predict", "200"] + 1
    assert after["/predict", "422"] == before["/predict", "422"] + 1
    assert after["other", "404"] >= 30
    assert {route for route, _ in after} <= {
        *("/", "/predict", "/schema", "/livez", "/healthz", "/readyz", "/metrics", "/docs", "/docs.json", "/docs.js"),
        *("/try.js", "/try.css", "/try.json", "/feedback", "/schema.json", "/static_content/{file}", "other"),
    }
    text = server.ask("/metrics").text
    assert (
        'mlops_nb_model_info{arm="champion",digest="5d5d5d5d5d5d",generation="1",model="churn",version="1"} 1.0' in text
    )
    assert "random-" not in text


def test_many_clients_at_once_get_their_own_answers(server):
    ages = list(range(18, 78))
    expected = server.ask("/predict", [{**RECORD, "age": age} for age in ages]).json["predictions"]
    said: dict[int, dict] = {}

    def client(offset):
        for age in ages[offset::6]:
            said[age] = server.ask("/predict", {**RECORD, "age": age}).json

    threads = [threading.Thread(target=client, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [said[age]["probabilities"] for age in ages] == [row["probabilities"] for row in expected]


def test_bentoml_clients_reach_the_same_answer(server):
    from bentoml import SyncHTTPClient

    with SyncHTTPClient(f"http://127.0.0.1:{server.port}") as client:
        assert client.predict(RECORD)["probabilities"] == server.ask("/predict", RECORD).json["probabilities"]


def test_the_log_is_quiet_and_nobody_is_told(server):
    server.ask("/predict", RECORD)
    server.ask("/predict", {"age": "x"})
    log = server.log.read_text()
    assert "Tracking Payload" not in log  # what BentoML's usage report writes when it is debugged
    assert "/predict" not in log
    assert "churn, generation 1: version 1 (100%) is ready" in log
