"""Versions go by name or by age; what is reached stays, and numbers are never given away."""

import pytest
from registry_support import give, make_project, package, people

from mlops_nb.core.errors import UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.garbage import Garbage
from mlops_nb.registry.bento_store import model_folder
from mlops_nb.registry.folder import version_folder
from mlops_nb.registry.fsck import fsck
from mlops_nb.registry.register import run_completing
from mlops_nb.registry.retention import delete_versions, prune_versions


@pytest.fixture(scope="module")
def packages():
    return [package(people(rows)) for rows in (120, 140, 160)]


@pytest.fixture
def project(tmp_path, packages, monkeypatch):
    """A project with three versions, of which the first is champion and released."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    settings = make_project(tmp_path / "project")
    with Ledger.open(settings) as ledger:
        for number, content in enumerate(packages):
            run_completing(give(settings, ledger, f"20261123-17050{number}-0001", content, None), settings, ledger)
    return settings


def numbers(settings) -> list[int]:
    with Ledger.open(settings) as ledger:
        return [version["version"] for version in ledger.versions("churn")]


def test_nothing_is_touched_until_it_is_asked_for(project):
    found = delete_versions(project, ["churn:2"])
    assert (found["versions"], found["deleted"]) == (["churn:2"], False) and found["bytes"] > 0
    assert prune_versions(project, "churn", 1)["versions"] == ["churn:2"]
    assert numbers(project) == [3, 2, 1]


def test_a_version_goes_with_its_folder_and_its_copy(project):
    with Ledger.open(project) as ledger:
        digest = next(one["digest"] for one in ledger.versions() if one["version"] == 3)
    delete_versions(project, ["churn:3"], delete_them=True)
    assert numbers(project) == [2, 1]
    assert not version_folder(project.workspace.path, "churn", 3).exists()
    copy = model_folder("churn", 3, digest)
    assert not copy.exists()
    assert (copy.parent / "latest").read_text().startswith("2-")
    with Ledger.open(project) as ledger:
        assert digest in Garbage(ledger.database).reach(count=5).objects, "its run still gave it"
        event = ledger.events(kind="version_deleted")[0]
    assert (event["subject"], event["details"]) == ("churn:3", {"reason": "deleted by name"})
    assert [finding for finding in fsck(project)["findings"] if finding["what"] in ("model", "release")] == []


@pytest.mark.parametrize(("alias", "words"), [("staging", "it is staging"), (None, "it is in release 1 of churn")])
def test_what_is_reached_stays_and_why_is_said(project, alias, words):
    with Ledger.open(project) as ledger:
        ledger.move_alias("churn", "champion", None, expected=1, reason="none")
        if alias:
            ledger.move_alias("churn", alias, 1, expected=None, reason="tried")
    with pytest.raises(UsageError, match=f"churn version 1 stays: {words}"):
        delete_versions(project, ["churn:2", "churn:1"], delete_them=True)
    assert numbers(project) == [3, 2, 1], "all or nothing"
    assert prune_versions(project, "churn", 0, delete_them=True)["kept"] == {"churn:1": words}
    assert numbers(project) == [1]


def test_the_same_package_comes_back_with_its_number(project, packages):
    delete_versions(project, ["churn:3", "churn:2"], delete_them=True)
    with Ledger.open(project) as ledger:
        done = run_completing({"run": "20261123-170502-0001", "pipeline": "tabular"}, project, ledger)
    assert [model["version"] for model in done] == [3]
    assert numbers(project) == [3, 1]
    assert version_folder(project.workspace.path, "churn", 3).is_dir()


def test_what_is_not_there_is_named(project):
    for name, message in (
        ("churn", "names no version"),
        ("churn:9", "no version '9'"),
        ("chrun:1", "no model 'chrun'"),
    ):
        with pytest.raises(UsageError, match=message):
            delete_versions(project, [name])
