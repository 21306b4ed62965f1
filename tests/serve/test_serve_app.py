"""The application in one process: every route, and what a network rarely does."""

import asyncio
import json
import logging
from types import SimpleNamespace

import httpx
import pytest

from mlops_nb.core.errors import StorageError
from mlops_nb.registry.releases import read_release
from mlops_nb.serve.app import App
from mlops_nb.serve.call import DRAINED
from mlops_nb.serve.predictor import load_model
from mlops_nb.serve.slots import Slot, Slots, Table, only

RECORD = {"age": 41, "account balance": 120.5, "married": True, "job": "clerk", "since": "2021-03-01"}
JSON = {"content-type": "application/json"}


async def behind(scope, receive, send):
    """Stands where BentoML's application stands."""
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"behind"})


@pytest.fixture(scope="module")
def model(served_project):
    return load_model(read_release(served_project / ".mlops" / "releases", "churn"), max_rows=100)


@pytest.fixture
def app(model):
    return App(behind, Slots(only(model)), max_body=10_000)


def ask(app, path, method="GET", **options):
    """One request over httpx's ASGI transport."""

    async def asked():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


@pytest.mark.parametrize(
    ("path", "media"),
    [
        ("/", "text/html"),
        ("/try.js", "text/javascript"),
        ("/try.css", "text/css"),
        ("/try.json", "application/json"),
        ("/models/churn/try.json", "application/json"),
        ("/docs", "text/html"),
        ("/schema", "application/json"),
        ("/docs.json", "application/json"),
        ("/docs.js", "text/javascript"),
        ("/livez", "application/json"),
        ("/healthz", "application/json"),
        ("/readyz", "application/json"),
        ("/metrics", "text/plain"),
    ],
)
def test_routes(app, path, media):
    answer = ask(app, path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media)
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = ask(app, path, "HEAD")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", ["/docs", "/try.json", "/schema", "/docs.json", "/readyz", "/metrics"])
def test_without_a_model_nothing_is_ready(path):
    answer = ask(App(behind, Slots()), path)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_what_bentoml_answers(app):
    assert ask(app, "/static_content/x.css").text == ask(app, "/schema.json").text == "behind"


def receiver(*messages):
    """A client that sends these messages, one after the other."""
    waiting = list(messages)

    async def receive():
        return waiting.pop(0)

    return receive


def post(app, receive, headers=((b"content-type", b"application/json"),)):
    """POST /predict with a hand-made body; the messages that were sent back."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": list(headers)}
    asyncio.run(app(scope, receive, send))
    return sent


def piece(content, more=True):
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_body_in_pieces(app):
    body = json.dumps(RECORD).encode()
    sent = post(app, receiver(piece(body[:7]), piece(body[7:]), piece(b"", more=False)))
    assert sent[0]["status"] == 200


def test_a_body_without_end_is_given_up(app):
    endless = [piece(b"x" * (1 << 20)) for _ in range(100)]
    waiting = iter(endless)

    async def receive():
        return next(waiting)

    sent = post(app, receive)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert len(list(waiting)) > 100 - (DRAINED >> 20) - 3


def test_a_body_that_says_it_is_huge_is_not_read(app):
    sent = post(app, receiver(), [(b"content-type", b"application/json"), (b"content-length", b"99999999999")])
    assert sent[0]["status"] == 413


def test_a_client_that_hangs_up_gets_no_answer(app):
    assert post(app, receiver(piece(b"{"), {"type": "http.disconnect"})) == []


def test_a_model_that_fails_is_logged_once_and_not_told(app, model, monkeypatch, caplog):
    def fail(records):
        raise ValueError("the reason")

    monkeypatch.setattr(model, "predict", fail)
    with caplog.at_level(logging.ERROR):
        answer = ask(app, "/predict", "POST", json=RECORD)
    assert answer.status_code == 500
    assert "the reason" not in answer.text
    (logged,) = caplog.records
    assert answer.json()["request_id"] in logged.getMessage()
    assert "the reason" in caplog.text
    counted = app.meter.text().decode()
    assert 'arm="champion",model="churn",route="/predict",status="500",version="1"' in counted


def test_a_number_that_is_none_is_an_error(app, model, monkeypatch, caplog):
    monkeypatch.setattr(
        model.estimator, "predict_proba", lambda table: __import__("numpy").full((len(table), 2), float("nan"))
    )
    answer = ask(app, "/predict", "POST", json=RECORD)
    assert answer.status_code == 500
    assert "NaN" not in answer.text


def test_one_wrong_record_does_not_hurt_its_neighbours(app):
    answers = [ask(app, "/predict", "POST", json=record).status_code for record in (RECORD, {"age": "x"}, RECORD)]
    assert answers == [200, 422, 200]


def test_limits_are_those_of_the_settings(app):
    assert ask(app, "/predict", "POST", json=[RECORD] * 101).status_code == 413
    assert ask(app, "/predict", "POST", content=b" " * 10_001, headers=JSON).status_code == 413


def test_a_model_from_other_libraries_is_a_warning_with_names(served_project, monkeypatch, caplog):
    monkeypatch.setattr("mlops_nb.serve.predictor.version", lambda name: "0.1")
    with caplog.at_level(logging.WARNING):
        load_model(read_release(served_project / ".mlops" / "releases", "churn"))
    assert "was trained with other libraries: numpy" in caplog.text


def test_a_model_that_does_not_load_says_why(served_project, monkeypatch):
    def fail(content, packages, listed):
        raise AttributeError("no such class")

    monkeypatch.setattr("mlops_nb.model.archive.load_estimator", fail)
    with pytest.raises(StorageError, match="cannot be loaded: AttributeError: no such class"):
        load_model(read_release(served_project / ".mlops" / "releases", "churn"))


def loaded(model, version, schema, generation=1, arm="champion", weight=1.0):
    """A version that is loaded, as far as its description goes."""
    predictor = SimpleNamespace(
        model=model, version=version, generation=generation, digest=f"{version}d" * 32, schema=schema, example={}
    )
    return Slot(model, version, predictor.digest, generation, arm, weight, predictor)


SCHEMAS = [
    {"task": "regression", "target": "y", "features": [{"name": name, "kind": "number", "nullable": False}]}
    for name in ("old", "new")
]


def test_after_a_switch_the_service_describes_the_version_that_answers():
    arms = [loaded("churn", 1, SCHEMAS[0], 2, "champion", 0.0), loaded("churn", 2, SCHEMAS[1], 2, "challenger", 1.0)]
    app = App(behind, Slots(Table(arms)))
    schema, document, page = (ask(app, path).json() for path in ("/schema", "/docs.json", "/try.json"))
    assert (schema["version"], [one["name"] for one in schema["features"]]) == (2, ["new"])
    assert "new" in str(document["paths"]) + str(document["components"]) and "'old'" not in str(document)
    assert (page["version"], page["groups"][0]["fields"][0]["name"]) == (2, "new")
    assert ask(app, "/readyz").json()["version"] == 2
    app.slots.use(Table([arms[1], arms[0]]))
    canary = [loaded("churn", 1, SCHEMAS[0], 3, "champion", 0.9), loaded("churn", 2, SCHEMAS[0], 3, "challenger", 0.1)]
    app.slots.use(Table(canary))
    assert (ask(app, "/schema").json()["version"], ask(app, "/docs.json").json()["info"]["version"]) == (1, "1")


def test_a_service_is_ready_as_long_as_some_model_answers():
    slots = Slots(*(Table([loaded(name, 1, SCHEMAS[0])]) for name in ("churn", "income")))
    app = App(behind, slots)
    slots.stop("churn", "wrong prices")
    assert ask(app, "/readyz").json()["stopped"] == {"churn": "wrong prices"}
    assert {one["model"]: one.get("stopped") for one in ask(app, "/models").json()["models"]} == {
        "churn": "wrong prices",
        "income": None,
    }
    slots.stop("income", "as well")
    none = ask(app, "/readyz")
    assert (none.status_code, none.headers["retry-after"]) == (503, "60")
    assert none.json()["detail"] == "No model answers. churn was stopped: wrong prices; income was stopped: as well"
    app.access = object()  # readiness is asked without a key: no names, no reasons
    assert ask(app, "/readyz").json()["detail"] == "No model answers: each was stopped."
    slots.stop("income", "")
    assert ask(app, "/readyz").json() == {"status": "ready"}
