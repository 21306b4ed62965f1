"""Versions go by name or by age; what is reached stays, and numbers are never given away."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from registry_support import give, make_project, package, people

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.garbage import Garbage
from mlops_nb.registry.bento_store import model_folder
from mlops_nb.registry.collect import collect
from mlops_nb.registry.folder import version_folder
from mlops_nb.registry.fsck import fsck
from mlops_nb.registry.register import Registrar, release_champion, run_completing
from mlops_nb.registry.releases import read_release
from mlops_nb.registry.retention import delete_versions, prune_versions
from mlops_nb.registry.signing import verify_target
from mlops_nb.registry.versions import find_version


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


def test_what_a_killed_deletion_left_is_found_and_collected(project):
    """The ledger is done and the disk is not: fsck and gc find the folder, and gc takes it with BentoML's copy."""
    with Ledger.open(project) as ledger:
        digest = find_version(ledger, "churn:3")["digest"]
        for run in ledger.runs():
            ledger.end_run(run["run"], "ok")
    command = "from mlops_nb.registry.retention import *; from mlops_nb.core.settings import load_settings\n"
    command += f"delete_versions(load_settings({str(project.project)!r}), ['churn:3'], delete_them=True)"
    environment = os.environ | {"MLOPS_NB_FAULT": "before-collect"}
    killed = subprocess.run([sys.executable, "-c", command], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    left, copy = version_folder(project.workspace.path, "churn", 3), model_folder("churn", 3, digest)
    assert numbers(project) == [2, 1] and left.is_dir() and copy.is_dir()
    assert [one["words"][:31] for one in fsck(project)["findings"] if one["what"] == "orphan"] == [
        "nothing refers to 1 versions (0"
    ]
    assert collect(project, time.time(), 5)["versions"] == 1 and left.is_dir()
    collect(project, time.time(), 5, delete_them=True)
    assert not left.exists() and not copy.exists() and (copy.parent / "latest").read_text().startswith("2-")
    assert version_folder(project.workspace.path, "churn", 2).is_dir()
    assert [one for one in fsck(project)["findings"] if one["what"] == "orphan"] == []
    shutil.copytree(version_folder(project.workspace.path, "churn", 2), left.with_name("9"))
    (found,) = [one for one in fsck(project)["findings"] if one["what"] == "orphan"]
    assert found["words"] == "models/churn/9 is of no version that the ledger has"
    assert collect(project, time.time(), 5)["versions"] == 0, "the ledger may have lost it"


def test_a_damaged_old_release_is_named_with_what_helps(project):
    releases = project.workspace.path / "releases/churn"
    current = (releases / "current").read_text().strip()
    old = releases / "000009-0123456789ab"
    shutil.copytree(releases / current, old)
    (old / "release.json").write_text("{")
    with pytest.raises(StorageError, match=f"Release churn/{old.name} is damaged") as told:
        prune_versions(project, "churn", 1, delete_them=True)
    assert told.value.hint == f"It is an older release, which answers nothing: delete the folder {old}."
    assert told.value.hint in [finding["remedy"] for finding in fsck(project)["findings"]]
    shutil.rmtree(old)
    assert prune_versions(project, "churn", 1, delete_them=True)["versions"] == ["churn:2"]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_pointer_that_is_no_file_is_said(project, kind):
    pointer = project.workspace.path / "releases/churn/current"
    pointer.unlink()
    pointer.mkdir() if kind == "folder" else os.mkfifo(pointer)
    assert "releases/churn/current is no file, and has to say which release is current." in [
        finding["words"] for finding in fsck(project)["findings"] if finding["what"] == "release"
    ]
    with Ledger.open(project) as ledger:
        ledger.move_alias("churn", "champion", 2, expected=1, reason="better")
        with pytest.raises(StorageError, match="current is no file") as told:
            release_champion(Registrar({}, project, ledger), "churn")
        assert f"Delete it, {pointer}." in told.value.hint
        pointer.rmdir() if kind == "folder" else pointer.unlink()
        release_champion(Registrar({}, project, ledger), "churn")
    assert read_release(pointer.parent.parent, "churn").document.arms[0].version == 2


@pytest.mark.parametrize(("kind", "hint"), [("folder", "Delete it, and sign again"), ("pipe", "Sign it again")])
def test_a_signature_that_is_no_file_is_refused(project, kind, hint):
    place = version_folder(project.workspace.path, "churn", 3) / "model.sig"
    place.unlink()
    place.mkdir() if kind == "folder" else os.mkfifo(place)
    refused = verify_target(project, "churn:3").refused
    assert refused and "model.sig cannot be read: it is no regular file" in refused.message
    assert refused.hint.startswith(hint)
