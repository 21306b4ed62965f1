"""Rates by group: equal to Fairlearn's, with what is missing, small or alone said in words."""

import fairlearn.metrics as fl
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from sklearn.datasets import load_breast_cancer, load_diabetes

from mlops_nb.core.errors import UsageError
from mlops_nb.model.estimates import wilson
from mlops_nb.model.fairness import NONE_NAMED, assess_fairness, gaps
from mlops_nb.model.groups import MISSING, group_rows, group_table, level_codes, with_kept
from mlops_nb.model.scores import Predictions

RATES = {
    "selection_rate": fl.selection_rate,
    "true_positive_rate": fl.true_positive_rate,
    "false_positive_rate": fl.false_positive_rate,
    "true_negative_rate": fl.true_negative_rate,
    "false_negative_rate": fl.false_negative_rate,
    "accuracy": sk.accuracy_score,
    "precision": sk.precision_score,
}
AGGREGATES = [
    "demographic_parity_difference",
    "demographic_parity_ratio",
    "equal_opportunity_difference",
    "equal_opportunity_ratio",
    "equalized_odds_difference",
    "equalized_odds_ratio",
    "accuracy_score_difference",
    "accuracy_score_group_min",
    "recall_score_group_min",
    "precision_score_group_min",
]


def binary(truth: np.ndarray, risk: np.ndarray) -> Predictions:
    """Predictions of the classes no and yes."""
    words = [np.where(part, "yes", "no").astype(object) for part in (truth, risk > 0.5)]
    return Predictions("binary", *words, np.column_stack([1 - risk, risk]), ("no", "yes"), "yes")


def drawn(seed: int, rows: int = 3000) -> tuple[Predictions, pd.DataFrame]:
    """Random people of eight groups."""
    random = np.random.default_rng(seed)
    people = pd.DataFrame({"sex": random.choice(["f", "m"], rows), "race": random.choice(list("abcd"), rows)})
    risk = np.clip(random.normal(0.4 + 0.2 * (people["sex"] == "m"), 0.25), 0.01, 0.99)
    return binary(random.random(rows) < risk, risk), people


def measured() -> tuple[Predictions, pd.DataFrame]:
    """Real tumours by the sizes of two other measurements."""
    table = load_breast_cancer(as_frame=True)
    rank = table.data["mean texture"].rank(pct=True).to_numpy()
    people = pd.DataFrame({name: np.where(table.data[name] > table.data[name].median(), "large", "small")
                           for name in ("mean symmetry", "smoothness error")})  # fmt: skip
    return binary(table.target.to_numpy() == 0, rank), people


@pytest.mark.parametrize("given", [drawn(0), drawn(1), measured()], ids=["drawn", "drawn again", "tumours"])
@pytest.mark.parametrize("number", [1, 2])
def test_equal_to_fairlearn_to_the_last_digit(given, number):
    found, people = given
    columns = list(people)[:number]
    truth, said = found.is_positive.astype(int), (found.predicted == "yes").astype(int)
    frame = fl.MetricFrame(metrics=RATES, y_true=truth, y_pred=said, sensitive_features=people[columns])
    table = group_table(found, group_rows(people, columns))
    for name in RATES:
        assert table.metrics[name].value[:, 0].tolist() == frame.by_group[name].tolist(), name
    own = {gap.metric: gap.value for gap in gaps(table)}
    for name in AGGREGATES:
        assert own[name] == getattr(fl, name)(truth, said, sensitive_features=people[columns]), name
    assert own["predictive_parity_difference"] == frame.difference()["precision"], "which has no name there"
    assert own["predictive_parity_ratio"] == frame.ratio()["precision"]


def pairs_in_order(truth: np.ndarray, risk: np.ndarray) -> float:
    """The area under the curve by its meaning, counted: of pairs of a positive and a negative, those in order."""
    positive, negative = risk[truth == 1][:, None], risk[truth == 0][None, :]
    return (2 * (positive > negative).sum() + (positive == negative).sum()) / (2 * positive.size * negative.size)


@pytest.mark.parametrize("given", [drawn(0), measured()], ids=["drawn", "tumours"])
def test_the_area_by_group_is_the_share_of_pairs_in_order_and_fairlearns(given):
    """Exact where pairs are counted; scikit-learn, which Fairlearn asks, adds a rounded trapezoid for every row."""
    found, people = given
    truth, risk = found.is_positive.astype(int), found.probabilities[:, 1]
    frame = fl.MetricFrame(metrics=sk.roc_auc_score, y_true=truth, y_pred=risk, sensitive_features=people)
    table, rounding = group_table(found, group_rows(people, list(people))), len(truth) * np.finfo(float).eps
    own = table.metrics["roc_auc"].value[:, 0]
    parts = people.assign(truth=truth, risk=risk).groupby(list(people))
    exact = [pairs_in_order(part["truth"].to_numpy(), part["risk"].to_numpy()) for _, part in parts]
    assert own.tolist() == exact
    assert np.allclose(own, frame.by_group.to_numpy(), rtol=rounding, atol=0)
    least = fl.roc_auc_score_group_min(truth, risk, sensitive_features=people)
    gap = {gap.metric: gap.value for gap in gaps(table)}["roc_auc_score_group_min"]
    assert gap == min(exact) and gap == pytest.approx(least, rel=rounding)


def test_equal_to_fairlearn_for_numbers():
    """But for the last places: the same numbers are added in another order, which rounds otherwise."""
    table = load_diabetes(as_frame=True)
    random = np.random.default_rng(0)
    truth = table.target.to_numpy(np.float64)
    found = Predictions("regression", truth, truth + random.normal(5, 40, len(truth)))
    people = pd.DataFrame({"sex": np.where(table.data["sex"] > 0, "one", "other")})
    metrics = {"mae": sk.mean_absolute_error, "rmse": sk.root_mean_squared_error, "r2": sk.r2_score}
    frame = fl.MetricFrame(metrics=metrics, y_true=truth, y_pred=found.predicted, sensitive_features=people)
    report = assess_fairness(found, people, ["sex"])
    rounding = 16 * np.finfo(float).eps
    for name in metrics:
        own = report.tables[0].metrics[name].value[:, 0]
        assert np.allclose(own, frame.by_group[name].to_numpy(np.float64), rtol=rounding, atol=0), name
    mae, largest = frame.by_group["mae"], {kind: frame.group_max()[kind] for kind in ("mae", "rmse")}
    expected = {"difference": frame.difference()["mae"], "ratio": frame.ratio()["mae"], "group_max": largest["mae"]}
    for kind, value in expected.items():
        cancelled = rounding * mae.max() if kind == "difference" else 0  # of nearly equal numbers
        found = report.gap(f"mean_absolute_error_{kind}", "sex").value
        assert found == pytest.approx(value, rel=rounding, abs=cancelled), kind
    found = report.gap("root_mean_squared_error_group_max", "sex").value
    assert found == pytest.approx(largest["rmse"], rel=rounding)
    assert "mean error" in repr(report)


def test_a_group_without_positives_has_no_true_positive_rate():
    found, people = drawn(0)
    of_a = (people["race"] == "a").to_numpy()
    truth = np.where(of_a, "no", found.truth).astype(object)
    changed = Predictions("binary", truth, found.predicted, found.probabilities, found.classes, "yes")
    table = group_table(changed, group_rows(people, ["race"]))
    assert np.isnan(table.metrics["true_positive_rate"].value[0, 0])
    said = (changed.predicted == "yes").astype(int)
    arguments = ((truth == "yes").astype(int), said)
    theirs = fl.equal_opportunity_difference(*arguments, sensitive_features=people["race"])
    others = [part[~of_a] for part in arguments]
    own = {gap.metric: gap.value for gap in gaps(table)}["equal_opportunity_difference"]
    assert theirs > 0.4, "the largest rate minus 0"
    assert own == fl.equal_opportunity_difference(*others, sensitive_features=people["race"][~of_a])


def test_intervals_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.9):
        low, high = wilson(random.binomial(60, share, 4000).astype(float), np.full(4000, 60.0))
        assert 0.92 < ((low <= share) & (share <= high)).mean() < 0.985


def test_no_difference_is_shown_where_there_is_none():
    shown, covered = 0, 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        people = pd.DataFrame({"group": random.choice(list("abcdef"), 1200)})
        found = binary(random.random(1200) < 0.4, random.random(1200))
        [gap] = [gap for gap in gaps(group_table(found, group_rows(people, ["group"]))) if "parity_diff" in gap.metric
                 and "demo" in gap.metric]  # fmt: skip
        shown += gap.low > 0
        covered += gap.low <= 0 <= gap.value <= gap.high
    assert shown <= 6 and covered >= 54


def test_many_classes_are_compared_class_by_class():
    random = np.random.default_rng(0)
    names = np.array(["x", "y", "z"], dtype=object)
    truth, said = names[random.integers(0, 3, 900)], names[random.integers(0, 3, 900)]
    found = Predictions("multiclass", truth, said, np.full((900, 3), 1 / 3), ("x", "y", "z"))
    people = pd.DataFrame({"sex": random.choice(["f", "m"], 900)})
    report = assess_fairness(found, people, ["sex"])
    apart = [
        fl.demographic_parity_difference(truth == name, said == name, sensitive_features=people["sex"])
        for name in names
    ]
    assert report.gap("demographic_parity_difference", "sex").value == max(apart)
    assert {row["metric"] for row in report.records() if row["slice"] == "sex=f"} >= {"accuracy", "recall"}
    assert "class x" in repr(report)


def test_a_missing_value_is_a_group_and_said_so():
    found, people = drawn(2)
    people.loc[:99, "sex"] = None
    report = assess_fairness(found, people, ["sex"])
    assert report.tables[0].names[-1] == f"sex={MISSING}" and report.tables[0].rows[-1] == 100
    assert "sex is missing in 100 of 3,000 rows: they are a group of their own." in report.notes
    frame = people.fillna("(missing)")
    truth, said = found.is_positive.astype(int), (found.predicted == "yes").astype(int)
    expected = fl.demographic_parity_difference(truth, said, sensitive_features=frame["sex"])
    assert report.gap("demographic_parity_difference", "sex").value == expected


def test_a_column_that_is_not_there():
    found, people = drawn(0)
    with pytest.raises(UsageError, match="no column 'sexx'") as caught:
        assess_fairness(found, people, ["sexx"])
    assert "Did you mean 'sex'?" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        assess_fairness(found, people, ["religion"])
    assert "-p ingest.keep=religion" in str(caught.value)
    with pytest.raises(UsageError, match="'race' is the target"):
        assess_fairness(found, people, ["race"], target="race")


def test_a_column_with_one_value():
    found, people = drawn(0)
    report = assess_fairness(found, people.assign(country="here"), ["sex", "country"])
    [finding] = [finding for finding in report.findings if finding.column == "country"]
    assert "One value only, 'here', in all 3,000 test rows" in finding.message
    row = next(row for row in report.records() if row["slice"] == "country" and "parity_diff" in row["metric"])
    assert row["value"] is None, "a gate that asks for it does not pass unseen"
    assert [table.column for table in report.tables] == ["sex", "country"], "nothing to cross it with"


def test_a_group_of_three_rows():
    found, people = drawn(0)
    people.loc[:2, "sex"] = "x"
    report = assess_fairness(found, people, ["sex"])
    assert "Not assessed, with fewer than 30 rows: sex=x (3 rows)." in report.notes
    rows = [row for row in report.records() if row["slice"] == "sex=x"]
    assert rows and all(row["value"] is None and row["n"] == 3 for row in rows)
    assert "not assessed" in repr(report) and report.gap("demographic_parity_difference", "sex").least == "sex=f"


def test_too_few_rows_in_every_group():
    found, people = drawn(0, rows=40)
    report = assess_fairness(found, people, ["race"])
    assert any("Fewer than two groups of 30 rows" in finding.message for finding in report.findings)


def test_too_many_values():
    found, people = drawn(0)
    with pytest.raises(UsageError, match="'town' has 1,000 values"):
        assess_fairness(found, people.assign(town=[f"t{row % 1000}" for row in range(3000)]), ["town"])


def test_nothing_named():
    found, people = drawn(0)
    report = assess_fairness(found, people, [])
    assert report.records() == [] and repr(report) == NONE_NAMED and NONE_NAMED in report._repr_html_()


def test_names_are_escaped():
    found, people = drawn(0)
    people["sex"] = people["sex"].replace("f", "<b>f</b>")
    assert "<b>f" not in assess_fairness(found, people, ["sex"])._repr_html_()


def test_numbers_and_times_are_cut():
    assert level_codes(pd.Series(np.arange(100.0)))[1][0] == "[0, 24.75)"
    assert len(level_codes(pd.Series(pd.date_range("2001", periods=5000)))[1]) == 4
    assert level_codes(pd.Series([1, 2, 2, 1]))[1] == ["1", "2"]
    constant = level_codes(pd.Series([0.0] * 95 + list(range(20))))
    assert sum(np.bincount(constant[0])) == 115


def test_kept_columns_stand_beside_the_rows():
    joined = with_kept(pd.DataFrame({"a": [1, 2]}, index=[5, 6]), pd.DataFrame({"sex": ["f", "m"]}))
    assert joined.to_dict("list") == {"a": [1, 2], "sex": ["f", "m"]}


def test_rows_are_those_that_a_rate_rests_on():
    found, people = drawn(0)
    rows = {(row["metric"], row["slice"]): row["n"] for row in assess_fairness(found, people, ["sex"]).records()}
    sex, truth, alarm = people["sex"].to_numpy(), found.truth == "yes", found.predicted == "yes"
    for group in "fm":
        counted = {"true_positive_rate": truth, "false_negative_rate": truth, "false_positive_rate": ~truth}
        counted |= {"true_negative_rate": ~truth, "precision": alarm, "selection_rate": np.ones(len(sex), bool)}
        for metric, part in counted.items():
            assert rows[metric, f"sex={group}"] == (part & (sex == group)).sum(), metric
    assert rows["equal_opportunity_difference", "sex"] == truth.sum()
