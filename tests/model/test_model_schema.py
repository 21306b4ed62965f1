"""Records become the frames of training; what does not fit is named."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import KINDS, people

from mlops_nb.core.errors import UsageError
from mlops_nb.model.artifact import EXAMPLES, example_frame, example_records
from mlops_nb.model.schema import InputSchema, describe_inputs, frame_from_records, utc

TABLE = people(300)
SCHEMA = describe_inputs(TABLE, KINDS, "group", "binary", "class 00")


def test_a_schema_says_what_training_saw():
    features = {feature.name: feature for feature in SCHEMA.features}
    assert (SCHEMA.classes, SCHEMA.positive, SCHEMA.rows) == (["class 00", "class 01"], "class 00", 300)
    assert [name for name in features if features[name].nullable] == ["income", "plan"]
    assert (features["age"].low, features["age"].high) == (TABLE["age"].min(), TABLE["age"].max())
    assert features["plan"].categories == ["basic", "plus", "pro"], "most frequent first"
    assert features["zip"].categories is None, "too many to list"
    assert features["since"].example == TABLE["since"].iloc[0].isoformat()


def test_a_schema_survives_json():
    assert InputSchema.parse(json.loads(json.dumps(SCHEMA.document()))) == SCHEMA
    with pytest.raises(UsageError, match="format 9"):
        InputSchema.parse({**SCHEMA.document(), "format": 9})


def test_examples_come_back_as_rows_of_training():
    records = json.loads(json.dumps(example_records(TABLE, SCHEMA.names)))
    frame = example_frame(records, SCHEMA)
    pd.testing.assert_frame_equal(frame, TABLE[SCHEMA.names].head(EXAMPLES))


def test_columns_with_gaps_keep_their_types_in_records_without():
    table = people(50)
    table["age"] = table["age"].astype("float64").where(table["age"] > 30)
    table["member"] = table["member"].astype("boolean").where(table["age"].notna())
    schema = describe_inputs(table, KINDS, "group", "binary")
    whole = table.dropna().head(3)
    frame = frame_from_records(schema, example_records(whole, schema.names))
    pd.testing.assert_frame_equal(frame, whole[schema.names].reset_index(drop=True))


values = {
    "age": st.integers(-(2**40), 2**40) | st.none(),
    "income": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6) | st.none(),
    "member": st.booleans() | st.none(),
    "plan": st.text() | st.none(),
    "zip": st.text() | st.none(),
    "since": st.datetimes().map(lambda moment: moment.isoformat()) | st.none(),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=values), min_size=1, max_size=5))
def test_any_record_of_the_right_kinds_becomes_a_frame(records):
    frame = frame_from_records(SCHEMA, records)
    assert list(frame) == SCHEMA.names and len(frame) == len(records)
    for place, record in enumerate(records):
        for name in SCHEMA.names:
            sent, got = record.get(name), frame[name].iloc[place]
            same = pd.Timestamp(sent) == got if name == "since" and sent else sent == got
            assert pd.isna(got) if sent is None else same


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"age": "31"}, "Row 1: 'age' is '31', expected a whole number."),
        ({"age": 3.5}, "Row 1: 'age' is 3.5, expected a whole number."),
        ({"income": [1]}, "Row 1: 'income' is [1], expected a number."),
        ({"member": 1}, "Row 1: 'member' is 1, expected true or false."),
        ({"plan": 7}, "Row 1: 'plan' is 7, expected a text."),
        ({"since": "yesterday"}, "Row 1: 'since' is 'yesterday', expected a date in ISO 8601."),
        ({"since": 20240101}, "Row 1: 'since' is 20240101, expected a date in ISO 8601."),
        ({"agee": 31}, "Row 1: the model has no input 'agee'."),
    ],
)
def test_what_does_not_fit_is_named(record, said):
    with pytest.raises(UsageError) as caught:
        frame_from_records(SCHEMA, [{"age": 30}, record])
    assert caught.value.message == said and caught.value.hint


def test_missing_values_are_written_in_many_ways():
    frame = frame_from_records(SCHEMA, [{"plan": absent, "income": None} for absent in (None, math.nan, pd.NA)])
    assert frame["plan"].isna().all() and frame["income"].isna().all()


def test_times_move_to_utc():
    assert utc("2024-03-31T02:30:00+02:00").isoformat() == "2024-03-31T00:30:00"
    assert utc(pd.Timestamp("2024-01-01").date()).isoformat() == "2024-01-01T00:00:00"


def test_classes_that_are_numbers_are_texts():
    table = TABLE.assign(group=pd.Series(np.arange(300) % 3).astype(str))
    assert describe_inputs(table, KINDS, "group", "multiclass").classes == ["0", "1", "2"]
