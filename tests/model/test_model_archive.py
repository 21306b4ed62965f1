"""What archives refuse: strangers, functions, torn and altered files."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import learn, model_of, people
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.model.archive import canonical, check_types, dump_estimator, load_estimator, pack, unpack
from mlops_nb.model.artifact import Model, ModelSerializer
from mlops_nb.model.package import ModelPackage, ModelPackageSerializer, make_name, slug


class Doubler(TransformerMixin, BaseEstimator):
    """A class of a package that is not ours."""

    def fit(self, X, y=None):
        self.words_ = {"b", "a", "c"}
        return self

    def transform(self, X):
        return 2 * np.asarray(X)


ROWS, CLASSES = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["a", "a", "b", "b"])


def test_a_strangers_class_is_refused_unless_its_package_is_trusted():
    model = make_pipeline(Doubler(), LogisticRegression()).fit(ROWS, CLASSES)
    with pytest.raises(UsageError, match=re.escape(f"{__name__}.Doubler")):
        dump_estimator(model)
    archive = dump_estimator(model, packages=[__name__])
    with pytest.raises(UsageError, match="Doubler"):
        load_estimator(archive)
    assert (load_estimator(archive, [__name__]).predict(ROWS) == CLASSES).all()


def test_the_order_of_a_set_does_not_matter():
    one, two = Doubler().fit(ROWS), Doubler().fit(ROWS)
    two.words_ = {f"{number}" for number in range(50)} | {"c", "a", "b"}
    two.words_ -= {f"{number}" for number in range(50)}
    assert dump_estimator(one, [__name__]) == dump_estimator(two, [__name__])


@pytest.mark.parametrize("function", [np.testing.assert_equal, json.dumps])
def test_functions_are_refused_even_of_trusted_packages(function):
    with pytest.raises(UsageError, match="which is no class of"):
        dump_estimator(FunctionTransformer(function))


def test_an_archive_that_names_a_function_is_not_loaded():
    members = unpack(dump_estimator(LogisticRegression().fit(ROWS, CLASSES)))
    tree = json.loads(members["schema.json"])
    tree["__module__"], tree["__class__"] = "os", "system"
    with pytest.raises(UsageError, match=r"os\.system"):
        load_estimator(pack({**members, "schema.json": json.dumps(tree).encode()}))


def test_the_fast_way_of_writing_gives_what_skops_gives():
    for model in ("logistic", "forest", "boosting"):
        fitted = learn(people(200), "group", "binary", model, trees=3, max_iter=5)
        assert dump_estimator(fitted) == canonical(skops.io.dumps(fitted))


def test_skops_itself_opens_a_model_artifact(tmp_path):
    table = people(200)
    fitted = model_of(table, "group", "binary", "forest", trees=3)
    fitted.write(tmp_path / "model.skops")
    types = skops.io.get_untrusted_types(file=tmp_path / "model.skops")
    assert types == check_types(fitted.archive())
    loaded = skops.io.load(tmp_path / "model.skops", trusted=types)
    assert (loaded.predict(table) == fitted.predict(table)).all()


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(1, 255))
def test_no_altered_byte_of_a_package_goes_unnoticed(tmp_path_factory, place, value):
    path, fresh = packed(tmp_path_factory)
    content = bytearray(fresh)
    content[place % len(content)] ^= value
    path.write_bytes(content)
    try:
        package = ModelPackage.read(path)
        manifest, members = package.manifest, {name: package.member(name) for name in package.manifest["files"]}
    except (StorageError, UsageError):
        return
    path.write_bytes(fresh)
    intact = ModelPackage.read(path)
    assert manifest == intact.manifest and members == {name: intact.member(name) for name in manifest["files"]}


_packed: dict[str, tuple] = {}


def packed(tmp_path_factory):
    if not _packed:
        table = people(100)
        path = tmp_path_factory.mktemp("package") / "package.zip"
        ModelPackage(model_of(table, "group", "binary", "logistic"), "people", {"roc_auc": 0.7}, table).write(path)
        _packed["it"] = path, path.read_bytes()
    return _packed["it"]


def test_an_altered_model_is_refused_before_it_is_looked_at(tmp_path, monkeypatch):
    table = people(100)
    path = tmp_path / "package.zip"
    ModelPackage(model_of(table, "group", "binary", "logistic"), "people", {"roc_auc": 0.7}, table).write(path)
    members = unpack(path.read_bytes())
    path.write_bytes(pack({**members, "model.skops": dump_estimator(LogisticRegression(C=7).fit(ROWS, CLASSES))}))
    monkeypatch.setattr(skops.io, "get_untrusted_types", lambda **_: pytest.fail("it was looked at"))
    with pytest.raises(StorageError, match=r"model\.skops is not the file that its manifest lists"):
        ModelPackage.read(path).load_model()


@pytest.mark.parametrize("read", [Model.read, ModelPackage.read])
def test_what_is_no_archive_is_said_to_be_damaged(tmp_path, read):
    path = tmp_path / "thing"
    path.write_bytes(b"PK nothing of the kind")
    with pytest.raises(StorageError, match=r"--force"):
        read(path)


def test_a_model_of_a_later_format_is_refused(tmp_path):
    path = tmp_path / "package.zip"
    path.write_bytes(pack({"manifest.json": b'{"format": 2}'}))
    with pytest.raises(UsageError, match="format 2"):
        ModelPackage.read(path)


def test_an_estimator_by_itself_is_a_model(tmp_path):
    serializer, path = ModelSerializer(), tmp_path / "model.skops"
    assert serializer.write(LogisticRegression().fit(ROWS, CLASSES), path)["estimator"] == "LogisticRegression"
    model = serializer.read(path, {})
    assert (model.predict(ROWS) == CLASSES).all() and model.coef_.shape == (1, 1)
    assert model.schema is None and model.example is None and "LogisticRegression" in repr(model)
    with pytest.raises(AttributeError):
        _ = model.no_such_thing
    with pytest.raises(UsageError, match="no input schema"):
        ModelPackage(model, "a", {"roc_auc": 1}, [1])


def test_a_package_passes_through_its_serializer(tmp_path):
    table = people(100)
    package = ModelPackage(model_of(table, "spent", "regression", "linear"), "people", {"rmse": 3.0}, table)
    meta = ModelPackageSerializer().write(package, tmp_path / "p.zip")
    copy = ModelPackageSerializer().read(tmp_path / "p.zip", meta)
    assert meta == {"name": "people", "task": "regression", "metric": "rmse"}
    assert not copy.manifest["metric_greater_is_better"] and "rmse (ranks)" in repr(copy)
    assert copy.examples.shape == (5, 6) and "<table" in copy._repr_html_()
    with zipfile.ZipFile(io.BytesIO((tmp_path / "p.zip").read_bytes())) as archive:
        assert archive.namelist()[0] == "manifest.json" and archive.testzip() is None


@given(st.text(), st.text())
def test_every_source_and_target_make_a_name(source, target):
    from mlops_nb.model.package import check_name

    name = make_name(source, target)
    assert check_name(name) == name and len(name) <= 48 and make_name(source, target) == name


@given(st.text())
def test_a_slug_of_a_slug_is_itself(text):
    assert slug(slug(text)) == slug(text)
