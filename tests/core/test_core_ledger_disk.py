"""A locked, full, read-only or absent ledger: words, and nothing lost."""

import os
import stat
import time

import pytest

from mlops_nb.core.errors import Busy, StorageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
"""


def settings_on(disk):
    return load_settings(disk.path, environ={"MLOPS_NB_WORKSPACE_PATH": str(disk.path / "ws")})


def test_a_ledger_that_another_program_holds_is_busy_after_a_bounded_wait(file_settings, start_python):
    with Ledger.open(file_settings, patience=0.3) as ledger:
        ledger.begin_run("run-1", "tabular", {})
        holder = start_python(HOLD, ledger.database.path)
        assert holder.stdout.readline() == "held\n"
        before = time.monotonic()
        with pytest.raises(Busy, match=r"ledger\.sqlite is locked by another program") as caught:
            ledger.end_run("run-1", "ok")
        assert 0.2 < time.monotonic() - before < 5
        assert caught.value.exit_code == 4 and "Close the program" in caught.value.hint
        assert ledger.runs()[0]["status"] == "running", "readers do not wait"
        holder.stdin.write("\n")
        holder.stdin.flush()
        holder.wait()
        ledger.end_run("run-1", "ok")
        assert ledger.runs()[0]["status"] == "ok"


def test_a_short_hold_is_waited_for(file_settings, start_python):
    with Ledger.open(file_settings) as ledger:
        holder = start_python(
            HOLD.replace("sys.stdin.readline()", "import time; time.sleep(0.5)"), ledger.database.path
        )
        assert holder.stdout.readline() == "held\n"
        ledger.begin_run("run-1", "tabular", {})
        assert ledger.runs()[0]["run"] == "run-1"


def test_a_full_disk_fails_clean_and_recovers(small_disk):
    with Ledger.open(settings_on(small_disk)) as ledger:
        ledger.begin_run("run-1", "tabular", {})
        ledger.end_run("run-1", "ok")
        small_disk.fill()
        big = {"gives": {}, "metrics": {}, "text": "x" * 100_000}
        with pytest.raises(StorageError, match=r"the disk is full|disk reports an error") as caught:
            for number in range(50):
                ledger.begin_run(f"run-x{number}", "tabular", {})
                ledger.commit_step(f"run-x{number}", "train", key=f"k{number}", parts={}, manifest=big)
        assert "MLOPS_NB_WORKSPACE_PATH" in caught.value.hint
        assert ledger.runs(status="ok")[0]["run"] == "run-1"
        (small_disk.path / "filler").unlink()
        ledger.begin_run("run-2", "tabular", {})
        assert ledger.database.rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]


def test_no_ledger_is_begun_on_a_full_disk(small_disk):
    small_disk.fill()
    with pytest.raises(StorageError, match="full"):
        Ledger.open(settings_on(small_disk))
    assert not (small_disk.path / "ws" / "ledger.sqlite").exists()


def test_a_disk_that_fills_while_the_ledger_is_made(small_disk):
    filler = small_disk.path / "filler"
    filler.write_bytes(b"x" * (512 - 60) * 1024)
    with pytest.raises(StorageError, match=r"full|reports an error"):
        Ledger.open(settings_on(small_disk))
    left = [item.name for item in (small_disk.path / "ws").iterdir()]
    assert sorted(left) == [".gitignore", "ledger.lock"]
    filler.unlink()
    Ledger.open(settings_on(small_disk)).close()


def test_a_read_only_ledger_can_be_read(small_disk):
    settings = settings_on(small_disk)
    with Ledger.open(settings) as ledger:
        ledger.begin_run("run-1", "tabular", {"train.model": "forest"})
        ledger.end_run("run-1", "ok")
    small_disk.read_only()
    with Ledger.open(settings) as ledger:
        assert ledger.latest_run("tabular") == "run-1"
        assert ledger.runs()[0]["parameters"] == {"train.model": "forest"}
        with pytest.raises(StorageError, match=r"it is read-only|cannot be opened") as caught:
            ledger.begin_run("run-2", "tabular", {})
        assert "writable" in caught.value.hint


def test_a_new_workspace_on_a_read_only_disk(small_disk):
    small_disk.read_only()
    with pytest.raises(StorageError, match="the file system is read-only"):
        Ledger.open(settings_on(small_disk))


def test_looking_creates_nothing(file_settings):
    with Ledger.open(file_settings, create=False) as ledger:
        assert ledger.runs() == ledger.versions() == ledger.events() == ledger.reap() == []
        assert ledger.find_results(["k"]) == {}
        assert ledger.last_parts("tabular", "train") is None
        assert ledger.latest_run("tabular") is None
        with pytest.raises(StorageError, match="cannot be opened"):
            ledger.add_event("x", "y")
    assert not file_settings.workspace.path.exists()


def test_the_workspace_keeps_out_of_git(settings):
    Ledger.open(settings).close()
    assert (settings.workspace.path / ".gitignore").read_text() == "*\n"
    (settings.workspace.path / ".gitignore").write_text("mine\n")
    Ledger.open(settings).close()
    assert (settings.workspace.path / ".gitignore").read_text() == "mine\n"


def test_the_ledger_follows_the_umask(file_settings):
    before = os.umask(0o027)
    try:
        Ledger.open(file_settings).close()
    finally:
        os.umask(before)
    mode = (file_settings.workspace.path / "ledger.sqlite").stat().st_mode
    assert stat.S_IMODE(mode) == 0o640


def test_paths_with_odd_characters(tmp_path):
    for name in ("with space", "50%", "a?b#c", "ünïcode"):
        project = tmp_path / name
        project.mkdir()
        with Ledger.open(load_settings(project, environ={})) as ledger:
            ledger.begin_run("run-1", "tabular", {})
            ledger.end_run("run-1", "ok")
            assert ledger.latest_run("tabular") == "run-1"
        assert (project / ".mlops" / "ledger.sqlite").is_file()
