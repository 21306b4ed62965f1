"""Tables as bytes: what pyarrow, polars and NumPy write is read, they read the answers, and mistakes are named."""

import json
from datetime import datetime

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from serve_support import KINDS, people
from test_serve_app import JSON, RECORD, ask, behind

from mlops_nb.model.artifact import Model
from mlops_nb.model.onnx_parity import export_onnx
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.schema import describe_inputs
from mlops_nb.model.train import fit
from mlops_nb.registry.releases import read_release
from mlops_nb.serve.app import App
from mlops_nb.serve.predictor import load_model
from mlops_nb.serve.problem import Problem
from mlops_nb.serve.slots import Slots, only

ARROW, FLOATS = "application/vnd.apache.arrow.stream", "application/x-float32"
TYPES = {"age": pa.int64(), "account balance": pa.float64(), "married": pa.bool_(), "job": pa.string()}


def stream(table: pa.Table, **options) -> bytes:
    """A table as pyarrow writes it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def mixed(served_project):
    """A model of every kind of column, on a frame of scikit-learn's."""
    model = load_model(read_release(served_project / ".mlops" / "releases", "churn"), max_rows=100)
    return App(behind, Slots(only(model)))


@pytest.fixture(scope="module")
def numeric(tmp_path_factory):
    """A model of numbers alone, by ONNX."""
    from test_serve_formats import released

    table, names = people(), ["age", "account balance", "married"]
    columns = {name: {"kind": KINDS[name]} for name in names}
    profile = {"target": "churned", "task": "binary", "features": names, "columns": columns}
    schema = describe_inputs(table, {name: KINDS[name] for name in names}, "churned", "binary")
    model = Model(fit(table, profile, "boosting", max_iter=20), table.head(3), schema)
    package = ModelPackage(model, "churn", {"roc_auc": 0.9}, table, onnx=export_onnx(model, table))
    served = load_model(released(tmp_path_factory.mktemp("numeric"), package), max_rows=100)
    assert served.format == "onnx"
    return App(behind, Slots(only(served)))


def post(app, body, media, accept="*/*", path="/predict"):
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    return ask(app, path, "POST", **sent, headers={"content-type": media, "accept": accept})


def records(rows: int) -> list[dict]:
    """Records as JSON sends them."""
    table = people(rows)[list(KINDS)]
    return json.loads(table.to_json(orient="records", date_format="iso", date_unit="s"))


def typed(rows: list[dict]) -> pa.Table:
    """The same with Arrow's types; dates as moments."""
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()}
    moments = [datetime.fromisoformat(row["since"]).replace(tzinfo=None) for row in rows]
    return pa.table({**columns, "since": pa.array(moments, pa.timestamp("us"))})


def chances(answer) -> list[float]:
    return [one["probabilities"]["yes"] for one in answer.json()["predictions"]]


def test_an_arrow_stream_is_answered_as_the_same_records_in_json(mixed):
    rows = records(40)
    expected = chances(post(mixed, rows, "application/json"))
    assert chances(post(mixed, stream(typed(rows)), ARROW)) == expected
    answer = post(mixed, stream(typed(rows).select([4, 3, 2, 1, 0])), ARROW, ARROW)
    assert answer.headers["content-type"] == ARROW and answer.headers["x-model-version"] == "1"
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.column("probability_yes").to_pylist() == expected
    assert set(table.column("prediction").to_pylist()) <= {"yes", "no"}
    assert table.schema.metadata[b"request_id"].decode() == answer.headers["x-request-id"]


def test_what_polars_writes_is_read_and_its_answer_too(mixed):
    rows = records(10)
    frame = pl.from_arrow(typed(rows)).with_columns(pl.col("job").cast(pl.Categorical), pl.col("since").cast(pl.Date))
    answer = post(mixed, frame.write_ipc_stream(None).getvalue(), ARROW, ARROW)
    assert answer.status_code == 200, answer.text
    assert pl.read_ipc_stream(answer.content)["probability_yes"].to_list() == chances(
        post(mixed, rows, "application/json")
    )


def test_floats_are_answered_as_the_same_records_in_json(numeric):
    rows = [{name: row[name] for name in ("age", "account balance", "married")} for row in records(40)]
    rounded = [{**row, "account balance": float(np.float32(row["account balance"] or 0))} for row in rows]
    floats = np.array([list(row.values()) for row in rounded], dtype="<f4")
    expected = chances(post(numeric, rounded, "application/json"))
    assert chances(post(numeric, floats.tobytes(), "application/octet-stream")) == expected
    answer = post(numeric, floats.tobytes(), FLOATS, FLOATS)
    given = np.frombuffer(answer.content, "<f4").reshape(-1, 2)
    np.testing.assert_array_equal(given[:, 1], np.array(expected, dtype="<f4"))
    assert answer.headers["x-model"] == "churn" and answer.headers["x-model-generation"] == "1"
    missing = np.array([[41, np.nan, 1]], dtype="<f4").tobytes()
    absent = [{"age": 41, "married": True}]
    assert chances(post(numeric, missing, FLOATS)) == chances(post(numeric, absent, "application/json"))


def errors(answer) -> list[tuple]:
    assert answer.status_code == 422, answer.text
    return [(error["row"], error["field"], error["expected"].partition(".")[0]) for error in answer.json()["errors"]]


def test_wrong_floats_are_named_by_row_and_field(numeric):
    good = [41, 120.5, 1]
    bad = [[41.5, 1, 1], [np.inf, 1, 1], [np.nan, 1, 1], [41, 1e20, 1], [41, 1, 2]]
    found = errors(post(numeric, np.array([good, *bad], dtype="<f4").tobytes(), FLOATS))
    assert [(row, field) for row, field, _ in found] == [
        (1, "age"), (2, "age"), (3, "age"), (4, "account balance"), (5, "married")
    ]  # fmt: skip
    answer = post(numeric, b"\0" * 13, FLOATS)
    assert answer.status_code == 422 and "13 bytes" in answer.json()["detail"] and " 12" in answer.json()["detail"]
    assert post(numeric, b"", FLOATS).status_code == 422
    assert post(numeric, bytes(12 * 101), FLOATS).status_code == 413


def test_wrong_columns_are_named(mixed):
    table = typed(records(3))
    wrong = table.drop_columns(["age", "since"]).append_column("agee", pa.array([1, 2, 3]))
    wrong = wrong.set_column(1, "married", pa.array(["yes", "no", "no"]))
    found = errors(post(mixed, stream(wrong), ARROW))
    assert {field for _, field, _ in found} == {"agee", "married", "age", "since"}
    nulls = table.set_column(0, "age", pa.array([41, None, 3], pa.int64()))
    assert errors(post(mixed, stream(nulls), ARROW)) == [(1, "age", "a whole number, not null")]
    texts = table.set_column(4, "since", pa.array(["2021-03-01", "yesterday", "2021-03-01T10:00:00Z"]))
    assert [(row, field) for row, field, _ in errors(post(mixed, stream(texts), ARROW))] == [(1, "since")]
    far = table.set_column(4, "since", pa.array([2**40, 0, 2**62], pa.timestamp("s")))
    assert post(mixed, stream(far), ARROW).status_code == 422
    far = table.set_column(4, "since", pa.array([0, 2**62, 5], pa.timestamp("us")))
    assert [(row, field) for row, field, _ in errors(post(mixed, stream(far), ARROW))] == [(1, "since")]
    fractions = table.set_column(0, "age", pa.array([41.5, 2, 3]))
    assert [(row, field) for row, field, _ in errors(post(mixed, stream(fractions), ARROW))] == [(0, "age")]


def test_types_that_are_not_taken_or_not_given_are_refused(mixed, numeric):
    table = stream(typed(records(2)))
    assert post(mixed, table, "text/csv").status_code == 415
    assert ARROW in post(mixed, table, "text/csv").json()["detail"]
    assert post(mixed, bytes(20), FLOATS).status_code == 415
    assert post(mixed, stream(typed(records(2)), compression="lz4"), ARROW).status_code == 415
    refused = post(mixed, RECORD, "application/json", "text/html, image/*;q=0.5")
    assert refused.status_code == 406 and ARROW in refused.json()["detail"]
    assert refused.headers["content-type"] == "application/problem+json"
    assert post(mixed, RECORD, "application/json", "text/html, */*;q=0.1").status_code == 200
    assert post(mixed, table, ARROW, ARROW, "/predict?explain=2").status_code == 406
    assert post(numeric, {"age": 41, "married": True}, "application/json", FLOATS).status_code == 200


@settings(max_examples=200, deadline=None)
@given(some.data())
def test_no_bytes_of_a_stream_do_more_than_be_refused(mixed, data):
    reader = mixed.slots.table().base.predictor.reader.tables
    body = bytearray(stream(typed(records(4))))
    for _ in range(data.draw(some.integers(1, 4))):
        body[data.draw(some.integers(0, len(body) - 1))] = data.draw(some.integers(0, 255))
    del body[data.draw(some.integers(0, len(body))) :]
    try:
        assert reader.read(bytes(body), ARROW.encode()).rows <= 100
    except Problem as problem:
        assert 400 <= problem.status < 500


def test_the_document_tells_of_tables(mixed, numeric):
    for app, floats in ((mixed, False), (numeric, True)):
        post_ = ask(app, "/docs.json", headers=JSON).json()["paths"]["/predict"]["post"]
        assert ARROW in post_["requestBody"]["content"] and (FLOATS in post_["requestBody"]["content"]) == floats
        assert ARROW in post_["responses"]["200"]["content"] and "406" in post_["responses"]
