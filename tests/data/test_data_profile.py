"""What becomes of each column, and of targets good and bad."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops_nb.core.errors import Refused, UsageError
from mlops_nb.core.hashing import canonical_json
from mlops_nb.core.serializers import Json
from mlops_nb.data.bundled import TARGETS
from mlops_nb.data.columns import Column
from mlops_nb.data.profile import ingest, left_out, profile_grid
from mlops_nb.data.reading import read_source
from mlops_nb.data.target import infer_task, positive_class, read_target

ROOT = Path(__file__).resolve().parents[2]
ROWS = 60


def customers(folder, **columns):
    """A CSV of sixty customers, with some columns of the test's own."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.integers(18, 80, ROWS),
            "plan": random.choice(["basic", "plus"], ROWS),
            **columns,
        }
    )
    if "y" not in frame:
        frame["y"] = ["no", "yes", "no"] * (ROWS // 3)
    frame.to_csv(folder / "customers.csv", index=False)
    return str(folder / "customers.csv")


def profile_of(source, **options):
    return ingest(read_source(source), **options).profile


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([f"C{row:04}" for row in range(ROWS)], "id"),
        ([f"{row:08x}-{row:04x}" for row in range(ROWS)], "id"),
        ([f"called about invoice {row}" for row in range(ROWS)], "text"),
        (list(range(1000, 1000 + ROWS)), "id"),
    ],
)
def test_what_only_names_the_row_is_left_out(tmp_path, values, kind):
    profile = profile_of(customers(tmp_path, x=values))
    assert profile["columns"]["x"]["kind"] == kind and profile["columns"]["x"]["role"] == "out"
    assert "x" not in profile["features"] and profile["columns"]["x"]["reason"]
    assert any(finding["column"] == "x" and finding["topic"] == "left out" for finding in profile["findings"])


def test_an_unnamed_index_is_left_out(tmp_path):
    path = tmp_path / "i.csv"
    pd.DataFrame({"a": np.random.default_rng(0).normal(size=30), "y": ["u", "v"] * 15}).to_csv(path)
    profile = profile_of(str(path))
    assert profile["columns"]["column_1"]["role"] == "out" and profile["features"] == ["a"]


@pytest.mark.parametrize("name", ["customer_id", "customerId", "ID", "order number", "row"])
def test_numbers_called_ids_are_left_out(name):
    values = pd.Series(np.arange(ROWS) * 37 + 5)
    assert left_out(Column(name, "integer", values))[0] == "id"


@pytest.mark.parametrize("name", ["income", "paid", "humid", "grid", "notional"])
def test_numbers_that_differ_in_every_row_stay(name):
    values = pd.Series(np.arange(ROWS) * 37 + 5)
    assert left_out(Column(name, "integer", values)) == ("integer", "")


def test_empty_and_constant_columns(tmp_path):
    one = ["x"] + [None] * (ROWS - 1)
    profile = profile_of(customers(tmp_path, fax=[None] * ROWS, country=["FR"] * ROWS, flag=one))
    assert {name: known["role"] for name, known in profile["columns"].items()} == {
        "age": "feature",
        "plan": "feature",
        "fax": "out",
        "country": "out",
        "flag": "feature",
        "y": "target",
    }


def test_many_categories_stay_and_are_said(tmp_path):
    path = tmp_path / "many.csv"
    words = [f"w{row % 5000}" for row in range(20_000)]
    pd.DataFrame({"w": words, "y": ["a", "b"] * 10_000}).to_csv(path, index=False)
    profile = profile_of(str(path))
    assert profile["columns"]["w"]["distinct"] == 5000 and profile["features"] == ["w"]
    assert len(profile["columns"]["w"]["top"]) == 20
    assert any("5,000 categories" in finding["message"] for finding in profile["findings"])


def test_rows_without_a_target_are_dropped(tmp_path):
    source = customers(tmp_path, y=["no", "yes", None] * (ROWS // 3))
    ingested = ingest(read_source(source))
    assert len(ingested.table) == 40 and ingested.table["y"].notna().all()
    assert ingested.table.index.equals(pd.RangeIndex(40))
    assert any("20 rows without a target" in finding["message"] for finding in ingested.profile["findings"])


def test_wishes(tmp_path):
    source = customers(tmp_path, code=[f"C{row:04}" for row in range(ROWS)])
    ingested = ingest(read_source(source), exclude=["plan"], keep=["code"])
    assert list(ingested.table) == ["age", "code", "y"] and ingested.profile["features"] == ["age"]
    assert ingested.profile["kept"] == ["code"] and ingested.profile["columns"]["plan"]["reason"] == "as asked for"
    for wish in ({"exclude": ["plam"]}, {"keep": ["plam"]}, {"target": "plam"}):
        with pytest.raises(UsageError, match="Did you mean 'plan'"):
            profile_of(source, **wish)
    with pytest.raises(UsageError, match="which is the target"):
        profile_of(source, keep=["y"])
    with pytest.raises(Refused, match="No column is left"):
        profile_of(source, exclude=["age", "plan"])


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b"] * 20, "binary"),
        ([0, 1] * 20, "binary"),
        ([1.5, 2.5] * 20, "binary"),
        (["a", "b", "c"] * 20, "multiclass"),
        ([0, 1, 2] * 20, "multiclass"),
        (list(range(15)) * 10, "multiclass"),
        (list(range(15)) * 9, "regression"),
        ([*list(range(15)) * 20, 16], "regression"),
        (list(range(30)) * 10, "regression"),
        ([0.5, 1.0, 1.5] * 20, "regression"),
    ],
)
def test_the_task_follows_from_the_target(values, task):
    kind = "category" if isinstance(values[0], str) else "number"
    found, reason = infer_task(Column("y", kind, pd.Series(values)))
    assert found == task and "'y'" in reason


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([None] * 10, Refused, "has no value in any row"),
        (["yes"] * 10, Refused, "has one value only, 'yes'"),
        ([3.0] * 10, Refused, "has one value only"),
        (["a", "b"] * 5 + ["c"], Refused, "1 class of the target 'y' is seen once: 'c'"),
        ([0, 1, 2] * 7 + [7], Refused, "-p ingest.task=regression"),
        ([f"w{n}" for n in range(20)], Refused, "looks like text or an id"),
        (pd.date_range("2024-01-01", periods=10), UsageError, "holds dates"),
    ],
)
def test_what_cannot_be_predicted_is_refused(values, error, message):
    series = pd.Series(values)
    kind = "date" if series.dtype.kind == "M" else "number" if series.dtype.kind in "if" else "category"
    with pytest.raises(error) as caught:
        read_target(Column("y", kind, series))
    assert message in str(caught.value) and caught.value.hint


def test_a_task_that_the_values_do_not_allow():
    words, numbers = (
        Column("y", "category", pd.Series(["a", "b", "c"] * 3)),
        Column("y", "integer", pd.Series([1, 2, 3] * 9)),
    )
    with pytest.raises(UsageError, match="needs numbers"):
        read_target(words, "regression")
    with pytest.raises(UsageError, match="needs two classes"):
        read_target(words, "binary")
    assert read_target(numbers, "regression").values.dtype == np.float64
    assert read_target(numbers, "multiclass").classes == ["1", "2", "3"]
    with pytest.raises(UsageError, match="Did you mean 'no'"):
        read_target(Column("y", "category", pd.Series(["no", "yes"] * 3)), positive="No")


@pytest.mark.parametrize(
    ("words", "positive"),
    [
        (["no", "yes", "yes"], "yes"),
        (["0", "1", "1"], "1"),
        (["1", "2", "2"], "1"),
        (["True", "False", "True"], "True"),
        (["benign", "malignant"], "malignant"),
        (["-", "+", "+"], "+"),
        (["left", "right", "right"], "left"),
        (["left", "right"], "right"),
    ],
)
def test_the_positive_class(words, positive):
    assert positive_class(pd.Series(words))[0] == positive


@pytest.mark.parametrize("name", TARGETS)
def test_built_in_data_sets(name):
    ingested = ingest(read_source(f"sklearn:{name}"))
    profile = ingested.profile
    assert profile["target"] == TARGETS[name] and len(ingested.table) == profile["rows"]
    assert profile["task"] == {"breast_cancer": "binary", "diabetes": "regression"}.get(name, "multiclass")
    assert [*profile["features"], profile["target"]] == list(ingested.table)
    canonical_json(Json(profile).value)
    assert str(profile_grid(profile)).startswith(f"Columns of {name}")


MAKE = """
import hashlib, sys
from pathlib import Path
from mlops_nb.core.hashing import hash_json
from mlops_nb.core.serializers import Json
from mlops_nb.data.bundled import TARGETS
from mlops_nb.data.checks import check_table
from mlops_nb.data.profile import ingest
from mlops_nb.data.reading import read_source
from mlops_nb.data.splitting import split_table
from mlops_nb.data.table import TableSerializer
ingested = ingest(read_source(sys.argv[1]))
split = split_table(ingested.table, ingested.profile)
findings = check_table(ingested.table, ingested.profile)
for value in (ingested.profile, findings.document(), split.summary):
    print(hash_json(Json(value).value))
for place, frame in enumerate((ingested.table, split.train, split.test)):
    path = Path(sys.argv[2], f"{place}.parquet")
    TableSerializer().write(frame, path)
    print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_two_processes_find_the_same(tmp_path):
    source = customers(
        tmp_path,
        city=["Lyon", "?", "lyon", "Bonn"] * (ROWS // 4),
        since=[f"{1 + row % 28}/{1 + row % 12}/2024" for row in range(ROWS)],
    )
    seen = set()
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "PATH": ""}
        command = [sys.executable, "-c", MAKE, source, str(tmp_path)]
        seen.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(seen) == 1 and len(seen.pop().split()) == 6


def test_a_profile_holds_no_path_and_no_time(tmp_path):
    text = json.dumps(profile_of(customers(tmp_path)))
    assert str(tmp_path) not in text and "customers.csv" in text


def test_years_have_no_thousands(tmp_path):
    path = tmp_path / "years.csv"
    path.write_text("year,y\n" + "".join(f"{2013 + n % 9},{'ab'[n % 2]}\n" for n in range(60)))
    profile = ingest(read_source(str(path)), "y").profile
    [values] = [row[-1] for row in profile_grid(profile).rows if row[0] == "year"]
    assert values.startswith("2013 to 2021")
