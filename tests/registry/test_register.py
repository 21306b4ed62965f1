"""Registering, the champion rule, the BentoML store and releases: once, whatever happens in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from registry_support import give, make_project, package, people, standing

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.registry.bento_store import model_folder
from mlops_nb.registry.fsck import fsck
from mlops_nb.registry.register import run_completing
from mlops_nb.registry.releases import read_release
from mlops_nb.registry.versions import comparison_of, verdict_of

TABLE = people()
WEAK = package(TABLE.iloc[:100], inputs=("balance",))
STRONG = package(TABLE.iloc[:100], inputs=("age", "balance"))
TEST = TABLE.iloc[100:]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with a BentoML store of its own."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    return make_project(tmp_path / "project")


@pytest.fixture
def ledger(project):
    with Ledger.open(project) as opened:
        yield opened


def complete(settings, ledger, run_id, content, test=TEST):
    """A run that gave `content`, and what the registry made of it."""
    run = give(settings, ledger, run_id, content, test)
    (model,) = run_completing(run, settings, ledger)
    ledger.end_run(run_id, "ok")
    return model


def tags():
    """What BentoML's own command finds in its store."""
    command = [sys.executable, "-m", "bentoml", "models", "list", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "NO_COLOR": "1"})
    return sorted(model["tag"] for model in json.loads(done.stdout))


def test_a_first_version_becomes_champion_and_is_released_and_saved(project, ledger):
    model = complete(project, ledger, "20261123-170501-0001", WEAK)
    assert (model["name"], model["version"], model["aliases"]) == ("churn", 1, ["champion"])
    release = read_release(project.workspace.path / "releases", "churn")
    assert [arm.digest for arm in release.document.arms] == [model["digest"]]
    names = {"manifest.json", "model.skops", "schema.json", "examples.json", "metrics.json", "data.json", "model.sig"}
    names |= {"card.md", "requirements.txt"}
    assert set(release.document.files) == {f"versions/1/{name}" for name in names}
    assert tags() == [f"churn:1-{model['digest'][:12]}"]
    requirements = (project.workspace.path / "releases/requirements.txt").read_text()
    assert "scikit-learn==" in requirements
    assert "://" not in requirements


def test_doing_it_again_changes_nothing(project, ledger):
    first = complete(project, ledger, "20261123-170501-0001", WEAK)
    before = standing(project)
    assert complete(project, ledger, "20261123-170502-0002", WEAK) == first
    assert standing(project) == before
    assert len(ledger.alias_events("churn")) == 1


def test_a_better_version_takes_over(project, ledger):
    complete(project, ledger, "20261123-170501-0001", WEAK)
    model = complete(project, ledger, "20261123-170502-0002", STRONG)
    assert (model["version"], model["aliases"]) == (2, ["champion"])
    verdict = verdict_of(ledger, "churn", 2)
    assert "version 2 is better than 1: roc_auc" in verdict["reason"]
    assert verdict["evidence"]["rows"] == len(TEST)
    assert verdict["evidence"]["candidate_score"] > verdict["evidence"]["champion_score"]
    found = comparison_of(ledger, "churn", 2)
    assert found["gain"] == found["candidate_score"] - found["champion_score"]
    assert 0 < found["low"] < found["gain"] < found["high"] and found["p"] < 0.05, "shown, on 200 rows"
    release = read_release(project.workspace.path / "releases", "churn")
    assert (release.document.generation, release.document.arms[0].version) == (2, 2)
    assert len(tags()) == 2


def test_a_worse_version_is_registered_and_stays_aside(project, ledger):
    complete(project, ledger, "20261123-170501-0001", STRONG)
    model = complete(project, ledger, "20261123-170502-0002", WEAK)
    assert (model["version"], model["aliases"]) == (2, [])
    assert "version 1 stays champion: version 2 is not better" in verdict_of(ledger, "churn", 2)["reason"]
    assert read_release(project.workspace.path / "releases", "churn").document.arms[0].version == 1
    found = comparison_of(ledger, "churn", 2)
    assert found["low"] < found["gain"] < found["high"] < 0 and found["rows"] == len(TEST)
    assert comparison_of(ledger, "churn", 1) is None, "there was nothing to compare it with"
    complete(project, ledger, "20261123-170503-0003", WEAK)
    assert len(ledger.events(kind="champion_kept")) == 1


@pytest.mark.parametrize(
    ("content", "test", "words"),
    [
        (package(TABLE.iloc[:100], schema={"target": "left"}), TEST, "its target is left, the champion's is churned"),
        (package(TABLE.iloc[:100], metric="log_loss"), TEST, "it is ranked by log_loss, the champion by roc_auc"),
        (package(TABLE.iloc[50:290]), TEST, "only 10 of 200 rows of split.test are new to both, 30 are needed"),
        (STRONG, None, "the run has no split.test"),
    ],
)
def test_what_cannot_be_compared_stays_aside(project, ledger, content, test, words):
    complete(project, ledger, "20261123-170501-0001", WEAK)
    model = complete(project, ledger, "20261123-170502-0002", content, test)
    assert model["aliases"] == []
    assert words in verdict_of(ledger, "churn", 2)["reason"]


def test_rows_of_one_class_cannot_be_ranked(project, ledger):
    complete(project, ledger, "20261123-170501-0001", WEAK)
    model = complete(project, ledger, "20261123-170502-0002", STRONG, TEST[TEST["churned"] == "no"])
    assert model["aliases"] == []
    assert "roc_auc cannot be computed" in verdict_of(ledger, "churn", 2)["reason"]


def test_an_alias_moved_by_a_person_is_not_taken_back(project, ledger):
    complete(project, ledger, "20261123-170501-0001", WEAK)
    complete(project, ledger, "20261123-170502-0002", STRONG)
    ledger.move_alias("churn", "champion", 1, expected=2, reason="rolled back by hand")
    model = complete(project, ledger, "20261123-170503-0003", STRONG)
    assert (model["version"], model["aliases"]) == (2, [])
    assert read_release(project.workspace.path / "releases", "churn").document.arms[0].version == 1


def test_two_names_are_two_models(project, ledger):
    complete(project, ledger, "20261123-170501-0001", WEAK)
    model = complete(project, ledger, "20261123-170502-0002", package(TABLE.iloc[:100], name="leavers"))
    assert (model["name"], model["version"], model["aliases"]) == ("leavers", 1, ["champion"])


def test_a_name_that_would_leave_the_folder_is_refused(project, ledger):
    with pytest.raises(UsageError, match="no name for a model"):
        complete(project, ledger, "20261123-170501-0001", package(TABLE.iloc[:100], name="../churn"))
    assert ledger.versions() == []


def delete_release(project, model):
    shutil.rmtree(project.workspace.path / "releases")


def damage_release(project, model):
    (file,) = (project.workspace.path / "releases").glob("churn/0*/versions/1/model.skops")
    file.write_bytes(b"x")


def delete_requirements(project, model):
    (project.workspace.path / "releases/requirements.txt").unlink()


def delete_pointer(project, model):
    (project.workspace.path / "releases/churn/current").unlink()


def delete_saved_model(project, model):
    shutil.rmtree(model_folder("churn", 1, model["digest"]))


def damage_saved_model(project, model):
    (model_folder("churn", 1, model["digest"]) / "model.skops").unlink()


@pytest.mark.parametrize(
    "damage",
    [delete_release, damage_release, delete_requirements, delete_pointer, delete_saved_model, damage_saved_model],
)
def test_what_was_deleted_is_made_again(project, ledger, damage):
    model = complete(project, ledger, "20261123-170501-0001", WEAK)
    before = standing(project)
    damage(project, model)
    complete(project, ledger, "20261123-170502-0002", WEAK)
    assert standing(project) == before
    assert tags() == [f"churn:1-{model['digest'][:12]}"]


def test_a_bento_store_that_was_emptied_is_told_of_and_filled_again(project, ledger, tmp_path, caplog):
    complete(project, ledger, "20261123-170501-0001", STRONG)
    complete(project, ledger, "20261123-170502-0002", WEAK)  # which does not become champion
    assert [one for one in fsck(project)["findings"] if one["what"] == "model" and "BentoML" in one["words"]] == []
    assert "BentoML" not in caplog.text
    shutil.rmtree(tmp_path / "bentoml")
    (finding,) = (one for one in fsck(project)["findings"] if "BentoML" in one["words"])
    assert finding["words"] == "the BentoML store has no copy of churn version 1, the champion"
    assert finding["level"] == "warn" and "mlops-nb run" in finding["remedy"]
    complete(project, ledger, "20261123-170503-0003", WEAK)
    for version in (1, 2):
        assert f"churn version {version} was gone from the BentoML store, and is saved there again" in caplog.text
    assert [tag.partition("-")[0] for tag in tags()] == ["churn:1", "churn:2"]


def test_a_champion_whose_package_is_gone_is_no_reason_to_fail_the_run(project, ledger, tmp_path, caplog):
    complete(project, ledger, "20261123-170501-0001", STRONG)
    complete(project, ledger, "20261123-170502-0002", WEAK)
    (place,) = (path for path in (project.workspace.path / "objects").rglob("*") if path.name == sha(STRONG))
    place.unlink()
    shutil.rmtree(tmp_path / "bentoml")
    complete(project, ledger, "20261123-170503-0003", WEAK)
    assert "churn version 1, the champion, could not be saved to the BentoML store" in caplog.text
    assert [tag.partition("-")[0] for tag in tags()] == ["churn:2"]


def test_another_model_under_our_tag_is_an_error(project, ledger):
    model = complete(project, ledger, "20261123-170501-0001", WEAK)
    (model_folder("churn", 1, model["digest"]) / "model.skops").write_bytes(b"another")
    with pytest.raises(StorageError, match="bentoml models delete churn:1-"):
        complete(project, ledger, "20261123-170502-0002", WEAK)


def test_a_store_that_cannot_be_written_is_a_warning(project, ledger, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "file"))
    model = complete(project, ledger, "20261123-170501-0001", WEAK)
    assert model["aliases"] == ["champion"]
    assert "churn version 1 is not in the BentoML store" in caplog.text


def test_the_store_can_be_switched_off(project, ledger, tmp_path):
    settings = project._replace(registry=project.registry._replace(bento_store=False))
    complete(settings, ledger, "20261123-170501-0001", WEAK)
    assert not (tmp_path / "bentoml").exists()


def test_a_damaged_package_is_refused(project, ledger):
    run = give(project, ledger, "20261123-170501-0001", STRONG, TEST)
    (place,) = (path for path in (project.workspace.path / "objects").rglob("*") if path.name == sha(STRONG))
    place.chmod(0o644)
    place.write_bytes(STRONG[:500])
    with pytest.raises(StorageError, match="damaged"):
        run_completing(run, project, ledger)
    assert ledger.versions() == []


def sha(content):
    from mlops_nb.core.hashing import sha256_bytes

    return sha256_bytes(content)


def test_a_run_without_packages_is_none_of_our_business(project, ledger):
    ledger.begin_run("20261123-170501-0001", "other", {})
    assert run_completing({"run": "20261123-170501-0001", "pipeline": "other"}, project, ledger) is None


COMPLETE = """
import sys
import time
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.registry.fsck import fsck
from mlops_nb.registry.register import run_completing

settings = load_settings()
with Ledger.open(settings) as ledger:
    run_completing({"run": sys.argv[1], "pipeline": "tabular"}, settings, ledger)
for name in ("pandas", "numpy", "sklearn", "bentoml", "sqlalchemy", "msgspec", "cryptography", "zipfile", "packaging"):
    print(name, name in sys.modules)
"""


def complete_elsewhere(settings, run_id, **extra):
    """Let another process complete a run."""
    command = [sys.executable, "-c", textwrap.dedent(COMPLETE), run_id]
    return subprocess.run(
        command, cwd=settings.project, env={**os.environ, **extra}, capture_output=True, text=True, check=False
    )


def test_a_run_with_nothing_new_imports_nothing_heavy(project, ledger):
    complete(project, ledger, "20261123-170501-0001", WEAK)
    ledger.begin_run("20261123-170502-0002", "tabular", {})
    ledger.end_run("20261123-170502-0002", "ok")
    give(project, ledger, "20261123-170503-0003", WEAK, TEST)
    time.sleep(2.1)  # what was written just now is verified again, and not remembered
    complete_elsewhere(project, "20261123-170503-0003")
    done = complete_elsewhere(project, "20261123-170503-0003")
    assert done.returncode == 0, done.stderr
    assert "True" not in done.stdout.replace("zipfile True", "")


def two_versions(folder, monkeypatch, fault=None):
    """Two runs, the second perhaps killed at a named point and repeated; what stands in the end."""
    monkeypatch.setenv("BENTOML_HOME", str(folder / "bentoml"))
    settings = make_project(folder / "project")
    with Ledger.open(settings) as ledger:
        complete(settings, ledger, "20261123-170501-0001", WEAK)
        give(settings, ledger, "20261123-170502-0002", STRONG, TEST)
        if fault:
            killed = complete_elsewhere(settings, "20261123-170502-0002", MLOPS_NB_FAULT=fault)
            assert killed.returncode == -signal.SIGKILL, killed.stderr
        complete(settings, ledger, "20261123-170503-0003", STRONG)
    return standing(settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return two_versions(tmp_path_factory.mktemp("undisturbed"), patch)


@pytest.mark.parametrize(
    "fault",
    [
        *("before-register", "after-register", "before-version", "after-version"),
        *("before-alias", "after-alias", "before-publish", "after-publish"),
    ],
)
def test_killed_in_between(tmp_path, monkeypatch, undisturbed, fault):
    """A run that is killed at a named point and completed by the next ends as one that was not."""
    assert two_versions(tmp_path, monkeypatch, fault) == undisturbed
    assert undisturbed["versions"][0][3] == ["champion"]
