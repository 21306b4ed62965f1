"""Files as they come: every habit is read, every accident is reported, what is no table is refused with a way out."""

import gzip
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import Refused, UsageError
from mlops_nb.data.encoding import decode
from mlops_nb.data.findings import Findings
from mlops_nb.data.reading import read_source


@pytest.fixture
def write(tmp_path):
    """Write bytes or text to a file and read them as a source."""

    def write(content, name="rows.csv", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return read_source(str(path), **options)

    return write


def kinds(loaded):
    return {column.name: column.kind for column in loaded.columns}


def said(loaded, topic):
    return " ".join(finding.message for finding in loaded.findings if finding.topic == topic)


def refused(write, content, kind=Refused, **options):
    with pytest.raises(kind) as caught:
        write(content, **options)
    assert caught.value.message and caught.value.hint, "an error says what happened and what to do"
    return str(caught.value)


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encodings_and_delimiters(write, codec, delimiter):
    lines = ["größe,stadt,y", "1.5,Köln,ja", "2.5,Zürich,nein"]
    loaded = write("\n".join(lines).replace(",", delimiter).encode(codec))
    assert kinds(loaded) == {"größe": "number", "stadt": "category", "y": "category"}
    assert loaded.frame["stadt"].tolist() == ["Köln", "Zürich"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_no_last_one(write, end):
    assert write(end.join(["a,b", "1,x", "2,y"])).frame["a"].tolist() == [1, 2]


def test_mixed_encodings_are_each_read_as_written(write):
    loaded = write(b"name,y\n" + "Potosí,a\n".encode("cp1252") + "Querétaro,b\n".encode())
    assert loaded.frame["name"].tolist() == ["Potosí", "Querétaro"]
    assert "line 2" in said(loaded, "encoding") and "line 3" in said(loaded, "encoding")


def test_gzip_and_parquet_are_known_by_their_content(write, tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": [1.5, None], "c": ["x", None], "d": pd.to_datetime(["2024-01-01", None])})
    frame.to_parquet(tmp_path / "p.csv")
    loaded = read_source(str(tmp_path / "p.csv"))
    assert kinds(loaded) == {"a": "integer", "b": "number", "c": "category", "d": "date"}
    assert write(gzip.compress(b"a,b\n1,2\n3,4\n"), name="rows.csv").facts["packed"] == "gzip"


def test_parquet_types(tmp_path):
    frame = pd.DataFrame(
        {
            "flag": pd.array([True, None, False], dtype="boolean"),
            "code": pd.Categorical(["u", "v", None]),
            "big": pd.array([1, None, 3], dtype="Int64"),
            "ratio": [np.inf, 1.0, 2.0],
            "at": pd.to_datetime(["2024-06-01 12:00", None, "2024-01-01 00:00"]).tz_localize("Europe/Paris"),
            "text": ["1,5", "2,5", "?"],
            "tags": [[1], [2], [3]],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    loaded = read_source(str(tmp_path / "t.parquet"))
    assert kinds(loaded) == {
        "flag": "boolean",
        "code": "category",
        "big": "integer",
        "ratio": "number",
        "at": "date",
        "text": "number",
    }
    assert loaded.frame["at"].iloc[0] == pd.Timestamp("2024-06-01 10:00")
    assert "infinite" in said(loaded, "infinite values") and "list" in said(loaded, "left out")


def test_parquet_accidents(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    serial = pa.array([2**63 + 1, 5, None], pa.uint64())
    table = pa.Table.from_arrays([serial, pa.array([1, 2, 3]), pa.nulls(3)], names=["serial", "x", "x"])
    pq.write_table(table, tmp_path / "t.parquet")
    loaded = read_source(str(tmp_path / "t.parquet"))
    assert kinds(loaded) == {"serial": "category", "x": "integer", "x.2": "empty"}
    assert loaded.frame["serial"].tolist()[:2] == [str(2**63 + 1), "5"]
    for bad in (table.slice(0, 0), table.select(["serial"])):
        pq.write_table(bad, tmp_path / "t.parquet")
        with pytest.raises(Refused, match="column"):
            read_source(str(tmp_path / "t.parquet"))


def test_decimal_commas_and_thousands(write):
    loaded = write("a;b;c;y\n1,5;1.234,50;1.234;x\n2,25;999,00;2.500;y\n")
    assert loaded.frame["b"].tolist() == [1234.5, 999.0]
    assert loaded.frame["c"].tolist() == [1234, 2500], "the other columns say that the comma is decimal"
    loaded = write('a,b,y\n1.5,"1,234",x\n2.25,"2,500",y\n')
    assert loaded.frame["b"].tolist() == [1234, 2500]


def test_a_type_is_decided_on_all_rows(write):
    lines = ["code,when,y"] + [f"{n},{1 + n % 12}/{1 + n % 12}/2024,a" for n in range(5000)]
    loaded = write("\n".join([*lines, "A17,13/02/2024,a"]))
    assert kinds(loaded)["code"] == "integer" and "A17" in said(loaded, "mixed types")
    assert loaded.frame["when"].iloc[1] == pd.Timestamp("2024-02-02")
    loaded = write("\n".join(["code,y"] + [f"{n % 8},a" for n in range(5000)] + ["many,a"]))
    assert kinds(loaded)["code"] == "category", "with eight different numbers the word is a level"


def test_dates_in_two_formats(write):
    rows = [f"2024-{1 + n % 12:02}-{1 + n % 28:02},{n % 2}" for n in range(30)]
    rows += [f"{1 + n % 28}.{1 + n % 12}.2023 10:30,{n % 2}" for n in range(20)]
    loaded = write("\n".join(["when,y", *rows]))
    assert kinds(loaded)["when"] == "date" and loaded.frame["when"].notna().all()
    assert "2 formats" in said(loaded, "dates") and "(20 rows)" in said(loaded, "dates")


def test_another_column_knows_what_stands_first(write):
    loaded = write("a,b,y\n03/04/2024,31/12/2024,x\n05/06/2024,30/11/2024,y\n")
    assert loaded.frame["a"].iloc[0] == pd.Timestamp("2024-04-03")
    assert "as in another column" in said(loaded, "dates")


def test_words_for_nothing(write):
    loaded = write("n,w,country,y\n1,?,DE,a\nnone,x,FR,b\nN/A,none,ZA,a\n4,y,NA,b\n", name="m.csv")
    assert loaded.frame["n"].isna().tolist() == [False, True, True, False]
    assert loaded.frame["w"].isna().tolist() == [True, False, False, False], "none is a word among words"
    assert loaded.frame["country"].isna().sum() == 0, "NA among codes of two letters is Namibia"
    assert "'none'" in said(loaded, "missing values")
    loaded = write("n,y\n1,a\n-999,b\n3,a\n", missing=["-999"])
    assert loaded.frame["n"].isna().sum() == 1


def test_numbers_written_as_text(write):
    loaded = write('share,price,dose,size,mixed,y\n93%,"$1,200.50",12 mg,3 kg,3 kg,a\n7 %,$3,4 mg,4 kg,4 lb,b\n')
    assert kinds(loaded) | {"y": ""} == {
        "share": "integer",
        "price": "number",
        "dose": "integer",
        "size": "integer",
        "mixed": "category",
        "y": "",
    }
    assert loaded.frame["price"].tolist() == [1200.5, 3.0]


def test_codes_stay_text(write):
    loaded = write("zip,phone,serial,y\n02139,U12,12345678901234567890,a\n10115,U13,12345678901234567891,b\n")
    assert set(kinds(loaded).values()) == {"category"}
    assert loaded.frame["zip"].tolist() == ["02139", "10115"]


def test_infinite_values(write):
    loaded = write("v,y\n1.5,a\ninf,b\n-Infinity,a\n1e999,b\n")
    assert loaded.frame["v"].isna().tolist() == [False, True, True, True]
    assert "3 infinite values" in said(loaded, "infinite values")


def test_names_twice_blank_or_with_blanks(write):
    loaded = write(" x , x,x.2,,y\n1,2,3,4,5\n6,7,8,9,10\n")
    assert [column.name for column in loaded.columns] == ["x", "x.3", "x.2", "column_4", "y"]
    assert "'x.3'" in said(loaded, "column name")


def test_quotes(write):
    loaded = write('a,b\n"1,5","x\ny"\n"2,5","he said ""no"""\n')
    assert loaded.frame["b"].tolist() == ["x\ny", 'he said "no"']
    loaded = write('label\ttext\nham\t"oh\nspam\t"win" now\nham\tno "quote\n', name="sms.tsv")
    assert loaded.frame["text"].tolist() == ['"oh', '"win" now', 'no "quote']
    assert "ordinary characters" in said(loaded, "quotes")


def test_habits_of_other_programs(write):
    assert kinds(write("sep=;\na;b\n1;2\n3;4\n")) == {"a": "integer", "b": "integer"}
    assert kinds(write("a,b,\n1,2,\n3,4,\n")) == {"a": "integer", "b": "integer"}
    assert len(write("a,b\n1,2\n,\n3,4\n\n\n")) == 2
    assert [column.name for column in write('"a","b"\n"r1",1,2\n"r2",3,4\n').columns] == ["row name", "a", "b"]
    loaded = write("5.1,3.5,setosa\n4.9,3.0,setosa\n")
    assert len(loaded) == 2 and "no header line" in said(loaded, "header")
    assert len(write("a b\n1 2\n3 4\n", delimiter="blank")) == 2


def test_refusals(write, tmp_path):
    assert "is empty" in refused(write, "")
    assert "is empty" in refused(write, "\n \n")
    assert "no rows" in refused(write, "a,b,c\n")
    assert "one column only" in refused(write, "a\n1\n2\n")
    assert "Line 4 of 'rows.csv' has 2 fields where the header has 3" in refused(
        write, "a,b,c\n1,2,3\n\n4,5\n6,7,8,9\n"
    )
    assert "So does 1 more line" in refused(write, "a,b,c\n1,2,3\n\n4,5\n6,7,8,9\n")
    assert "never closed" in refused(write, 'a,b\n1,"x, y\n2,z\n3,w\n')
    assert "Line 2" in refused(write, 'a,b\n1,"x, y\n2,z\n3,"w,w"\n')
    assert "offset 7" in refused(write, b"a,b\n1,2\x81\x8d\n")
    assert "offset 6" in refused(write, b"a,b\n1,\x00\n")
    assert "spreadsheet" in refused(write, b"PK\x03\x04 and so on")
    assert "JSON" in refused(write, '[{"a": 1}]')
    assert "Parquet" in refused(write, b"PAR1 and so on")
    assert "ends too early" in refused(write, gzip.compress(b"a,b\n1,2\n" * 100)[:-9])
    assert "damaged" in refused(write, b"\x1f\x8b rubbish that is no gzip")
    with pytest.raises(UsageError, match="is a folder"):
        read_source(str(tmp_path))
    assert "No encoding is called" in refused(write, "a,b\n1,2\n", UsageError, encoding="latin-one")
    assert "cannot separate" in refused(write, "a,b\n1,2\n", UsageError, delimiter="::")


@pytest.mark.parametrize(("name", "promised"), [("rows.parquet", "Parquet"), ("rows.csv.gz", "gzip")])
def test_a_name_that_promises_something_else(tmp_path, name, promised):
    (tmp_path / name).write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(Refused, match=f"The name of '{name}' promises {promised}"):
        read_source(str(tmp_path / name))
    (tmp_path / name).write_bytes(gzip.compress(b"a,b\n1,2\n3,4\n"))
    if promised == "gzip":
        assert len(read_source(str(tmp_path / name))) == 2


def test_what_is_wrong_with_a_content_is_told_of_the_file_not_of_its_folders(tmp_path):
    for content in (b"", b"PK\x03\x04", b"a\n1\n", b"a,b\n"):
        (tmp_path / "rows.csv").write_bytes(content)
        with pytest.raises(Refused, match=r"'rows\.csv'"):
            read_source(str(tmp_path / "rows.csv"))


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "customers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"Did you mean 'customers\.csv'"):
        read_source(str(tmp_path / "customer.csv"))
    with pytest.raises(UsageError, match="no folder"):
        read_source(str(tmp_path / "elsewhere" / "customer.csv"))
    with pytest.raises(UsageError, match="Did you mean 'sklearn:wine'"):
        read_source("sklearn:wines")
    with pytest.raises(UsageError, match="Download it"):
        read_source("https://example.com/rows.csv")
    with pytest.raises(UsageError, match="No source"):
        read_source(" ")


def test_a_path_is_found_from_the_project(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[package]\nname = demo\n[workspace]\npath = .mlops\n")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path / "nbs")
    assert len(read_source("rows.csv")) == 2


@settings(max_examples=200, deadline=None)
@given(data=st.binary(min_size=1, max_size=200))
def test_bytes_are_text_or_an_error_with_a_place(data):
    try:
        decoded = decode(data, "rows.csv", findings=Findings())
    except Refused as error:
        assert "offset" in error.message and error.hint
    else:
        assert "\x00" not in decoded.text


cell = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), min_size=1, max_size=8).map(
    "w".__add__
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(cell, cell, st.floats(-1e9, 1e9).map(lambda value: round(value, 3))), min_size=2, max_size=12
    ),
    delimiter=st.sampled_from(",;\t|"),
    codec=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_was_written_is_read(tmp_path_factory, rows, delimiter, codec):
    frame = pd.DataFrame(rows, columns=["first", "second", "number"])
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    decimal = "," if delimiter == ";" else "."
    path.write_bytes(frame.to_csv(index=False, sep=delimiter, decimal=decimal).encode(codec))
    loaded = read_source(str(path))
    assert loaded.frame["number"].tolist() == frame["number"].tolist()
    assert loaded.frame["first"].tolist() == frame["first"].tolist()
    assert loaded.frame["second"].tolist() == frame["second"].tolist()


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet='ab1,;\t"\n\r .?-%', max_size=60))
def test_any_text_is_a_table_or_a_refusal(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "rows.csv"
    path.write_text(text, newline="")
    try:
        loaded = read_source(str(path))
    except Refused as error:
        assert error.hint
    else:
        assert len(loaded) > 0 and len(loaded.columns) > 1


def test_many_rows_take_seconds(tmp_path):
    random = np.random.default_rng(0)
    size = 30_000
    numbers = {f"n{place}": random.normal(size=size).round(6) for place in range(10)}
    words = {f"w{place}": random.integers(0, 5000, size).astype(str) + "x" for place in range(6)}
    more = {"i": random.integers(0, 10**6, size), "j": random.integers(0, 9, size)}
    when = pd.Timestamp("2020-01-01") + pd.to_timedelta(random.integers(0, 10**8, size), unit="s")
    frame = pd.DataFrame(numbers | words | more | {"when": when, "y": random.choice(["no", "yes"], size)})
    frame.to_csv(tmp_path / "many.csv", index=False)
    start = time.process_time()
    loaded = read_source(str(tmp_path / "many.csv"))
    assert time.process_time() - start < 8, "usually one second of CPU"
    assert kinds(loaded)["when"] == "date" and kinds(loaded)["w0"] == "category" and kinds(loaded)["n0"] == "number"
    pd.testing.assert_series_equal(loaded.frame["n0"], frame["n0"])


def test_thousands_are_no_doubt_where_another_column_shows_the_decimal_point(write):
    doubtful = write('big,y\n"1,234",a\n"2,500",b\n')
    assert "could be read with" in said(doubtful, "numbers as text")
    clear = write('big,small,y\n"1,234",1.5,a\n"2,500",2.25,b\n')
    assert "could be read with" not in said(clear, "numbers as text")
    assert clear.frame["big"].tolist() == [1234, 2500]


def test_blanks_are_told(write):
    loaded = write("a,b,c,y\n1,x,,u\n,y,,v\n3,,,u\n")
    told = [finding.column for finding in loaded.findings if "blank" in finding.message]
    assert told == ["a", "b"], "a column that is all blank is told as empty"
