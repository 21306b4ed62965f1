"""What it costs to store a prediction before it is answered, and to compact the log.

    python benchmarks/prediction_log.py [--rounds 9] [--records 5000]

`add` is all that a request of one record with 30 numbers pays: sampling, redaction, definition, msgpack, crc, lock, one
write. Beside it in the same rounds: `write`, an `os.write` of the same bytes to a file opened to append, which is the
least that survives kill -9; and `sqlite`, one INSERT and COMMIT with a write-ahead log and without waiting for the
disk, which survives the same. Figures are microseconds of CPU of this process, medians over the rounds. `thousand` is a
request of 1,000 records, for each of them.

`compaction` is what becomes of a closed segment: CPU seconds for each 16 MB, and how much memory a process grows that
compacts one segment and one that compacts four: it must not depend on how many there are.

Prints one line of JSON. Exit code 1 when a limit is missed.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from mlops_nb.serve.prediction_log import FOLDER, SEGMENTS, PredictionLog
from mlops_nb.serve.request_ids import fresh_id
from mlops_nb.serve.segments import SIZE, segments_of

MICROSECONDS, TIMES_WRITE, OF_SQLITE = 10.0, 6.0, 0.5  # at most: of CPU, of a bare write's, of SQLite's
GROWTH = 1.3  # at most: memory of four segments, of one segment's
NAMES = [f"feature_{number}" for number in range(30)]
COMPACT = """
import json, resource, sys, time
from pathlib import Path
import pyarrow.parquet
from mlops_nb.serve.compaction import compact
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
report = compact(Path(sys.argv[1]))
seconds = time.process_time() - begun
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"seconds": seconds, "grown": grown, "rows": report.rows, "segments": report.segments}))
"""


def answered(rows: int) -> SimpleNamespace:
    """A request as the application hands it over."""
    random = np.random.default_rng(0)
    features = [{"name": name, "kind": "number", "nullable": True} for name in NAMES]
    predictor = SimpleNamespace(schema={"task": "binary", "features": features})
    facts = {"model": "benchmark", "version": 7, "digest": "0" * 64, "generation": 2, "arm": "champion"}
    answer = {"prediction": "malignant", "probabilities": {"benign": 0.123456789, "malignant": 0.876543211}}
    return SimpleNamespace(
        call=SimpleNamespace(name=fresh_id(), caller=SimpleNamespace(name="shop")),
        slot=SimpleNamespace(**facts, predictor=predictor),
        records=SimpleNamespace(values=[tuple(row) for row in random.normal(size=(rows, 30)).tolist()]),
        predictions=[answer] * rows,
        seconds=0.000432,
        explained=False,
    )


def cost(call, times: int) -> float:
    """Microseconds of CPU of one call."""
    begun = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - begun) / times * 1e6


def writer_of(folder: Path, size: int):
    """A function that appends `size` bytes with one write."""
    file, content = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.urandom(size)
    return lambda: os.write(file, content)


def inserter_of(folder: Path, size: int):
    """A function that inserts and commits a row of `size` bytes."""
    database = sqlite3.connect(folder / "log.sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE log (request TEXT, content BLOB)")
    content = os.urandom(size)
    return lambda: database.execute("INSERT INTO log VALUES (?, ?)", ("r", content))


def request_path(folder: Path, rounds: int, records: int) -> dict[str, float]:
    """Medians of all ways to store a record, in turns."""
    one, many, log = answered(1), answered(1000), PredictionLog(folder / FOLDER, sync="off")
    log.add(one)
    before = log.writer.segment.size
    log.add(one)
    size = log.writer.segment.size - before
    calls = {
        "add": (lambda: log.add(one), records),
        "write": (writer_of(folder, size), records),
        "sqlite": (inserter_of(folder, size), records // 5),
        "thousand": (lambda: log.add(many), 20),
    }
    found = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, times) in calls.items():
            found[name].append(cost(call, times))
    log.close()
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratios = {
        peer: statistics.median(a / b for a, b in zip(found["add"], found[peer], strict=True))
        for peer in ("write", "sqlite")
    }
    return {
        "bytes": size,
        **{f"{name}_us": round(value, 2) for name, value in medians.items() if name != "thousand"},
        "thousand_us_each": round(medians["thousand"] / 1000, 3),
        "times_write": round(ratios["write"], 2),
        "of_sqlite": round(ratios["sqlite"], 3),
    }


def compaction(folder: Path, segments: int) -> dict[str, float]:
    """CPU and memory of a process that compacts some full segments."""
    log, one = PredictionLog(folder / FOLDER, sync="off"), answered(1)
    while len(segments_of(folder / FOLDER / SEGMENTS)) <= segments:
        for _ in range(1000):
            log.add(one)
    segments_of(folder / FOLDER / SEGMENTS)[-1].unlink()  # the one that is not full
    log.close()
    command = [sys.executable, "-c", COMPACT, str(folder / FOLDER)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--records", type=int, default=5000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        found = request_path(Path(folder), asked.rounds, asked.records)
    grown = {}
    for segments in (1, 4):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            done = compaction(Path(folder), segments)
        assert done["segments"] == segments
        grown[segments] = done["grown"] / 1024
    found |= {
        "compaction_cpu_s_per_16_mb": round(done["seconds"] / 4, 2),
        "compaction_rows_per_cpu_s": round(done["rows"] / done["seconds"]),
        "compaction_mb": round(grown[1], 1),
        "compaction_growth": round(grown[4] / grown[1], 2),
        "segment_mb": SIZE >> 20,
    }
    missed = [
        name
        for name, holds in {
            "microseconds": found["add_us"] <= MICROSECONDS,
            "times_write": found["times_write"] <= TIMES_WRITE,
            "of_sqlite": found["of_sqlite"] <= OF_SQLITE,
            "compaction_growth": found["compaction_growth"] <= GROWTH,
        }.items()
        if not holds
    ]
    print(json.dumps({**found, "missed": missed}))
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
