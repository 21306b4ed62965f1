"""Which version is packaged, where to, and what its lock says."""

import json

import pytest
from registry_support import make_project, package, people

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.store import Store
from mlops_nb.model.mlflow import _load_pyfunc
from mlops_nb.registry.bento import into_store, lay_out, meant_version, package_version, version_files
from mlops_nb.registry.keys import trusted_keys
from mlops_nb.registry.lock import lock_contents, onnx_contents
from mlops_nb.registry.mlflow import code_files, mlflow_version
from mlops_nb.registry.register import Registrar
from mlops_nb.registry.releases import Document
from mlops_nb.registry.verify import NotVerified, verify_folder


@pytest.fixture
def registered(tmp_path):
    """A project with two versions of a model, the first its champion."""
    settings = make_project(tmp_path / "demo")
    store, table = Store(settings.workspace.path / "objects"), people(60)
    with Ledger.open(settings) as ledger:
        ledger.begin_run("20261123-170501-0001", "tabular", {})
        about = {"run_id": "20261123-170501-0001", "task": "binary", "metric": "roc_auc", "schema_digest": "0" * 64}
        for rows in (40, 60):
            digest = store.put_bytes(package(table.head(rows), requirements={"numpy": "1.26.4"}))
            ledger.register_version("churn", digest, **about, metrics={"roc_auc": 0.9}, details={})
        ledger.move_alias("churn", "champion", 1, expected=None, reason="first", evidence={})
        yield settings, ledger


def test_a_version_is_named_by_number_or_alias_and_else_is_the_champion(registered):
    _, ledger = registered
    meant = [meant_version(ledger, text)["version"] for text in ("churn", "churn:champion", "churn:2")]
    assert meant == [1, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chrun", "There is no model 'chrun'.\n→ Did you mean 'churn'?"),
        ("churn:champoin", "churn has no version or alias 'champoin'.\n→ Did you mean 'champion'?"),
        ("churn:7", "churn has no version or alias '7'.\n→ It has champion, 2, 1."),
    ],
)
def test_what_does_not_exist_is_told_with_what_is_near(registered, text, message):
    with pytest.raises(UsageError) as error:
        package_version(*registered, text)
    assert str(error.value) == message


@pytest.mark.parametrize("write", [package_version, mlflow_version])
def test_a_folder_with_something_else_in_it_is_left_alone(registered, tmp_path, write):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="mine is there already and holds no"):
        write(*registered, "churn", tmp_path / "mine")
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_a_project_without_a_bentofile_is_told_what_that_is(registered, tmp_path):
    with pytest.raises(UsageError, match=r"There is no bentofile\.yaml in"):
        lay_out(registered[0].project, tmp_path, Document("churn", "binary", (), {}), {}, "")


def test_the_lock_has_the_versions_that_trained(registered):
    settings, ledger = registered
    registrar = Registrar({"run": "20261123-170501-0001", "pipeline": "tabular"}, settings, ledger)
    lock = lock_contents(registrar, ledger.versions("churn")[0])["requirements.txt"].decode()
    assert "\nnumpy==1.26.4\n" in lock and "\nbentoml==" in lock
    assert onnx_contents(registrar, ledger.versions("churn")[0]) == {}


def test_what_is_packaged_is_the_folder_of_the_version_with_its_signature(registered):
    settings, ledger = registered
    registrar = Registrar({"run": "20261123-170501-0001", "pipeline": "tabular"}, settings, ledger)
    version = ledger.versions("churn")[0]
    found = version_files(registrar, version)
    assert {"model.skops", "manifest.json", "requirements.txt", "model.sig"} <= set(found)
    folder = settings.workspace.path / "models/churn" / str(version["version"])
    assert found == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_another_bento_under_the_same_tag_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    bento = tmp_path / "bento"
    bento.mkdir()
    (bento / "bento.yaml").write_text("name: churn\n")
    into_store(bento, "churn:2-5d5d")
    into_store(bento, "churn:2-5d5d")
    assert (tmp_path / "home/bentos/churn/latest").read_text() == "2-5d5d"
    (bento / "bento.yaml").write_text("name: another\n")
    with pytest.raises(StorageError, match="BentoML's store holds another Bento under churn:2-5d5d"):
        into_store(bento, "churn:2-5d5d")
    assert (tmp_path / "home/bentos/churn/2-5d5d/bento.yaml").read_text() == "name: churn\n"


def test_an_mlflow_model_takes_the_code_of_the_project_that_it_is_made_of(registered, tmp_path):
    settings, _ = registered
    (settings.project / "churnlib").mkdir()
    (settings.project / "churnlib/features.py").write_text("X = 1\n")
    code = code_files(settings.project, ["churnlib"])
    assert code["churnlib/features.py"] == b"X = 1\n" and "mlops_nb/model/mlflow.py" in code
    about = mlflow_version(*registered, "churn:2", tmp_path / "written")
    assert mlflow_version(*registered, "churn:2", tmp_path / "written") == about
    example = json.loads((tmp_path / "written/input_example.json").read_bytes())
    assert example["columns"] == ["age", "balance"] and len(example["data"]) == 2


def test_an_altered_mlflow_model_is_refused_and_its_signed_part_tells(registered, tmp_path):
    settings, ledger = registered
    mlflow_version(settings, ledger, "churn:2", tmp_path / "written")
    model, trusted = tmp_path / "written/model", trusted_keys(settings)
    assert verify_folder(model, trusted, subject="churn:2").key.name == "project"
    assert len(_load_pyfunc(str(model)).predict(people(5))) == 5
    plain = (model / "model.skops").read_bytes()
    (model / "model.skops").write_bytes(plain[:-1] + b"x")
    with pytest.raises(StorageError, match=r"model\.skops is not the file that its manifest lists"):
        _load_pyfunc(str(model))
    mlflow_version(settings, ledger, "churn:1", tmp_path / "other")
    for name in ("model.skops", "manifest.json", "schema.json"):  # whole, and consistent in itself
        (model / name).write_bytes((tmp_path / "other/model" / name).read_bytes())
    with pytest.raises(NotVerified, match=r"manifest\.json was changed"):
        verify_folder(model, trusted)
