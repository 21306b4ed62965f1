"""Each kind of trouble is found where it is, and not where it is not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mlops_nb.core.errors import Refused
from mlops_nb.data.checks import Rules, check_table
from mlops_nb.data.columns import Column
from mlops_nb.data.findings import Findings
from mlops_nb.data.leakage import column_scores, is_copy, ranks, roc_area
from mlops_nb.data.profile import ingest
from mlops_nb.data.reading import Loaded

SIZE = 600
KINDS = {"i": "integer", "f": "number", "M": "date", "b": "boolean"}


def ingested(frame):
    columns = [Column(name, KINDS.get(values.dtype.kind, "category"), values) for name, values in frame.items()]
    return ingest(Loaded("made up", columns, {}, Findings(), str(frame.columns[-1])))


def checked(frame, **rules):
    made = ingested(frame)
    return check_table(made.table, made.profile, Rules(**rules))


def found(findings, topic):
    return {finding.column: finding.level for finding in findings if finding.topic == topic}


@pytest.fixture
def honest():
    """A table with nothing wrong."""
    random = np.random.default_rng(1)
    age = random.normal(50, 10, SIZE)
    return pd.DataFrame(
        {
            "age": age,
            "city": random.choice(["Lyon", "Bonn", "Oslo"], SIZE),
            "y": np.where(age + random.normal(0, 10, SIZE) > 50, "yes", "no"),
        }
    )


def test_nothing_is_found_where_nothing_is(honest):
    assert {finding.topic for finding in checked(honest)} <= {"class balance"}
    assert checked(honest).at("warning") == checked(honest).at("violation") == []


def test_missing_values(honest):
    honest.loc[honest.index[:400], "city"] = np.nan
    honest.loc[honest.index[:30], "age"] = np.nan
    findings = checked(honest)
    assert found(findings, "missing values") == {"city": "warning", None: "info"}
    assert found(checked(honest, max_missing=0.5), "missing values") == {"city": "violation", None: "info"}
    with pytest.raises(Refused, match=r"city: 400 of 600 \(66.7 %\)"):
        checked(honest, max_missing=0.5).refuse("Leave it out.")


def test_repeated_and_contradictory_rows(honest):
    twice = pd.concat([honest, honest.iloc[:60]], ignore_index=True)
    assert found(checked(twice), "duplicates") == {None: "warning"}
    assert found(checked(twice, max_duplicates=0.05), "duplicates") == {None: "violation"}
    other = honest.iloc[:30].assign(y=honest["y"].iloc[:30].map({"yes": "no", "no": "yes"}))
    findings = checked(pd.concat([honest, other], ignore_index=True))
    assert found(findings, "contradictions") == {None: "warning"}


def test_numbers_far_out_and_codes(honest):
    honest.loc[3, "age"] = 1e6
    assert found(checked(honest), "range") == {"age": "warning"}
    honest.insert(0, "height", np.random.default_rng(2).normal(170, 8, SIZE))
    honest.loc[:5, "height"] = 0.0
    messages = [finding.message for finding in checked(honest) if finding.column == "height"]
    assert any("6 rows have exactly 0" in message for message in messages)


def test_rare_classes_and_categories(honest):
    honest.loc[:590, "y"] = "no"
    honest.loc[591:, "y"] = "yes"
    assert found(checked(honest), "class balance") == {"y": "warning"}
    honest["city"] = honest["city"].where(honest.index % 2 == 0, honest["city"].str.upper())
    assert found(checked(honest), "categories") == {"city": "warning"}


def test_nearly_constant(honest):
    honest.insert(0, "flag", np.where(honest.index < 2, 1.0, 0.0))
    assert found(checked(honest), "nearly constant") == {"flag": "info"}


def test_a_target_that_changes_along_time(honest):
    honest = honest.sort_values("y", ignore_index=True)
    assert found(checked(honest), "drift") == {"y": "info"}
    dated = honest.assign(at=pd.Timestamp("2024-01-01") + pd.to_timedelta(range(SIZE), unit="h"))[
        ["age", "city", "at", "y"]
    ]
    assert found(checked(dated), "drift") == {"y": "warning"}
    shuffled = dated.assign(at=dated["at"].sample(frac=1, random_state=0).to_numpy())
    assert found(checked(shuffled), "drift") == {}
    dated.loc[0, "at"] = pd.Timestamp("1066-10-14")
    assert found(checked(dated), "dates") == {"at": "warning"}


def test_columns_that_know_too_much(honest):
    honest.insert(0, "gone", honest["y"].map({"yes": 1, "no": 0}))
    honest.insert(0, "score", np.where(honest["y"] == "yes", 1, -1) * np.random.default_rng(3).uniform(1, 2, SIZE))
    findings = checked(honest)
    assert found(findings, "leakage") == {"gone": "warning", "score": "warning"}
    assert found(checked(honest, leakage="refuse"), "leakage") == {"gone": "violation", "score": "violation"}
    assert "in other words" in next(finding.message for finding in findings if finding.column == "gone")


def test_leakage_in_a_regression():
    random = np.random.default_rng(4)
    size = random.lognormal(3, 1, SIZE)
    frame = pd.DataFrame(
        {"copy": size * 1.19, "near": size + random.normal(0, 0.01, SIZE), "noise": random.normal(size=SIZE), "y": size}
    )
    assert set(found(checked(frame), "leakage")) == {"copy", "near"}
    scores = {score.column: score.value for score in column_scores(frame, "y", "regression")}
    assert scores["noise"] < 0.1


def test_a_shuffled_target_is_predicted_by_nothing():
    random = np.random.default_rng(5)
    frame = pd.DataFrame({f"x{place}": random.normal(size=3000) for place in range(5)})
    frame["shop"] = random.integers(0, 1000, 3000).astype(str)
    frame["y"] = random.choice(["a", "b", "c"], 3000)
    for score in column_scores(frame, "y", "multiclass"):
        assert 0.45 < score.value < 0.55 and not score.copy


def test_schema(honest):
    made = ingested(honest.assign(code=range(SIZE))[["code", "age", "city", "y"]])
    findings = check_table(made.table, made.profile, Rules(required=("email", "code"), min_rows=1000))
    assert found(findings, "schema") == {"email": "violation", "code": "violation", None: "violation"}
    assert "was left out" in str(findings)
    findings = check_table(made.table.drop(columns="city").assign(age="old"), made.profile)
    assert found(findings, "schema") == {"age": "violation", "city": "violation"}


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40).filter(
        lambda pairs: len({side for _, side in pairs}) == 2
    )
)
def test_the_area_is_that_of_scikit_learn(pairs):
    scores, sides = (np.array(values) for values in zip(*pairs, strict=True))
    assert roc_area(scores.astype(float), sides) == pytest.approx(roc_auc_score(sides, scores))
    np.testing.assert_allclose(ranks(scores), pd.Series(scores).rank().to_numpy())


def test_a_copy_is_one_to_one():
    words = pd.Series(["a", "b", "c"] * 50)
    assert is_copy(words.map({"a": 1, "b": 2, "c": 3}), words)
    assert not is_copy(words.map({"a": 1, "b": 1, "c": 3}), words)
    assert not is_copy(pd.Series(range(150)), words)


def test_one_row_that_contradicts_is_told_in_good_words():
    table = pd.DataFrame({"a": [*range(3000), 2999], "y": ["no", "yes"] * 1500 + ["no"]})
    columns = {"a": {"kind": "integer"}, "y": {"kind": "category"}}
    profile = {"target": "y", "task": "binary", "positive": "yes", "features": ["a"], "columns": columns}
    [told] = [finding.message for finding in check_table(table, profile) if finding.topic == "contradictions"]
    assert told.startswith("1 row has the features of others") and "3,000 of 3,001 (> 99.9 %) right" in told


def test_numbers_of_a_drift_are_written_out():
    table = pd.DataFrame({"a": np.zeros(1000), "y": np.linspace(1000, 9000, 1000)})
    columns = {"a": {"kind": "number"}, "y": {"kind": "number"}}
    profile = {"target": "y", "task": "regression", "positive": None, "features": ["a"], "columns": columns}
    [told] = [finding.message for finding in check_table(table, profile) if finding.topic == "drift"]
    assert "is 1,797; 3,398; 5,000; 6,602; 8,203:" in told
