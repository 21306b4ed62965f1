"""Every candidate is made of parts that convert to ONNX, and answers there as it does here."""

import numpy as np
import pandas as pd
import pytest
from model_support import KINDS, learn, people

pytest.importorskip("skl2onnx")
pytest.importorskip("onnxruntime")

import onnx_converters
import onnxruntime
import skl2onnx.common._container as container
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

TYPES = {"number": FloatTensorType, "integer": FloatTensorType, "boolean": FloatTensorType}
TYPES |= {"category": StringTensorType, "date": Int64TensorType}


def plain_integers(value):
    """NumPy's truth values and integers, which boosting hands over, as Python's: protobuf takes no others."""
    if isinstance(value, list | tuple) and any(isinstance(item, np.bool_ | np.integer) for item in value):
        return [int(item) if isinstance(item, bool | np.bool_ | np.integer) else item for item in value]
    return value


@pytest.fixture(autouse=True)
def converters(monkeypatch):
    onnx_converters.register()
    make_node = container.make_node

    def make_plain_node(*arguments, **attributes):
        return make_node(*arguments, **{name: plain_integers(value) for name, value in attributes.items()})

    monkeypatch.setattr(container, "make_node", make_plain_node)


def feeds(rows: pd.DataFrame, kinds: dict[str, str]) -> dict[str, np.ndarray]:
    """The columns as ONNX takes them."""
    found = {}
    for name, kind in kinds.items():
        if kind == "category":
            values = rows[name].fillna("").to_numpy(dtype=object)
        elif kind == "date":
            values = rows[name].to_numpy(dtype="M8[us]").astype(np.int64)
        else:
            values = rows[name].to_numpy(dtype=np.float32, na_value=np.nan)
        found[name] = values.reshape(-1, 1)
    return found


def answers(pipeline, rows: pd.DataFrame, kinds: dict[str, str]) -> np.ndarray:
    """Probabilities, or numbers, from the converted model."""
    types = [(name, TYPES[kind]([None, 1])) for name, kind in kinds.items()]
    options = {id(pipeline): {"zipmap": False}} if hasattr(pipeline, "classes_") else None
    model = convert_sklearn(pipeline, initial_types=types, options=options, target_opset={"": 18, "ai.onnx.ml": 3})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, feeds(rows, kinds))[-1])


def strangers(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with unknown, missing and extreme values among them."""
    changed = rows.copy()
    changed.loc[0, ["plan", "zip"]] = ["never seen", "9999"]
    changed.loc[1, ["plan", "zip"]] = [None, None]
    changed.loc[2, "since"] = pd.NaT
    changed.loc[3, "since"] = pd.Timestamp("1965-02-28T23:59:59")
    changed.loc[4, "income"] = np.inf
    return changed


@pytest.mark.parametrize("model", ["logistic", "forest", "boosting"])
@pytest.mark.parametrize("clip", [0.0, 0.02])
def test_classes_have_the_same_probabilities_in_onnx(model, clip):
    table = people()
    pipeline = learn(table[:400], "group", "binary", model, trees=20, max_iter=60, clip=clip)
    fresh = strangers(table[400:].reset_index(drop=True))
    ours, theirs = pipeline.predict_proba(fresh[list(KINDS)]), answers(pipeline, fresh, KINDS)
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("model", ["linear", "forest", "boosting"])
def test_numbers_are_the_same_in_onnx(model):
    table = people()
    pipeline = learn(table[:400], "spent", "regression", model, trees=20, max_iter=60)
    fresh = strangers(table[400:].reset_index(drop=True))
    ours, theirs = pipeline.predict(fresh[list(KINDS)]), answers(pipeline, fresh, KINDS).ravel()
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize("model", ["logistic", "forest", "boosting"])
def test_many_classes_convert_while_every_category_has_few_levels(model):
    table, kinds = people(classes=4), {name: kind for name, kind in KINDS.items() if name != "zip"}
    pipeline = learn(table[:400], "group", "multiclass", model, kinds, trees=20, max_iter=30)
    fresh = table[400:].reset_index(drop=True)
    assert np.abs(pipeline.predict_proba(fresh[list(kinds)]) - answers(pipeline, fresh, kinds)).max() < 1e-5


def test_target_means_of_many_classes_do_not_convert_yet():
    table = people(classes=3)
    pipeline = learn(table, "group", "multiclass", "logistic")
    with pytest.raises(NotImplementedError, match="only support TargetEncoder for binary"):
        answers(pipeline, table, KINDS)
