"""Mitigation: what it gains, what it refuses, and that the model which comes out is an ordinary one."""

import builtins

import numpy as np
import pandas as pd
import pytest
from model_support import learn

from mlops_nb.core.errors import Refused, UsageError
from mlops_nb.model.artifact import Model
from mlops_nb.model.evaluation import evaluate
from mlops_nb.model.fairness import assess_fairness
from mlops_nb.model.mitigation import fair_weights, mitigate, threshold_optimizer, vote
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.schema import describe_inputs
from mlops_nb.model.scores import predict_rows
from mlops_nb.model.trade_off import trade_off

KINDS = {"merit": "number", "hobby": "number", "school": "category"}


def applicants(rows: int = 600, seed: int = 0) -> pd.DataFrame:
    """Hired by merit and by sex, which a hobby gives away."""
    random = np.random.default_rng(seed)
    woman = random.random(rows) < 0.45
    table = pd.DataFrame({"merit": random.normal(0, 1, rows), "hobby": random.normal(0, 1, rows) + 2 * woman})
    table["school"] = pd.Series(random.choice(["north", "south"], rows), dtype="str")
    likely = 1 / (1 + np.exp(-(1.5 * table["merit"] + np.where(woman, -1.2, 1.2))))
    table["hired"] = pd.Series(np.where(random.random(rows) < likely, "yes", "no"), dtype="str")
    return table.assign(sex=pd.Series(np.where(woman, "f", "m"), dtype="str"))


@pytest.fixture(scope="module")
def hiring():
    """A model of applicants, its training rows, the same with the sex, and test rows."""
    table, other = applicants(), applicants(2000, seed=1)
    train = table[[*KINDS, "hired"]]
    schema = describe_inputs(train, KINDS, "hired", "binary", "yes")
    return Model(learn(train, "hired", "binary", "logistic", KINDS), train.head(), schema), train, table, other


def unfairness(model: Model, rows: pd.DataFrame) -> float:
    """Demographic parity difference of the sexes."""
    found = predict_rows(model.estimator, rows[[*KINDS, "hired"]], "hired", "binary", "yes")
    return assess_fairness(found, rows, ["sex"]).gap("demographic_parity_difference", "sex").value


@pytest.mark.parametrize(("method", "strength"), [("reweighing", 1.0), ("exponentiated_gradient", 0.02)])
def test_a_mitigated_model_is_fairer_on_new_rows_and_is_packaged_and_read_back(hiring, method, strength, tmp_path):
    model, train, people, other = hiring
    fair = mitigate(model, train, people, ["sex"], method, strength, "demographic_parity")
    assert unfairness(fair, other) < unfairness(model, other) / 2
    evaluation = evaluate(fair, train, other[[*KINDS, "hired"]])
    assert evaluation.metrics["accuracy"] > evaluation.baseline["accuracy"] + 0.05
    package = ModelPackage(fair, "hiring", evaluation.metrics, train)
    package.write(tmp_path / "model.zip")
    again = ModelPackage.read(tmp_path / "model.zip").load_model()
    rows = other[list(KINDS)].head(50)
    assert np.array_equal(again.predict_proba(rows), fair.predict_proba(rows))
    assert set(again.predict(rows)) == {"no", "yes"} and "sex" not in again.schema.names


def test_a_trade_off_begins_with_the_model_as_it_is(hiring):
    model, train, people, _ = hiring
    found = trade_off(model, train, people, ["sex"], "equal_opportunity", methods=["reweighing"])
    assert [point.name for point in found.points] == ["none", "reweighing 0.5", "reweighing 1"]
    assert all(low <= value <= high for value, low, high in (point.accuracy for point in found.points))
    assert found.document()["points"][0]["method"] == "none" and "cannot be packaged" in repr(found)
    again = trade_off(model, train, people, ["sex"], "equal_opportunity", methods=["reweighing"])
    assert again.document() == found.document()


def test_the_threshold_optimizer_shows_what_could_be_had_and_the_plot_shows_both(hiring):
    model, train, people, _ = hiring
    found = trade_off(model, train, people, ["sex"], "demographic_parity", methods=["threshold_optimizer"])
    before, after = found.points
    assert (before.name, after.name) == ("none", "threshold optimizer")
    assert before.gap.low > 0.2 and after.gap.value < before.gap.value / 3
    assert before.accuracy[0] - 0.3 < after.accuracy[0] < before.accuracy[0], "it costs accuracy"
    assert found.words == "Shown to be less unfair: threshold optimizer."
    [axis] = found.plot().axes
    assert axis.get_legend_handles_labels()[1] == ["none", "threshold optimizer"]
    assert axis.get_xlabel() == "demographic parity difference by sex (0 is alike)" and axis.get_ylabel() == "accuracy"
    drawn = [tuple(bars.lines[0].get_xydata()[0]) for bars in axis.containers]
    assert drawn == [(point.gap.value, point.accuracy[0]) for point in found.points]
    spans = [sorted(bars.lines[2][0].get_segments()[0][:, 0]) for bars in axis.containers]
    assert np.allclose(spans, [(point.gap.low, point.gap.high) for point in found.points])


def test_the_threshold_optimizer_of_fairlearn_decides_for_groups(hiring):
    model, train, people, other = hiring
    codes = (people["sex"] == "m").to_numpy().astype(int)
    optimizer = threshold_optimizer(model, train, codes, "demographic_parity")
    groups = (other["sex"] == "m").to_numpy().astype(int)
    said = optimizer.predict(other[list(KINDS)], sensitive_features=groups, random_state=0)
    shares = [said[groups == group].mean() for group in (0, 1)]
    assert abs(shares[0] - shares[1]) < unfairness(model, other) / 3


def test_weights_make_group_and_class_independent():
    random = np.random.default_rng(0)
    groups, classes = random.integers(0, 3, 500), random.integers(0, 4, 500)
    weights = fair_weights(groups, classes)
    table = np.zeros((3, 4))
    np.add.at(table, (groups, classes), weights)
    assert np.allclose(table, np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum())
    assert np.allclose(fair_weights(groups, classes, 0.0), 1)


def test_a_vote_is_the_weighted_mean_of_its_members(hiring):
    model, train, _, other = hiring
    second = learn(train, "hired", "binary", "logistic", KINDS, regularisation=100.0)
    together = vote([model.estimator, second], [0.25, 0.75], ["no", "yes"])
    rows = other[list(KINDS)].head(20)
    expected = 0.25 * model.estimator.predict_proba(rows) + 0.75 * second.predict_proba(rows)
    assert np.allclose(together.predict_proba(rows), expected)


def test_what_cannot_be_mitigated_is_refused(hiring):
    model, train, people, _ = hiring
    with pytest.raises(UsageError, match="cannot be packaged"):
        mitigate(model, train, people, ["sex"], "threshold_optimizer")
    with pytest.raises(UsageError, match="no method 'reweighting'") as caught:
        mitigate(model, train, people, ["sex"], "reweighting")
    assert "Did you mean 'reweighing'?" in str(caught.value)
    with pytest.raises(UsageError, match="no column 'sexx'"):
        mitigate(model, train, people, ["sexx"])
    with pytest.raises(UsageError, match="no criterion 'parity'"):
        mitigate(model, train, people, ["sex"], criterion="parity")  # type: ignore[arg-type]
    with pytest.raises(Refused, match="one value in all 600 training rows"):
        mitigate(model, train, people.assign(country="here"), ["country"])


def test_ensembles_numbers_and_many_classes(hiring):
    model, train, people, _ = hiring
    voting = Model(learn(train, "hired", "binary", "voting", KINDS), None, model.schema)
    with pytest.raises(UsageError, match="does not pass weights"):
        mitigate(voting, train, people, ["sex"])
    many = train.assign(hired=np.where(train["merit"] > 1, "top", train["hired"]))
    schema = describe_inputs(many, KINDS, "hired", "multiclass")
    model = Model(learn(many, "hired", "multiclass", "logistic", KINDS), None, schema)
    assert mitigate(model, many, people, ["sex"]).predict(many.head()).shape == (5,)
    with pytest.raises(UsageError, match="Only reweighing knows 3 classes"):
        mitigate(model, many, people, ["sex"], "exponentiated_gradient", 0.02)


def test_without_fairlearn_reweighing_works_and_the_rest_says_what_to_install(hiring, monkeypatch):
    model, train, people, _ = hiring
    plain = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("fairlearn"):
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert mitigate(model, train, people, ["sex"]).predict(train.head()).shape == (5,)
    with pytest.raises(UsageError, match="fairlearn, which is not installed") as caught:
        mitigate(model, train, people, ["sex"], "exponentiated_gradient", 0.02)
    assert "mlops-nb[fairness]" in str(caught.value)
