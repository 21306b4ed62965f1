"""Equal contents have equal names, unequal ones do not."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from mlops_nb.core.errors import UsageError
from mlops_nb.core.hashing import canonical_json, hash_json, sha256_tree

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=plain)
@options(max_examples=100, deadline=None)
def test_canonical_json_is_read_back_and_stable(value):
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == data


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": float("inf")}, "a is inf"),
        ([0.5, [float("nan")]], r"\[1\]\[0\] is nan"),
        (float("-inf"), "the value is -inf"),
        ({"a": {1: 2}}, "a has the key 1"),
        ({"a": {1, 2}}, "a is a set"),
        ({"a": "\ud800"}, "a is .* no valid Unicode"),
        (b"bytes", "the value is a bytes"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value, words):
    with pytest.raises(UsageError, match=words):
        hash_json(value)


def make(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return sha256_tree(folder)


def test_tree_sees_names_contents_and_structure(tmp_path):
    base = make(tmp_path / "base", {"a/b.csv": b"1", "c.csv": b"2"})
    assert make(tmp_path / "same", {"c.csv": b"2", "a/b.csv": b"1"}) == base
    changed = [
        {"a/b.csv": b"2", "c.csv": b"1"},
        {"a/b.csv": b"1", "d.csv": b"2"},
        {"b.csv": b"1", "c.csv": b"2"},
        {"a/b.csv": b"1"},
        {"a/b.csv": b"1", "c.csv": b"2", "e.csv": b""},
    ]
    digests = {make(tmp_path / str(number), files) for number, files in enumerate(changed)}
    assert len(digests | {base}) == len(changed) + 1


def test_tree_follows_links_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "rows.csv").write_text("1")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "around").symlink_to(tmp_path / "data")
    before = sha256_tree(tmp_path / "data")
    (tmp_path / "elsewhere" / "rows.csv").write_text("2")
    assert sha256_tree(tmp_path / "data") != before


def test_tree_takes_names_that_are_no_text(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.csv", "wb") as file:
        file.write(b"1")
    assert len(sha256_tree(tmp_path)) == 64
