"""What is answered while it is read: the same as the usual way answers, in whatever pieces it comes."""

import asyncio
import itertools
import logging
import re
import time
from collections import Counter
from typing import ClassVar

import pytest
import uvicorn
from access_support import ring_of
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_support import make_project
from uvicorn.server import ServerState

from mlops_nb.core.settings import load_settings
from mlops_nb.serve.access import access_of
from mlops_nb.serve.app import App
from mlops_nb.serve.at_once import AtOnce
from mlops_nb.serve.intake import Intake
from mlops_nb.serve.meter import Meter
from mlops_nb.serve.numbers import Numbers
from mlops_nb.serve.prediction_log import PredictionLog
from mlops_nb.serve.requests import RequestReader
from mlops_nb.serve.segments import SegmentReader, segments_of
from mlops_nb.serve.slots import Slot, Slots, Table, only
from mlops_nb.serve.wire import Wire


class Model:
    """Adds numbers; fails for 13."""

    generation, digest, inline = 3, "5d" * 32, 200
    schema: ClassVar = {
        "task": "regression",
        "target": "sum",
        "features": [
            {"name": "a", "kind": "number", "nullable": False, "low": 0, "high": 9, "example": 1},
            {"name": "b", "kind": "number", "nullable": True, "low": 0, "high": 9, "example": 1},
        ],
    }
    example: ClassVar = {"a": 1, "b": 2}
    reader = RequestReader(schema, max_rows=3)

    def __init__(self, model: str = "adder", version: int = 1):
        self.model, self.version = model, version

    def predict(self, records):
        if 13 in records.columns["a"]:
            raise ValueError("13 is unlucky")
        return [{"prediction": self.version * (a + (b or 0))} for a, b in records.values]


class Transport(asyncio.Transport):
    """What a protocol writes to."""

    def __init__(self):
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.written, self.closed = b"", False

    def write(self, data):
        assert not self.closed
        self.written += bytes(data)

    def close(self):
        self.closed = True

    abort = close

    def is_closing(self):
        return self.closed

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        """Nothing is read by itself."""

    def resume_reading(self):
        """Nothing is read by itself."""


class Site:
    """An application behind uvicorn's protocol, without a socket."""

    def __init__(self, *models, at_once=True, table=None, **parts):
        intake = Intake(meter=Meter(Numbers()))
        self.app = App(None, Slots(*([table] if table else map(only, models or [Model()]))), 10_000, intake, **parts)
        self.wire = Wire(intake)
        self.wire.at_once = AtOnce(self.app) if at_once else None
        options = {"log_config": None, "access_log": False, "server_header": False, "http": "httptools"}
        self.config = uvicorn.Config(self.app, **options)
        self.config.load()
        self.server = type("Server", (), {"server_state": ServerState(), "config": self.config})()
        self.state = self.server.server_state
        self.state.default_headers = [(b"date", b"today")]
        assert self.wire.install(self.server)

    def connection(self):
        made = self.config.http_protocol_class(self.config, self.state, {})
        made.access_log = False  # pytest listens to all that is logged
        made.connection_made(Transport())
        return made

    def say(self, *pieces: bytes) -> tuple[bytes, int, bool]:
        """What is written to a connection on which these come; how much of it was at once; whether it was closed."""

        async def said():
            connection = self.connection()
            for piece in pieces:
                if not connection.transport.closed:
                    connection.data_received(piece)
                    await asyncio.sleep(0)
            for _ in range(200):
                await asyncio.sleep(0 if not self.app.intake.inside else 0.002)
            transport = connection.transport
            if not transport.closed:
                connection.connection_lost(None)
            return transport.written, connection.answered, transport.closed and connection.parser is not None

        return asyncio.run(said())


def request(body=b'{"a": 1.5, "b": 2}', path="/predict", method="POST", version="1.1", length=True, **headers):
    """The bytes of a request."""
    named = {"host": "x", "content-type": "application/json", "x-request-id": "one"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    if length:
        named["content-length"] = str(len(body))
    lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in named.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body, size=5):
    """A request whose body comes in chunks."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    content = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return request(content, length=False, transfer_encoding="chunked")


def plain(written: bytes) -> bytes:
    """What was written, without ids that were drawn."""
    return re.sub(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}|[0-9a-f]{24}", b"ID", written)


ANSWERED = [
    request(),
    request(b'{"a": 1}'),
    request(b'[{"a": 1}, {"a": 2, "b": null}]'),
    request(path="/models/adder/predict"),
    request(accept="*/*"),
    request(accept="application/json", x_user_id="mia", x_request_id=""),
    request(connection="keep-alive", x_segment="north"),
    request(b'{"a": 13, "b": 1}'),
    chunked(b'{"a": 1.5, "b": 2}'),
]
LEFT = [
    request(b'{"a": "x"}'),
    request(b"{"),
    request(b""),
    request(b"[]"),
    request(b"[" + b'{"a": 1},' * 4 + b'{"a": 1}]'),
    request(b'{"a": 1, "a": 2}'),
    request(b'{"a": 1, "c": 2}'),
    request(b'{"a": 1' + b" " * 300 + b"}"),
    request(b'{"a": 1' + b" " * 20_000 + b"}"),
    request(path="/predict?explain=0"),
    request(path="/predict?x=1"),
    request(path="/models/other/predict"),
    request(path="/models/%61dder/predict"),
    request(path="/predict/"),
    request(method="GET"),
    request(method="PUT"),
    request(method="HEAD"),
    request(version="1.0"),
    request(version="1.0", connection="keep-alive"),
    request(connection="close"),
    request(connection="upgrade", upgrade="websocket"),
    request(connection="upgrade", upgrade="h2c"),
    request(accept="text/html"),
    request(accept="application/x-float32"),
    request(content_type="text/plain"),
    request(content_type="application/json; charset=utf-8"),
    request(content_type=""),
    request(content_encoding="gzip"),
    request(x_forwarded_for="10.0.0.1"),
    request(x_forwarded_proto="https"),
    request(expect="100-continue"),
]


@pytest.fixture(scope="module")
def sites():
    """The same application, with and without answers at once."""
    logging.getLogger("bentoml.mlops_nb").disabled = True
    yield Site(), Site(at_once=False)
    logging.getLogger("bentoml.mlops_nb").disabled = False


@pytest.mark.parametrize("sent", ANSWERED)
def test_the_common_kind_is_answered_at_once_and_as_usual(sites, sent):
    quick, usual = (site.say(sent) for site in sites)
    assert (plain(quick[0]), quick[2]) == (plain(usual[0]), usual[2])
    assert (quick[1], usual[1]) == (1, 0)


@pytest.mark.parametrize("sent", LEFT)
def test_all_else_goes_the_usual_way(sites, sent):
    quick, usual = (site.say(sent) for site in sites)
    assert (plain(quick[0]), quick[2]) == (plain(usual[0]), usual[2])
    assert quick[1] == 0 and quick[0]


KEPT = ANSWERED + [sent for sent in LEFT[:14] if len(sent) < 10_000]  # connections; one is closed behind a large body
requests_ = st.lists(st.sampled_from(KEPT), min_size=1, max_size=4)


@given(requests_, st.lists(st.floats(0, 1), max_size=4))
@settings(max_examples=120, deadline=None)
def test_requests_in_any_pieces_are_answered_in_their_order(sites, sent, cuts):
    stream = b"".join(sent)
    places = [0, *sorted(int(cut * len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(places) if start < end]
    quick, usual = sites[0].say(*pieces), sites[1].say(stream)
    assert plain(quick[0]) == plain(usual[0])
    assert quick[0].count(b"HTTP/1.1 ") == len(sent)


def test_both_ways_count_alike(sites):
    counts = []
    for site in (Site(), Site(at_once=False)):
        for sent in ANSWERED + LEFT:
            site.say(sent)
        lines = site.app.meter.text().decode().splitlines()
        counts.append([line for line in lines if re.match("mlops_nb_(requests|records|stand_ins|shed)_total", line)])
    assert counts[0] == counts[1] and any('status="500",version="1"' in line for line in counts[0])


class Kept:
    """A watcher of answers."""

    def __init__(self):
        self.seen = []

    def add(self, call, route, answer, seconds):
        self.seen.append((call.method, call.path, route, call.client, call.model, answer.status, seconds < 1))


def test_watchers_are_told_alike():
    seen = []
    for at_once in (True, False):
        kept = Kept()
        site = Site(at_once=at_once, watchers=(kept,))
        for path in ("/predict", "/models/adder/predict"):
            site.say(request(path=path))
        seen.append(kept.seen)
    assert seen[0] == seen[1] and len(seen[0]) == 2


def test_what_is_stored_is_the_same(tmp_path):
    stored = []
    for at_once in (True, False):
        log = PredictionLog(tmp_path / str(at_once))
        Site(at_once=at_once, log=log).say(request() + request(b'{"a": 3}', x_request_id="two"))
        log.close()
        (segment,) = segments_of(tmp_path / str(at_once) / "segments")
        _, *answers = SegmentReader(segment)
        stored.append([(one.request_id, one.rows, one.predictions, one.caller) for one in answers])
    assert stored[0] == stored[1] and [one[0] for one in stored[0]] == ["one", "two"]


def test_an_answer_that_cannot_be_stored_is_not_given(tmp_path):
    (tmp_path / "segments").write_text("a file where a folder should be")
    said = []
    for at_once in (True, False):
        log = PredictionLog(tmp_path, required=True)
        said.append(Site(at_once=at_once, log=log).say(request()))
    assert said[0][0] == said[1][0]
    assert said[0][0].startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 5\r\n" in said[0][0] and said[0][1] == 1


def test_users_keep_their_arm_and_a_base_stands_in():
    one, two = Model(version=1), Model(version=2)
    facts = {"model": "adder", "digest": "5d" * 32, "generation": 3}
    slots = [
        Slot(version=model.version, arm=arm, weight=0.5, predictor=model, **facts)
        for arm, model in (("champion", one), ("challenger", two))
    ]
    answers = []
    for at_once in (True, False):
        site = Site(at_once=at_once, table=Table(slots, salt="s"))
        answers.append([site.say(request(x_user_id=f"user-{number}"))[0] for number in range(40)])
    assert answers[0] == answers[1]
    assert len(Counter(re.search(rb'"version":(\d)', answer)[1] for answer in answers[0])) == 2
    two.predict = None
    site = Site(table=Table(slots, salt="s"))
    logging.getLogger("bentoml.mlops_nb").disabled = True
    stood = [site.say(request(x_user_id=f"user-{number}")) for number in range(20)]
    logging.getLogger("bentoml.mlops_nb").disabled = False
    assert all(b'"version":1' in written and quick == 1 for written, quick, _ in stood)


@pytest.fixture
def project(tmp_path):
    project = make_project(tmp_path / "project")
    (project / "settings.ini").write_text("[package]\nname = demo\nimport_name = demo\n[access]\nmode = on\n")
    return project


def test_each_request_counts_once_whichever_way_it_goes(project):
    key, _ = ring_of(project).create("mia", ("predict",), rate="6/d")
    site = Site(access=access_of(load_settings(project, {})))
    good, bad = (request(body, x_api_key=key) for body in (b'{"a": 1}', b'{"a": "x"}'))
    statuses = [int(site.say(sent)[0][9:12]) for sent in (good, bad, good, bad, good, bad, good, bad)]
    assert statuses == [200, 422, 200, 422, 200, 422, 429, 429]


def test_who_is_not_let_in_is_refused_as_usual(project):
    ring = ring_of(project)
    (key, _), (reader, _) = ring.create("mia", ("predict",)), ring.create("tom", ("metrics",))
    access = access_of(load_settings(project, {}))
    site = Site(access=access)
    assert site.say(request(authorization=f"Bearer {key}"))[:2][1] == 1
    for headers, status in (
        ({}, 401),
        ({"x_api_key": "mnb_" + "x" * 40}, 401),
        ({"x_api_key": "x" * 9000}, 431),
        ({"x_api_key": reader}, 403),
        ({"authorization": f"Bearer {reader}", "x_api_key": key}, 403),
        ({"authorization": "Bearer a.b.c"}, 401),
    ):
        written, quick, _ = site.say(request(**headers))
        assert (int(written[9:12]), quick) == (status, 0), headers
    ring.revoke("mia")
    access._due = time.monotonic()  # the look of every two seconds
    assert site.say(request(x_api_key=key))[0].startswith(b"HTTP/1.1 401 ")


def test_a_stop_is_heeded_at_once_and_a_new_model_answers():
    site = Site()
    assert site.say(request())[1] == 1
    site.app.slots.stop("adder", "it is wrong")
    assert site.say(request())[0].startswith(b"HTTP/1.1 503 ")
    site.app.slots.stop("adder", "")
    site.app.slots.use(only(Model("other", 5)))
    written, quick, _ = site.say(request(path="/models/other/predict"))
    assert b'"version":5' in written and quick == 1


def test_a_full_worker_and_one_that_ends():
    site = Site()
    site.app.intake.inside = site.app.intake.limit
    written, quick, _ = site.say(request())
    assert written.startswith(b"HTTP/1.1 503 ") and b"retry-after" in written and quick == 0
    site.app.intake.inside = 0
    site.wire.is_ending = lambda: True
    written, quick, closed = site.say(request())
    assert b"connection: close" in written and quick == 0 and closed


def test_a_connection_that_rests_is_closed_and_one_that_works_is_not():
    site = Site()

    async def rests():
        resting, working, asking = (site.connection() for _ in range(3))
        site.wire.seconds, resting.timeout_keep_alive = 0.1, 0.2
        half = request()[:30]
        for connection in (resting, working, asking):
            connection.data_received(request())
        for _ in range(5):
            await asyncio.sleep(0.06)
            working.data_received(request() + half)  # each look meets half a head, and each time another one
            site.wire._looked = 0
            site.wire.sweep()
            if not working.transport.closed:
                working.data_received(request()[30:])
        return [one.transport.closed for one in (resting, working, asking)], working.answered, resting.transport.written

    closed, answered, written = asyncio.run(rests())
    assert closed == [True, False, False] and answered == 11
    assert written.count(b"HTTP/1.1 200") == 1 and b"408" not in written


def test_half_a_head_behind_an_answer_is_owed():
    site = Site()

    async def owes():
        connection = site.connection()
        site.wire.seconds = 0.1
        connection.data_received(request())
        connection.data_received(request()[:30])
        for _ in range(3):
            site.wire._looked = 0
            site.wire.sweep()
            await asyncio.sleep(0.08)
        return connection.transport.written, connection.transport.closed

    written, closed = asyncio.run(owes())
    assert b"HTTP/1.1 408 " in written and closed
