"""A model that nobody named is none: not the newest, not the first, not each of them."""

from pathlib import Path

import pytest
from registry_support import make_project

from mlops_nb.core.errors import UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.registry.bento import meant_version
from mlops_nb.registry.card import named_version
from mlops_nb.registry.encrypting import find_version as encrypted_version
from mlops_nb.registry.exchange import export_version
from mlops_nb.registry.look import search_versions
from mlops_nb.registry.promote import prepare
from mlops_nb.registry.retention import delete_versions, prune_versions
from mlops_nb.registry.rollback import go_back
from mlops_nb.registry.signing import find_versions, sign_versions, verify_target
from mlops_nb.registry.versions import find_version


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """A project with a version 1 of each of two models."""
    settings = make_project(tmp_path_factory.mktemp("names") / "project")
    with Ledger.open(settings) as ledger:
        ledger.begin_run("20261123-170501-0001", "tabular", {})
        facts = {"run_id": "20261123-170501-0001", "task": "binary", "metric": "roc_auc", "schema_digest": "00"}
        for number, name in enumerate(("churn", "price")):
            ledger.register_version(name, str(number) * 64, **facts, metrics={"roc_auc": 0.9}, details={})
    return settings


ASKED = {
    "promote": prepare,
    "rollback": go_back,
    "approve": lambda settings, ledger, text: find_version(ledger, text),
    "package": lambda settings, ledger, text: meant_version(ledger, text),
    "encrypt": lambda settings, ledger, text: encrypted_version(ledger, text),
    "export": lambda settings, ledger, text: export_version(settings, text, Path("x.zip")),
    "verify": lambda settings, ledger, text: verify_target(settings, text),
    "delete": lambda settings, ledger, text: delete_versions(settings, [text]),
    "prune": lambda settings, ledger, text: prune_versions(settings, text, 0),
    "models": search_versions,
}


@pytest.mark.parametrize("text", ["", ":", ":1"])
@pytest.mark.parametrize("command", ASKED)
def test_an_empty_name_is_refused(two_models, command, text):
    with Ledger.open(two_models) as ledger, pytest.raises(UsageError) as told:
        ASKED[command](two_models, ledger, text)
    assert f"'{text}'" in told.value.message and told.value.hint
    with Ledger.open(two_models) as ledger:
        assert len(ledger.versions()) == 2


@pytest.mark.parametrize("text", [":", ":1"])
def test_a_version_without_a_name_is_refused_where_no_name_means_all(two_models, text):
    with Ledger.open(two_models) as ledger:
        for ask in (named_version, find_versions):
            with pytest.raises(UsageError, match=f"'{text}' names no model"):
                ask(ledger, text)
        assert len(find_versions(ledger, "")) == 2
        with pytest.raises(UsageError, match="2 models are registered"):
            named_version(ledger, "")
        with pytest.raises(UsageError, match="names no model"):
            sign_versions(two_models, ledger, text)


def test_a_model_comes_before_a_folder_of_its_name(two_models, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "churn").mkdir()
    (tmp_path / "other").mkdir()
    asked = {target: verify_target(two_models, target).folder for target in ("churn", "./churn", "other")}
    assert asked["churn"] == two_models.workspace.path / "models" / "churn" / "1"
    assert (asked["./churn"], asked["other"]) == (tmp_path / "churn", tmp_path / "other")
