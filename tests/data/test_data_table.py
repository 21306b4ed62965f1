"""Tables keep their values and types, and equal tables have equal bytes in every process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.core.hashing import sha256_file
from mlops_nb.data.rows import row_hashes
from mlops_nb.data.table import Table, TableSerializer

ROOT = Path(__file__).resolve().parents[2]
SERIALIZER = TableSerializer()

MAKE = """
import sys
import numpy as np, pandas as pd
from mlops_nb.data.rows import row_hashes
from mlops_nb.data.table import TableSerializer
words = {"Lyon", "Bonn", "Oslo", "Ål", "名古屋"}
frame = pd.DataFrame({
    "city": sorted(words) * 400,
    "n": pd.array([1, None, 3, 4, 5] * 400, dtype="Int64"),
    "x": np.linspace(0, 1, 2000),
    "at": pd.Timestamp("2024-01-01") + pd.to_timedelta(range(2000), unit="h"),
    "grade": pd.Categorical(["b", "a", None, "c", "a"] * 400, categories=sorted({"a", "b", "c"})),
})
TableSerializer().write(frame, sys.argv[1])
print(int(row_hashes(frame).sum()))
"""


def test_two_processes_with_different_hash_seeds_write_the_same(tmp_path):
    seen = set()
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.parquet"
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "ARROW_NUM_THREADS": seed, "PATH": ""}
        command = [sys.executable, "-c", MAKE, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        seen.add((sha256_file(path), done.stdout))
    assert len(seen) == 1


@st.composite
def frames(draw):
    """Data frames of every type that a table keeps."""
    size = draw(st.integers(0, 20))

    def column(values, dtype):
        return pd.Series(draw(st.lists(values, min_size=size, max_size=size)), dtype=dtype)

    moments = st.datetimes(pd.Timestamp("1700-01-01"), pd.Timestamp("2200-01-01"))
    words = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    return pd.DataFrame(
        {
            "words": column(st.none() | words, "str"),
            "floats": column(st.floats() | st.none(), "float64"),
            "small": column(st.integers(-(2**31), 2**31 - 1), "int32"),
            "big": column(st.none() | st.integers(-(2**63), 2**63 - 1), "Int64"),
            "flags": column(st.booleans(), "bool"),
            "maybe": column(st.none() | st.booleans(), "boolean"),
            "moments": column(st.none() | moments, "datetime64[us]"),
            "grade": pd.Categorical(
                draw(st.lists(st.sampled_from(["a", "b", None]), min_size=size, max_size=size)), categories=["b", "a"]
            ),
        }
    )


@settings(max_examples=60, deadline=None)
@given(frame=frames())
def test_values_and_types_come_back(tmp_path_factory, frame):
    folder = tmp_path_factory.mktemp("tables")
    meta = SERIALIZER.write(frame, folder / "a.parquet")
    again = SERIALIZER.read(folder / "a.parquet", meta)
    pd.testing.assert_frame_equal(again, frame)
    SERIALIZER.write(Table(again.iloc[::-1].iloc[::-1]), folder / "b.parquet")
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
    np.testing.assert_array_equal(row_hashes(again), row_hashes(frame))


@settings(max_examples=60, deadline=None)
@given(frame=frames(), seed=st.randoms())
def test_names_of_rows_do_not_depend_on_order_or_storage(frame, seed):
    order = list(frame.columns)
    seed.shuffle(order)
    other = frame[order].astype({"small": "float64", "words": object, "grade": "str", "flags": "float64"})
    np.testing.assert_array_equal(row_hashes(other), row_hashes(frame))


def test_other_readers_find_nothing_of_the_writer(tmp_path):
    SERIALIZER.write(pd.DataFrame({"a": [1, 2]}), tmp_path / "a.parquet")
    assert pyarrow.parquet.read_metadata(tmp_path / "a.parquet").created_by == "mlops_nb"
    content = (tmp_path / "a.parquet").read_bytes()
    assert b"parquet-cpp" not in content and b"pandas" not in content and b"ARROW" not in content


def test_a_table_from_elsewhere_can_be_read(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    frame.to_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(SERIALIZER.read(tmp_path / "a.parquet"), frame)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"a": [1, "x"]}), "Column 'a' holds values of type object"),
        (pd.DataFrame({"a": [1 + 2j]}), "Column 'a' holds values of type complex"),
        (pd.DataFrame({"a": pd.to_timedelta([1], unit="s")}), "timedelta"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "Two columns are named 'a'"),
        (pd.DataFrame([[1]], columns=[0]), "has the name 0, which is no text"),
    ],
)
def test_what_cannot_be_kept_is_named(tmp_path, frame, message):
    with pytest.raises(UsageError, match=message):
        SERIALIZER.write(frame, tmp_path / "a.parquet")


def test_text_that_is_no_unicode_is_named(tmp_path):
    frame = pd.DataFrame({"a": pd.Series(["\ud800"], dtype=object)})
    with pytest.raises(UsageError, match="Column 'a'"):
        SERIALIZER.write(frame, tmp_path / "a.parquet")


def test_a_damaged_file_is_an_error_of_the_workspace(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 rubbish PAR1")
    with pytest.raises(StorageError, match=r"a\.parquet cannot be read"):
        SERIALIZER.read(tmp_path / "a.parquet")
