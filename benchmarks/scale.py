"""What it costs to leave one process: steps on Dask, many writers of the ledger, many runs to look at.

    python benchmarks/scale.py [--only steps,fits,ledger,runs,simulation] [--fits 64] [--seconds 3] [--postgres URL]
                               [--json FILE]

- `steps`: seconds around a step that does nothing, by the local engine and by two Dask workers on this machine (a
  scheduler that stands already), the best of three runs; and what the runner's thread and the ledger take of it.
- `fits`: 64 notebooks that cross-validate a model, on two slots: fits a second by the local engine and on two workers.
- `ledger`: commits of a step a second by 1, 4 and 16 processes that begin, commit and end runs; SQLite, and Postgres
  where `--postgres` names an empty database.
- `runs`: milliseconds of `mlops-nb runs` without its start: the newest 20 of 100,000 runs; and of a filter.
- `simulation`: 10,000 steps on 1,000 workers, fed with the figures measured here (see scale_simulation.py).

Prints one table; exit code 1 when a limit of `LIMITS` is missed.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import nbformat

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLOPS_NB_PIPELINE_SERVER"] = "off"

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.database import now
from mlops_nb.core.registry import hooks
from mlops_nb.core.settings import Settings, load_settings

LIMITS = {  # name -> (at least or at most, value)
    "fits on Dask, of the local rate": (">=", 0.9),
    "runs, newest 20 of 100,000, ms": ("<=", 100.0),
    "simulated overhead, steps of 60 s": ("<=", 0.01),
}
PARTS = ("steps", "fits", "ledger", "runs", "simulation")
FIT = """from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler"""
SCORE = """data = load_breast_cancer(as_frame=True)
scores = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(C=C)), data.data, data.target, cv=5)
flow.score = float(scores.mean())"""


def project(folder: Path, name: str, *sources: str) -> Settings:
    """A project whose pipeline is one notebook."""
    steps = folder / "nbs" / "pipelines" / "bench"
    steps.mkdir(parents=True)
    (folder / "settings.ini").write_text(
        "[package]\nname = bench\n[tracking]\nmode = off\n[registry]\nbento_store = off\n"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in ("from mlops_nb import flow", *sources)]
    for cell in cells:
        cell.metadata["tags"] = ["parameters"] if cell.source.startswith("#| parameters") else []
    nbformat.write(nbformat.v4.new_notebook(cells=cells), steps / f"10_{name}.ipynb")
    settings = load_settings(folder)
    Ledger.open(settings).close()
    return settings


def sweep(settings: Settings, name: str, values: list[Any], jobs: int, on: str = "") -> float:
    """Seconds of a run with a child for each value, without its plan."""
    from mlops_nb.pipeline.run import run_pipeline

    settings = settings._replace(pipeline=settings.pipeline._replace(on=on))
    result = run_pipeline(settings, "bench", sweep={name: values}, jobs=jobs, folder=settings.project)
    assert result.exit_code == 0, result.document["error"] or result.document["steps"]
    return result.document["seconds"]


NAP = ("#| parameters\nn: int = 0\nseconds: float = 0.0", "import time\ntime.sleep(seconds)\nflow.n = n")


def ledger_seconds(folder: Path, rounds: int = 100) -> float:
    """Seconds of the ledger's transactions for one step."""
    settings = load_settings(folder)
    with Ledger.open(settings) as ledger:
        ledger.begin_run("measure", "bench", {})
        begun = time.perf_counter()
        for number in range(rounds):
            commit(ledger, "measure", f"step{number}", f"key-{number}")
        taken = (time.perf_counter() - begun) / rounds
        ledger.end_run("measure", "ok")
    return taken


def commit(ledger: Ledger, run: str, step: str, key: str) -> None:
    """What a step asks of the ledger."""
    with ledger.lease(key, run):
        ledger.begin_step(run, step, position=10, key=key, reasons=["never run"])
        gives = {"model": {"type": "Json", "sha256": "3f" * 32, "size": 9, "meta": {}}}
        manifest = {"format": 1, "step": step, "gives": gives, "metrics": {"auc": 0.9}}
        ledger.commit_step(run, step, key=key, parts={"python": "3"}, manifest=manifest)


def measured_here(folder: Path, steps: int = 24) -> dict[str, float]:
    """What a step that does nothing costs by the local engine: the figures of the simulation."""
    settings = project(folder, "nap", *NAP)
    sweep(settings, "nap.n", [-1, -2], 1)
    begun, busy = time.perf_counter(), time.process_time()
    took = sweep(settings, "nap.n", list(range(steps)), 1)
    runner = (time.process_time() - busy) / steps * min(1.0, took / (time.perf_counter() - begun))
    ledger = ledger_seconds(folder)
    around = took / steps
    return {
        "decide": runner / 2,
        "commit": max(0.0, runner / 2),
        "ledger": ledger,
        "engine": max(0.0, around - runner - ledger),
    }


def real_run(folder: Path, steps: int, seconds: float, jobs: int) -> float:
    """Seconds of some steps that sleep."""
    settings = project(folder, "nap", NAP[0].replace("0.0", str(seconds)), NAP[1])
    sweep(settings, "nap.n", [-1, -2], jobs)
    return sweep(settings, "nap.n", list(range(steps)), jobs)


@contextmanager
def standing_cluster() -> Iterator[str]:
    """A scheduler and two workers, each a process; its address."""
    import distributed

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options, dashboard_address=None) as cluster:
        yield cluster.scheduler_address.replace("tcp://", "dask://")


def steps_part(folder: Path, address: str) -> dict[str, float]:
    """Around a step: local, on Dask, and what the runner's thread has of it."""
    found = measured_here(folder / "figures")
    settings = project(folder / "steps", "nap", *NAP)
    taken: dict[str, list[float]] = {"local": [], "dask": []}
    for number in range(4):  # the first warms up
        for place, on in (("local", ""), ("dask", address)):
            values = [number * 1000 + (500 if on else 0) + n for n in range(16)]
            taken[place].append(sweep(settings, "nap.n", values, 2, on) * 2 / 16)
    best = {place: min(rounds[1:]) for place, rounds in taken.items()}
    return {
        "around a step, local, ms": best["local"] * 1e3,
        "around a step, Dask, ms": best["dask"] * 1e3,
        "Dask beyond local, ms": (best["dask"] - best["local"]) * 1e3,
        "of it runner's thread, ms": (found["decide"] + found["commit"]) * 1e3,
        "of it ledger, ms": found["ledger"] * 1e3,
        **{f"figure {name}": value for name, value in found.items()},
    }


def fits_part(folder: Path, address: str, fits: int) -> dict[str, float]:
    """Fits a second, in turns: local, Dask, local, Dask; medians."""
    settings = project(folder / "fits", "fit", "#| parameters\nC: float = 1.0", FIT, SCORE)
    rates: dict[str, list[float]] = {"local": [], "dask": []}
    for number in range(3):
        for place, on in (("local", ""), ("dask", address)):
            count = fits if number else 4
            values = [0.001 + number + (0.5 if on else 0.0) + n / 1000 for n in range(count)]
            seconds = sweep(settings, "fit.C", values, 2, on)
            rates[place] += [count / seconds] if number else []
    local, dask = (statistics.median(rates[place]) for place in ("local", "dask"))
    return {"fits a second, local": local, "fits a second, Dask": dask, "fits on Dask, of the local rate": dask / local}


def write(folder: str, number: int, seconds: float, start: float, counts: Any) -> None:
    """A writer: begins a run, commits steps until the time is over."""
    with Ledger.open(load_settings(folder)) as ledger:
        ledger.begin_run(f"writer-{number}", "bench", {})
        time.sleep(max(0.0, start - time.time()))
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            commit(ledger, f"writer-{number}", f"step{count}", f"key-{number}-{count}")
            count += 1
        ledger.end_run(f"writer-{number}", "ok")
    counts.put(count)


def ledger_part(folder: Path, seconds: float, postgres: str | None) -> dict[str, float]:
    """Commits a second by some writers."""
    found, spawn = {}, multiprocessing.get_context("spawn")
    for database, url in (("SQLite", ""), *([("Postgres", postgres)] if postgres else [])):
        for writers in (1, 4, 16):
            place = folder / f"{database}-{writers}"
            place.mkdir()
            ini = f"[package]\nname = bench\n{f'[workspace]{chr(10)}ledger = {url}{chr(10)}' if url else ''}"
            (place / "settings.ini").write_text(ini)
            Ledger.open(load_settings(place)).close()
            counts, start = spawn.Queue(), time.time() + 2 + writers / 4
            names = [f"{writers * 100 + number}" for number in range(writers)]
            going = [spawn.Process(target=write, args=(str(place), name, seconds, start, counts)) for name in names]
            for process in going:
                process.start()
            total = sum(counts.get() for _ in going)
            for process in going:
                process.join()
            found[f"{database}, {writers} writers, steps a second"] = total / seconds
    return found


def many_runs(settings: Settings, count: int) -> None:
    """Enter many runs with four parameters and three metrics each."""
    draw, beginning = random.Random(0), time.time() - count
    runs, parameters, metrics = [], [], []
    for number in range(count):
        run, moment = f"20260101-{number:06d}-ab12", now(beginning + number)
        runs.append((run, "tabular", "ok", moment, moment, 12.5, 1, "1", "b", "h", moment, "u", "3.12", "[]"))
        parameters.append((run, "train", "model", draw.choice(["logistic", "forest", "boosting"]), None, "text"))
        for name, value in ((f"p{place}", draw.random()) for place in range(3)):
            parameters.append((run, "train", name, str(value), value, "number"))
        metrics += [(run, "evaluate", name, draw.random()) for name in ("roc_auc", "f1", "log_loss")]
    columns = "id, pipeline, status, started, ended, seconds, pid, process_started, boot, host, heartbeat"
    columns += ", user_name, python, command"
    with Ledger.open(settings) as ledger, ledger.database.transaction(durable=False) as execute:
        for table, names, rows in (
            ("runs", columns, runs),
            ("run_parameters", "run_id, step, name, value, number, kind", parameters),
            ("metrics", "run_id, step, name, value", metrics),
        ):
            marks = ", ".join("?" for _ in names.split(","))
            execute.many(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows)


def median_ms(work: Callable[[], Any], rounds: int = 7) -> float:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(taken)


def runs_part(folder: Path, count: int = 100_000) -> dict[str, float]:
    """Looking at many runs."""
    from mlops_nb.track.board import find_runs

    (folder / "settings.ini").write_text("[package]\nname = bench\n")
    settings = load_settings(folder)
    many_runs(settings, count)
    with Ledger.open(settings) as ledger, chdir(folder):
        where = "metrics.evaluate.roc_auc > 0.99 and train.model == 'forest'"
        return {
            "runs, newest 20 of 100,000, ms": median_ms(lambda: find_runs(ledger, limit=20)),
            "runs, a filter sorted, ms": median_ms(lambda: find_runs(ledger, None, where, ["-evaluate.roc_auc"], 20)),
        }


def simulation_part(measured: dict[str, float]) -> dict[str, float]:
    """Where 10,000 steps on 1,000 workers lose time, by the figures of this machine."""
    from scale_simulation import FIGURES, capacities, simulate

    figures = FIGURES | {n.removeprefix("figure "): value for n, value in measured.items() if n.startswith("figure ")}
    found = {}
    for seconds in (10, 30, 60):
        told = simulate(10_000, 1_000, 5, seconds, figures)
        found[f"simulated overhead, steps of {seconds} s"] = told["overhead"]
    limits = capacities(figures)
    return found | {f"simulated {name}, steps a second": rate for name, rate in limits.items()}


def missed(found: dict[str, float]) -> list[str]:
    """Limits that were missed."""
    bad = []
    for name, (sign, limit) in LIMITS.items():
        if name in found and not (found[name] >= limit if sign == ">=" else found[name] <= limit):
            bad.append(name)
    return bad


def main() -> int:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--fits", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--postgres", help="address of an empty database")
    parser.add_argument("--json", type=Path)
    values = parser.parse_args()
    hooks._listeners.clear()
    found: dict[str, float] = {}
    parts = values.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"steps", "fits"} & set(parts):
            with standing_cluster() as address:
                found |= steps_part(folder, address) if "steps" in parts else {}
                found |= fits_part(folder, address, values.fits) if "fits" in parts else {}
        found |= ledger_part(folder, values.seconds, values.postgres) if "ledger" in parts else {}
        (folder / "many").mkdir()
        found |= runs_part(folder / "many") if "runs" in parts else {}
        found |= simulation_part(found) if "simulation" in parts else {}
    bad = missed(found)
    for label, value in found.items():
        limit = (
            f"{LIMITS[label][0]} {LIMITS[label][1]:g}{'  MISSED' if label in bad else ''}" if label in LIMITS else ""
        )
        print(f"{label:45} {value:>12.4g}  {limit}")
    if values.json:
        figures = {n.removeprefix("figure "): value for n, value in found.items() if n.startswith("figure ")}
        values.json.write_text(json.dumps({"found": found, "figures": figures, "missed": bad}, indent=1))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
