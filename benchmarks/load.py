"""What a server does under load for ten minutes, and under three times as much as it can.

    python benchmarks/load.py [--seconds 600] [--workers 2] [--connections 16] [--project FOLDER]

Serves a small model of mixed types, made in a temporary folder (or the project given), by an ordinary `bentoml serve`,
and sends single records over connections that are kept:

- `capacity`: requests that are answered in a second when each connection sends again as soon as it was answered;
- `steady`: 80 % of that for ten minutes, at fixed times, latencies counted from when a request was due; `slope` is how
  the workers' memory grows, in bytes a second, fitted over all but the first tenth, and `growth` that over the time;
- `flood`: three times the capacity from 200 connections for ten seconds: what was answered, what was turned away, and
  after how many seconds the first request afterwards was answered (`recovered`).

The generator shares the machine with the server, so the figures say how it behaves, not how fast it could be.

Prints a line of JSON. Exit code 1 when a limit is missed: no error and no lost request in `steady`, memory growth below
16 MB, nothing but 200 and 503 with Retry-After in `flood`, recovered within a second.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "serve")]

from load_support import load
from serve_support import Server, environment, make_project, release, serving


class Memory:
    """Samples the workers' memory from /metrics while a block runs."""

    def __init__(self, server: Server, every: float):
        self.server, self.every, self.samples, self.ended = server, every, [], threading.Event()

    def take(self) -> None:
        """One sample: seconds and bytes of all workers."""
        lines = self.server.ask("/metrics").text.splitlines()
        held = [float(line.split()[1]) for line in lines if line.startswith("mlops_nb_worker_memory_bytes{")]
        self.samples.append((time.perf_counter(), sum(held)))

    def watch(self) -> None:
        """Sample until the block ends."""
        while not self.ended.wait(self.every):
            self.take()

    def __enter__(self) -> "Memory":
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def slope(self) -> float:
        """Bytes a second, by least squares over all but the first tenth."""
        times, held = np.array(self.samples[len(self.samples) // 10 :]).T
        return float(np.polyfit(times - times[0], held, 1)[0])


def measure(server: Server, record: object, seconds: float, connections: int) -> dict:
    """All figures of one server."""
    load(server.port, record, 3, connections)  # warm
    capacity = load(server.port, record, 5, connections)
    with Memory(server, min(5.0, seconds / 20)) as memory:
        steady = load(server.port, record, seconds, connections, 0.8 * capacity.rate)
    flood = load(server.port, record, 10, 200, 3 * capacity.rate)
    began = time.perf_counter()
    first = server.ask("/predict", record)
    recovered = time.perf_counter() - began
    slope = memory.slope()
    facts = {"slope": round(slope, 1), "growth": round(slope * seconds), "offered": round(0.8 * capacity.rate, 1)}
    after = {"recovered": round(recovered, 3) if first.status == 200 else None, "without_retry": flood.without_retry}
    return {
        "capacity": capacity.summary(),
        "steady": {**steady.summary(), **facts},
        "flood": {**flood.summary(), **after},
    }


def missed(figures: dict) -> list[str]:
    """The limits that were missed."""
    steady, flood = figures["steady"], figures["flood"]
    checks = {
        "an error or a lost request at 80 %": set(steady["statuses"]) != {"200"} or steady["lost"] or steady["refused"],
        "memory grew": steady["growth"] > 16e6,
        "a flood was answered otherwise": not set(flood["statuses"]) <= {"200", "503"} or flood["without_retry"],
        "no recovery within a second": flood["recovered"] is None or flood["recovered"] > 1,
    }
    return [what for what, so in checks.items() if so]


def main() -> int:
    """Exit code: 0 when no limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--project", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mlops-nb-load-"))
    try:
        project = given.project or make_project(folder / "project")
        if not given.project:
            release(project)
        env = environment(folder / "home", MLOPS_NB_SERVING_WORKERS=str(given.workers))
        with serving(project, folder / "log", env) as server:
            time.sleep(2)  # the other workers
            record = server.ask("/schema").json["example"]
            figures = measure(server, record, given.seconds, given.connections)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wrong = missed(figures)
    print(json.dumps({"workers": given.workers, **figures, "missed": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
