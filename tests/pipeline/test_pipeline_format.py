"""The number that stands for the plumbing: whoever changes what is written, or how a key is made, must raise it."""

from mlops_nb.core.hashing import sha256_file
from mlops_nb.core.serializers import File, Json, Metrics, Report, serializer_for
from mlops_nb.pipeline.fingerprint import KEY_FORMAT, key_of

PARTS = {
    "format": 1,
    "python": "3.11",
    "step": "train",
    "cells": [[2, "3f2a"], [4, "91bc"]],
    "definitions": {"churn.models:fit": "aa11"},
    "parameters": {"max_iter": 200, "rate": 0.5, "names": ["a"], "none": None},
    "inputs": {"source": {"value": "churn.csv", "kind": "file", "sha256": "bb22", "suffix": ".csv"}},
    "needs": {"split.train": "Table:cc33"},
    "distributions": {"pandas": "3.0.1"},
}
RAISE = "What is written, or how a key is made, has changed: raise KEY_FORMAT, then note the new value here."


def written(value, folder):
    """The start of the digest of what a serializer writes."""
    kind, serializer = serializer_for(value)
    path = folder / f"{kind}{serializer.suffix}"
    serializer.write(value, path)
    return kind, sha256_file(path)[:12]


def test_what_the_format_number_stands_for(tmp_path):
    (tmp_path / "x.txt").write_text("x\n")
    nested = {"b": [1, 2.5, None, True], "a": {"text": "ü"}}
    values = [Json(nested), Metrics({"auc": 0.9, "n": 3}), Report("<p>x</p>"), File(tmp_path / "x.txt")]
    seen = {"KEY_FORMAT": KEY_FORMAT, "key": key_of(PARTS)[:12], **dict(written(value, tmp_path) for value in values)}
    assert seen == {
        "KEY_FORMAT": 2,
        "key": "7ecb2f5968ef",
        "Json": "a4029b8d10b5",
        "Metrics": "5adf44113a50",
        "Report": "31d8e07ec305",
        "File": "73cb3858a687",
    }, RAISE


def test_what_is_there_only_to_be_shown():
    moved = {**PARTS, "cells": [[3, "3f2a"], [9, "91bc"]]}
    renamed = {**PARTS, "inputs": {"source": {**PARTS["inputs"]["source"], "value": "copy.csv"}}}
    assert key_of(moved) == key_of(renamed) == key_of(PARTS)
    for name in PARTS:
        other = {"format": 2, "python": "3.12", "step": "fit", "cells": PARTS["cells"][:1]}.get(name, {})
        assert key_of({**PARTS, name: other}) != key_of(PARTS), name
