"""A ledger in Postgres is created once and upgraded by the same scripts, while nobody uses it, or not at all."""

import os
import shutil
import signal
import time

import psycopg
import pytest
from postgres_service import ledger_url
from support import shared_folder

from mlops_nb.core.errors import Busy, StorageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.address import Address
from mlops_nb.core.ledger.migrate import HEAD, SCRIPTS, schema_number
from mlops_nb.core.ledger.upgrade import open_postgres

SECOND = '''
"""A note for each run."""

import sqlalchemy as sa
from alembic import op

from mlops_nb.core.ledger.migrations.types import TEXT

revision = "9999"
down_revision = "HEAD"


def upgrade() -> None:
    op.add_column("runs", sa.Column("note", TEXT, nullable=False, server_default="none"))
    with op.batch_alter_table("metrics") as batch:
        batch.add_column(sa.Column("unit", TEXT))
    LAST
'''.replace("HEAD", HEAD)

OPEN = """
import sys, time
from pathlib import Path
from mlops_nb.core.ledger.address import Address
from mlops_nb.core.ledger.migrate import schema_number
from mlops_nb.core.ledger.upgrade import open_postgres
while time.time() < float(sys.argv[4]):
    time.sleep(0.005)
database = open_postgres(Address.parse(sys.argv[1]), Path(), head=sys.argv[2], scripts=Path(sys.argv[3]))
print(schema_number(database))
"""


@pytest.fixture
def name(request):
    """A database's name of the test's own."""
    return f"schema_{os.getpid()}_{abs(hash(request.node.name)) % 10**8}"


@pytest.fixture
def empty(tmp_path_factory, name):
    """The address of a database with nothing in it."""
    with ledger_url(shared_folder(tmp_path_factory), name, empty=True) as url:
        yield url


@pytest.fixture
def url(tmp_path_factory, name, tmp_path):
    """The address of a ledger with one finished run."""
    with ledger_url(shared_folder(tmp_path_factory), name) as url:
        with Ledger(open_postgres(Address.parse(url), tmp_path)) as ledger:
            ledger.begin_run("run-1", "tabular", {"train.model": "forest"})
            ledger.commit_step("run-1", "evaluate", key="k", parts={}, manifest={"gives": {}, "metrics": {"auc": 0.9}})
            ledger.end_run("run-1", "ok")
        yield url


@pytest.fixture
def scripts(tmp_path):
    """The project's scripts, and a second migration behind them."""
    return with_second(tmp_path / "scripts", "")


def with_second(folder, last: str):
    """Scripts with one more, which ends in a line."""
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (folder / "versions" / "9999_note.py").write_text(SECOND.replace("LAST", last))
    return folder


def look(url: str, query: str) -> list[tuple]:
    """What another program sees."""
    with psycopg.connect(url) as reader:
        return reader.execute(query).fetchall()


def test_scripts_build_what_the_tables_page_describes(url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from mlops_nb.core.ledger.schema import metadata

    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    options = {"compare_type": True, "include_name": lambda name, kind, parents: name != "commits"}
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    engine.dispose()
    texts = "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_name = 'runs'"
    texts = f"{texts} AND data_type = 'text'"
    assert look(url, texts) == [("C",)]


def test_three_processes_create_it_once(empty, start_python, finish):
    arguments = (OPEN, empty, HEAD, SCRIPTS, time.time() + 1.0)
    assert finish(*(start_python(*arguments) for _ in range(3))) == [HEAD] * 3
    assert look(empty, "SELECT version_num FROM alembic_version") == [(HEAD,)]


def test_an_older_ledger_upgrades_itself(url, scripts, tmp_path):
    database = open_postgres(Address.parse(url), tmp_path, head="9999", scripts=scripts)
    assert schema_number(database) == "9999"
    assert database.rows("SELECT id, note FROM runs") == [{"id": "run-1", "note": "none"}]
    assert database.rows("SELECT value, unit FROM metrics") == [{"value": 0.9, "unit": None}]
    database.close()
    with pytest.raises(StorageError, match=rf"has schema 9999, and this mlops_nb knows only 0001 to {HEAD}\."):
        open_postgres(Address.parse(url), tmp_path)


def test_a_ledger_of_the_first_schema_keeps_what_it_has(empty, tmp_path):
    first = tmp_path / "first"
    shutil.copytree(SCRIPTS, first, ignore=shutil.ignore_patterns("__pycache__", "000[2-9]*"))
    address = Address.parse(empty)
    database = open_postgres(address, tmp_path, head="0001", scripts=first)
    with database.transaction() as execute:
        columns = "id, pipeline, status, started, pid, process_started, boot, host, heartbeat, user_name"
        facts = "'run-1', 'tabular', 'ok', '2026-11-01T00:00:00.000000Z', 1, '', '', '', '', ''"
        execute(f"INSERT INTO runs ({columns}, python, command) VALUES ({facts}, '', '')")
        columns, facts = (
            "key, pipeline, step, run_id, created, parts, manifest",
            "'k', 'p', 's', 'run-1', '', '{}', '{}'",
        )
        execute(f"INSERT INTO results ({columns}) VALUES ({facts})")
        columns, row = "result_id, position, name, t, step, value", (1, 0, "loss", 0.0, 1, 0.5)
        execute.many(f"INSERT INTO points ({columns}) VALUES (?, ?, ?, ?, ?, ?)", [row])
    database.close()
    with Ledger(open_postgres(address, tmp_path)) as ledger:
        assert ledger.database.rows("SELECT last FROM sketches") == [{"last": 0.5}]
        assert ledger.database.rows("SELECT id FROM runs") == [{"id": "run-1"}]


@pytest.mark.parametrize("last", ["raise RuntimeError('halfway')", "op.execute('SELECT no_such_thing')"])
def test_a_failing_upgrade_leaves_the_old_ledger(url, tmp_path, last):
    scripts = with_second(tmp_path / "broken", last)
    with pytest.raises(Exception, match=r"halfway|no_such_thing"):
        open_postgres(Address.parse(url), tmp_path, head="9999", scripts=scripts)
    assert look(url, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert not look(url, "SELECT 1 FROM information_schema.columns WHERE column_name = 'note' AND table_name = 'runs'")


def test_a_killed_upgrade_leaves_the_old_ledger(url, tmp_path, scripts, start_python):
    slow = with_second(tmp_path / "slow", "print('there', flush=True); import time; time.sleep(60)")
    process = start_python(OPEN, url, "9999", slow, 0)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    database = open_postgres(Address.parse(url), tmp_path, head="9999", scripts=scripts)
    assert schema_number(database) == "9999"
    database.close()


def test_an_upgrade_waits_for_no_live_run_on_any_machine(url, scripts, tmp_path):
    address = Address.parse(url)
    with Ledger(open_postgres(address, tmp_path)) as ledger:
        with ledger.using(), pytest.raises(Busy, match="it is in use"):
            open_postgres(address, tmp_path, head="9999", scripts=scripts)
        ledger.begin_run("run-2", "tabular", {})
        with ledger.database.transaction() as execute:
            execute("UPDATE runs SET boot = 'another', host = 'gpu-7' WHERE id = 'run-2'")
        with pytest.raises(Busy, match=r"run run-2 of process .* is still going on on gpu-7"):
            open_postgres(address, tmp_path, head="9999", scripts=scripts)
        ledger.end_run("run-2", "ok")
    open_postgres(address, tmp_path, head="9999", scripts=scripts).close()
