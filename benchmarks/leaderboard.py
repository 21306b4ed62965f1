"""What looking at many runs costs: a question to a ledger of 10,000 runs, and the leaderboard of 1,000 as a page.

    python benchmarks/leaderboard.py [--rounds 9]

Makes two ledgers in a temporary folder: one of 10,000 runs with 12 parameters and 8 metrics each, and one of 1,000 such
runs that have a curve of 100 points besides. Then, in one process, medians of the rounds:

- `query`: milliseconds on the clock of `metrics.evaluate.roc_auc > 0.9 and train.model == 'forest'`, best first, 20
  runs; `plain` is the same answer from all runs read into Python, and `ratio` how many times longer that takes;
- `wide`: the same for a filter that most runs match, sorted by a parameter, as a bad case; it has no limit;
- `page`: seconds of CPU from the ledger to the finished HTML, and its megabytes;
- `loop`: milliseconds of CPU of a plain loop over a million numbers, to compare machines and how busy they were.

Prints a line of JSON. Exit code 1 when a limit is missed: 20 ms for the query, 0.3 s of CPU and 1 MB for the page.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.database import Execute, now
from mlops_nb.core.ledger.query import Finder
from mlops_nb.core.ledger.results import insert_contents
from mlops_nb.core.ledger.runs import insert
from mlops_nb.core.settings import load_settings

LIMITS = {"query_ms": 20.0, "page_cpu_seconds": 0.3, "page_megabytes": 1.0}
FILTER = "metrics.evaluate.roc_auc > 0.9 and train.model == 'forest'"
WIDE = "metrics.evaluate.roc_auc > 0.1 and train.p3 > 0.2"
RUN = {"pipeline": "tabular", "status": "ok", "pid": 1, "process_started": "1", "boot": "b", "host": "h"}
GRID = {"grams_per_kwh": 480.0, "price_per_core_hour": 0.04, "currency": "EUR", "source": "settings"}
RUN |= {"user_name": "u", "python": "3.12", "command": "[]", "seconds": 12.5}


def enter_run(execute: Execute, number: int, draw: random.Random, curve: int) -> None:
    """A run with parameters and metrics, and with a curve of so many points."""
    run, started = f"20260101-{number:06d}-ab12", now(1.77e9 + number)
    insert(execute, "runs", id=run, started=started, heartbeat=started, ended=started, **RUN)
    model = draw.choice(["logistic", "forest", "boosting"])
    place = {"run_id": run, "step": "train"}
    insert(execute, "run_parameters", **place, name="model", value=model, number=None, kind="text")
    for name in range(1, 12):
        value = draw.random() if name <= 5 else name  # five that differ, besides the model
        insert(execute, "run_parameters", **place, name=f"p{name}", value=str(value), number=value, kind="number")
    for name in ("roc_auc", *(f"m{number}" for number in range(7))):
        insert(execute, "metrics", run_id=run, step="evaluate", name=name, value=draw.random())
    if curve:
        facts = {
            "key": run,
            "pipeline": "tabular",
            "step": "train",
            "created": started,
            "parts": "{}",
            "manifest": "{}",
        }
        insert(execute, "results", id=number + 1, run_id=run, **facts)
        insert(
            execute, "run_steps", **place, position=0, state="done", result_id=number + 1, reasons="[]", started=started
        )
        insert(execute, "step_costs", **place, cpu_seconds=10.0, watts_per_core=10.0, **GRID)
        values = [draw.random() / (1 + point) for point in range(curve)]
        points = [{"t": float(n), "step": n, "values": {"loss": value}} for n, value in enumerate(values)]
        insert_contents(execute, number + 1, {}, points)


def make_project(folder: Path, runs: int, curve: int = 0) -> Path:
    """A project with a ledger of so many runs."""
    folder.mkdir()
    (folder / "settings.ini").write_text("[package]\nname = bench\n", encoding="utf-8")
    draw = random.Random(0)
    with Ledger.open(load_settings(folder)) as ledger, ledger.database.transaction(durable=False) as execute:
        for number in range(runs):
            enter_run(execute, number, draw, curve)
    return folder


def median(rounds: int, clock: Callable[[], float], work: Callable[[], Any]) -> float:
    """Median of the rounds after one that warms up."""
    work()
    found = []
    for _ in range(rounds):
        before = clock()
        work()
        found.append(clock() - before)
    return statistics.median(found)


def plain_answer(ledger: Ledger) -> list[str]:
    """The same answer from all runs, read into Python."""
    runs = [run for run in ledger.runs(limit=100_000) if run["metrics"]["evaluate.roc_auc"] > 0.9]
    chosen = [run for run in runs if run["parameters"]["train.model"] == "forest"]
    return [run["run"] for run in sorted(chosen, key=lambda run: -run["metrics"]["evaluate.roc_auc"])[:20]]


def measure_queries(folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds of both questions."""
    with Ledger.open(load_settings(folder)) as ledger:
        finder = Finder(ledger.database)
        assert finder.find(FILTER, sort=["-roc_auc"], limit=20) == plain_answer(ledger)
        query = median(rounds, time.perf_counter, lambda: finder.find(FILTER, sort=["-roc_auc"], limit=20))
        wide = median(rounds, time.perf_counter, lambda: finder.find(WIDE, sort=["train.p4"], limit=20))
        plain = median(1, time.perf_counter, lambda: plain_answer(ledger))
    return {"query_ms": 1000 * query, "wide_ms": 1000 * wide, "plain_ms": 1000 * plain, "ratio": plain / query}


def measure_page(folder: Path, rounds: int) -> dict[str, float]:
    """CPU seconds and size of a page of 1,000 runs."""
    from mlops_nb.track.board import Board, leaderboard

    def page() -> str:
        board = leaderboard(read=1000)
        assert isinstance(board, Board) and len(board.sources.runs) == 1000
        return board.page()

    with chdir(folder):
        seconds = median(rounds, time.process_time, page)
        return {"page_cpu_seconds": seconds, "page_megabytes": len(page().encode()) / 1e6}


def main() -> int:
    """Exit code: 0 when no limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    for name in [name for name in os.environ if name.startswith("MLOPS_NB_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as folder:
        found = measure_queries(make_project(Path(folder) / "many", 10_000), rounds)
        found |= measure_page(make_project(Path(folder) / "page", 1000, 100), rounds)
        found["loop_ms"] = 1000 * median(
            rounds, time.process_time, lambda: [number * 2.0 for number in range(1_000_000)]
        )
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    return int(any(found[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
