"""Settings are typed, explained and never silently wrong."""

import sys

import pytest

from mlops_nb.core.errors import UsageError
from mlops_nb.core.settings import SECTIONS, SETTINGS, find_project, load_settings


def load(folder, text, **environ):
    (folder / "settings.ini").write_text(text, encoding="utf-8")
    return load_settings(folder, environ=environ)


def test_defaults_without_a_file(tmp_path):
    settings = load_settings(tmp_path, environ={})
    assert settings.workspace.path == tmp_path / ".mlops"
    assert settings.pipeline.folder == "nbs/pipelines"
    assert settings.pipeline.timeout == 0
    assert settings.tracking.mode == "offline"
    assert settings.tracking.project == settings.name == tmp_path.name
    assert settings.registry.bento_store is True
    assert settings.serving.model == ""
    assert settings.serving.max_body == 1_048_576


def test_table_has_every_key_once_with_its_meaning(tmp_path):
    table = load_settings(tmp_path, environ={}).table()
    assert [(row["section"], row["key"]) for row in table] == [
        (section, name) for section, kind in SECTIONS.items() for name in kind._fields
    ]
    for row in table:
        assert len(row["meaning"]) > 10
        assert row["variable"] == f"MLOPS_NB_{row['section']}_{row['key']}".upper()
        assert row["origin"] == "default"


def test_environment_goes_before_the_file(tmp_path):
    text = "[pipeline]\ntimeout = 5\n[registry]\nbento_store = no\n"
    settings = load(tmp_path, text, MLOPS_NB_PIPELINE_TIMEOUT="7", MLOPS_NB_SERVING_MODEL="")
    assert settings.pipeline.timeout == 7
    assert settings.registry.bento_store is False
    origins = {f"{row['section']}.{row['key']}": row["origin"] for row in settings.table()}
    assert origins["pipeline.timeout"] == "MLOPS_NB_PIPELINE_TIMEOUT"
    assert origins["registry.bento_store"] == "settings.ini:4"
    assert origins["serving.model"] == "default"


@pytest.mark.parametrize("path", ["elsewhere/ws", "/var/tmp/ws", "~/ws"])
def test_workspace_path_is_absolute(tmp_path, monkeypatch, path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = {"elsewhere/ws": tmp_path / "elsewhere" / "ws", "~/ws": tmp_path / "home" / "ws"}
    settings = load(tmp_path, "", MLOPS_NB_WORKSPACE_PATH=path)
    assert str(settings.workspace.path) == str(expected.get(path, path))


@pytest.mark.parametrize("path", [".", "..", "nbs/..", "/", "~", "link"])
def test_a_workspace_that_would_hold_the_project_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.setenv("HOME", str(tmp_path))
    project = tmp_path / "project"
    project.mkdir()
    (project / "link").symlink_to(tmp_path)
    for text, environ in (("", {"MLOPS_NB_WORKSPACE_PATH": path}), (f"[workspace]\npath = {path}\n", {})):
        with pytest.raises(UsageError, match="holds the project") as caught:
            load(project, text, **environ)
        assert f"'{path}'" in caught.value.message and "folder of their own" in caught.value.hint
    assert load(project, "", MLOPS_NB_WORKSPACE_PATH="../other").workspace.path == project / "../other"


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("[workspace]\npath =\n", r"path is '' \(settings.ini:2\), expected a path", "Correct"),
        ("[servign]\n", r"no section \[servign\] \(settings.ini, line 1\)", "Did you mean 'serving'"),
        ("\n[quux]\n", r"no section \[quux\] \(settings.ini, line 2\)", "Known: package, workspace"),
        (
            "[serving]\n\nmodle = x\n",
            r"\[serving\] has no key 'modle' \(settings.ini, line 3\)",
            "Did you mean 'model'",
        ),
        ("[serving]\nModel = x\n", r"no key 'Model'", "Did you mean 'model'"),
        ("[serving]\nzz = x\n", r"no key 'zz'", "Known: model, max_body"),
        ("[pipeline]\ntimeout = 1.5\n", r"timeout is '1.5' \(settings.ini:2\), expected a whole number", "Correct"),
        ("[pipeline]\ntimeout = -1\n", r"expected a whole number of at least 0", "Correct"),
        ("[registry]\nbento_store = maybe\n", r"expected true or false", "Correct"),
        ("[tracking]\nmode = online\n", r"'online' .* expected one of offline, mirror, off", "Did you mean 'offline'"),
        ("[DEFAULT]\nmodel = x\n", r"\[DEFAULT\] \(settings.ini, line 1\)", "Move its keys"),
        ("[serving]\nmodel = a\nmodel = b\n", "already exists", "Correct that line"),
        ("[serving]\nmodel\n", "cannot be read", "Correct that line"),
        ("model = a\n", "no section headers", "Correct that line"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, words, hint):
    with pytest.raises(UsageError, match=words) as caught:
        load(tmp_path, text)
    assert hint in caught.value.hint


def test_unknown_variables_with_the_prefix_are_refused(tmp_path):
    with pytest.raises(UsageError, match="MLOPS_NB_SERVING_MODLE names no setting") as caught:
        load(tmp_path, "", MLOPS_NB_SERVING_MODLE="x")
    assert "MLOPS_NB_SERVING_MODEL" in caught.value.hint
    with pytest.raises(UsageError, match="MLOPS_NB_TRACKNG_MODE names no setting") as caught:
        load(tmp_path, "", MLOPS_NB_TRACKNG_MODE="off")
    assert caught.value.hint == "Did you mean 'MLOPS_NB_TRACKING_MODE'?"
    with pytest.raises(UsageError, match="MLOPS_NB_QUUX names no setting"):
        load(tmp_path, "", MLOPS_NB_QUUX="1")
    others = {"MLOPS_NB_STEP": "x", "MLOPS_NB_FAULT": "x", "MLOPS_NB_TEST_REAL_SERVICES": "1", "SERVING_MODLE": "x"}
    assert load(tmp_path, "", **others).origins == {}


def test_percent_signs_colons_and_marks_are_plain_text(tmp_path):
    text = "\ufeff[serving]\nmodel = 100%(x)s:a\n[package]\nimport_name = churn\nrequires =\n    a==1 ; x\n    b>=2\n"
    settings = load(tmp_path, text)
    assert settings.serving.model == "100%(x)s:a"
    assert settings.tracking.project == "churn"
    assert find_project(tmp_path) == tmp_path


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "settings.ini").write_bytes(b"[serving]\nmodel = caf\xe9\n")
    with pytest.raises(UsageError, match="no UTF-8 text"):
        load_settings(tmp_path, environ={})


def test_project_is_found_from_within_and_nowhere_else(tmp_path, monkeypatch):
    inner = tmp_path / "project" / "nbs" / "pipelines"
    inner.mkdir(parents=True)
    (tmp_path / "project" / "settings.ini").write_text("[package]\nname = x\n")
    (inner / "settings.ini").write_text("[other]\nprogram = 1\n")
    assert find_project(inner) == tmp_path / "project"
    monkeypatch.chdir(inner)
    assert load_settings(environ={}).project == tmp_path / "project"
    with pytest.raises(UsageError, match="no project") as caught:
        find_project(tmp_path)
    assert "mlops-nb new" in caught.value.hint


def test_reading_settings_imports_nothing_heavy(start_python, finish):
    code = (
        "import sys; from mlops_nb.core.settings import load_settings; load_settings('.'); print(' '.join(sys.modules))"
    )
    loaded = set(finish(start_python(code))[0].split())
    assert not loaded & {"msgspec", "pydantic", "inspect", "dataclasses", "sqlite3", "psutil", "subprocess"}
    assert SETTINGS and "mlops_nb.core.settings" in sys.modules
