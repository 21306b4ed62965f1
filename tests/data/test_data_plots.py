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


def counted(axis) -> float:
    """Rows that stand in a histogram's bars."""
    return sum(bar.get_height() for bar in axis.patches)


def test_every_row_is_in_the_histogram(draw):
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"plain": random.normal(size=1000), "far": np.append(random.normal(size=999), 1e6), "few": [0, 3, 3, 90] * 250}
    )
    frame["y"] = random.exponential(size=1000) ** 4
    profile = {"target": "y", "features": list(frame)[:-1], "columns": {name: {"kind": "number"} for name in frame}}
    figure = plot_columns(frame, profile)
    draw(figure)
    assert [counted(axis) for axis in figure.axes] == [1000] * 4
    y, plain, far, few = (axis.get_xlabel() for axis in figure.axes)
    assert plain == few == "" and "further out" in y and "5 in the last bar" in far and "first" not in far
    assert figure.axes[2].get_xlim()[1] < 10


def test_the_target_in_both_parts_is_complete(draw):
    frame = pd.DataFrame({"y": np.append(np.linspace(0, 1, 199), 1e9)})
    figure = plot_parts(frame[:100], frame[100:], {"target": "y", "task": "regression"})
    draw(figure)
    [axis] = figure.axes
    assert axis.get_xlim()[1] < 2 and "1 in the last bar lie further out" in axis.get_xlabel()
