"""What is logged of a request, what is not, how labels find it, and who can read it."""

import asyncio
import json
import threading
import time
from collections import Counter

import duckdb
import httpx
import polars as pl
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_support import logged
from serve_support import environment, make_project, release, serving

from mlops_nb.core.errors import UsageError
from mlops_nb.core.settings import load_settings
from mlops_nb.serve.app import App
from mlops_nb.serve.compaction import compact
from mlops_nb.serve.feedback import Feedback, Item
from mlops_nb.serve.housekeeping import Keeping
from mlops_nb.serve.prediction_log import FOLDER, PredictionLog
from mlops_nb.serve.predictions import predictions
from mlops_nb.serve.rehearsal import past
from mlops_nb.serve.replay import replay
from mlops_nb.serve.request_ids import fresh_id, moment_of
from mlops_nb.serve.retention import forget
from mlops_nb.serve.slots import Slot, Slots, Table, only

RECORD = {"age": 41, "account balance": 120.5, "married": True, "job": "clerk", "since": "2021-03-01"}
SENT = {**RECORD, "since": "2021-03-01T00:00:00"}
VALUES = {
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "integer": st.integers(-(2**53), 2**53),
    "boolean": st.booleans(),
    "category": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    "date": st.datetimes().map(lambda moment: moment.isoformat()),
}
TRICKY = ["age", "Time", "version", "probability_no", "feature_row", "a b", "é", "label", "model", "_", "'\";--"]
NAMES = st.sampled_from(TRICKY)


@st.composite
def tables(draw):
    """Names and kinds of features, and rows that fit them."""
    kinds = draw(st.dictionaries(NAMES, st.sampled_from([*VALUES]), min_size=1, max_size=5))
    row = st.tuples(*(st.none() | VALUES[kind] for kind in kinds.values()))
    return kinds, draw(st.lists(st.lists(row, min_size=1, max_size=4), min_size=1, max_size=5))


@settings(deadline=None, max_examples=60)
@given(st.lists(tables(), min_size=1, max_size=3))
def test_parquet_tells_what_the_segment_told(tmp_path_factory, versions):
    workspace = tmp_path_factory.mktemp("log")
    log, sent = PredictionLog(workspace / FOLDER, sync="off"), []
    for version, (kinds, requests) in enumerate(versions, 1):
        for number, rows in enumerate(requests):
            log.add(logged(f"{version}-{number}", rows, kinds, version))
            sent += [(f"{version}-{number}", row, tuple(kinds), values) for row, values in enumerate(rows)]
    told = [(one.request_id, one.row, one.names, one.values) for one in replay(workspace, "churn")]
    assert told == sent
    log.close()
    compact(workspace / FOLDER)
    kinds = {(name, kind) for fields, _ in versions for name, kind in fields.items()}
    if len(kinds) == len({name for name, _ in kinds}):  # no two versions disagree about a feature
        told = [(one.request_id, one.row, one.names, one.values) for one in replay(workspace, "churn")]
        assert told == sent
    parts = f"{workspace / FOLDER}/model=churn/**/*.parquet"
    assert duckdb.sql(f"SELECT count(*) FROM read_parquet('{parts}', union_by_name=true)").fetchall() == [(len(sent),)]


def test_whole_numbers_beyond_64_bits_are_logged(tmp_path):
    log = PredictionLog(tmp_path / FOLDER)
    log.add(logged("r1", [(10**30,)], {"age": "number"}))
    log.close()
    compact(tmp_path / FOLDER)
    assert next(replay(tmp_path, "churn")).values == (1e30,)


def test_no_value_of_a_personal_feature_reaches_the_disk(tmp_path):
    log = PredictionLog(tmp_path / FOLDER, personal=frozenset(["name", "age"]))
    reasons = [
        {"input": "name", "value": "Zebulon", "usual": "Ann", "added": 0.5, "text": "name 'Zebulon' instead of 'Ann'"},
        {"input": "job", "value": "clerk", "usual": "cook", "added": 0.1, "text": "job 'clerk' instead of 'cook'"},
    ]
    features = {"name": "category", "job": "category", "age": "integer"}
    log.add(logged("r1", [("Zebulon", "clerk", 87_654_321)], features, reasons=reasons))
    log.close()
    for _ in range(2):  # the segment, then the Parquet
        held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"Zebulon" not in held and (87_654_321).to_bytes(4, "big") not in held
        compact(tmp_path / FOLDER)
    (part,) = (tmp_path / FOLDER).glob("model=churn/*/*.parquet")
    row = pl.read_parquet(part).row(0, named=True)
    assert (row["name"], row["age"], row["job"]) == (None, None, "clerk")
    assert json.loads(row["reasons"]) == [{"input": "name", "added": 0.5}, reasons[1]]


@pytest.fixture
def serve(served_project, tmp_path):
    """Starts an application with a workspace and settings of its own; how to ask it, its log, its settings."""
    from mlops_nb.registry.releases import read_release
    from mlops_nb.serve.predictor import load_model

    model = load_model(read_release(served_project / ".mlops" / "releases", "churn"))

    def started(**serving_settings):
        loaded = load_settings(served_project, {})
        changed = loaded._replace(
            workspace=loaded.workspace._replace(path=tmp_path), serving=loaded.serving._replace(**serving_settings)
        )
        slots = Slots(only(model))
        kept = Keeping(changed, slots)
        app = App(None, slots, log=kept.log, routes=kept.routes)
        if kept.log:
            kept.log.watch(app.meter)
            kept.feedback.watch(app.meter)

        async def asked(path, body, headers):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                return await client.post(path, json=body, headers=headers)

        def ask(path, body, **headers):
            return asyncio.run(asked(path, body, headers))

        return ask, kept, changed

    return started


def test_a_request_its_labels_and_the_table_of_both(serve):
    ask, kept, project = serve()
    single, several = ask("/predict", RECORD).json(), ask("/predict?explain=2", [RECORD, {**RECORD, "age": 80}]).json()
    assert abs(moment_of(single["request_id"]) / 1e6 - time.time()) < 60
    first = ask("/feedback", {"request_id": single["request_id"], "label": "no", "at": "2026-11-23T17:05:00+01:00"})
    assert (first.status_code, first.json()["status"]) == (200, "stored")
    more = ask(
        "/feedback",
        [
            {"request_id": several["request_id"], "row": 1, "label": "yes"},
            {"request_id": several["request_id"], "label": "yes"},
            {"request_id": single["request_id"], "label": "yes"},
            {"request_id": single["request_id"], "label": "yes"},
            {"request_id": single["request_id"], "label": "maybe"},
            {"request_id": fresh_id(), "label": "yes"},
        ],
    ).json()
    words = ["stored", "unknown", "corrected", "duplicate", "wrong", "unknown"]
    assert [result["status"] for result in more["results"]] == words
    assert more["counts"] == Counter(words)
    for compacted in (False, True):
        if compacted:
            kept.log.close()
            compact(kept.log.folder)
            ask, _, _ = serve()  # another worker takes labels for what this one has answered
        table = predictions("churn", settings=project)
        labels = {(one.request_id, one.row): one.label for one in table.itertuples() if isinstance(one.label, str)}
        assert labels == {(single["request_id"], 0): "yes", (several["request_id"], 1): "yes"}
        assert sorted(table["age"]) == [41, 41, 80]
        assert table["reasons"].notna().sum() == 2
        assert "3 predictions, 2 with a label (67%)" in repr(table) and "<table" in table._repr_html_()
        assert len(predictions(labelled=False, settings=project)) == 1
        again = ask("/feedback", {"request_id": single["request_id"], "label": "yes"}).json()
        assert again["status"] == "duplicate"
    assert ask("/predict", RECORD, **{"x-request-id": "order-1"}).json()["request_id"] == "order-1"
    assert ask("/feedback", {"request_id": "order-1", "label": "no"}).json()["status"] == "stored"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"request_id": "never", "label": "no"}, 404, "no such request"),
        ({"request_id": "0180a0b1-7c2d-7e3f-8a4b-5c6d7e8f9a0b", "label": "no"}, 409, "taken for 90 days"),
        ({"label": "no"}, 422, "request_id"),
        ({"request_id": "r1", "label": None}, 422, "label"),
        ({"request_id": "r1", "label": "no", "row": -1}, 422, "row"),
        ([], 422, "empty"),
        ([{"request_id": "r1", "label": "no"}] * 10_001, 413, "10001 labels"),
    ],
)
def test_feedback_that_is_refused(serve, body, status, words):
    answer = serve()[0]("/feedback", body)
    assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]


def test_two_workers_told_the_same_store_it_once(tmp_path):
    logs = [PredictionLog(tmp_path / FOLDER) for _ in range(2)]
    names = [fresh_id() for _ in range(20)]
    for name in names:
        logs[0].add(logged(name, [(41,)], {"age": "integer"}))
    results = []
    takers = [Feedback(log) for log in logs]
    threads = [
        threading.Thread(target=lambda taker=taker: results.extend(taker.take([Item(name, "yes") for name in names])))
        for taker in takers * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(result["status"] for result in results) == {"stored": 20, "duplicate": 100}


def test_a_sample_is_stored_and_says_so(serve):
    ask, _, project = serve(log_sample=0.5)
    names = [ask("/predict", RECORD).json()["request_id"] for _ in range(40)]
    stored = {one.request_id for one in replay(project.workspace.path, "churn")}
    assert 5 < len(stored) < 35
    told = ask("/feedback", [{"request_id": name, "label": "no"} for name in names]).json()["results"]
    assert {one["request_id"] for one in told if one["status"] == "stored"} == stored
    assert {one["detail"].partition(":")[0] for one in told if one["status"] == "unknown"} == {
        "The request is not in the sample that is stored"
    }


def test_without_a_log_there_is_nothing_to_label(serve):
    ask, _, project = serve(log=False)
    assert ask("/predict", RECORD).status_code == 200
    assert ask("/feedback", {"request_id": "r1", "label": "no"}).status_code == 404
    assert not (project.workspace.path / FOLDER).exists()


def test_no_acknowledged_answer_is_lost_when_every_process_is_killed(tmp_path):
    project = make_project(tmp_path / "project")
    release(project)
    with open(project / "settings.ini", "a") as file:
        file.write("\n[serving]\nworkers = 2\npersonal = job\n")
    acknowledged, gone = [], threading.Event()

    def ask_on(server, number):
        try:
            while not gone.is_set():
                answer = server.ask("/predict", [{**RECORD, "age": 18 + number}] * 2)
                acknowledged.extend([(answer.json["request_id"], row) for row in range(2)])
        except (OSError, ValueError, KeyError):
            gone.set()

    with serving(project, tmp_path / "server.log", environment(tmp_path / "home")) as server:
        threads = [threading.Thread(target=ask_on, args=(server, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        family = psutil.Process(server.process.pid)
        processes = [*family.children(recursive=True), family]
        for process in processes:
            process.kill()
        gone.set()
        for thread in threads:
            thread.join()
        psutil.wait_procs(processes, 10)
    compact(project / ".mlops" / FOLDER)
    rows = list(replay(project / ".mlops", "churn"))
    stored = Counter((one.request_id, one.row) for one in rows)
    assert len(acknowledged) > 20 and set(acknowledged) <= set(stored) and set(stored.values()) == {1}
    assert {one.values[3] for one in rows} == {None} and len({one.values[0] for one in rows}) == 4
    assert rows[0].record.keys() == RECORD.keys()
    assert not list((project / ".mlops" / FOLDER / "segments").iterdir())  # the dead hold no locks


def test_a_misspelt_personal_feature_stops_the_start(served_project, monkeypatch):
    from mlops_nb.serve.service import StartError, make_service

    monkeypatch.chdir(served_project)
    monkeypatch.setenv("MLOPS_NB_SERVING_PERSONAL", "age, jobb")
    with pytest.raises(StartError, match="personal names 'jobb', which is no feature") as raised:
        make_service()
    assert "Did you mean 'job'?" in str(raised.value)


def in_two(slots):
    """Two arms with half of the users each, the same model behind both."""
    base = slots.table().base.predictor
    arms = [Slot(base.model, 1, base.digest, 2, arm, 0.5, base) for arm in ("champion", "challenger")]
    slots.use(Table(arms, salt="spring"))


def stored(folder):
    """All bytes of the log."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_whom_a_release_routes_by_is_stored_as_a_salted_hash(serve):
    ask, kept, project = serve()
    mia, noah = {"x-user-id": "mia@example.org"}, {"x-user-id": "noah"}
    ask("/predict", RECORD, **mia)  # one arm: who asks does not matter
    in_two(kept.slots)
    for headers in (mia, noah, mia, {}):
        ask("/predict", [RECORD, RECORD], **headers)
    for compacted in (False, True):
        if compacted:
            kept.log.close()
            compact(kept.log.folder)
        assert b"mia@example.org" not in stored(kept.log.folder)
        users = [one.user for one in replay(project.workspace.path, "churn")]
        assert users[0] == users[7] == users[8] == ""
        assert users[1] == users[2] == users[5] == users[6] != users[3] == users[4] != ""
        asked_by = [user for user, _, _ in past(project, "churn")]
        assert len(set(asked_by)) == 5, "two users, and three records of nobody"
    table = predictions("churn", settings=project)
    assert table["user_hash"].notna().sum() == 6
    assert forget(kept.log.folder, users=["mia@example.org"]) == 4
    assert len(predictions("churn", settings=project)) == 5


def test_a_user_that_is_personal_is_not_stored_at_all(serve):
    ask, kept, project = serve(personal="x-user-id")
    in_two(kept.slots)
    ask("/predict", RECORD, **{"x-user-id": "mia"})
    assert [one.user for one in replay(project.workspace.path, "churn")] == [""]
    assert not list(kept.log.folder.glob("*.salt"))


def test_what_is_being_written_is_forgotten_at_once(serve):
    ask, kept, project = serve()
    kept.keeper.start()
    first, second = (ask("/predict", RECORD).json()["request_id"] for _ in range(2))
    began = time.monotonic()
    assert forget(kept.log.folder, [first]) == 1
    assert time.monotonic() - began < 5
    assert [one.request_id for one in replay(project.workspace.path, "churn")] == [second]
    assert first.encode() not in stored(kept.log.folder)
    ask("/predict", RECORD)
    assert len(predictions("churn", settings=project)) == 2, "the next answer began a new segment"
    kept.close()


def test_a_process_that_gives_nothing_away_is_named(serve):
    ask, kept, _ = serve()
    ask("/predict", RECORD)
    with pytest.raises(UsageError, match="A segment is being written"):
        forget(kept.log.folder, ["r1"], patience=0.3)


def test_a_limit_says_how_many_there_were(serve):
    ask, kept, project = serve()
    for age in range(6):
        ask("/predict", [{**RECORD, "age": 30 + age}] * 2)
        if age == 3:
            kept.log.close()
            compact(kept.log.folder)
    some = predictions("churn", limit=5, settings=project)
    assert some.total == 12 and "5 of 12 predictions" in repr(some) and "5 of 12 predictions" in some._repr_html_()
    assert "12 predictions" in repr(predictions("churn", settings=project))
    assert predictions("churn", version=1, limit=3, settings=project).total == 12
    assert predictions("churn", labelled=False, limit=3, settings=project).total == 12
    assert predictions("churn", since="1d", limit=12, settings=project).total is None
