"""A stand-in for W&B's service on the loopback: what `wandb sync` and the outbox ask of it, and nothing else.

It keeps what it is sent (runs, histories, artifacts, edges), notes every question that it does not know (tests fail on
one), and can be told to be slow, to answer with errors, or to lose what it has acknowledged.
"""

import base64
import gzip
import itertools
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

ENTITY = "local"
KEY = "k" * 40


@dataclass
class Fault:
    """An answer that is given instead of the right one."""

    status: int
    times: int = 1_000_000
    path: str = ""  # the beginning of the paths that it holds for
    operation: str = ""  # of GraphQL; every one when empty
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """A run as the service knows it."""

    id: str
    name: str
    project: str
    fields: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    state: str = "running"
    files: set[str] = field(default_factory=set)


@dataclass
class Artifact:
    """One version of an artifact."""

    id: str
    project: str
    collection: str
    type: str
    digest: str
    run: str
    aliases: list[str]
    state: str = "PENDING"


class Server(ThreadingHTTPServer):
    """A server that is silent about clients that hang up."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Report everything but that."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Service:
    """The stand-in; use it in a `with` statement."""

    def __init__(self, port: int = 0):
        self.lock, self._numbers = threading.RLock(), itertools.count(1)
        self.runs: dict[tuple[str, str], Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.clients: dict[str, str] = {}  # id that the client chose -> id of the artifact
        self.manifests: dict[str, str] = {}
        self.uses: list[tuple[str, str]] = []  # names of runs, ids of artifacts
        self.alerts: list[dict] = []
        self.operations: list[str] = []
        self.committed: list[tuple[str, str]] = []  # runs and collections, in order
        self.unknown: list[object] = []
        self.faults: list[Fault] = []
        self.lose: dict[str, int] = {}  # collection -> how often a committed version of it is forgotten
        self.lose_edges = 0  # how many used-by edges are forgotten
        self.delay, self.is_up = 0.0, True
        self.server = Server(("127.0.0.1", port), type("Bound", (Handler,), {"service": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Service":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Be down from now on."""
        if self.is_up:
            self.is_up = False
            self.server.shutdown()
            self.server.server_close()

    def identity(self, kind: str) -> str:
        """A new id."""
        return base64.b64encode(f"{kind}:{next(self._numbers)}".encode()).decode()

    def fault(self, path: str, operation: str = "") -> Fault | None:
        """The fault that this request meets, used up once."""
        for fault in self.faults:
            if fault.times > 0 and path.startswith(fault.path) and fault.operation in ("", operation):
                fault.times -= 1
                return fault
        return None

    def run(self, name: str) -> Run:
        """The only run of that name."""
        (run,) = [run for run in self.runs.values() if run.name == name]
        return run

    def arrived(self, run: str) -> dict[str, str]:
        """Collection -> state of what a run gave."""
        return {artifact.collection: artifact.state for artifact in self.artifacts.values() if artifact.run == run}

    def used(self, run: str) -> list[str]:
        """The collections that a run read from, one for each edge."""
        return [self.artifacts[identity].collection for name, identity in self.uses if name == run]

    def answer(self, operation: str, variables: dict) -> dict:
        """The data for one GraphQL operation; KeyError for one that is unknown."""
        return OPERATIONS[operation](self, variables)


OPERATIONS = {}


def operation(function):
    """Enter a function as the answer to the operation of its name."""
    OPERATIONS[function.__name__] = function
    return function


def _entity(variables: dict) -> None:
    assert variables.get("entity") in (None, "", ENTITY), variables


def _bucket(run: Run) -> dict:
    owner = {"id": "UA==", "name": run.project, "entity": {"id": "RQ==", "name": ENTITY}}
    shown = {"displayName": run.fields.get("displayName"), "config": json.dumps(run.config), "project": owner}
    return {"id": run.id, "name": run.name, "description": None, "sweepName": None, **shown} | {
        "historyLineCount": len(run.history)
    }


@operation
def ServerFeaturesQuery(service: Service, variables: dict) -> dict:
    return {"serverInfo": {"features": []}}


@operation
def RunResumeStatus(service: Service, variables: dict) -> dict:
    _entity(variables)
    run = service.runs.get((variables["project"], variables["name"]))
    bucket = None
    if run:
        tails = {f"{name}Tail": json.dumps([json.dumps(row) for row in rows[-1:]]) for name, rows in _lines(run)}
        counts = {f"{name}LineCount": len(rows) for name, rows in _lines(run)} | {"logLineCount": len(run.output)}
        known = {"tags": run.fields.get("tags") or [], "wandbConfig": json.dumps({"t": 1}), "notes": None}
        bucket = {**_bucket(run), **tails, **counts, **known, "summaryMetrics": json.dumps(run.summary)}
    owner = {"id": "UA==", "name": variables["project"], "entity": {"id": "RQ==", "name": ENTITY}}
    return {"model": {**owner, "bucket": bucket}}


def _lines(run: Run) -> list[tuple[str, list[dict]]]:
    return [("history", run.history), ("events", run.events)]


@operation
def UpsertBucket(service: Service, variables: dict) -> dict:
    _entity(variables)
    run = next((run for run in service.runs.values() if run.id == variables.get("id")), None)
    if run is None:
        place = (variables["project"], variables["name"])
        fresh = place not in service.runs
        run = service.runs.setdefault(place, Run(service.identity("Run"), place[1], place[0]))
        run.state = "running"
    else:
        fresh = False
    run.fields |= {name: value for name, value in variables.items() if value is not None}
    run.config = json.loads(variables["config"]) if variables.get("config") else run.config
    run.summary = json.loads(variables["summaryMetrics"]) if variables.get("summaryMetrics") else run.summary
    return {"upsertBucket": {"bucket": _bucket(run), "inserted": fresh}}


@operation
def CreateRunFiles(service: Service, variables: dict) -> dict:
    run = service.runs[variables["project"], variables["run"]]
    place = f"{service.url}/storage/files/{run.project}/{run.name}"
    files = [{"name": name, "uploadUrl": f"{place}/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": run.id, "uploadHeaders": [], "files": files}}


@operation
def CreateArtifact(service: Service, variables: dict) -> dict:
    wanted = variables["input"]
    aliases = [alias["alias"] for alias in wanted.get("aliases") or []]
    place = (wanted["projectName"], wanted["artifactCollectionName"])
    versions = [item for item in service.artifacts.values() if (item.project, item.collection) == place]
    same = [item for item in versions if item.digest == wanted["digest"] and item.state == "COMMITTED"]
    if same and wanted.get("enableDigestDeduplication"):
        found = same[0]
        found.aliases = sorted({*found.aliases, *aliases})
    else:
        facts = (wanted["artifactTypeName"], wanted["digest"], wanted["runName"], aliases)
        found = Artifact(service.identity("Artifact"), *place, *facts)
        service.artifacts[found.id] = found
    service.clients[wanted["clientID"]] = found.id
    done = [item for item in versions if item.state == "COMMITTED"]
    latest = {"latestArtifact": {"id": done[-1].id} if done else None}
    return {"createArtifact": {"artifact": {"id": found.id, "state": found.state, "artifactSequence": latest}}}


@operation
def CreateArtifactManifest(service: Service, variables: dict) -> dict:
    identity = service.identity("ArtifactManifest")
    service.manifests[identity] = variables["artifactID"]
    upload = {"uploadUrl": f"{service.url}/storage/manifest/{identity}", "uploadHeaders": []}
    file = {"id": service.identity("File"), **(upload if variables.get("includeUpload") else {})}
    return {"createArtifactManifest": {"artifactManifest": {"id": identity, "file": file}}}


@operation
def CreateArtifactFiles(service: Service, variables: dict) -> dict:
    edges = []
    for item in variables["input"]["artifactFiles"]:
        place = f"artifact/{item['artifactID']}/{item['name']}"
        node = {"storagePath": place, "uploadUrl": f"{service.url}/storage/{place}", "uploadHeaders": []}
        edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": item["artifactID"]}}})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


@operation
def CommitArtifact(service: Service, variables: dict) -> dict:
    artifact = service.artifacts[variables["artifactID"]]
    if service.lose.get(artifact.collection, 0) > 0:
        service.lose[artifact.collection] -= 1
    else:
        artifact.state = "COMMITTED"
        service.committed.append((artifact.run, artifact.collection))
    return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}


@operation
def UseArtifact(service: Service, variables: dict) -> dict:
    wanted = variables.get("input") or variables
    if service.lose_edges > 0:
        service.lose_edges -= 1
    elif (wanted["runName"], wanted["artifactID"]) not in service.uses:
        service.uses.append((wanted["runName"], wanted["artifactID"]))
    artifact = {"id": wanted["artifactID"], "digest": "", "state": "COMMITTED", "description": None}
    return {"useArtifact": {"artifact": {**artifact, "createdAt": "", "metadata": None}}}


@operation
def NotifyScriptableRunAlert(service: Service, variables: dict) -> dict:
    service.alerts.append(variables)
    return {"notifyScriptableRunAlert": {"success": True}}


@operation
def OutboxViewer(service: Service, variables: dict) -> dict:
    return {"viewer": {"entity": ENTITY}}


@operation
def OutboxRun(service: Service, variables: dict) -> dict:
    assert variables["entity"] == ENTITY, variables
    run = service.runs.get((variables["project"], variables["run"]))
    if run is None:
        return {"project": {"run": None} if any(name == variables["project"] for name, _ in service.runs) else None}
    gave = [item for item in service.artifacts.values() if item.run == run.name]
    read = [service.artifacts[identity] for name, identity in service.uses if name == run.name]
    edges = {
        "outputArtifacts": _page(gave, variables["outputs"], variables["size"]),
        "inputArtifacts": _page(read, variables["inputs"], variables["size"]),
    }
    return {"project": {"run": {"state": run.state, "historyLineCount": len(run.history), **edges}}}


@operation
def OutboxVersions(service: Service, variables: dict) -> dict:
    place = (variables["project"], variables["collection"], variables["type"])
    found = [item for item in service.artifacts.values() if (item.project, item.collection, item.type) == place]
    versions = {"artifacts": _page(found[::-1], variables["cursor"], variables["size"])}
    return {"project": {"artifactType": {"artifactCollection": versions if found else None}}}


def _page(artifacts: list[Artifact], cursor: str | None, size: int) -> dict:
    """One page of artifacts."""
    start = int(cursor or 0)
    chosen = artifacts[start : start + size]
    nodes = [
        {"digest": item.digest, "state": item.state, "artifactSequence": {"name": item.collection}} for item in chosen
    ]
    more = {"hasNextPage": start + size < len(artifacts), "endCursor": str(start + size)}
    return {"pageInfo": more, "edges": [{"node": node} for node in nodes]}


STREAMS = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "events", "output.log": "output"}


def file_stream(run: Run, sent: dict) -> None:
    """Take over lines of history, events and output, the summary, and the end."""
    for name, chunk in (sent.get("files") or {}).items():
        if name == "wandb-summary.json":
            run.summary = json.loads(chunk["content"][-1])
        else:
            lines = chunk["content"] if name == "output.log" else [json.loads(line) for line in chunk["content"]]
            kept = getattr(run, STREAMS[name])
            kept[chunk["offset"] : chunk["offset"] + len(lines)] = lines
    run.files |= set(sent.get("uploaded") or [])
    if sent.get("complete"):
        run.state = "finished" if sent["exitcode"] == 0 else "failed"


class Handler(BaseHTTPRequestHandler):
    """The service's HTTP."""

    protocol_version = "HTTP/1.1"
    service: Service

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, document: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, path: str, name: str = "") -> bool:
        """Whether a fault, or a missing key, was answered."""
        time.sleep(self.service.delay)
        fault = self.service.fault(path, name)
        words = f"api:{KEY}"
        allowed = self.headers.get("Authorization") == f"Basic {base64.b64encode(words.encode()).decode()}"
        if fault is None and (allowed or path.startswith("/storage/")):
            return False
        status = fault.status if fault else 401
        self._send({"errors": [{"message": f"stand-in: {status}"}]}, status, fault.headers if fault else None)
        return True

    def _unknown(self, what: object) -> None:
        self.service.unknown.append(what)
        self._send({"errors": [{"message": f"stand-in: unknown {what}"}]}, 400)

    def do_GET(self) -> None:
        self._unknown(f"GET {self.path}")

    def do_PUT(self) -> None:
        self._body()
        path = unquote(urlparse(self.path).path)
        if not path.startswith("/storage/"):
            self._unknown(f"PUT {path}")
        elif not self._refuse(path):
            self._send({})

    def do_POST(self) -> None:
        path, body = unquote(urlparse(self.path).path), self._body()
        if path == "/graphql":
            self._graphql(json.loads(body))
        elif stream := re.fullmatch(rf"/files/{ENTITY}/([^/]+)/([^/]+)/file_stream", path):
            if not self._refuse(path):
                with self.service.lock:
                    file_stream(self.service.runs[stream[1], stream[2]], json.loads(body))
                self._send({"limits": None})
        else:
            self._unknown(f"POST {path}")

    def _graphql(self, request: dict) -> None:
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", request["query"])
        name = request.get("operationName") or (found[1] if found else "?")
        if self._refuse("/graphql", name):
            return
        with self.service.lock:
            self.service.operations.append(name)
            try:
                data = self.service.answer(name, request.get("variables") or {})
            except (KeyError, AssertionError) as error:
                self._unknown(f"{name}: {type(error).__name__}: {error}")
                return
        self._send({"data": data})
