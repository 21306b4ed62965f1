"""Numbers and dates are what they were before somebody wrote them down."""

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlops_nb.data.columns import type_columns
from mlops_nb.data.dates import read_dates
from mlops_nb.data.findings import Findings
from mlops_nb.data.numbers import best_style, demanded_decimal, number_styles, read_numbers

WRITERS = {
    "point": lambda value: f"{value}",
    "point, grouped": lambda value: f"{value:,}",
    "comma": lambda value: f"{value}".replace(".", ","),
    "comma, grouped": lambda value: f"{value:,}".translate(str.maketrans(",.", ".,")),
    "comma, blanks": lambda value: f"{value:,}".replace(",", "\u202f").replace(".", ","),
    "euro": lambda value: f"{value} €",
}
FORMATS = {
    "%Y-%m-%d": "",
    "%d.%m.%Y": "day",
    "%m/%d/%Y": "month",
    "%d/%m/%Y": "day",
    "%d %b %Y": "",
    "%B %d, %Y": "",
    "%Y-%m-%dT%H:%M:%SZ": "",
    "%d/%m/%Y %I:%M %p": "day",
    "%Y/%m/%d %H:%M": "",
    "%d-%b-%y": "",
}


def ones(words):
    return np.ones(len(words), dtype=int)


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.integers(-(10**7), 10**7).map(lambda value: value / 100), min_size=1, max_size=30, unique=True),
    writer=st.sampled_from(list(WRITERS)),
)
def test_numbers_come_back(values, writer):
    assume(any(abs(value) >= 1000 for value in values))
    values = [*values, 1234.25, 0.5]
    words = pa.array([WRITERS[writer](value) for value in dict.fromkeys(values)])
    styles = number_styles(words, ones(words))
    assert demanded_decimal(styles) == ("," if writer.startswith("comma") else ".")
    numbers = read_numbers(words, best_style(styles))
    assert numbers.values.tolist() == list(dict.fromkeys(values))
    assert not numbers.failed.any() and not numbers.whole


@settings(max_examples=80, deadline=None)
@given(
    moments=st.lists(
        st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2068, 12, 31)),
        min_size=1,
        max_size=20,
        unique=True,
    ),
    format=st.sampled_from(list(FORMATS)),
)
def test_dates_come_back(moments, format):
    moments = [*moments, datetime.datetime(2024, 2, 29, 23, 59)]
    texts = list(dict.fromkeys(moment.strftime(format) for moment in moments))
    wanted = [datetime.datetime.strptime(text, format) for text in texts]
    dates = read_dates(pa.array(texts), ones(texts))
    assert dates is not None and dates.values.tolist() == wanted
    assert dates.order == FORMATS[format] and not dates.doubts


def test_zones_are_brought_to_utc():
    texts = ["2024-06-01 12:00+02:00", "2024-06-01T10:00Z", "2024-06-01 05:30 -0430", "2024-06-01 10:00"]
    dates = read_dates(pa.array(texts), ones(texts))
    assert dates is not None and len(set(dates.values.tolist())) == 1


@pytest.mark.parametrize(
    "text", ["2024-02-30", "31/04/2024", "2024-13-01", "2024-01-01 25:00", "1/2", "12:30", "a 1, 2024x"]
)
def test_what_is_no_date(text):
    assert read_dates(pa.array([text]), ones([text])) is None


def test_a_few_wrong_dates_become_missing():
    texts = [f"{day:02}/03/2024" for day in range(1, 31)] + ["30/02/2024"]
    findings = Findings()
    [column] = type_columns({"when": pa.array(texts)}, findings)
    assert column.kind == "date" and column.values.isna().sum() == 1
    assert "30/02/2024" in str(findings)


def test_a_column_of_nothing_is_empty():
    [column] = type_columns({"x": pa.array(["", "?", None, "NA"])})
    assert column.kind == "empty" and column.values.isna().all()


def test_blanks_around_values_do_not_count():
    [column] = type_columns({"x": pa.array([" yes", "yes ", "no"])})
    assert column.values.tolist() == ["yes", "yes", "no"]


def test_plus_and_minus_are_classes():
    [column] = type_columns({"x": pa.array(["+", "-", "+"])})
    assert column.values.tolist() == ["+", "-", "+"]


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.text(alphabet="0123456789.,-/: aTZ%?ex", max_size=9), min_size=1, max_size=12))
def test_any_words_become_a_column_of_the_same_length(words):
    [column] = type_columns({"x": pa.array(words)})
    assert len(column.values) == len(words)
    if column.kind in ("number", "integer"):
        assert np.isfinite(column.values.dropna().to_numpy(dtype=float)).all()
    if column.kind == "category":
        known = {word.strip() for word in words}
        assert set(column.values.dropna()) <= known and isinstance(column.values.dtype, pd.StringDtype)
