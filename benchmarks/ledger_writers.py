"""Writers of a ledger, and many runs in it, for benchmarks/scale.py.

Each writer is a process with a run of its own that commits steps one after the other, each flushed to the disk before
it counts: two artifacts, three numbers, a new result.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.database import now
from mlops_nb.core.ledger.leases import owner_columns
from mlops_nb.core.settings import load_settings

WRITER = """
import sys, time
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
folder, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
artifact = {"type": "Json", "sha256": "0" * 64, "size": 1, "meta": {}}
manifest = {"gives": {"one": artifact, "two": artifact}, "metrics": {"auc": 0.5, "f1": 0.4, "loss": 0.1}}
with Ledger.open(load_settings(folder, environ={})) as ledger:
    ledger.begin_run(name, "bench", {})
    ledger.commit_step(name, "warm", key=f"{name}-warm", parts={}, manifest=manifest)
    print("ready", flush=True)
    sys.stdin.readline()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        ledger.commit_step(name, f"s{count}", key=f"{name}-{count}", parts={}, manifest=manifest, position=count)
        count += 1
    print(count / (time.monotonic() - end + seconds), flush=True)
    ledger.end_run(name, "ok")
"""


def project(url: str | None) -> Path:
    """A project whose ledger is at an address, or in SQLite; the ledger is made."""
    folder = Path(tempfile.mkdtemp(prefix="ledger-writers-"))
    (folder / "settings.ini").write_text(f"[workspace]\nledger = {url}\n" if url else "[package]\nname = bench\n")
    Ledger.open(load_settings(folder, environ={})).close()
    return folder


def commits_per_second(
    folder: Path,  # of a project
    writers: int,
    seconds: float = 3.0,
) -> float:
    """How many commits some writers bring about together."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    stamp = f"{writers}-{time.time_ns()}"
    commands = [[sys.executable, "-c", WRITER, str(folder), f"w{n}-{stamp}", str(seconds)] for n in range(writers)]
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return round(sum(float(process.communicate()[0]) for process in processes), 1)


def fill(
    ledger: Ledger,
    count: int,  # runs of three pipelines, with four parameters and three numbers each
) -> None:
    """Enter many runs at once."""
    start, owner = time.time() - count, owner_columns()
    names = ["id", "pipeline", "status", "started", "ended", "seconds", *owner, "user_name", "python", "command"]
    moments = [now(start + number) for number in range(count)]
    facts = [*owner.values(), "ada", "3.12.0", "[]"]
    runs = ([f"r{n:07d}", f"p{n % 3}", "ok", moments[n], moments[n], 1.0, *facts] for n in range(count))
    parameters = ([f"r{n:07d}", "train", f"p{k}", str(n), float(n), "number"] for n in range(count) for k in range(4))
    metrics = ([f"r{n:07d}", "evaluate", f"m{k}", n / count] for n in range(count) for k in range(3))
    with ledger.database.transaction() as execute:
        execute.load("runs", names, runs)
        execute.load("run_parameters", ["run_id", "step", "name", "value", "number", "kind"], parameters)
        execute.load("metrics", ["run_id", "step", "name", "value"], metrics)


def seconds_for_runs(ledger: Ledger, **asked: Any) -> float:
    """The median time of a question for runs."""
    times = []
    for _ in range(11):
        begun = time.perf_counter()
        found = ledger.runs(**asked)
        times.append(time.perf_counter() - begun)
        assert len(found) == asked.get("limit", 50) and len(found[0]["metrics"]) == 3
    return round(statistics.median(times), 4)
