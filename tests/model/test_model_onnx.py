"""Every model that `fit` makes converts to ONNX and answers there as it does here; what does not is not shipped."""

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, learn, model_of, people

from mlops_nb.model import onnx_trees
from mlops_nb.model.artifact import Model
from mlops_nb.model.onnx import OnnxModel, to_onnx
from mlops_nb.model.onnx_parity import differences, export_onnx
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.schema import describe_inputs

SETTINGS = {"trees": 6, "max_iter": 15}


def strangers(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with unknown, missing and extreme values among them."""
    changed = rows.copy()
    changed.loc[0, ["plan", "zip"]] = ["never seen", "9999"]
    changed.loc[1, ["plan", "zip"]] = [None, None]
    changed.loc[2, "since"] = pd.NaT
    changed.loc[3, "since"] = pd.Timestamp("1965-02-28T23:59:59")
    changed.loc[4, "income"] = np.inf
    changed.loc[5, ["income", "plan"]] = [1e300, ""]
    return changed


def apart(model: Model, rows: pd.DataFrame):
    assert model.schema is not None
    return differences(model.estimator, OnnxModel(to_onnx(model.estimator, model.schema), model.schema), rows)


@pytest.mark.parametrize("model", ["logistic", "forest", "boosting", "voting", "stacking"])
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_have_the_same_probabilities_and_no_decision_flips(model, classes):
    table = people(classes=classes)
    task = "binary" if classes == 2 else "multiclass"
    fitted = model_of(table[:400], "group", task, model, clip=0.02 if classes == 2 else 0.0, **SETTINGS)
    found = apart(fitted, strangers(table[400:].reset_index(drop=True))[list(KINDS)])
    assert found.largest < 1e-6 and found.flips == 0 and found.rows == 200


@pytest.mark.parametrize("model", ["linear", "forest", "boosting", "voting", "stacking"])
def test_numbers_are_the_same(model):
    table = people()
    fitted = model_of(table[:400], "spent", "regression", model, combine=["age", "income"], **SETTINGS)
    rows = strangers(table[400:].reset_index(drop=True)).drop(index=[4, 5])[list(KINDS)]
    assert apart(fitted, rows).largest < 1e-5


@pytest.mark.parametrize("model", ["forest", "boosting"])
def test_records_that_lie_on_a_threshold_go_the_same_way(model):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"x": random.integers(0, 12, 600) / 10, "z": random.integers(0, 12, 600) / 3})
    odd = (10 * table["x"].round(1)).astype(int) % 2 + (table["z"] > 2) + random.normal(0, 0.4, 600)
    table["group"] = np.where(odd > 1, "b", "a")
    kinds = {"x": "number", "z": "number"}
    fitted = model_of(table[:300], "group", "binary", model, kinds, **SETTINGS)
    near = pd.concat([table, table.assign(x=np.nextafter(table["x"], 2))], ignore_index=True)
    found = apart(fitted, near[list(kinds)])
    assert found.largest < 1e-9 and found.flips == 0


def test_columns_computed_by_code_of_the_project_are_a_reason_and_no_error():
    table = people()
    fitted = learn(table, "spent", "regression", "linear", features=own_columns, max_iter=5)
    schema = describe_inputs(table, KINDS, "spent", "regression")
    export = export_onnx(Model(fitted, table.head(3), schema), table)
    assert export.content is None and export.facts["rows"] == 0
    assert export.facts["reason"] == "OwnColumns computes columns with Python code of the project."


def own_columns(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(double=rows["age"] * 2)


def test_a_forest_too_large_for_a_file_is_not_converted(monkeypatch):
    monkeypatch.setattr(onnx_trees, "MOST_NODES", 100)
    table = people()
    export = export_onnx(model_of(table, "group", "binary", "forest", **SETTINGS), table)
    assert not export.facts["ok"] and "100 are the most that is converted" in export.facts["reason"]


def test_what_differs_is_not_shipped_and_the_numbers_say_why(monkeypatch, tmp_path):
    exact = onnx_trees.boosted_trees

    def rounded(estimator):
        return [tree._replace(threshold=tree.threshold.round(-1)) for tree in exact(estimator)]

    monkeypatch.setattr(onnx_trees, "boosted_trees", rounded)
    table = people()
    model = model_of(table[:400], "group", "binary", "boosting", **SETTINGS)
    export = export_onnx(model, table[400:], table[:400])
    assert export.content is None and not export.facts["ok"]
    assert export.facts["flips"] > 0 and f"{export.facts['flips']} of 600 decisions flip" in export.facts["reason"]
    ModelPackage(model, "people", {"roc_auc": 0.9}, table, onnx=export).write(tmp_path / "package")
    manifest = ModelPackage.read(tmp_path / "package").manifest
    assert manifest["formats"] == {"onnx": export.facts} and "model.onnx" not in manifest["files"]


def test_a_package_carries_the_converted_model_and_how_close_it_is(tmp_path):
    table = people()
    model = model_of(table[:400], "group", "binary", "boosting", **SETTINGS)
    export = export_onnx(model, table[400:], table[:400])
    ModelPackage(model, "people", {"roc_auc": 0.9}, table, onnx=export).write(tmp_path / "package")
    package = ModelPackage.read(tmp_path / "package")
    facts = package.manifest["formats"]["onnx"]
    assert facts == {"ok": True, "max_difference": 1e-9, "flips": 0, "rows": 600, "reason": None}
    again = OnnxModel(package.member("model.onnx"), package.schema)
    assert (again.predict(table) == model.predict(table[list(KINDS)])).all()
