"""What an answer costs: our service beside others that serve the same model, round by round, in one run.

    python benchmarks/serving.py [--table FILE.csv.gz --target COLUMN] [--peers FOLDER] [--rounds 7] [--seconds 2]
                                 [--only small,many,binary,start,growth] [--json FILE]

The model is the champion of `mlops-nb run tabular`: of the default table, or of the one that --table names. Each
service runs one worker. One load generator, in a process of its own, keeps `--connections` connections busy; in every
round the services take turns, so that what else the machine does meets all of them, and a figure is the median of the
rounds' ratios. CPU is that of the whole process tree, in microseconds per request; ours has a process that compacts
the log of predictions, so that of the worker alone is told, too.

- `small`: one record. Ours, with everything on (keys, limits, the log of predictions, metrics), by ONNX and by
  scikit-learn, beside plain BentoML with scikit-learn, an empty uvicorn, FastAPI with pydantic and ONNX, MLServer,
  and `mlflow models serve`; and the private memory of the workers after it.
- `many`: 1,000 records in JSON, our application beside a function that decodes with msgspec, asks onnxruntime and
  encodes the same answer; both in this process.
- `binary`: the same 1,000 records as 32-bit floats and as an Arrow stream, beside JSON: over HTTP, where the model
  itself is part of the cost, and in this process what the body and the answer cost without it.
- `start`: CPU seconds from the start of the command to the first answer that says ready.
- `growth`: our application with 1, 10, 100 models, 1, 4, 16 arms, 10, 100, 1,000 features; in this process.

Prints a table with the limits; exit code 1 when one is missed. Peers are installed under --peers (serving_peers.py).
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import psutil
from serving_peers import ROOT, Peer, peers_of

ONNX, SKLEARN = "ours, ONNX", "ours, scikit-learn"
PLAIN = "BentoML + scikit-learn"
LIMITS = {  # what -> (at least or at most, value)
    f"{ONNX}: requests, of plain BentoML's": (">=", 12), f"{SKLEARN}: requests, of plain BentoML's": (">=", 3.5),
    f"{ONNX}: CPU, of raw uvicorn's": ("<=", 4), "CPU of FastAPI + pydantic + ONNX, of ours": (">=", 1.8),
    "CPU of MLServer, of ours": (">=", 6), "CPU of mlflow models serve, of ours": (">=", 10),
    "1,000 rows in JSON, of raw msgspec + ONNX": ("<=", 1.3),
    "body and answer in JSON, of float32": (">=", 8), "body and answer in JSON, of Arrow": (">=", 8),
    "worker's memory, of plain BentoML's": ("<=", 0.65), "CPU to start, of plain BentoML's": ("<=", 0.7),
}  # fmt: skip
ROWS = 1_000


@dataclass
class Served:
    """A released model, as files for those who serve it."""

    workspace: Path
    schema: dict[str, Any]
    record: dict[str, Any]
    records: list[dict[str, Any]]  # of the table, ROWS of them
    answer: dict[str, Any]
    parity: dict[str, Any]
    joblib: Path
    schema_file: Path
    onnx: Path | None
    key: str  # of the service


def train(workspace: Path, table: str, target: str) -> None:
    """Run the pipeline, unless the workspace has a release."""
    if list((workspace / "releases").glob("*/current")):
        return
    command = [sys.executable, "-m", "mlops_nb", "run", "tabular"]
    given = [f"ingest.source={table}", f"ingest.target={target}"] if table else []
    command += [word for one in given for word in ("-p", one)]
    environment = {**os.environ, "MLOPS_NB_WORKSPACE_PATH": str(workspace)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)


def prepare(folder: Path, table: str, target: str) -> Served:
    """The champion, loaded once to write what peers need."""
    import joblib

    from mlops_nb.registry.releases import read_release, released_models
    from mlops_nb.serve.predictor import load_model

    workspace = folder / "workspace"
    train(workspace, table, target)
    (name,) = released_models(workspace / "releases")
    release = read_release(workspace / "releases", name)
    model = load_model(release, wanted="skops")
    joblib.dump(model.estimator, folder / "model.joblib")
    (folder / "schema.json").write_text(json.dumps(model.schema))
    parity = model.manifest.get("formats", {}).get("onnx", {"ok": False, "reason": "packaged without"})
    onnx = release.folder / release.document.arms[0].folder / "model.onnx" if parity["ok"] else None
    answer = model.predict(model.reader.read(json.dumps(model.example).encode()))[0]
    records = varied(model.schema, model.examples)
    files = (folder / "model.joblib", folder / "schema.json", onnx)
    return Served(workspace, model.schema, model.example, records, answer, parity, *files, key=new_key(workspace))


def new_key(workspace: Path) -> str:
    """An API key that may predict, as often as it likes."""
    command = [sys.executable, "-m", "mlops_nb", "access", "create", f"benchmark-{os.getpid()}", "--scope", "predict"]
    environment = {**os.environ, "MLOPS_NB_WORKSPACE_PATH": str(workspace)}
    made = subprocess.run(
        [*command, "--rate", "1000000/s", "--json"], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    return json.loads(made.stdout)["key"]


def varied(schema: dict[str, Any], examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """ROWS records of the model's kinds, with numbers of six digits as people send them."""
    import random

    draw, found = random.Random(0), []
    for row in range(ROWS):
        record = dict(examples[row % len(examples)])
        for feature in schema["features"]:
            low, high = feature.get("low"), feature.get("high")
            if feature["kind"] == "number":
                record[feature["name"]] = float(f"{draw.uniform(low, high):.6g}")
            elif feature["kind"] == "integer":
                record[feature["name"]] = draw.randint(int(low), int(high))
            elif feature["kind"] == "category" and feature.get("categories"):
                record[feature["name"]] = draw.choice(feature["categories"])
        found.append(record)
    return found


# ---- servers


def free_port() -> int:
    """A port with two more above it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return min(taken.getsockname()[1], 65_000)


def ours(name: str, form: str, served: Served, **asked: Any) -> Peer:
    """Our service with everything on: keys, limits, the log of predictions, metrics."""
    environment = {
        "MLOPS_NB_ACCESS_MODE": "on",
        "MLOPS_NB_WORKSPACE_PATH": str(served.workspace),
        "MLOPS_NB_SERVING_FORMAT": form,
        "MLOPS_NB_SERVING_WORKERS": "1",
        "MLOPS_NB_SERVING_MAX_BODY": str(8 << 20),
    }
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", "--host", "127.0.0.1", "--port", "{port}"]
    body = asked.pop("body", json.dumps(served.record).encode())
    return Peer(name, command, "/predict", body, "/readyz", environment, key=served.key, **asked)


class Running:
    """A started service."""

    def __init__(self, peer: Peer, folder: Path):
        self.peer, self.port = peer, free_port()
        home = {"BENTOML_HOME": str(folder / "bentos" / str(self.port)), "BENTOML_DO_NOT_TRACK": "True"}
        environment = {**os.environ, **home, **{key: self.fill(value) for key, value in peer.environment.items()}}
        self.log = folder / f"{self.port}.log"
        with open(self.log, "w") as output:
            self.process = subprocess.Popen(
                list(map(self.fill, peer.command)), cwd=peer.folder, env=environment, stdout=output, stderr=output
            )
        self.started = self.wait()

    def fill(self, text: str) -> str:
        """The text with the port that was found, and the two above it."""
        for more in range(3):
            text = text.replace(f"{{port+{more}}}" if more else "{port}", str(self.port + more))
        return text

    def wait(self, seconds: float = 180) -> float:
        """CPU seconds until it says that it is ready."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.peer.ready}", timeout=5).read()
                return self.cpu()
            time.sleep(0.05)
        raise RuntimeError(f"{self.peer.name} is not ready:\n{self.log.read_text()[-2000:]}")

    def tree(self) -> list[psutil.Process]:
        """The process and all below it."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def each(self) -> dict[int, float]:
        """CPU seconds so far of each process of the tree, by id; with those of its children that have ended."""
        found = {}
        for one in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                found[one.pid] = sum(one.cpu_times()[:4])
        return found

    def cpu(self) -> float:
        """CPU seconds of the tree so far."""
        return sum(self.each().values())

    def memory(self) -> float:
        """Private megabytes of the worker: the process that took the most CPU."""
        each = self.each()
        return psutil.Process(max(each, key=each.__getitem__)).memory_full_info().uss / 2**20

    def ask(self, seconds: float, connections: int) -> dict[str, float]:
        """One round of load: requests per second, CPU microseconds per request, milliseconds at the 50th and 99th."""
        peer, before = self.peer, self.each()
        head = f"POST {peer.path} HTTP/1.1\r\nhost: x\r\ncontent-type: {peer.media}\r\naccept: {peer.accept}\r\n"
        head += f"authorization: Bearer {peer.key}\r\n" if peer.key else ""
        sent = head.encode() + b"content-length: %d\r\n\r\n" % len(peer.body) + peer.body
        command = [sys.executable, __file__, "--load", str(self.port), str(seconds), str(connections)]
        done = subprocess.run(command, input=sent, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{peer.name}: {done.stderr.decode()[-1000:]}\n{self.log.read_text()[-1000:]}")
        told = json.loads(done.stdout)
        spent = [seconds - before.get(pid, 0.0) for pid, seconds in self.each().items()]
        per_request = 1e6 / told["count"]
        return {**told, "cpu": sum(spent) * per_request, "worker": max(spent) * per_request}

    def stop(self) -> None:
        """End the tree."""
        tree = self.tree() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(tree, timeout=10)
        for one in alive:
            one.kill()
        self.process.wait()


# ---- load


class Client(asyncio.Protocol):
    """One connection that sends the same request as soon as the last one is answered."""

    def __init__(self, request: bytes, until: float, done: asyncio.Future):
        self.request, self.until, self.done = request, until, done
        self.times: list[float] = []
        self.missing, self.buffer = 0, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.missing:
            self.missing -= len(data)
        else:
            self.buffer += data
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.missing, self.buffer = self.rest(self.buffer[:end].lower()) - (len(self.buffer) - end - 4), b""
        if self.missing == 0:
            now = time.perf_counter()
            self.times.append(now - self.sent)
            self.send() if now < self.until else self.finish()

    def rest(self, head: bytes) -> int:
        if not head.startswith(b"http/1.1 200"):
            self.finish(RuntimeError(head.decode("latin-1")))
        return int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])

    def finish(self, error: Exception | None = None) -> None:
        self.transport.close()
        if not self.done.done():
            self.done.set_exception(error) if error else self.done.set_result(self.times)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or RuntimeError("the connection was closed"))


def load(port: int, seconds: float, connections: int) -> None:
    """Send what comes on standard input until the time is over; the figures go to standard output."""
    import uvloop

    request = sys.stdin.buffer.read()

    async def main() -> tuple[list[float], float]:
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        futures = [loop.create_future() for _ in range(connections)]
        for done in futures:
            await loop.create_connection(partial(Client, request, started + seconds, done), "127.0.0.1", port)
        times = [one for many in await asyncio.gather(*futures) for one in many]
        return sorted(times), time.perf_counter() - started

    times, took = uvloop.run(main())
    at = lambda share: times[int(share * (len(times) - 1))] * 1e3  # noqa: E731
    print(json.dumps({"count": len(times), "rps": len(times) / took, "p50": at(0.5), "p99": at(0.99)}))


# ---- parts


def middle(values: Any) -> float:
    return statistics.median(values)


def paired(rounds: list[dict[str, dict[str, float]]], what: str, one: str, other: str) -> float | None:
    """The median of a figure's ratio in each round."""
    ratios = [taken[one][what] / taken[other][what] for taken in rounds if one in taken and other in taken]
    return middle(ratios) if ratios else None


class Report:
    """Lines of the table, as they are known."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.details: dict[str, Any] = {}
        self.missed = 0

    def tell(self, name: str, value: float | None, unit: str = "") -> None:
        """Print a figure, and its limit where it has one."""
        if value is None:
            print(f"{name:48} not measured", flush=True)
            return
        sign, limit = LIMITS.get(name, ("", 0))
        good = not sign or (value >= limit if sign == ">=" else value <= limit)
        self.missed += not good
        self.figures[name] = round(value, 4)
        bound = f"{sign} {limit}" if sign else ""
        print(f"{name:48} {value:9.3f} {unit:4} {bound:8}{'' if good else ' missed'}", flush=True)


def interleaved(peers: list[Peer], folder: Path, asked: Any, report: Report, part: str) -> list[dict[str, Any]]:
    """Rounds in which the services take turns; then they are stopped."""
    running: list[Running] = []
    try:
        for peer in peers:
            try:
                running.append(Running(peer, folder))
                running[-1].ask(1, asked.connections)
            except RuntimeError as error:
                print(f"{peer.name} is left out: {error}", flush=True)
                running = [one for one in running if one.peer is not peer]
        rounds = [
            {one.peer.name: one.ask(asked.seconds, asked.connections) for one in running} for _ in range(asked.rounds)
        ]
        for one in running:
            figures = {
                key: middle(taken[one.peer.name][key] for taken in rounds) for key in ("rps", "cpu", "p50", "p99")
            }
            figures["memory"] = one.memory()
            report.details[f"{part}, {one.peer.name}"] = {key: round(value, 2) for key, value in figures.items()}
            shown = "  ".join(f"{key} {value:,.1f}" for key, value in figures.items())
            print(f"  {one.peer.name:27} {shown}", flush=True)
        return rounds
    finally:
        for one in running:
            one.stop()


def small(served: Served, folder: Path, asked: Any, report: Report) -> None:
    """One record."""
    mine = [ours(SKLEARN, "skops", served)]
    if served.onnx:
        mine.insert(0, ours(ONNX, "onnx", served))
    else:
        print(f"no ONNX for this model: {served.parity['reason']}", flush=True)
    peers = peers_of(served, folder, asked.peers, {"fastapi", "mlserver", "mlflow"})
    rounds = interleaved([*mine, *peers], folder, asked, report, "small")
    best = mine[0].name
    for one in mine:
        report.tell(f"{one.name}: requests, of plain BentoML's", paired(rounds, "rps", one.name, PLAIN), "x")
        report.tell(f"{one.name}: CPU of plain BentoML, of ours", paired(rounds, "cpu", PLAIN, one.name), "x")
    report.tell(f"{best}: CPU, of raw uvicorn's", paired(rounds, "cpu", best, "raw uvicorn"), "x")
    for name in ("FastAPI + pydantic + ONNX", "MLServer", "mlflow models serve"):
        report.tell(f"CPU of {name}, of ours", paired(rounds, "cpu", name, best), "x")
    report.tell("worker alone: CPU, of raw uvicorn's", paired(rounds, "worker", best, "raw uvicorn"), "x")
    report.tell(
        "worker alone: CPU of FastAPI, of ours", paired(rounds, "worker", "FastAPI + pydantic + ONNX", best), "x"
    )
    memory = {name: report.details.get(f"small, {name}", {}).get("memory") for name in (best, PLAIN)}
    if all(memory.values()):
        report.tell("worker's memory, of plain BentoML's", memory[best] / memory[PLAIN], "x")


def start(served: Served, folder: Path, asked: Any, report: Report) -> None:
    """CPU seconds to the first ready answer, in turns."""
    peers = [ours(ONNX if served.onnx else SKLEARN, "auto", served)]
    peers += [peer for peer in peers_of(served, folder, asked.peers, set()) if peer.name == PLAIN]
    taken: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(max(3, asked.rounds // 2)):
        for peer in peers:
            one = Running(peer, folder)
            taken[peer.name].append(one.started)
            one.stop()
    mine, plain = taken.values()
    report.details["start"] = taken
    report.tell("CPU to start", middle(mine), "s")
    report.tell("CPU to start, of plain BentoML's", middle(a / b for a, b in zip(mine, plain, strict=True)), "x")


def shapes_of(served: Served) -> dict[str, tuple[bytes, str]]:
    """The records as bodies: name -> content, media type."""
    import numpy as np
    import pyarrow as pa

    records, features = served.records, served.schema["features"]
    kinds = {"number": pa.float32(), "integer": pa.int32(), "boolean": pa.bool_(), "category": pa.string()}
    arrays = {one["name"]: pa.array([row[one["name"]] for row in records], kinds[one["kind"]]) for one in features}
    table, sink = pa.table(arrays), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    shapes = {"JSON": (json.dumps(records).encode(), "application/json")}
    shapes["Arrow"] = (sink.getvalue().to_pybytes(), "application/vnd.apache.arrow.stream")
    if all(one["kind"] != "category" for one in features):
        plain = np.array([[row[one["name"]] for one in features] for row in records], dtype="<f4")
        shapes["float32"] = (plain.tobytes(), "application/x-float32")
    return shapes


def binary(served: Served, folder: Path, asked: Any, report: Report) -> None:
    """The same records in three shapes, of the same service; and what the shapes cost beside the model."""
    from mlops_nb.serve.call import encode
    from mlops_nb.serve.tables import write_arrow, write_floats

    shapes, predictor = shapes_of(served), table_of(served).base.predictor
    outputs, places = predictor.outputs(predictor.reader.read(shapes["JSON"][0])), tuple(range(len(served.record)))
    answers = {
        "JSON": lambda: encode({"predictions": outputs.answers()}),
        "Arrow": lambda: write_arrow(outputs, {}),
        "float32": lambda: write_floats(outputs),
    }

    def handle(name: str) -> None:
        body, media = shapes[name]
        records = predictor.reader.tables.read(body, media.encode())
        if all(feature["kind"] != "category" for feature in served.schema["features"]):
            records.block("numbers", places)
        answers[name]()

    taken = taking_turns({name: partial(handle, name) for name in shapes}, asked.rounds * 3)
    report.details["body and answer"] = {name: middle(values) for name, values in taken.items()}
    for name in list(shapes)[1:]:
        ratios = [one / other for one, other in zip(taken["JSON"], taken[name], strict=True)]
        report.tell(f"body and answer in JSON, of {name}", middle(ratios), "x")
    peers = [ours(name, "auto", served, body=body, media=media, accept=media) for name, (body, media) in shapes.items()]
    alone = argparse.Namespace(**{**vars(asked), "connections": 2})
    rounds = interleaved(peers, folder, alone, report, "binary")
    for name in list(shapes)[1:]:
        report.tell(f"whole request in JSON, of {name}", paired(rounds, "cpu", "JSON", name), "x")


def application(*tables: Any) -> Any:
    """Our application without a server; a function that gives it a body and waits for its answer."""
    from mlops_nb.serve.app import App
    from mlops_nb.serve.slots import Slots

    app = App(None, Slots(*tables), max_body=8 << 20)
    loop = asyncio.new_event_loop()

    def ask(body: bytes, path: str = "/predict", user: bytes = b"") -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message.get("status", 200) != 200:
                raise RuntimeError(f"{path}: {message}")

        headers = [(b"content-type", b"application/json"), (b"x-user-id", user)]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        loop.run_until_complete(app(scope, receive, send))

    return ask


def spent(call: Any, seconds: float) -> float:
    """CPU microseconds of one call."""
    begun, count = time.process_time(), 0
    while count < 3 or time.process_time() - begun < seconds:
        call()
        count += 1
    return (time.process_time() - begun) / count * 1e6


def taking_turns(calls: dict[str, Any], rounds: int, seconds: float = 0.3) -> dict[str, list[float]]:
    """CPU microseconds of each call in each round."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(spent(call, seconds))
    return taken


def raw_function(served: Served) -> Any:
    """What somebody writes by hand: decode, ask, encode; typed, and with the same answer."""
    import msgspec
    import numpy as np
    import onnxruntime

    features = served.schema["features"]
    types = {"number": float, "integer": int, "boolean": bool, "category": str}
    names = {f"f{place}": feature["name"] for place, feature in enumerate(features)}
    members = [
        (f"f{n}", types[one["kind"]] | None if one["nullable"] else types[one["kind"]])
        for n, one in enumerate(features)
    ]
    row = msgspec.defstruct("Row", members, rename=names)
    decode, encode = msgspec.json.Decoder(list[row]).decode, msgspec.json.Encoder().encode
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(served.onnx.read_bytes(), options, providers=["CPUExecutionProvider"])
    texts = [n for n, one in enumerate(features) if one["kind"] == "category"]
    numbers = [n for n in range(len(features)) if n not in texts]
    classes = served.schema["classes"]

    def answer(body: bytes) -> bytes:
        rows = [msgspec.structs.astuple(one) for one in decode(body)]
        feed = {}
        if not texts:
            feed["numbers"] = np.array(rows, dtype=np.float64)
        else:
            feed["texts"] = np.array([[one[n] or "" for n in texts] for one in rows], dtype=object)
            if numbers:
                feed["numbers"] = np.array([[one[n] for n in numbers] for one in rows], dtype=np.float64)
        chances = session.run(["probabilities"], feed)[0]
        labels = [classes[place] for place in chances.argmax(axis=1).tolist()]
        answers = [
            {"prediction": label, "probabilities": dict(zip(classes, one, strict=True))}
            for label, one in zip(labels, chances.tolist(), strict=True)
        ]
        return encode({"predictions": answers, "model": "m", "version": 1})

    return answer


def table_of(served: Served, form: str = "auto") -> Any:
    """The release as our application holds it."""
    from mlops_nb.registry.releases import read_release, released_models
    from mlops_nb.serve.predictor import load_model
    from mlops_nb.serve.slots import only

    (name,) = released_models(served.workspace / "releases")
    return only(load_model(read_release(served.workspace / "releases", name), wanted=form))


def many(served: Served, folder: Path, asked: Any, report: Report) -> None:
    """ROWS records."""
    if not served.onnx:
        print(f"no ONNX for this model: {served.parity['reason']}", flush=True)
        return
    body, ask, raw = json.dumps(served.records).encode(), application(table_of(served)), raw_function(served)
    taken = taking_turns({"ours": partial(ask, body), "raw": partial(raw, body)}, asked.rounds * 3)
    report.details["many"] = {name: middle(values) for name, values in taken.items()}
    ratios = [one / other for one, other in zip(taken["ours"], taken["raw"], strict=True)]
    print(
        f"  ours {middle(taken['ours']):,.0f} µs   raw {middle(taken['raw']):,.0f} µs   {len(body):,} bytes", flush=True
    )
    report.tell("1,000 rows in JSON, of raw msgspec + ONNX", middle(ratios), "x")


def growth(served: Served, folder: Path, asked: Any, report: Report) -> None:
    """Microseconds of one record as there is more of something."""
    from mlops_nb.serve.slots import Slot, Table

    base, body = table_of(served).base, json.dumps(served.record).encode()

    def of_models(count: int) -> Any:
        ask = application(
            *(Table([Slot(f"m{n}", 1, base.digest, 1, "champion", 1.0, base.predictor)]) for n in range(count))
        )
        return partial(ask, body, f"/models/m{count - 1}/predict")

    def of_arms(count: int) -> Any:
        arms = [Slot("m", n, base.digest, 1, f"arm{n}", 1.0, base.predictor) for n in range(count)]
        return partial(application(Table(arms)), body, "/predict", b"user-17")

    def of_features(count: int) -> Any:
        table, record = wide(folder / f"wide{count}", count)
        return partial(application(table), record)

    for what, make, counts in (
        ("models", of_models, (1, 10, 100)),
        ("arms", of_arms, (1, 4, 16)),
        ("features", of_features, (10, 100, 1_000)),
    ):
        taken = taking_turns({str(count): make(count) for count in counts}, asked.rounds)
        first = middle(taken[str(counts[0])])
        for count in counts:
            cost = middle(taken[str(count)])
            report.tell(f"{count:,} {what}: µs a record", cost, "µs")
        report.details[f"growth, {what}"] = {count: middle(values) / first for count, values in taken.items()}


def wide(folder: Path, features: int) -> tuple[Any, bytes]:
    """A released model of so many numbers, and a record for it."""
    import numpy as np
    import pandas as pd

    from mlops_nb.core.hashing import canonical_json, sha256_bytes
    from mlops_nb.model.artifact import Model
    from mlops_nb.model.onnx_parity import export_onnx
    from mlops_nb.model.package import ModelPackage
    from mlops_nb.model.schema import describe_inputs
    from mlops_nb.model.train import fit
    from mlops_nb.registry.releases import Arm, Document, Release, publish
    from mlops_nb.serve.predictor import load_model
    from mlops_nb.serve.slots import only

    draw = np.random.default_rng(0)
    table = pd.DataFrame(draw.normal(size=(400, features)).round(4), columns=[f"x{n}" for n in range(features)])
    kinds = dict.fromkeys(table.columns, "number")
    table["y"] = np.where(table["x0"] > 0, "yes", "no")
    profile = {"target": "y", "task": "binary", "features": list(kinds)}
    profile["columns"] = {name: {"kind": kind} for name, kind in kinds.items()}
    model = Model(fit(table, profile, "boosting"), table.head(3), describe_inputs(table, kinds, "y", "binary"))
    package = ModelPackage(model, "wide", {"roc_auc": 1.0}, table, onnx=export_onnx(model, table))
    names = ("model.skops", "schema.json", "examples.json", "model.onnx")
    contents = {f"versions/1/{name}": package.member(name) for name in names}
    contents["versions/1/manifest.json"] = canonical_json(package.manifest)
    files = {name: sha256_bytes(content) for name, content in contents.items()}
    document = Document("wide", "binary", (Arm(1, "5d" * 32, 1.0, "versions/1"),), files, generation=1)
    served = load_model(Release(publish(folder, document, contents)))
    return only(served), json.dumps(served.example).encode()


PARTS = {"small": small, "many": many, "binary": binary, "start": start, "growth": growth}


def main() -> int:
    """Measure, print, compare with the limits."""
    if sys.argv[1:2] == ["--load"]:
        load(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="")
    parser.add_argument("--target", default="")
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "mlops-nb-peers")
    parser.add_argument("--workspace", type=Path, help="a folder to train in, used again when it has a release")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as made:
        folder = asked.workspace or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        served = prepare(folder, asked.table, asked.target)
        kinds = [feature["kind"] for feature in served.schema["features"]]
        counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        print(f"{served.schema['target']}: {counted}; ONNX {served.parity}", flush=True)
        for part in asked.only.split(","):
            print(f"-- {part}", flush=True)
            PARTS[part](served, folder, asked, report)
    if asked.json:
        asked.json.write_text(json.dumps({"figures": report.figures, "details": report.details}, indent=1))
    return int(bool(report.missed))


if __name__ == "__main__":
    sys.exit(main())
