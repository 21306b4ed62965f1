"""Columns that a project computes: learned from, kept with the model, computed where it answers."""

import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import PolynomialFeatures

from mlops_nb.core.errors import UsageError
from mlops_nb.model import train as training
from mlops_nb.model.artifact import Model
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.schema import describe_inputs, input_kinds

LIBRARY = """
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

def add_columns(rows):
    rows["share"] = rows["x"] / (rows["x"] + rows["z"])
    return rows.assign(corner=rows["c"] + "-" + rows["c"].str[:1], above=rows["x"] > rows["z"])

class Centre(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.mean_ = float(X["x"].mean())
        return self
    def transform(self, X):
        return X.assign(away=abs(X["x"] - self.mean_), share=X["x"] / (X["x"] + X["z"]))

def forgetful(rows):
    return rows.assign(extra=1.0) if len(rows) > 1 else rows
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "own_lib").mkdir()
    (folder / "own_lib/__init__.py").write_text("")
    (folder / "own_lib/features.py").write_text(LIBRARY)
    sys.path.insert(0, str(folder))
    import own_lib.features

    yield own_lib.features
    sys.path.remove(str(folder))


def shares(rows: int = 600) -> pd.DataFrame:
    """A target that depends on a ratio of two columns alone."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"x": random.lognormal(0, 1.5, rows), "z": random.lognormal(0, 1.5, rows)})
    table["c"] = pd.Series(random.choice(["aa", "bb"], rows), dtype="str")
    table["y"] = pd.Series(np.where(np.abs(table.x / (table.x + table.z) - 0.5) < 0.25, "yes", "no"), dtype="str")
    return table


PROFILE = {
    "task": "binary",
    "target": "y",
    "positive": "yes",
    "features": ["x", "z", "c"],
    "columns": {"x": {"kind": "number"}, "z": {"kind": "number"}, "c": {"kind": "category"}},
}


def model_with(features, table, algorithm="forest") -> Model:
    fitted = training.fit(table, PROFILE, algorithm, features=features, seed=0)
    return Model(
        fitted, example=table.head(), schema=describe_inputs(table, input_kinds(PROFILE), "y", "binary", "yes")
    )


@pytest.mark.parametrize("name", ["add_columns", "Centre"])
@pytest.mark.parametrize("algorithm", ["logistic", "forest", "boosting"])
def test_the_model_learns_the_columns_and_takes_them_along(library, tmp_path, name, algorithm):
    table = shares()
    before = table.copy()
    model = model_with(getattr(library, name), table, algorithm)
    pd.testing.assert_frame_equal(table, before)
    assert list(model.estimator.feature_names_in_) == model.schema.names == ["x", "z", "c"]
    assert training.fit_facts(model.estimator, 600)["inputs"] == 3
    meta = model.write(tmp_path / "model.skops")
    assert f"own_lib.features.{name}" in meta["types"]
    read = Model.read(tmp_path / "model.skops")
    assert read.trusted == ("own_lib",)
    fresh = shares(100)[["x", "z", "c"]]
    assert (read.predict_proba(fresh) == model.predict_proba(fresh)).all()
    again = training.refit(read.estimator, table[["x", "z", "c"]], table["y"].to_numpy(str), "binary")
    assert (again.predict_proba(fresh) == model.predict_proba(fresh)).all()


def test_a_computed_column_helps(library):
    table, test = shares(), shares(900).iloc[600:]
    with_own, without = model_with(library.Centre(), table, "boosting"), model_with(None, table, "boosting")
    right = [(model.predict(test[["x", "z", "c"]]) == test["y"]).mean() for model in (with_own, without)]
    assert right[0] > 0.97 and right[0] > right[1]


def test_a_packaged_model_answers_in_another_process(library, tmp_path):
    table = shares()
    package = ModelPackage(model_with(library.add_columns, table), "shares", {"roc_auc": 0.9}, trained_on=table)
    package.write(tmp_path / "package.zip")
    assert package.manifest["packages"] == ["own_lib"]
    code = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from mlops_nb.model.package import ModelPackage
    model = ModelPackage.read(sys.argv[2]).load_model()
    print(*model.predict(model.example))
    """
    place = str(library.__file__).rsplit("/own_lib/", 1)[0]
    line = [sys.executable, "-c", textwrap.dedent(code), place, str(tmp_path / "package.zip")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.split() == list(table["y"].head()), done.stderr


def test_what_no_server_can_find_is_refused(library):
    def inner(rows):
        return rows

    class Inner(library.Centre):
        pass

    for part in (inner, Inner, Inner(), lambda rows: rows):
        with pytest.raises(UsageError, match="no server can find it") as refused:
            model_with(part, shares(50))
        assert "nbs/lib" in refused.value.hint
    with pytest.raises(UsageError, match="neither a function nor a transformer"):
        model_with("add_columns", shares(50))


def test_what_comes_out_must_be_a_table_of_the_same_rows_and_columns(library):
    numbers = shares(50).drop(columns="c")
    profile = {**PROFILE, "features": ["x", "z"]}
    with pytest.raises(UsageError, match=r"PolynomialFeatures gave ndarray.*"):
        training.fit(numbers, profile, "forest", features=PolynomialFeatures())
    framed = training.fit(numbers, profile, "forest", features=PolynomialFeatures().set_output(transform="pandas"))
    assert framed[-1].n_features_in_ == 6
    model = model_with(library.forgetful, shares(50))
    with pytest.raises(UsageError, match="forgetful gave no column 'extra'"):
        model.predict(shares(1)[["x", "z", "c"]])
