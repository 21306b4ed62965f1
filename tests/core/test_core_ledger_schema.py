"""The ledger is created once, upgraded after a backup, and never downgraded."""

import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from mlops_nb.core.errors import Busy, StorageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.database import connect, network_type
from mlops_nb.core.ledger.migrate import HEAD, SCRIPTS, open_database, schema_number

SECOND = '''
"""A note for each run."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "HEAD"


def upgrade() -> None:
    op.add_column("runs", sa.Column("note", sa.Text(), nullable=False, server_default="none"))
    op.create_table("extra", sa.Column("id", sa.Integer(), primary_key=True))
    with op.batch_alter_table("metrics") as batch:
        batch.add_column(sa.Column("unit", sa.Text()))
'''.replace("HEAD", HEAD)

BROKEN = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "HEAD"


def upgrade() -> None:
    op.create_table("extra", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("INSERT INTO run_sources VALUES ('no such run', 'a.py', 'ff')")
    {last}
""".replace("HEAD", HEAD)

OPEN = """
import sys, time
from pathlib import Path
from mlops_nb.core.ledger.migrate import open_database, schema_number
while time.time() < float(sys.argv[4]):
    time.sleep(0.005)
database = open_database(Path(sys.argv[1]), head=sys.argv[2], scripts=Path(sys.argv[3]))
print(schema_number(database))
"""


@pytest.fixture
def path(tmp_path):
    """A ledger with one finished run."""
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(open_database(path))
    ledger.begin_run("run-1", "tabular", {"train.model": "forest"})
    ledger.commit_step("run-1", "evaluate", key="k", parts={}, manifest={"gives": {}, "metrics": {"auc": 0.9}})
    ledger.end_run("run-1", "ok")
    ledger.close()
    return path


@pytest.fixture
def scripts(tmp_path):
    """The project's scripts, and a second migration behind them."""
    folder = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "9999_note.py").write_text(SECOND)
    return folder


def backups(path):
    return sorted(path.parent.glob("ledger-*.sqlite"))


def test_scripts_build_what_the_tables_page_describes(path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine

    from mlops_nb.core.ledger.schema import metadata

    with create_engine(f"sqlite:///{path}").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    assert ScriptDirectory(str(SCRIPTS)).get_current_head() == HEAD


def test_each_constraint_has_a_name(path):
    statements = [row["sql"] for row in connect(path).execute("SELECT sql FROM sqlite_master WHERE type = 'table'")]
    for statement in statements:
        assert statement.count("CONSTRAINT") == statement.count("PRIMARY KEY") + statement.count(
            "UNIQUE"
        ) + statement.count("FOREIGN KEY"), statement


def test_two_processes_create_it_once(tmp_path, start_python, finish):
    at = time.time() + 1.0
    arguments = (OPEN, tmp_path / "deep" / "ledger.sqlite", HEAD, SCRIPTS, at)
    assert finish(*(start_python(*arguments) for _ in range(3))) == [HEAD] * 3
    assert sorted(item.name for item in (tmp_path / "deep").iterdir() if item.name[-4:] not in ("-wal", "-shm")) == [
        "ledger.lock",
        "ledger.sqlite",
    ]


def test_an_older_ledger_upgrades_itself_after_a_backup(path, scripts):
    database = open_database(path, head="9999", scripts=scripts)
    assert schema_number(database) == "9999"
    assert database.rows("SELECT id, note FROM runs") == [{"id": "run-1", "note": "none"}]
    assert database.rows("SELECT value, unit FROM metrics") == [{"value": 0.9, "unit": None}]
    (copy,) = backups(path)
    assert not list(path.parent.glob(".*")) and not list(path.parent.glob("ledger-*-wal"))
    assert copy.name.startswith(f"ledger-{HEAD}-")
    kept = sqlite3.connect(copy)
    assert kept.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
    assert kept.execute("SELECT id, status FROM runs").fetchall() == [("run-1", "ok")]
    open_database(path, head="9999", scripts=scripts)
    assert backups(path) == [copy], "an upgraded ledger is not copied again"


def test_curves_of_an_older_ledger_are_sketched_by_its_upgrade(path):
    values = [1 / (1 + abs(n - 70)) for n in range(100)]
    points = [{"t": 0.0, "step": n if n % 2 else None, "values": {"loss": value}} for n, value in enumerate(values)]
    points += [{"t": 0.0, "step": None, "values": {"loss": float("inf"), "few": 1.0, "none": float("nan")}}]
    with Ledger(open_database(path)) as ledger:
        ledger.commit_step("run-1", "train", key="t", parts={}, manifest={"gives": {}, "metrics": {}}, points=points)
        before = ledger.sketches(["run-1"])
        with ledger.database.transaction() as execute:
            for table in ("sketches", "run_calls", "run_keys"):
                execute(f"DROP TABLE {table}")
            execute("DROP INDEX ix_runs_started_id")
            execute("UPDATE alembic_version SET version_num = '0003'")
    assert [(one.name, one.total, one.best(False)) for one in before] == [
        ("few", 1, (1.0, 100)),
        ("loss", 100, (1.0, 70)),
    ]
    with Ledger(open_database(path)) as ledger:
        assert ledger.sketches(["run-1"]) == before


def test_two_processes_upgrade_it_once(path, scripts, start_python, finish):
    arguments = (OPEN, path, "9999", scripts, time.time() + 1.0)
    assert finish(*(start_python(*arguments) for _ in range(3))) == ["9999"] * 3
    assert len(backups(path)) == 1


@pytest.mark.parametrize(
    ("last", "error"),
    [("", StorageError), ("raise RuntimeError('halfway')", RuntimeError)],
    ids=["references", "raises"],
)
def test_a_failing_upgrade_leaves_the_old_ledger(path, scripts, last, error):
    (scripts / "versions" / "9999_note.py").write_text(BROKEN.format(last=last))
    with pytest.raises(error, match=r"would break 1 references|halfway"):
        open_database(path, head="9999", scripts=scripts)
    assert schema_number(open_database(path)) == HEAD
    assert not connect(path).execute("SELECT name FROM sqlite_master WHERE name = 'extra'").fetchall()


def test_a_killed_upgrade_leaves_the_old_ledger(path, scripts, start_python):
    (scripts / "versions" / "9999_note.py").write_text(
        BROKEN.format(last="print('there', flush=True); import time; time.sleep(60)")
    )
    process = start_python(OPEN, path, "9999", scripts, 0)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert schema_number(open_database(path)) == HEAD
    (scripts / "versions" / "9999_note.py").write_text(SECOND)
    assert schema_number(open_database(path, head="9999", scripts=scripts)) == "9999"


def test_a_killed_creation_leaves_no_ledger(tmp_path, start_python):
    scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    first = scripts / "versions" / "0001_first.py"
    first.write_text(first.read_text() + "    print('there', flush=True)\n    import time\n    time.sleep(60)\n")
    path = tmp_path / "workspace" / "ledger.sqlite"
    process = start_python(OPEN, path, HEAD, scripts, 0)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    assert schema_number(open_database(path)) == HEAD
    assert not list(path.parent.glob(".*"))


def test_an_upgrade_waits_for_no_live_run(path, scripts):
    ledger = Ledger(open_database(path))
    ledger.begin_run("run-2", "tabular", {})
    with pytest.raises(Busy, match=r"run run-2 of process .* is still going on"):
        open_database(path, head="9999", scripts=scripts)
    with ledger.database.transaction() as execute:
        execute("UPDATE runs SET process_started = '1' WHERE id = 'run-2'")
    assert schema_number(open_database(path, head="9999", scripts=scripts)) == "9999"
    ledger.close()


def test_a_newer_ledger_is_refused_and_untouched(path, scripts):
    open_database(path, head="9999", scripts=scripts).close()
    before = path.read_bytes()
    with pytest.raises(
        StorageError, match=rf"has schema 9999, and this mlops_nb knows only 0001 to {HEAD}\."
    ) as caught:
        open_database(path)
    assert "newer version" in caught.value.hint
    assert path.read_bytes() == before
    assert len(backups(path)) == 1


def test_a_ledger_of_the_first_schema_keeps_what_it_has(tmp_path):
    scripts = tmp_path / "first"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__", "000[2-9]*"))
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(open_database(path, head="0001", scripts=scripts))
    ledger.begin_run("run-1", "tabular", {"train.model": "forest"})
    ledger.set_mirror_state("run-1", "train", "written", "run-1-train")
    ledger.end_run("run-1", "ok")
    ledger.close()
    ledger = Ledger(open_database(path))
    assert ledger.run("run-1")["parameters"] == {"train.model": "forest"}
    ledger.tag_run("run-1", add=["old"])
    assert ledger.annotations(["run-1"])["run-1"]["tags"] == ["old"] and ledger.costs(["run-1"]) == {"run-1": None}
    assert [(row["wandb_id"], row["state"]) for row in ledger.deliveries()] == [("run-1-train", "pending")]
    ledger.close()


def test_another_database_is_no_ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    sqlite3.connect(path).execute("CREATE TABLE notes (id INTEGER)").connection.close()
    with pytest.raises(StorageError, match="is a database, but no ledger"):
        open_database(path)


def test_an_empty_file_becomes_a_ledger(tmp_path):
    (tmp_path / "ledger.sqlite").touch()
    database = open_database(tmp_path / "ledger.sqlite")
    assert schema_number(database) == HEAD
    assert database.rows("PRAGMA journal_mode") == [{"journal_mode": "wal"}]


@pytest.mark.parametrize("damage", ["text", "hole"])
def test_a_damaged_ledger_says_so(path, damage):
    if damage == "text":
        path.write_bytes(b"this is no database at all, but long enough to be read as one" * 100)
    else:
        with open(path, "r+b") as file:
            file.seek(100)
            file.write(b"\xff" * 8000)
    with pytest.raises(StorageError, match="is damaged"):
        open_database(path)


def test_network_disks_are_known(tmp_path):
    mounts = [("/", "overlay"), ("/mnt/my\\040share", "cifs"), ("/data", "fuse.sshfs"), ("/data/fast", "xfs")]
    assert network_type(Path("/mnt/my share/x"), mounts) == "cifs"
    assert network_type(Path("/data/x"), mounts) == "fuse.sshfs"
    assert network_type(Path("/data/fast/x"), mounts) is None
    assert network_type(Path("/database"), mounts) is None
    assert network_type(tmp_path) is None


def test_a_network_disk_is_refused(tmp_path, monkeypatch):
    from mlops_nb.core.ledger import database

    open_database(tmp_path / "moved.sqlite").close()
    for kind in ("nfs4", "smb3"):
        monkeypatch.setattr(database, "_mounts", lambda kind=kind: [("/", kind)])
        for name in ("ledger.sqlite", "moved.sqlite"):
            with pytest.raises(StorageError, match=rf"on a network disk \({kind}\)"):
                open_database(tmp_path / name)
    assert not (tmp_path / "ledger.sqlite").exists()
    looking = open_database(tmp_path / "moved.sqlite", create=False)
    assert schema_number(looking) == HEAD
    looking.close()


def test_scripts_travel_with_the_package():
    from setuptools import find_packages

    names = find_packages(str(SCRIPTS.parents[3]), include=["mlops_nb", "mlops_nb.*"])
    assert {"mlops_nb.core.ledger.migrations", "mlops_nb.core.ledger.migrations.versions"} <= set(names)
