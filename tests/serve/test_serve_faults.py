"""What two workers do when clients, neighbours, disks and the system misbehave: clear answers, and never for long."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from load_support import Load, load
from prometheus_client.parser import text_string_to_metric_families
from serve_support import environment, serving, workers
from support import fill, memory_disk

from mlops_nb.serve.meter import Meter
from mlops_nb.serve.numbers import Numbers

RECORD = {"age": 41, "account balance": 120.5, "married": True, "job": "clerk", "since": "2021-03-01"}
PROBLEM = {"title", "status", "detail", "errors", "request_id"}
SETTINGS = {
    "MLOPS_NB_SERVING_WORKERS": "2",
    "MLOPS_NB_SERVING_QUEUE": "20",
    "MLOPS_NB_SERVING_BODY_TIMEOUT": "1.5",
    "MLOPS_NB_SERVING_TIMEOUT": "15",
    "MLOPS_NB_SERVING_HUNG": "4",
    "MLOPS_NB_SERVING_START": "15",
    "MLOPS_NB_SERVING_LOG_FORMAT": "ecs",
    "BENTOML_CONTAINERIZED": "true",  # where BentoML replaces no worker
    "OTEL_BSP_SCHEDULE_DELAY": "200",
}


class Collector:
    """A real receiver of OTLP over HTTP, which keeps the spans that it was sent."""

    def __init__(self):
        self.spans: list = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-encoding"] == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *words):
                """Nothing is written."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, trace):
        """The spans of one trace."""
        return [span for span in self.spans if span.trace_id.hex() == trace]


@pytest.fixture(scope="module")
def collector():
    found = Collector()
    yield found
    found.server.shutdown()


@pytest.fixture(scope="module")
def project(served_project, tmp_path_factory):
    """A project of its own, to be damaged."""
    folder = tmp_path_factory.mktemp("fleet") / "project"
    shutil.copytree(served_project, folder)
    return folder


@pytest.fixture(scope="module")
def fleet(project, collector):
    """A server with two workers, as it is in a container."""
    traces = f"http://127.0.0.1:{collector.server.server_port}"
    env = environment(project.parent / "home", **SETTINGS, MLOPS_NB_SERVING_TRACES=traces)
    with serving(project, project.parent / "log", env) as running:
        until(lambda: metric(running, "mlops_nb_workers") == 2)
        yield running


def until(is_so, seconds=60):
    """Wait until something is so; fail when it does not become so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if found := is_so():
                return found
        time.sleep(0.1)
    raise AssertionError(f"not so after {seconds} s")


def metric(server, name, **labels):
    """The sum of a metric's samples that have the labels."""
    families = text_string_to_metric_families(server.ask("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def talk(server, *pieces, pause=0.0):
    """Status, headers and content of what answers to bytes, sent piece by piece."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                client.sendall(piece)
                time.sleep(pause)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return answer.status, answer.headers, answer.read()


def test_what_is_no_request_gets_a_problem_and_leaves_no_line(fleet):
    for text in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n"):
        status, headers, content = talk(fleet, text)
        assert (status, headers["content-type"]) == (400, "application/problem+json"), text
        assert set(json.loads(content)) == PROBLEM
    assert "Invalid HTTP" not in fleet.log.read_text()


def test_a_head_without_end_is_cut_off(fleet):
    lines = [b"GET / HTTP/1.1\r\n", *(b"x-%d: %s\r\n" % (number, b"y" * 8000) for number in range(30))]
    with contextlib.suppress(ConnectionResetError):  # the server hung up before the answer was read
        assert talk(fleet, *lines, pause=0.01)[0] == 431


def test_slow_clients_are_told_and_hung_up_on(fleet):
    slow_body = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    with ThreadPoolExecutor(2) as pool:
        body, head = pool.map(lambda text: talk(fleet, text), [slow_body, b"GET / HTT"])
    for status, headers, content in (body, head):
        assert (status, headers["content-type"]) == (408, "application/problem+json")
        assert "did not arrive within 1.5 seconds" in json.loads(content)["detail"]
    assert metric(fleet, "mlops_nb_shed_total", reason="body") == 1
    assert metric(fleet, "mlops_nb_shed_total", reason="head") >= 1


def test_a_client_that_does_not_read_is_given_up(fleet):
    before = metric(fleet, "mlops_nb_shed_total", reason="unread")
    with socket.create_connection(("127.0.0.1", fleet.port)) as client:
        client.sendall(b"GET /static_content/swagger-ui-bundle.js HTTP/1.1\r\nhost: a\r\n\r\n" * 30)
        until(lambda: metric(fleet, "mlops_nb_shed_total", reason="unread") > before, 15)
    with socket.create_connection(("127.0.0.1", fleet.port)) as client:  # and one that sends much and leaves
        client.sendall(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n" * 500)
    assert fleet.ask("/livez").status == 200
    assert "Traceback" not in fleet.log.read_text()


def test_websockets_and_bentomls_own_errors_have_the_usual_shape(fleet):
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "eA==",
        "sec-websocket-version": "13",
    }
    assert fleet.ask("/livez", headers=upgrade).status == 200
    for path, method, status in (("/static_content/none.css", None, 404), ("/schema.json", "DELETE", 405)):
        answer = fleet.ask(path, method=method)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
        assert set(answer.json) == PROBLEM


def test_ten_thousand_paths_and_bodies_grow_nothing(fleet):
    paths = iter([b"GET /wp-%d/x.php?%d HTTP/1.1\r\nhost: a\r\n\r\n" % (number, number) for number in range(10_000)])
    before = metric(fleet, "mlops_nb_worker_memory_bytes"), len(fleet.ask("/metrics").text.splitlines())
    wild = Load(fleet.port, b"", 8, None, 40)
    wild.next_request = lambda: next(paths, None)
    report = wild.go()
    assert report.statuses[404] + report.statuses[503] == 10_000
    after = metric(fleet, "mlops_nb_worker_memory_bytes"), len(fleet.ask("/metrics").text.splitlines())
    assert after[0] - before[0] < 30e6
    assert after[1] - before[1] < 100
    assert "wp-" not in fleet.ask("/metrics").text


def test_traces_continue_the_callers_and_the_log_is_ecs(fleet, collector):
    trace, parent = "ab" * 16, "cd" * 8
    named = {**fleet.headers, "traceparent": f"00-{trace}-{parent}-01", "x-request-id": "order-17"}
    assert fleet.ask("/predict", {**RECORD, "age": "x"}, headers=named).status == 422
    assert fleet.ask("/predict", RECORD, headers={**named, "x-request-id": "order-18"}).status == 200
    until(lambda: len(collector.of(trace)) == 2)
    said = {}
    for span in collector.of(trace):
        facts = {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}
        said[facts["mlops_nb.request_id"]] = facts
        assert (span.name, span.parent_span_id.hex()) == ("POST /predict", parent)
        assert span.end_time_unix_nano > span.start_time_unix_nano
    assert said["order-17"]["http.response.status_code"] == 422
    served = {name: said["order-18"][f"mlops_nb.{name}"] for name in ("model", "version", "arm")}
    assert served == {"model": "churn", "version": 1, "arm": "champion"}
    own = [json.loads(line) for line in fleet.log.read_text().splitlines() if line.startswith("{")]
    assert {"@timestamp", "log.level", "message", "ecs.version", "service.name"} <= set.intersection(*map(set, own))
    (line,) = [entry for entry in own if entry.get("http.request.id") == "order-17"]
    assert (line["http.response.status_code"], line["url.path"], line["trace.id"]) == (422, "/predict", trace)
    assert not [entry for entry in own if entry.get("http.request.id") == "order-18"]  # only errors are written


def test_three_times_as_much_as_it_can_is_shed_and_it_recovers_at_once(fleet):
    capacity = load(fleet.port, RECORD, 2, connections=8)
    assert set(capacity.statuses) == {200}
    flood = load(fleet.port, RECORD, 3, connections=150, rate=max(3 * capacity.rate, 300))
    assert set(flood.statuses) <= {200, 503}, flood.summary()
    assert flood.statuses[200] > 0 and not flood.lost and not flood.without_retry
    assert flood.statuses[503] > 0 and metric(fleet, "mlops_nb_shed_total", reason="queue") > 0
    began = time.monotonic()
    assert fleet.ask("/predict", RECORD).status == 200
    assert time.monotonic() - began < 2
    calm = load(fleet.port, RECORD, 1.5, connections=2)
    assert set(calm.statuses) == {200}


def test_most_of_its_capacity_for_a_while_costs_no_error_and_no_memory(fleet):
    capacity = load(fleet.port, RECORD, 2, connections=8).rate
    before = metric(fleet, "mlops_nb_worker_memory_bytes")
    steady = load(fleet.port, RECORD, 20, connections=8, rate=0.8 * capacity)
    assert set(steady.statuses) == {200} and not steady.lost and not steady.refused, steady.summary()
    assert metric(fleet, "mlops_nb_worker_memory_bytes") - before < 20e6


def test_a_damaged_model_and_a_half_written_release_change_nothing(fleet, project):
    expected = fleet.ask("/predict", RECORD).json["probabilities"]
    assert not list(project.glob(".mlops/ledger.sqlite"))  # nor is there one that it could ask
    (model,) = project.glob(".mlops/releases/churn/*/versions/1/model.skops")
    good = model.read_bytes()
    half = project / ".mlops" / "releases" / "churn" / "000009-aaaaaaaaaaaa"
    try:
        model.write_bytes(good[: len(good) // 2])
        half.mkdir()
        (half / "release.json").write_text('{"model": "chu')
        time.sleep(1.5)
        for _ in range(4):
            assert fleet.ask("/predict", RECORD).json["probabilities"] == expected
        assert fleet.ask("/readyz").status == 200
    finally:
        model.write_bytes(good)
        shutil.rmtree(half)


def test_a_killed_worker_is_replaced_while_the_others_answer(fleet):
    before = workers(fleet)
    os.kill(before[0], signal.SIGKILL)
    report = load(fleet.port, RECORD, 3, connections=4, rate=40)
    assert report.statuses[200] > 20 and set(report.statuses) == {200}
    assert len(report.lost) <= 4  # those that the worker was answering
    until(lambda: metric(fleet, "mlops_nb_worker_deaths_total", reason="crashed") == 1)
    until(lambda: metric(fleet, "mlops_nb_workers") == 2)
    assert len(set(workers(fleet)) - set(before)) == 1


def test_a_worker_that_hangs_is_replaced(fleet):
    before = workers(fleet)
    os.kill(before[0], signal.SIGSTOP)
    until(lambda: metric(fleet, "mlops_nb_worker_deaths_total", reason="hung") == 1)
    until(lambda: metric(fleet, "mlops_nb_workers") == 2)
    assert len(set(workers(fleet)) & set(before)) == 1


def test_a_worker_that_hangs_before_it_answers_is_replaced(fleet):
    hung = metric(fleet, "mlops_nb_worker_deaths_total", reason="hung")
    (gone, stays) = workers(fleet)
    os.kill(gone, signal.SIGKILL)
    (fresh,) = until(lambda: set(workers(fleet)) - {gone, stays})
    folder = shared_by(stays)
    until(lambda: (folder / f"{fresh}.starting").exists())
    os.kill(fresh, signal.SIGSTOP)
    until(lambda: metric(fleet, "mlops_nb_worker_deaths_total", reason="hung") == hung + 1)
    until(lambda: metric(fleet, "mlops_nb_workers") == 2)
    assert fresh not in workers(fleet) and stays in workers(fleet)
    assert f"worker {fresh} has not loaded its models within" in fleet.log.read_text()


def shared_by(worker):
    """The folder that the workers of a server share."""
    variables = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    return Path(next(one for one in variables if one.startswith(b"PROMETHEUS_MULTIPROC_DIR=")).decode().split("=")[1])


def test_new_workers_take_over_without_a_failed_request(fleet):
    before = workers(fleet)
    end = threading.Timer(0.5, lambda: fleet.process.send_signal(signal.SIGHUP))
    end.start()
    report = load(fleet.port, RECORD, 8, connections=4, rate=40)
    assert set(report.statuses) == {200} and not report.lost and not report.refused, report.summary()
    until(lambda: not set(workers(fleet)) & set(before))
    until(lambda: metric(fleet, "mlops_nb_workers") == 2)


def test_a_server_that_is_told_to_end_answers_all_it_has_taken_in(fleet):
    asked, seen, stop = [], set(), threading.Event()

    def watch():
        while not stop.is_set():
            with contextlib.suppress(OSError):
                seen.add(fleet.ask("/readyz").status)

    watcher = threading.Thread(target=watch)
    watcher.start()
    end = threading.Timer(1, lambda: asked.append(fleet.process.send_signal(signal.SIGTERM)))
    end.start()
    report = load(fleet.port, RECORD, 3, connections=4, rate=60)
    stop.set()
    watcher.join()
    assert asked and fleet.process.wait(30) is not None
    assert report.lost == [] and set(report.statuses) == {200}, report.summary()
    assert report.statuses[200] > 30 and report.refused > 0
    assert seen == {200, 503}  # not ready is said while requests are still answered
    own = fleet.log.read_text()
    assert "Traceback" not in own and "Exception in ASGI" not in own


def test_workers_of_a_killed_server_leave_the_port_and_no_files(project, tmp_path):
    env = environment(tmp_path / "home", TMPDIR=str(tmp_path))
    with contextlib.suppress(AssertionError), serving(project, tmp_path / "log", env) as running:
        (worker,) = workers(running)
        running.process.kill()
        running.process.wait()
        until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE, 20)
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", running.port))
            again.listen()
        assert not list(tmp_path.glob("mlops-nb-serve-*"))
        return
    raise AssertionError("the server did not start")


def test_workers_that_crash_again_and_again_end_the_server(project, tmp_path):
    """A worker dies where no exception is caught: when libraries are loaded."""
    crash = "import os, sys\nif '_bentoml_impl.worker.service' in sys.orig_argv: os.kill(os.getpid(), 11)\n"
    (tmp_path / "sitecustomize.py").write_text(crash)
    env = environment(tmp_path / "home", PYTHONPATH=str(tmp_path))
    with (
        pytest.raises(AssertionError, match="5 workers have ended within 60 seconds"),
        serving(project, tmp_path / "log", env),
    ):
        raise RuntimeError("the server became ready")


def test_a_full_disk_stops_no_answer(project, tmp_path):
    """Where the workers' shared folder takes no byte more they count on, and one that starts then counts for itself."""
    with memory_disk(tmp_path / "disk", "4m") as disk:
        env = environment(tmp_path / "home", TMPDIR=str(disk))
        with serving(project, tmp_path / "log", env) as running:
            assert running.ask("/predict", RECORD).status == 200
            fill(disk)
            assert running.ask("/predict", RECORD).status == 200
            assert metric(running, "mlops_nb_requests_total", route="/predict", status="200") == 2
        meter = Meter(Numbers(disk))
        meter.answered("/predict", 200, 0.01)
        assert b'status="200"' in meter.text()
