"""Stand-ins for object stores on this machine, and a server before them that misbehaves on demand."""

import base64
import contextlib
import functools
import http.client
import itertools
import json
import logging
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from support import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
NAMES = itertools.count(1)
SLOW = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """moto, a stand-in for S3; yields its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    finally:
        server.stop()


@functools.cache
def client(address: str):
    """A client of Amazon's own."""
    import boto3

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=address, **keys)


def make_bucket(address: str) -> str:
    """A fresh bucket; its name."""
    name = f"models-{os.getpid()}-{next(NAMES)}"
    client(address).create_bucket(Bucket=name)
    return name


ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>These are refused.</Message></Error>'
REFUSED = {"ExpiredToken": 400, "InvalidAccessKeyId": 403}
AZURITE = os.environ.get("MLOPS_NB_TEST_AZURITE")  # the program azurite-blob
FAKE_GCS = os.environ.get("MLOPS_NB_TEST_GCS")  # the program fake-gcs-server
ACCOUNT, ACCOUNT_KEY = "testing", base64.b64encode(b"testing" * 8).decode()


@contextlib.contextmanager
def program(*command: str, port: int, **environment: str) -> Iterator[str]:
    """A store that is a program of its own, until it listens; yields its address."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, **environment}, **quiet)
    try:
        deadline = time.monotonic() + 30
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.connect()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} does not listen"
                time.sleep(0.1)
            finally:
                connection.close()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Microsoft's stand-in for Azure Blob Storage."""
    port = free_port()
    words = ["--blobPort", str(port), "--location", str(folder), "--silent", "--disableTelemetry"]
    words += ["--skipApiVersionCheck"]
    with program(str(AZURITE), *words, port=port, AZURITE_ACCOUNTS=f"{ACCOUNT}:{ACCOUNT_KEY}") as address:
        yield address


@contextlib.contextmanager
def fake_gcs() -> Iterator[str]:
    """A stand-in for Google Cloud Storage."""
    port = free_port()
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory", "-log-level", "error"]
    with program(str(FAKE_GCS), *words, "-public-host", f"127.0.0.1:{port}", port=port) as address:
        yield address


def connection_string(address: str, key: str = ACCOUNT_KEY) -> str:
    """What leads Azure's clients to Azurite."""
    parts = ["DefaultEndpointsProtocol=http", f"AccountName={ACCOUNT}", f"AccountKey={key}"]
    return ";".join([*parts, f"BlobEndpoint={address}/{ACCOUNT}"])


def make_container(address: str) -> str:
    """A fresh container of Azurite; its name."""
    from azure.storage.blob import BlobServiceClient

    name = f"models-{os.getpid()}-{next(NAMES)}"
    with BlobServiceClient.from_connection_string(connection_string(address)) as service:
        service.create_container(name)
    return name


def make_gcs_bucket(address: str) -> str:
    """A fresh bucket of fake-gcs-server; its name."""
    name = f"models-{os.getpid()}-{next(NAMES)}"
    body, headers = json.dumps({"name": name}).encode(), {"content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{address}/storage/v1/b?project=p", body, headers)).close()
    return name


class Unsteady(BaseHTTPRequestHandler):
    """Hands requests on, or does to them what the server's `faults` say, first come first served."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Say nothing: errors are what is asked for here."""

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _handle(self) -> None:
        fault = self.server.fault(self.command) if self.server.only in self.path else ""
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "cut":  # in the middle of an upload
            self.rfile.read(length // 2)
            return self._cut()
        body = self.rfile.read(length)
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        if fault == "reset":
            return self._cut()
        if fault in REFUSED:
            return self._answer(REFUSED[fault], ERROR.format(fault).encode(), {"Content-Type": "application/xml"})
        if fault in ("503", "500"):
            return self._answer(int(fault), SLOW if fault == "503" else b"", {"Content-Type": "application/xml"})
        dropped = self.server.drops | {"connection", "host"}
        sent = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        answer, content = self._pass_on(body, {**sent, "Host": self.headers["Host"]})
        if fault == "lost":  # it was done, and nobody hears of it
            return self._cut()
        own = {"connection", "transfer-encoding"} | ({"content-length"} if self.command != "HEAD" else set())
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in own}
        return self._answer(answer.status, content, headers)

    def _pass_on(self, body: bytes, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        target = urlsplit(self.server.target)
        connection = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle


class UnsteadyServer(ThreadingHTTPServer):
    """A server before a store."""

    daemon_threads = True

    def __init__(self, target: str):
        super().__init__(("127.0.0.1", 0), Unsteady)
        self.target = target
        self.faults: list[tuple[str, str]] = []  # method and fault, each for one request
        self.only = ""  # part of the addresses that faults are for
        self.drops: set[str] = set()  # headers that are not handed on
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, method: str) -> str:
        """What is done to this request."""
        with self._lock:
            for number, (wanted, _) in enumerate(self.faults):
                if wanted == method:
                    return self.faults.pop(number)[1]
        return ""

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what is asked for here."""


@contextlib.contextmanager
def unsteady(target: str) -> Iterator[UnsteadyServer]:
    """A server that hands on to `target` what it does not spoil."""
    server = UnsteadyServer(target)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
