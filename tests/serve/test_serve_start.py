"""What `bentoml serve` and `bentoml build` say when they cannot: one error, an exit code, an end."""

import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from serve_support import environment, make_project, release
from support import free_port

from mlops_nb.registry.releases import read_release


def bentoml(project, home, *words, **extra):
    """Run a bentoml command in a project, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "bentoml", *words],
        cwd=project,
        env=environment(home, __BENTOML_DEBUG_USAGE="true", **extra),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def serve(project, home, **extra):
    return bentoml(project, home, "serve", "--port", str(free_port()), **extra)


def said(done):
    """All that a command printed; nothing of it is a traceback or a usage report."""
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    assert "Tracking Payload" not in text
    return text


@pytest.mark.parametrize("command", ["serve", "build"])
def test_nothing_released(tmp_path, command):
    project = make_project(tmp_path / "project")
    done = bentoml(project, tmp_path / "home", command)
    text = said(done)
    assert done.returncode == 1
    assert "No model has been released yet" in text
    assert "`make run` or `mlops-nb run <pipeline>`" in text
    assert text.count("Error") == 1


def test_a_changed_file_is_named_and_nothing_is_loaded(tmp_path, served_project):
    project = tmp_path / "project"
    shutil.copytree(served_project, project)
    (model,) = project.glob(".mlops/releases/*/*/versions/1/model.skops")
    model.write_bytes(model.read_bytes() + b"x")
    done = serve(project, tmp_path / "home")
    assert done.returncode == 1
    assert "versions/1/model.skops" in said(done)


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path):
    project = make_project(tmp_path / "project")
    release(project, foreign=True)
    with open(project / "settings.ini", "a") as settings:
        settings.write("[serving]\nworkers = 2\n")
    done = serve(project, tmp_path / "home")
    text = said(done)
    assert done.returncode == 1
    assert text.count("The model holds os.getenv") == 1


def in_process(project, monkeypatch, **extra):
    """Make the service in this process; the text of the error it stops with."""
    from mlops_nb.serve.service import StartError, make_service

    monkeypatch.chdir(project)
    for name, value in extra.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartError) as stopped:
        make_service()
    return str(stopped.value)


def test_several_models_and_no_choice(tmp_path, served_project, monkeypatch):
    project = tmp_path / "project"
    shutil.copytree(served_project, project)
    release(project, model="income")
    text = in_process(project, monkeypatch)
    assert "churn, income" in text
    assert "MLOPS_NB_SERVING_MODEL=income" in text
    assert "Did you mean 'income'?" in in_process(project, monkeypatch, MLOPS_NB_SERVING_MODEL="incme")


def test_the_setting_chooses(tmp_path, served_project, monkeypatch):
    from mlops_nb.serve.service import make_service

    project = tmp_path / "project"
    shutil.copytree(served_project, project)
    release(project, model="income")
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLOPS_NB_SERVING_MODEL", "income")
    service = make_service()
    assert (service.name, service.inner.release.document.model) == ("income", "income")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "release.json").unlink(), "no release.json"),
        (lambda folder: (folder / "release.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "release.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "release.json").write_bytes(b"\xff"), "cannot be read"),
        (lambda folder: (folder / "versions/1/schema.json").unlink(), "schema.json is missing"),
        (lambda folder: folder.rename(folder.with_name("000009-aaaaaaaaaaaa")), "no release.json"),
    ],
)
def test_damaged_releases(tmp_path, served_project, monkeypatch, damage, words):
    project = tmp_path / "project"
    shutil.copytree(served_project, project)
    (folder,) = (entry for entry in project.glob(".mlops/releases/churn/*") if entry.is_dir())
    damage(folder)
    text = in_process(project, monkeypatch)
    assert "is damaged" in text
    assert words in text


def test_outside_a_project(tmp_path, monkeypatch):
    assert "There is no project" in in_process(tmp_path, monkeypatch)


def test_a_misspelt_setting(tmp_path, served_project, monkeypatch):
    assert "names no setting" in in_process(served_project, monkeypatch, MLOPS_NB_SERVING_MODLE="churn")


def test_importing_the_service_needs_no_release(tmp_path):
    code = "import mlops_nb.serve.service as service; assert 'Service' not in vars(service)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_readers_never_see_half_a_release(tmp_path):
    """A publisher replaces the release again and again while readers follow it."""
    from mlops_nb.registry.releases import Arm, Document, generations, publish, sha256_bytes

    stop, failures, seen = threading.Event(), [], set()

    def read():
        while not stop.is_set():
            try:
                found = read_release(tmp_path, "churn")
                assert found.read("versions/1/model.skops") == str(found.document.generation).encode() * 1000
                seen.add(found.document.generation)
            except Exception as error:
                failures.append(error)

    def write(generation):
        contents = {"versions/1/model.skops": str(generation).encode() * 1000}
        files = {name: sha256_bytes(content) for name, content in contents.items()}
        arms = (Arm(1, "5d" * 32, 1.0, "versions/1"),)
        publish(tmp_path, Document("churn", "binary", arms, files, generation=generation), contents)

    write(1)
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for generation in range(2, 40):
        write(generation)
        time.sleep(0.02)
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert len(seen) > 3
    for name in generations(tmp_path / "churn"):
        os.utime(tmp_path / "churn" / name, (0, 0))
    write(40)
    assert len(list(generations(tmp_path / "churn"))) == 3
