"""The ledger in Postgres when things go wrong: lost commits, a server that goes away, wrong addresses."""

import os
import subprocess
import sys
import threading
import time
import traceback

import psycopg
import pytest
from postgres_proxy import Proxy
from postgres_service import crash, kill_backends, ledger_url, own_server, shared_server, template
from support import shared_folder

from mlops_nb.core.errors import Busy, StorageError, UsageError
from mlops_nb.core.ledger import Ledger, link
from mlops_nb.core.ledger.address import Address
from mlops_nb.core.ledger.postgres import Postgres
from mlops_nb.core.ledger.upgrade import database_of, open_postgres
from mlops_nb.core.settings import load_settings

NOTHING = {"gives": {}, "metrics": {"auc": 0.5}}

WRITE = """
import sys, time
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
ledger = Ledger.open(load_settings(sys.argv[1], environ={}))
print("ready", flush=True)
sys.stdin.readline()
computed = 0
for number in range(int(sys.argv[3])):
    run, key = f"{sys.argv[2]}-{number:02d}", f"k{number}"
    ledger.begin_run(run, "tabular", {"train.seed": number}, sources={"a.py": "aa"})
    ledger.begin_step(run, "train", position=1, key=key, reasons=["new"])
    with ledger.lease(key, run):
        if not (found := ledger.find_results([key])):
            time.sleep(0.02)
            computed += 1
        manifest = {"gives": {"m": {"type": "Json", "sha256": run, "size": 1}}, "metrics": {"auc": 0.5}}
        ledger.commit_step(run, "train", key=key, parts={}, manifest=manifest, cached=bool(found))
    ledger.add_event("told", run)
    ledger.end_run(run, "ok")
print(computed)
ledger.close()
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What all test processes share."""
    return shared_folder(tmp_path_factory)


@pytest.fixture
def name(request):
    """A database's name of the test's own."""
    return f"pg_{os.getpid()}_{abs(hash(request.node.name)) % 10**8}"


@pytest.fixture
def url(shared, name):
    """The address of an empty ledger."""
    with ledger_url(shared, name) as address:
        yield address


@pytest.fixture
def server(shared):
    """The server that all share."""
    return shared_server(shared)


@pytest.fixture
def proxy(server):
    """A way to the server that can be cut."""
    with_cuts = Proxy(server.port)
    yield with_cuts
    with_cuts.close()


def at(url: str, folder, port: int | None = None, patience: float = 5.0) -> Ledger:
    """The ledger at an address, or over another port."""
    address = Address.parse(url.replace(f":{url.split(':')[2].split('/')[0]}/", f":{port}/") if port else url)
    return Ledger(open_postgres(address, folder, patience=patience))


def look(url: str, query: str) -> list[tuple]:
    """What another program sees."""
    with psycopg.connect(url) as reader:
        return reader.execute(query).fetchall()


@pytest.mark.parametrize("when", ["before", "after", "hang"])
def test_a_commit_whose_answer_was_lost_has_happened_once(url, proxy, tmp_path, when):
    with at(url, tmp_path, proxy.port) as ledger:
        ledger.begin_run("run-1", "tabular", {})
        proxy.cut(when)
        ledger.add_event("told", "once")
        proxy.cut(when)
        done = ledger.commit_step("run-1", "train", key="k", parts={}, manifest=NOTHING)
        assert proxy.cuts == [when, when], "both commits were lost"
        assert done["won"]
        assert [event["subject"] for event in ledger.events()] == ["once"]
        ledger.end_run("run-1", "ok")
    assert look(url, "SELECT count(*) FROM events") == [(1,)]
    assert look(url, "SELECT key, cache_key FROM results") == [("k", "k")]
    assert look(url, "SELECT status FROM runs") == [("ok",)]


@pytest.mark.parametrize(("when", "count"), [("before", 0), ("after", 1)])
def test_what_cannot_be_repeated_is_lost_or_done_and_said_so(url, proxy, tmp_path, when, count):
    statement = "INSERT INTO events (at, actor, kind, subject, details) VALUES ('', '', 'k', 's', '')"
    with at(url, tmp_path, proxy.port) as ledger:

        def write():
            with ledger.database.transaction() as execute:
                execute(statement)
                proxy.cut(when)

        if count:
            write()
        else:
            with pytest.raises(StorageError, match="was lost"):
                write()
        assert look(url, "SELECT count(*) FROM events") == [(count,)]


def test_an_outcome_that_cannot_be_asked_for_is_not_guessed(tmp_path, proxy, url):
    with at(url, tmp_path, proxy.port, patience=0.2) as ledger:
        ledger.begin_run("run-1", "tabular", {})
        proxy.cut("after")
        proxy.close()
        with pytest.raises(StorageError, match="whether it happened is not known") as caught:
            ledger.add_event("told", "once")
        assert "what is finished is reused" in caught.value.hint


def test_idle_connections_that_were_cut_are_replaced(url, server, name, tmp_path):
    with at(url, tmp_path) as ledger:
        ledger.begin_run("run-1", "tabular", {})
        kill_backends(server, name)
        assert ledger.runs()[0]["run"] == "run-1"
        kill_backends(server, name)
        ledger.end_run("run-1", "ok")
        assert ledger.runs()[0]["status"] == "ok"


def test_a_forked_child_has_connections_of_its_own(url, tmp_path):
    with at(url, tmp_path) as ledger:
        ledger.begin_run("run-1", "tabular", {})
        child = os.fork()
        if not child:
            ledger.add_event("told", "by the child")
            os._exit(len(ledger.runs()) - 1)
        assert os.waitpid(child, 0)[1] == 0
        ledger.end_run("run-1", "ok")
        assert [event["subject"] for event in ledger.events()] == ["by the child"]


def test_threads_share_few_connections(url, name, server, tmp_path):
    with at(url, tmp_path) as ledger:
        ledger.begin_run("run-1", "tabular", {})
        for number in range(20):
            thread = threading.Thread(
                target=lambda n=number: ledger.skip_step("run-1", f"s{n}", position=n, reasons=[])
            )
            thread.start()
            thread.join()
        assert len(ledger.run("run-1")["steps"]) == 20
        assert int(server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'")) <= 3
        ledger.end_run("run-1", "ok")


def test_rows_are_the_same_as_in_sqlite(url, tmp_path):
    odd = {"a.nul": "x\0y", "a.mark": "\ufdd0", "a.big": 2**60, "a.yes": True, "a.no": None}
    points = [{"t": 0.1, "step": 2**40, "values": {"loss": float("nan"), "gain": float("-inf"), "one": 1}}]
    found = []
    here = load_settings(tmp_path, environ={})
    for ledger in (Ledger.open(here), at(url, tmp_path)):
        with ledger:
            for run in ("Zebra", "apple", "Äpfel", "_x", "a-b", "aB"):
                ledger.begin_run(run, "tabular", odd)
                ledger.star_run(run)
                ledger.tag_run(run, ["good"])
                facts = {"parts": {}, "manifest": NOTHING, "points": points}
                ledger.commit_step(run, "train", key=run, **facts)
                ledger.end_run(run, "ok")
            texts = ledger.database.rows("SELECT id FROM runs ORDER BY id")
            rows = ledger.database.rows("SELECT * FROM run_parameters ORDER BY run_id, step, name")
            found.append([texts, rows, ledger.points("Zebra", "train"), ledger.annotations(["aB"])])
            found[-1].append(ledger.runs()[0]["parameters"])
    assert found[0] == found[1]
    assert found[0][3]["aB"] == {"tags": ["good"], "note": "", "starred": True}


def test_a_statement_that_fails_within_a_transaction_undoes_all_of_it(url, tmp_path):
    with at(url, tmp_path) as ledger:
        ledger.begin_run("run-1", "tabular", {})
        with pytest.raises(StorageError, match="undid a transaction"), ledger.database.transaction() as execute:
            execute("UPDATE runs SET pipeline = 'other'")
            try:
                execute("INSERT INTO metrics VALUES ('no such run', 's', 'n', 1)")
            except psycopg.Error:
                execute.failed = True
        assert ledger.runs()[0]["pipeline"] == "tabular"
        ledger.end_run("run-1", "ok")


def test_words_for_what_is_wrong_with_an_address(shared, server, name, tmp_path, monkeypatch):
    template(server, shared)
    server.sql("DO $$ BEGIN CREATE ROLE locked LOGIN PASSWORD 'right-one'; EXCEPTION WHEN duplicate_object THEN END $$")
    server.sql("DO $$ BEGIN CREATE ROLE poor LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
    place = f"127.0.0.1:{server.port}"
    for address, words, remedy in (
        (f"postgresql://mlops@{place}/nowhere", "has no such database", "createdb"),
        (f"postgresql://locked:s3cr3t@{place}/template_ledger", "password is missing or wrong", "PGPASSWORD"),
        (f"postgresql://locked@{place}/template_ledger", "password is missing or wrong", "PGPASSWORD"),
        (f"postgresql://ghost@{place}/template_ledger", "knows no such user", "createuser"),
        ("postgresql://mlops@127.0.0.1:1/x", "nothing listens there", "Start the server"),
        ("postgresql://mlops@no-such-host.invalid/x", "host's name is not known", "Correct the host"),
    ):
        with pytest.raises(StorageError, match=words) as caught:
            open_postgres(Address.parse(address), tmp_path)
        assert remedy in caught.value.hint
        shown = "".join(traceback.format_exception(caught.value))
        assert "s3cr3t" not in shown and "locked" not in str(caught.value)
    with ledger_url(shared, name, empty=True) as url:
        with pytest.raises(StorageError, match="may not do that") as caught:
            open_postgres(Address.parse(url.replace("mlops@", "poor@")), tmp_path)
        assert "GRANT" in caught.value.hint
        monkeypatch.setattr(link, "OLDEST", 990000)
        with pytest.raises(StorageError, match=r"is Postgres \d+, and the ledger needs 99 or later"):
            open_postgres(Address.parse(url), tmp_path)


def test_a_password_in_the_settings_is_refused_and_one_in_a_variable_is_never_shown(server, tmp_path, monkeypatch, url):
    (tmp_path / "settings.ini").write_text("[workspace]\nledger = postgresql://ada:s3cr3t@db/churn\n")
    with pytest.raises(UsageError, match="holds a password") as caught:
        Ledger.open(load_settings(tmp_path, environ={}))
    assert "s3cr3t" not in str(caught.value) and "env:" in caught.value.hint
    secret = url.replace("mlops@", "mlops:s3cr3t@")
    monkeypatch.setenv("LEDGER_URL", secret)
    (tmp_path / "settings.ini").write_text("[workspace]\nledger = env:LEDGER_URL\n")
    for settings in (
        load_settings(tmp_path, environ={}),
        load_settings(tmp_path, environ={"MLOPS_NB_WORKSPACE_LEDGER": secret}),
    ):
        with Ledger.open(settings) as ledger:
            assert "s3cr3t" not in repr(ledger) + repr(ledger.database) + str(ledger.database)
            assert repr(ledger).startswith("Ledger('postgresql://127.0.0.1:")


def test_looking_makes_no_tables(shared, name, tmp_path):
    with ledger_url(shared, name, empty=True) as url:
        (tmp_path / "settings.ini").write_text(f"[workspace]\nledger = {url}\n")
        settings = load_settings(tmp_path, environ={})
        with Ledger.open(settings, create=False) as ledger:
            assert ledger.runs() == ledger.versions() == ledger.reap() == []
            with pytest.raises(StorageError, match="no ledger in"):
                ledger.add_event("x", "y")
        assert not database_of(settings).exists()
        psycopg.connect(url, autocommit=True).execute("CREATE TABLE notes (id int)").connection.close()
        with pytest.raises(StorageError, match="is a database, but no ledger"):
            Ledger.open(settings)


def test_a_collector_that_lost_its_lock_changes_nothing(url, tmp_path, server):
    with at(url, tmp_path) as collector, at(url, tmp_path) as runner:
        with collector.alone():
            with pytest.raises(Busy, match="is in use"), collector.database.again().holding("workspace", patience=0):
                raise AssertionError
            (lock,) = collector.database.held
            server.sql(f"SELECT pg_terminate_backend({lock._link.pid})")
            with runner.using(), pytest.raises(StorageError, match="was lost with its connection, so nothing"):
                collector.add_event("collected", "everything")
        assert runner.events() == []


def test_a_run_that_lost_its_lock_takes_it_again(url, tmp_path, server):
    with at(url, tmp_path) as runner, at(url, tmp_path) as collector, runner.using():
        (lock,) = runner.database.held
        server.sql(f"SELECT pg_terminate_backend({lock._link.pid})")
        with collector.alone():
            assert True, "nobody holds it"
        runner.database.keep()
        with pytest.raises(Busy), collector.alone():
            raise AssertionError


def test_acts_on_one_model_wait_for_each_other(url, tmp_path):
    with at(url, tmp_path) as first, at(url, tmp_path) as second:
        order = []

        def act():
            with second.acting("model churn"):
                order.append("second")

        with first.acting("model churn"), first.acting("rollout churn"):
            thread = threading.Thread(target=act)
            thread.start()
            time.sleep(0.3)
            order.append("first")
        thread.join()
        assert order == ["first", "second"]


def writers(folder, count: int, runs: int) -> list[subprocess.Popen]:
    """Processes that write; half of them cannot be seen by the others, as on another machine."""
    apart = ["unshare", "--pid", "--fork", "--kill-child"]
    can = not os.getuid() and subprocess.run([*apart, "true"], check=False, capture_output=True).returncode == 0
    started = []
    for number in range(count):
        command = [sys.executable, "-c", WRITE, str(folder), f"w{number:02d}", str(runs)]
        command = [*apart, *command] if can and number % 2 else command
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, text=True, **pipes))
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    return started


def ended(processes: list[subprocess.Popen]) -> int:
    """How many results they computed, when all ended well."""
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), answers
    return sum(int(out) for out, _ in answers)


def test_sixteen_writers_on_two_machines_compute_each_result_once(url, tmp_path):
    (tmp_path / "settings.ini").write_text(f"[workspace]\nledger = {url}\n")
    assert ended(writers(tmp_path, 16, 6)) == 6
    check_writers(url, 16, 6)


def check_writers(url: str, count: int, runs: int) -> None:
    """Every run ended well, every result is there once, every event was written once."""
    total = count * runs
    assert look(url, "SELECT status, count(*) FROM runs GROUP BY 1") == [("ok", total)]
    assert look(url, "SELECT count(*), count(DISTINCT cache_key) FROM results WHERE cache_key IS NOT NULL") == [
        (runs, runs)
    ]
    assert look(url, "SELECT count(*), count(DISTINCT subject) FROM events") == [(total, total)]
    assert look(url, "SELECT count(*) FROM run_steps WHERE result_id IS NOT NULL AND state IN ('done', 'cached')") == [
        (total,)
    ]
    assert look(url, "SELECT count(*) FROM artifacts") == [(runs,)]
    assert look(url, "SELECT count(*) FROM leases") == [(0,)]


def test_writers_go_on_when_the_server_crashes_twice(tmp_path):
    server = own_server()
    try:
        server.sql("CREATE DATABASE ledger")
        (tmp_path / "settings.ini").write_text(f"[workspace]\nledger = {server.url('ledger')}\n")
        Ledger.open(load_settings(tmp_path, environ={})).close()
        processes = writers(tmp_path, 6, 25)
        time.sleep(0.4)
        crash(server)
        time.sleep(0.8)
        crash(server, 1.0)
        ended(processes)
        check_writers(server.url("ledger"), 6, 25)
    finally:
        server.end()


def test_a_server_that_stays_away_ends_the_waiting(tmp_path):
    server = own_server()
    try:
        server.sql("CREATE DATABASE ledger")
        with at(server.url("ledger"), tmp_path, patience=0.3) as ledger:
            ledger.begin_run("run-1", "tabular", {})
            server.control("stop", "-m", "fast")
            before = time.monotonic()
            with pytest.raises(StorageError, match="nothing listens there"):
                ledger.end_run("run-1", "ok")
            assert time.monotonic() - before < 5
            server.control("start")
            ledger.end_run("run-1", "ok")
            assert ledger.runs()[0]["status"] == "ok"
    finally:
        server.end()


def test_heartbeats_are_judged_by_the_servers_clock(url, tmp_path, monkeypatch):
    with at(url, tmp_path) as ledger:
        database = ledger.database
        monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)  # this machine's clock is years ahead
        ledger.begin_run("run-1", "tabular", {})
        with database.transaction() as execute:
            execute("UPDATE runs SET boot = 'another', host = 'another'")
        assert ledger.runs()[0]["status"] == "running"
        assert ledger.reap() == []
        assert (
            isinstance(database, Postgres)
            and database.silence(database.rows("SELECT heartbeat FROM runs")[0]["heartbeat"]) < 30
        )
        ledger.end_run("run-1", "ok")
