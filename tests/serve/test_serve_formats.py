"""A model answers from ONNX where it was found to answer the same, else from scikit-learn; and all ways agree."""

import io
import json
import logging
import sys
from importlib.metadata import version

import numpy as np
import pytest
from serve_support import KINDS, block_imports, environment, make_project, people, serving

from mlops_nb.core.errors import UsageError
from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.model.archive import unpack
from mlops_nb.model.artifact import Model
from mlops_nb.model.onnx_parity import export_onnx
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.schema import describe_inputs
from mlops_nb.model.train import fit
from mlops_nb.registry.releases import Arm, Document, Release, publish
from mlops_nb.serve.predictor import load_model


@pytest.fixture(scope="module")
def package():
    table = people()
    columns = {name: {"kind": kind} for name, kind in KINDS.items()}
    profile = {"target": "churned", "task": "binary", "features": list(KINDS), "columns": columns}
    schema = describe_inputs(table, KINDS, "churned", "binary")
    model = Model(fit(table, profile, "boosting", max_iter=20), table.head(3), schema)
    return ModelPackage(model, "churn", {"roc_auc": 0.9}, table, onnx=export_onnx(model, table))


def released(folder, package, onnx=True, background=False, **changes) -> Release:
    """The package's release, with changes to its manifest."""
    more = [name for name, wanted in (("model.onnx", onnx), ("background.json", background)) if wanted]
    names = ["model.skops", "schema.json", "examples.json", *more]
    contents = {f"versions/1/{name}": package.member(name) for name in names}
    contents["versions/1/manifest.json"] = json.dumps({**package.manifest, **changes}).encode()
    files = {name: sha256_bytes(content) for name, content in contents.items()}
    document = Document("churn", "binary", (Arm(1, "5d" * 32, 1.0, "versions/1"),), files, generation=1)
    return Release(publish(folder, document, contents))


def test_what_serves_is_said_at_the_start(package, tmp_path, caplog):
    facts = {"onnx": {"ok": False, "reason": "3 of 200 decisions flip"}}
    with caplog.at_level(logging.INFO):
        assert load_model(released(tmp_path / "onnx", package)).format == "onnx"
        assert load_model(released(tmp_path / "skops", package, onnx=False, formats=facts)).format == "skops"
    assert "churn version 1 is served by ONNX" in caplog.text
    assert "churn version 1 is served by scikit-learn: 3 of 200 decisions flip" in caplog.text


STRANGE = ["never seen", "", None, "clerk\0x", "(missing)", "(other)", "é", "a:b"]


def test_all_ways_to_ask_agree_on_strange_records(package, tmp_path):
    from mlops_nb.serve.engines import FrameEngine, LeanEngine

    release = released(tmp_path, package)
    onnx, skops = load_model(release), load_model(release, wanted="skops")
    assert isinstance(skops.engine, LeanEngine)
    frame = FrameEngine(skops.estimator, skops.inputs)
    record = {"age": 41, "account balance": None, "married": True, "job": "clerk", "since": "1969-12-31T23:59:59Z"}
    sent = [record | {"job": job} for job in STRANGE] + [record | {"age": 10**15, "account balance": -1e15}]
    records = onnx.reader.read(json.dumps(sent).encode())
    exact, lean, twin = (engine.outputs(records).numbers for engine in (frame, skops.engine, onnx.engine))
    np.testing.assert_array_equal(lean, exact)
    np.testing.assert_allclose(twin, exact, atol=1e-9)


def test_reasons_are_those_of_the_trees_also_where_onnx_answers(package, tmp_path):
    release = released(tmp_path, package, background=True)
    onnx, skops = load_model(release), load_model(release, wanted="skops")
    records = onnx.reader.read(json.dumps(onnx.examples[:2]).encode())
    for ours, theirs in zip(onnx.explain(records, 3), skops.explain(records, 3), strict=True):
        assert ours["explained"]["method"] == "trees"
        assert ours["reasons"] == theirs["reasons"] and ours["explained"] == theirs["explained"]


OTHERS = ({"requirements": {"scikit-learn": "1.4.2"}}, {"python": "3.8"})


@pytest.mark.parametrize("changes", OTHERS)
def test_another_scikit_learn_or_python_is_answered_by_onnx(package, tmp_path, changes):
    records = json.dumps(people(50)[list(KINDS)].to_dict("records"), default=str).replace("NaN", "null").encode()
    here = load_model(released(tmp_path / "here", package), wanted="skops")
    there = load_model(released(tmp_path / "there", package, **changes))
    assert (here.format, there.format) == ("skops", "onnx")
    ours, theirs = (served.predict(served.reader.read(records)) for served in (here, there))
    assert [one["prediction"] for one in ours] == [one["prediction"] for one in theirs]
    gaps = [
        abs(one["probabilities"]["yes"] - other["probabilities"]["yes"])
        for one, other in zip(ours, theirs, strict=True)
    ]
    assert max(gaps) < 1e-9


def test_without_parity_scikit_learn_answers_with_a_warning(package, tmp_path, caplog):
    facts = {"onnx": {"ok": False, "reason": "3 of 200 decisions flip"}}
    minor = ".".join(version("scikit-learn").split(".")[:2])
    with caplog.at_level(logging.WARNING):
        changes = {"requirements": {"scikit-learn": f"{minor}.99"}, "formats": facts}
        served = load_model(released(tmp_path, package, onnx=False, **changes))
    assert served.format == "skops" and f"scikit-learn {minor}.99 -> " in caplog.text


def test_without_parity_another_python_is_a_warning_as_a_model_holds_no_byte_code(package, tmp_path, caplog):
    members = unpack(package.member("model.skops"))
    assert {name.rpartition(".")[2] for name in members} == {"json", "npy"}
    for name, content in members.items():
        if name.endswith(".npy"):
            np.load(io.BytesIO(content), allow_pickle=False)  # plain numbers and texts
    facts = {"onnx": {"ok": False, "reason": "3 of 200 decisions flip"}}
    with caplog.at_level(logging.WARNING):
        served = load_model(released(tmp_path / "there", package, onnx=False, python="3.8", formats=facts))
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"churn version 1 was trained with other libraries: Python 3.8 -> {here}" in caplog.text
    records = json.dumps(served.examples).encode()
    ours = load_model(released(tmp_path / "here", package), wanted="skops")
    assert served.format == ours.format == "skops"
    assert served.predict(served.reader.read(records)) == ours.predict(ours.reader.read(records))


def test_without_parity_another_minor_version_is_refused_with_the_remedy(package, tmp_path):
    facts = {"onnx": {"ok": False, "reason": "3 of 200 decisions flip"}}
    other = released(tmp_path, package, onnx=False, requirements={"scikit-learn": "1.4.2"}, formats=facts)
    with pytest.raises(UsageError, match=r"trained with scikit-learn 1\.4\.2, and here") as caught:
        load_model(other)
    assert "pip install scikit-learn==1.4.2" in str(caught.value)


def test_a_setting_insists_on_a_format(package, tmp_path):
    assert load_model(released(tmp_path / "onnx", package), wanted="onnx").format == "onnx"
    other = released(tmp_path / "skops", package, python="3.8")
    assert load_model(other, wanted="skops").format == "skops"


def test_onnx_that_was_not_shipped_is_refused_with_the_reason(package, tmp_path):
    facts = {"onnx": {"ok": False, "reason": "3 of 200 decisions flip"}}
    with pytest.raises(UsageError, match="format is onnx, and churn version 1 cannot be loaded as such: 3 of 200"):
        load_model(released(tmp_path, package, onnx=False, formats=facts), wanted="onnx")


def test_a_server_that_answers_by_onnx_imports_no_library_of_training(package, tmp_path):
    project = make_project(tmp_path / "project")
    with open(project / "settings.ini", "a") as settings:
        settings.write("[registry]\nsignatures = off\n")
    released(project / ".mlops" / "releases", package)
    blocked = block_imports(tmp_path / "path", "pandas", "sklearn", "scipy", "skops", "onnx", "skl2onnx")
    env = environment(tmp_path / "home", PYTHONPATH=str(blocked))
    record = {"age": 41, "account balance": 120.5, "married": True, "job": "clerk", "since": "2021-03-01"}
    with serving(project, tmp_path / "log", env) as server:
        answer = server.ask("/predict", record)
        assert (answer.status, answer.json["prediction"] in ("yes", "no")) == (200, True), answer.text
        assert len(server.ask("/predict", [record] * 500).json["predictions"]) == 500
