"""Commits per second of 1, 4 and 16 writers, and `runs` over 100,000 runs, on SQLite and on Postgres.

    python benchmarks/ledger_writers.py [--seconds 3] [--runs 100000] [--url postgresql://user@host/empty_database]

Each writer is a process with a run of its own that commits steps one after the other, each flushed to the disk before
it counts: two artifacts, three numbers, a new result. Without --url a server is started on this machine, with fsync on,
as it comes from Debian. `runs` is the question that `mlops-nb runs` asks: the newest fifty, with their parameters and
numbers, and those of one pipeline; the median of eleven times. Prints one line of JSON. Exit code 1 when it takes more
than 100 ms on either.

`commits_per_second` and `seconds_for_runs` can be called by other benchmarks.
"""

import argparse
import json
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

LIMIT = 0.100  # seconds that `runs` may take
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


def measure(url: str | None, seconds: float, count: int) -> dict[str, Any]:
    """Both figures of one kind of ledger."""
    folder = project(url)
    found: dict[str, Any] = {f"commits_{n}": commits_per_second(folder, n, seconds) for n in (1, 4, 16)}
    with Ledger.open(load_settings(folder, environ={})) as ledger:
        fill(ledger, count)
        found |= {"runs_s": seconds_for_runs(ledger), "runs_of_one_s": seconds_for_runs(ledger, pipeline="p1")}
    return found


def main() -> int:
    """Measure both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--url", default="")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from postgres_service import own_server

    found = {"sqlite": measure(None, given.seconds, given.runs)}
    if given.url:
        found["postgres"] = measure(given.url, given.seconds, given.runs)
    else:
        server = own_server(fsync="on", autovacuum="on")
        try:
            server.sql("CREATE DATABASE ledger")
            found["postgres"] = measure(server.url("ledger"), given.seconds, given.runs)
        finally:
            server.end()
    good = all(one[name] <= LIMIT for one in found.values() for name in ("runs_s", "runs_of_one_s"))
    print(json.dumps({**found, "runs": given.runs, "limit_s": LIMIT, "ok": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
