"""What it costs to leave one process: steps on Dask, many writers of the ledger, many runs to look at.

    python benchmarks/scale.py [--only steps,fits,short,ledger,runs,simulation] [--fits 64] [--short 500] [--seconds 3]
                               [--postgres URL] [--json FILE]

- `steps`: milliseconds around a step that does nothing, by the local engine and by two Dask workers on this machine (a
  scheduler that stands already), in turns, medians of three; and what the runner's thread and the ledger take of it.
- `fits`: 64 notebooks that cross-validate a model, on two slots: fits a second by the local engine and on two workers.
- `short`: 500 steps that do nothing on four workers: seconds from the first to the last.
- `ledger`: commits of a step a second by 1, 4 and 16 processes (see ledger_writers.py); SQLite, and Postgres.
- `runs`: milliseconds of `mlops-nb runs` without its start: the newest 20 of 100,000 runs; and of a filter.
- `simulation`: 10,000 steps on 1,000 workers, fed with the figures measured here (see scale_simulation.py).

Prints one table; exit code 1 when a limit of `LIMITS` is missed.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Any

import nbformat
from ledger_writers import commits_per_second, fill, seconds_for_runs

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLOPS_NB_PIPELINE_SERVER"] = "off"

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.registry import hooks
from mlops_nb.core.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {  # name -> (at least or at most, value)
    "Dask beyond local, ms": ("<=", 10.0),
    "fits on Dask, of the local rate": (">=", 0.9),
    "runs, newest 20 of 100,000, ms": ("<=", 100.0),
    "simulated overhead, steps of 60 s": ("<=", 0.01),
}
PARTS = ("steps", "fits", "short", "ledger", "runs", "simulation")
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


def write_settings(folder: Path, ledger: str) -> None:
    """A project without steps, and its ledger."""
    folder.mkdir()
    lines = f"[workspace]\nledger = {ledger}\n" if ledger else ""
    (folder / "settings.ini").write_text(f"[package]\nname = bench\n{lines}")
    Ledger.open(load_settings(folder)).close()


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
def standing_cluster(folder: Path) -> Iterator[str]:
    """A scheduler and two workers, each a process; its address."""
    sys.path.insert(0, str(ROOT / "tests" / "pipeline"))
    from cluster_support import Cluster

    with Cluster(folder / "cluster") as cluster:
        yield cluster.address


def in_turns(settings: Settings, name: str, rounds: list[list[Any]], address: str) -> dict[str, list[float]]:
    """Seconds of sweeps, by the local engine and on Dask in turns, two steps at once; the first round warms up."""
    taken: dict[str, list[float]] = {"local": [], "dask": []}
    for number, values in enumerate(rounds):
        for place, on in (("local", ""), ("dask", address)):
            seconds = sweep(settings, name, [value + (0.5 if on else 0) for value in values], 2, on)
            taken[place] += [seconds] if number else []
    return taken


def steps_part(folder: Path, address: str) -> dict[str, float]:
    """Around a step: local, on Dask, and what the runner's thread has of it."""
    found = measured_here(folder / "figures")
    settings = project(folder / "steps", "nap", NAP[0].replace("n: int = 0", "n: float = 0.0"), NAP[1])
    rounds = [[number * 1000.0 + n for n in range(40 if number else 4)] for number in range(4)]
    taken = in_turns(settings, "nap.n", rounds, address)
    more = [(dask - local) * 2 / 40 for local, dask in zip(*taken.values(), strict=True)]
    local, dask = (statistics.median(taken[place]) * 2 / 40 for place in taken)
    return {
        "around a step, local, ms": local * 1e3,
        "around a step, Dask, ms": dask * 1e3,
        "Dask beyond local, ms": statistics.median(more) * 1e3,
        "of it runner's thread, ms": (found["decide"] + found["commit"]) * 1e3,
        "of it ledger, ms": found["ledger"] * 1e3,
        **{f"figure {name}": value for name, value in found.items()},
    }


def fits_part(folder: Path, address: str, fits: int) -> dict[str, float]:
    """Fits a second, local and on Dask; medians."""
    settings = project(folder / "fits", "fit", "#| parameters\nC: float = 1.0", FIT, SCORE)
    rounds = [[1 + number + n / 1000 for n in range(fits if number else 4)] for number in range(4)]
    taken = in_turns(settings, "fit.C", rounds, address)
    local, dask = (fits / statistics.median(taken[place]) for place in taken)
    share = statistics.median([one / other for one, other in zip(*taken.values(), strict=True)])
    return {"fits a second, local": local, "fits a second, Dask": dask, "fits on Dask, of the local rate": share}


def short_part(folder: Path, steps: int) -> dict[str, float]:
    """Many short steps on four workers."""
    sys.path.insert(0, str(ROOT / "tests" / "pipeline"))
    from cluster_support import Cluster

    settings = project(folder / "short", "nap", *NAP)
    with Cluster(folder / "four", 4) as cluster:
        sweep(settings, "nap.n", [-1, -2, -3, -4], 0, cluster.address)
        seconds = sweep(settings, "nap.n", list(range(steps)), 0, cluster.address)
    return {f"{steps} short steps on 4 workers, s": seconds}


def ledger_part(folder: Path, seconds: float, postgres: str) -> dict[str, float]:
    """Commits a second by some writers."""
    found = {}
    with ExitStack() as stack:
        urls = {"SQLite": "", "Postgres": postgres or stack.enter_context(own_postgres())}
        for database, url in urls.items():
            for writers in (1, 4, 16):
                place = folder / f"{database}-{writers}"
                write_settings(place, url)
                rate = commits_per_second(place, writers, seconds)
                found[f"{database}, {writers} writers, steps a second"] = rate
    return found


@contextmanager
def own_postgres() -> Iterator[str]:
    """The address of an empty database of a server as it comes, with fsync on."""
    sys.path.insert(0, str(ROOT / "tests"))
    from postgres_service import own_server

    server = own_server(fsync="on", autovacuum="on")
    try:
        server.sql("CREATE DATABASE ledger")
        yield server.url("ledger")
    finally:
        server.end()


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

    write_settings(folder, "")
    with Ledger.open(load_settings(folder)) as ledger, chdir(folder):
        fill(ledger, count)
        where = "metrics.evaluate.m0 > 0.99 and train.p1 > 7"
        return {
            "runs, newest 20 of 100,000, ms": median_ms(lambda: find_runs(ledger, limit=20)),
            "runs, newest 50 of one pipeline, ms": seconds_for_runs(ledger, pipeline="p1") * 1e3,
            "runs, a filter sorted, ms": median_ms(lambda: find_runs(ledger, None, where, ["-evaluate.m0"], 20)),
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
    parser.add_argument("--short", type=int, default=500)
    parser.add_argument("--postgres", default="", help="address of an empty database; default: a server of its own")
    parser.add_argument("--json", type=Path)
    values = parser.parse_args()
    hooks._listeners.clear()
    found: dict[str, float] = {}
    parts = values.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"steps", "fits"} & set(parts):
            with standing_cluster(folder) as address:
                found |= steps_part(folder, address) if "steps" in parts else {}
                found |= fits_part(folder, address, values.fits) if "fits" in parts else {}
        found |= ledger_part(folder, values.seconds, values.postgres) if "ledger" in parts else {}
        found |= short_part(folder, values.short) if "short" in parts else {}
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
