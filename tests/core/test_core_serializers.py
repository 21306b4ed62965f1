"""Serializers are deterministic, and say no to what they cannot keep."""

import datetime
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st

from mlops_nb.core.errors import UsageError
from mlops_nb.core.serializers import (
    Figure,
    File,
    Json,
    Metrics,
    Report,
    register_serializer,
    serializer_for,
    serializers,
    type_of,
)

PROGRAM = """
import hashlib, sys
from pathlib import Path
import numpy as np
from matplotlib.figure import Figure as Canvas
from mlops_nb.core.serializers import Figure, File, Json, Metrics, Report, serializer_for

def drawing():
    canvas = Canvas(figsize=(4, 3))
    axes = canvas.subplots(1, 2)
    axes[0].plot([1, 3, 2], label="a"); axes[0].legend(); axes[0].set_title("title")
    axes[1].imshow(np.arange(9).reshape(3, 3)); axes[1].fill_between([0, 1], [0, 1])
    return canvas

(folder := Path(sys.argv[1])).mkdir(exist_ok=True)
source = folder / "codes.bin"
source.write_bytes(bytes(range(256)))
values = [
    Metrics({name: 1 / 3 for name in {"auc", "f1", "log_loss", "brier"}}),
    Json({name: [name] for name in {"a", "b", "c", "d", "e"}}),
    Figure(drawing()), Figure(drawing(), format="png"), drawing(), Report("<h1>x</h1>"), File(source),
]
for value in values:
    name, serializer = serializer_for(value)
    serializer.write(value, folder / "out")
    print(name, hashlib.sha256((folder / "out").read_bytes()).hexdigest())
"""


def test_same_bytes_in_two_processes_with_different_hash_seeds(tmp_path, start_python, finish):
    processes = [start_python(PROGRAM, tmp_path / seed, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    first, second = finish(*processes)
    assert first == second
    assert [line.split()[0] for line in first.splitlines()].count("Figure") == 3


def round_trip(value, folder):
    _, serializer = serializer_for(value)
    meta = json.loads(json.dumps(serializer.write(value, folder / "value")))
    return serializer.read(folder / "value", meta)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(value=plain)
@options(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_comes_back(tmp_path, value):
    assert round_trip(Json(value), tmp_path) == value


@given(values=st.dictionaries(st.text(min_size=1).filter(str.strip), st.floats(allow_nan=False, allow_infinity=False)))
@options(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_metrics_come_back(tmp_path, values):
    assert round_trip(Metrics(values), tmp_path) == values


def test_types_are_told_from_values(tmp_path):
    from matplotlib.figure import Figure as Canvas

    assert type_of({"a": 1}) == "Json"
    assert type_of(None) == "Json"
    assert type_of(Metrics()) == "Metrics"
    assert type_of(tmp_path) == "File"
    canvas = Canvas()
    assert type_of(canvas) == "Figure"
    assert type_of(canvas.subplots()) == "Figure"
    with pytest.raises(UsageError, match="no artifact") as caught:
        type_of(object())
    assert "Figure, File, Json, Metrics" in caught.value.hint


def test_numpy_dates_and_tuples_become_plain():
    value = {"a": np.float64(0.5), "b": np.arange(3), "c": (np.int32(1), np.True_), "d": datetime.date(2026, 11, 23)}
    assert Json(value).value == {"a": 0.5, "b": [0, 1, 2], "c": [1, True], "d": "2026-11-23"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [0.1, float("nan")]}, r"a\[1\] is nan"),
        ({"a": np.array([np.inf])}, r"a\[0\] is inf"),
        ({1: 2}, "has the key 1"),
        ({"a": object()}, "a is a object"),
    ],
)
def test_json_refuses_with_the_place(value, words):
    with pytest.raises(UsageError, match=words):
        Json(value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"auc": float("nan")}, "Metric 'auc' is nan"),
        ({"auc": np.float32("inf")}, "Metric 'auc' is inf"),
        ({"auc": None}, "Metric 'auc' is a NoneType"),
        ({"auc": [0.1]}, "Metric 'auc' is a list"),
        ({"auc": np.array([0.1, 0.2])}, "Metric 'auc' is a ndarray"),
        ({"": 0.1}, "A metric is named ''"),
        ({3: 0.1}, "A metric is named 3"),
    ],
)
def test_metrics_refuse_with_the_name(values, words):
    with pytest.raises(UsageError, match=words):
        Metrics(values)


def test_metrics_take_numpy_numbers_and_check_again_when_written(tmp_path):
    metrics = Metrics({"auc": np.float32(0.5), "rows": np.int64(3), "ok": True}, f1=0.25)
    assert metrics == {"auc": 0.5, "rows": 3, "ok": 1, "f1": 0.25}
    assert all(type(value) in (int, float) for value in metrics.values())
    metrics["auc"] = float("nan")
    with pytest.raises(UsageError, match="'auc' is nan"):
        round_trip(metrics, tmp_path)


def test_reprs_are_escaped_and_small():
    many = Metrics({f"<i>{number}": number for number in range(1000)})
    assert "<i>" not in many._repr_html_() and "&lt;i&gt;0" in many._repr_html_()
    assert len(many._repr_html_()) < 50_000 and "50 of 1000" in many._repr_html_()
    assert "accuracy  0.956" in repr(Metrics({"accuracy": 0.956}))


def test_stored_files_show_themselves_when_small(tmp_path):
    report = round_trip(Report("<script>alert(1)</script>"), tmp_path)
    assert "<script>" not in report._repr_html_() and "sandbox" in report._repr_html_()
    assert report.path.read_text() == "<script>alert(1)</script>"
    large = round_trip(Report("x" * 60_000), tmp_path)
    assert len(large._repr_html_()) < 500 and "60,000 bytes" in repr(large)


def test_figures_come_back_as_pictures(tmp_path):
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(2, 1))
    canvas.subplots().plot([1, 2])
    assert "data:image/svg+xml;base64," in round_trip(canvas, tmp_path)._repr_html_()
    assert "data:image/png;base64," in round_trip(Figure(canvas, format="png"), tmp_path)._repr_html_()
    assert Figure(canvas)._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="no format 'gif'"):
        Figure(canvas, format="gif")
    with pytest.raises(UsageError, match="a int is no matplotlib figure"):
        Figure(3)


def test_reports_take_objects_with_html():
    assert Report(Metrics({"auc": 0.5})).html.startswith("<table")
    with pytest.raises(UsageError, match="a int has no HTML"):
        Report(3)


def test_folders_are_no_files(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        File(tmp_path)


def test_a_users_type_can_be_registered(tmp_path):
    class Codes(list):
        pass

    class CodesSerializer:
        suffix, media = ".codes", "text/plain"

        def write(self, value, path):
            path.write_text(",".join(value))
            return {"count": len(value)}

        def read(self, path, meta):
            return Codes(path.read_text().split(","))

    register_serializer("Codes", CodesSerializer(), (Codes,))
    try:
        assert type_of(Codes("ab")) == "Codes"
        assert type_of(["a"]) == "Json"
        assert round_trip(Codes("ab"), tmp_path) == ["a", "b"]
    finally:
        serializers._targets.pop("Codes")
