"""No split lets the test part know what the training part knows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import Refused, UsageError
from mlops_nb.data.rows import row_hashes
from mlops_nb.data.splitting import cut_time, split_table


def table_of(size, classes=("no", "yes"), seed=0, **columns):
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": random.normal(size=size), "b": random.choice(["u", "v", None], size), **columns})
    frame["y"] = [classes[place % len(classes)] for place in range(size)]
    return frame


def profile_of(frame, kept=(), task="", target="y"):
    kinds = {"f": "number", "i": "integer", "M": "date"}
    columns = {name: {"kind": kinds.get(values.dtype.kind, "category"), "reason": ""} for name, values in frame.items()}
    numeric = columns[target]["kind"] != "category"
    task = task or ("regression" if numeric else "binary" if frame[target].nunique() == 2 else "multiclass")
    return {
        "task": task,
        "target": target,
        "classes": None if task == "regression" else sorted(frame[target].unique()),
        "features": [name for name in frame if name != target and name not in kept],
        "kept": list(kept),
        "columns": columns,
    }


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(8, 120),
    classes=st.integers(2, 4),
    repeated=st.integers(0, 10),
    test_size=st.floats(0.05, 0.5),
    seed=st.integers(0, 5),
)
def test_by_lot(size, classes, repeated, test_size, seed):
    frame = table_of(size, "abcd"[:classes])
    frame = pd.concat([frame, frame.iloc[: min(repeated, size // 2)]], ignore_index=True)
    split = split_table(frame, profile_of(frame), test_size=test_size, seed=seed)
    assert len(split.train) + len(split.test) == len(frame)
    assert not np.isin(row_hashes(split.test), row_hashes(split.train)).any()
    assert set(split.train["y"]) == set(split.test["y"]) == set(frame["y"])
    both = pd.concat([split.train, split.test])
    np.testing.assert_array_equal(np.sort(row_hashes(both)), np.sort(row_hashes(frame)))
    again = split_table(frame, profile_of(frame), test_size=test_size, seed=seed)
    pd.testing.assert_frame_equal(again.test, split.test)


def test_a_column_that_the_profile_does_not_know_is_named():
    frame = table_of(60)
    profile = profile_of(frame)
    split = split_table(frame.assign(ratio=1.5), profile)
    assert "ratio" not in split.train and "ratio" in str(split.findings)
    assert "profile" not in str(split_table(frame, profile).findings)


def test_classes_are_in_proportion():
    frame = table_of(1000, ["a"] * 8 + ["b"] * 2)
    split = split_table(frame, profile_of(frame), test_size=0.2, seed=3)
    assert split.summary["target"]["test"] == {"a": 160, "b": 40}
    assert split.summary["rows"] == {"train": 800, "test": 200, "left out": 0}
    other = split_table(frame, profile_of(frame), test_size=0.2, seed=4)
    assert not other.test.equals(split.test)


def test_a_class_of_two_is_on_both_sides():
    frame = table_of(100)
    frame.loc[:1, "y"] = "rare"
    split = split_table(frame, profile_of(frame), test_size=0.05)
    assert (split.train["y"] == "rare").sum() == (split.test["y"] == "rare").sum() == 1


def test_a_table_of_counts_is_drawn_row_by_row():
    frame = pd.DataFrame({"sex": ["m", "f"] * 200, "y": ["no", "yes", "no", "no"] * 100})
    split = split_table(frame, profile_of(frame))
    assert len(split.test) == 100 and split.summary["rows_in_both"] == 100
    assert "too many to keep" in str(split.findings)


def test_a_regression_is_drawn_by_lot():
    frame = table_of(200).assign(y=np.arange(200.0))
    split = split_table(frame, profile_of(frame), test_size=0.25)
    assert len(split.test) == 50 and abs(split.summary["target"]["test"]["mean"] - 99.5) < 25


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=4, max_size=30), seed=st.integers(0, 3))
def test_groups_are_on_one_side(sizes, seed):
    groups = np.repeat([f"g{place}" for place in range(len(sizes))], sizes)
    frame = table_of(len(groups), g=groups)
    split = split_table(frame, profile_of(frame), by="group", column="g", seed=seed) if len(groups) > 12 else None
    if split:
        assert not set(split.train["g"]) & set(split.test["g"])
        assert len(split.train) + len(split.test) == len(frame)


def test_groups_are_balanced_and_leave_no_class_unlearned():
    groups = np.repeat(np.arange(40), 10)
    frame = table_of(400, g=groups.astype(str)).assign(y=np.where(groups < 4, "rare", "often"))
    split = split_table(frame, profile_of(frame, kept=["g"]), by="group", column="g")
    shares = [(part["y"] == "rare").mean() for part in (split.train, split.test)]
    assert abs(shares[0] - shares[1]) < 0.03 and len(split.test) == 100
    assert "g" not in split.train, "a kept column is for the split alone"


def test_rows_without_a_group_stand_alone():
    frame = table_of(60, g=["a", "b", None] * 20)
    split = split_table(frame, profile_of(frame), by="group", column="g")
    assert "20 rows without a group" in str(split.findings)


@settings(max_examples=60, deadline=None)
@given(times=st.lists(st.integers(0, 20), min_size=2, max_size=60), test_size=st.floats(0.05, 0.5))
def test_the_cut_lies_between_two_times(times, test_size):
    place = cut_time(np.array(times), test_size)
    ordered = sorted(times)
    if len(set(times)) == 1:
        assert place == 0
    else:
        assert 0 < place < len(times) and ordered[place - 1] < ordered[place]


def test_by_time():
    when = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.random.default_rng(0).permutation(100), unit="D")
    frame = table_of(100, when=when)
    frame.loc[:4, "when"] = pd.NaT
    split = split_table(frame, profile_of(frame), by="time", test_size=0.2)
    assert split.train["when"].max() < split.test["when"].min()
    assert split.summary["rows"] == {"train": 76, "test": 19, "left out": 5}
    assert split.summary["column"] == "when" and "5 rows without a time" in str(split.findings)
    years = table_of(100, year=np.repeat([2020, 2021, 2022, 2023], 25))
    split = split_table(years, profile_of(years), by="time", column="year", test_size=0.25)
    assert set(split.test["year"]) == {2023}


def test_equal_rows_in_both_parts_are_counted():
    frame = table_of(100, g=list("abcdefg" * 15)[:100])
    frame.loc[50:, ["a", "b", "y"]] = frame.loc[:49, ["a", "b", "y"]].to_numpy()
    split = split_table(frame, profile_of(frame, kept=["g"]), by="group", column="g")
    assert split.summary["rows_in_both"] > 0 and "of the test part" in str(split.findings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "group"}, "needs the column that names the groups"),
        ({"by": "time"}, "there is no column of dates|There is no column of dates"),
        ({"by": "group", "column": "bb"}, "Did you mean 'b'"),
        ({"by": "group", "column": "y"}, "is the target"),
        ({"by": "group", "column": "left"}, "ingest.keep=left"),
        ({"by": "time", "column": "b"}, "neither dates nor numbers"),
        ({"by": "time", "column": "same"}, "the same in every row"),
        ({"by": "group", "column": "same"}, "the same in every row"),
    ],
)
def test_columns_that_do_not_fit(options, message):
    frame = table_of(40, same=[1] * 40)
    profile = profile_of(frame)
    profile["columns"]["left"] = {"kind": "id", "reason": "words that only name the rows"}
    with pytest.raises(UsageError, match=message) as caught:
        split_table(frame, profile, **options)
    assert caught.value.hint


def test_two_columns_of_dates_must_be_told_apart():
    days = pd.date_range("2024-01-01", periods=40)
    frame = table_of(40, sent=days, paid=days[::-1])
    with pytest.raises(UsageError, match="2 columns of dates"):
        split_table(frame, profile_of(frame), by="time")


def test_parts_that_are_of_no_use_are_refused():
    frame = table_of(40, t=range(40)).assign(y=["no"] * 30 + ["yes"] * 10)
    with pytest.raises(Refused, match="The train part would have 30 rows and 1 different value"):
        split_table(frame, profile_of(frame), by="time", column="t", test_size=0.25)
    frame = table_of(40, t=range(40)).assign(y=["a", "b"] * 15 + ["a", "c"] * 5)
    split = split_table(frame, profile_of(frame), by="time", column="t")
    assert "'c' of 'y' occurs in the test part only" in str(split.findings)


def test_a_column_that_is_not_looked_at_is_said():
    frame = table_of(40)
    assert "does not look at 'b'" in str(split_table(frame, profile_of(frame), column="b").findings)
