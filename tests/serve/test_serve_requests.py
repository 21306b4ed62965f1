"""The two passes over a request agree, and no bytes whatever make them fail in another way than by a Problem."""

import json

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from mlops_nb.serve.problem import Problem
from mlops_nb.serve.requests import RequestReader

SCHEMA = {
    "features": [
        {"name": "age", "kind": "integer", "nullable": False, "low": 18, "high": 92},
        {"name": "account balance", "kind": "number", "nullable": True, "low": -5.0, "high": 1e20},
        {"name": "married", "kind": "boolean", "nullable": True},
        {"name": "job", "kind": "category", "nullable": False},
        {"name": "since", "kind": "date", "nullable": True},
    ]
}
READER = RequestReader(SCHEMA, max_rows=20)

dates = some.datetimes().map(lambda moment: moment.isoformat(timespec="seconds")) | some.dates().map(str)
records = some.fixed_dictionaries(
    {"age": some.integers(-(10**15), 10**15), "job": some.text()},
    optional={
        "account balance": some.none() | some.floats(-1e15, 1e15) | some.integers(-(10**15), 10**15),
        "married": some.none() | some.booleans(),
        "since": some.none() | dates,
    },
)
scalars = some.none() | some.booleans() | some.integers() | some.floats() | some.text() | dates
values = some.recursive(scalars, lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner), max_leaves=8)
near_records = some.dictionaries(some.sampled_from(["age", "job", "married", "since", "account balance", "x"]), values)


def outcome(read):
    """What a reading gives: columns, or the status and the errors of a problem."""
    try:
        return read()
    except Problem as problem:
        return problem.status, problem.detail, problem.errors


@given(some.lists(records, min_size=1, max_size=5))
def test_good_records_take_the_fast_pass_and_both_agree(batch):
    body = json.dumps(batch).encode()
    rows = READER._decoders[-1].decode(body)
    assert len(rows) == len(batch)
    fast = READER.read(body)
    assert fast == READER._read_slowly(body)
    assert not fast.single
    assert READER.read(json.dumps(batch[0]).encode()).single


@given(near_records | some.lists(near_records, max_size=4))
def test_what_one_pass_accepts_the_other_does_too(sent):
    body = json.dumps(sent).encode()
    fast, slow = outcome(lambda: READER.read(body)), outcome(lambda: READER._read_slowly(body))
    assert fast == slow
    if isinstance(fast, tuple):
        status, detail, errors = fast
        assert 400 <= status < 500
        assert detail
        assert len(errors) <= 20
        assert len(msgspec.json.encode(errors)) < 10_000


@settings(max_examples=300)
@given(some.binary(max_size=200) | some.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_answered(body):
    found = outcome(lambda: READER.read(body))
    assert isinstance(found, tuple)
    assert 400 <= found[0] < 500


@given(records, some.data())
def test_every_wrong_field_is_named(record, data):
    wrong = data.draw(some.sets(some.sampled_from(["age", "married", "job", "since"]), min_size=1))
    sent = {**record, **{name: [1] for name in wrong}}
    status, _, errors = outcome(lambda: READER.read(json.dumps(sent).encode()))
    assert status == 422
    assert {error["field"] for error in errors} == wrong


def test_accepted_records_become_a_table_of_the_training_types():
    from mlops_nb.model.schema import InputSchema, frame_from_columns

    schema = {"format": 1, "task": "binary", "target": "y", "rows": 9, **SCHEMA}
    inputs = InputSchema.parse(schema)
    first = {"age": 41, "job": "a", "since": "2026-11-23T01:00:00+02:00"}
    second = {"age": 3.0, "job": "b", "account balance": 7}
    table = frame_from_columns(inputs, READER.read(json.dumps([first, second]).encode()).columns)
    assert [str(kind) for kind in table.dtypes] == ["int64", "float64", "boolean", "str", "datetime64[us]"]
    assert str(table["since"][0]) == "2026-11-22 23:00:00"
    assert np.isnan(table["account balance"][0])


@given(records, some.sampled_from(["age", "job"]), some.booleans(), some.data())
def test_a_name_that_stands_twice_is_named(record, name, escaped, data):
    members = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=escaped)}" for key, value in record.items()]
    again = f"{json.dumps(name)}: {json.dumps(data.draw(records)[name])}"
    members.insert(data.draw(some.integers(0, len(members))), again)
    body = "[{" + ", ".join(members) + "}]"
    status, _, errors = outcome(lambda: READER.read(body.encode("utf-8", "surrogatepass")))
    assert 400 <= status < 500
    assert (status, name, "one value, not 2") in [(422, error["field"], error["expected"]) for error in errors]


def test_a_feature_with_a_colon_in_its_name():
    reader = RequestReader({"features": [{"name": name, "kind": "number", "nullable": True} for name in ("a:b", "c")]})
    assert reader.read(b'{"a:b": 1, "c": 2}').columns == {"a:b": [1.0], "c": [2.0]}
    assert outcome(lambda: reader.read(b'{"a\\u003ab": 1, "c": 2, "c": 3}'))[0] == 422
