"""Pictures of awkward tables are drawn without a warning."""

import io
import warnings

import numpy as np
import pandas as pd
import pytest

from mlops_nb.data.leakage import Score
from mlops_nb.data.plots import plot_columns, plot_parts, plot_scores


@pytest.fixture
def draw():
    """Draw a figure as a notebook would, warnings being errors."""

    def draw(figure):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.savefig(io.BytesIO(), format="png")

    return draw


def test_awkward_columns(draw):
    frame = pd.DataFrame(
        {
            "price in $ and $": [1.0, 1.0, 1.0, np.nan],
            "a name that is much longer than any axis can be": ["$x$", None, "ÄÖÜ", "y" * 60],
            "when": pd.to_datetime(["2024-01-01", None, "2024-01-01", "2024-01-01"]),
            "long ago": pd.to_datetime(["1700-01-01", "2024-01-01", "2200-01-01", None]),
            "flag": pd.array([True, None, False, True], dtype="boolean"),
            "wide": [-1e300, 0.0, 1.0, 1e300],
            "y": ["a", "b", "a", "b"],
        }
    )
    kinds = ["number", "category", "date", "date", "boolean", "number", "category"]
    columns = {name: {"kind": kind} for name, kind in zip(frame, kinds, strict=True)}
    profile = {"target": "y", "features": list(frame)[:-1], "columns": columns}
    draw(plot_columns(frame, profile))


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_scores_and_parts(draw, task):
    draw(plot_scores([Score("a" * 50, 1.0, True), Score("$b$", -0.2)], task, 0.99))
    draw(plot_scores([], task, 0.99))
    frame = pd.DataFrame({"y": ["a", "b"] * 20 if task == "binary" else np.arange(40.0)})
    draw(plot_parts(frame[:30], frame[30:], {"target": "y", "task": task, "classes": ["a", "b"]}))


def test_many_classes(draw):
    frame = pd.DataFrame({"y": [f"class {number}" for number in range(50)]})
    draw(plot_parts(frame, frame, {"target": "y", "task": "multiclass", "classes": sorted(frame["y"])}))
