"""What tracking costs: a pipeline of one-second steps with and without it, and one call of `log`.

    python benchmarks/experiments.py [--rounds 5] [--only tracking log]

Each measurement is a function in the table MEASUREMENTS. Of wall times the least of the rounds counts, on both sides of
a ratio, since a busy machine only makes them longer.

`tracking`: a generated pipeline of six steps, each of which computes for about a second and logs a hundred points,
run with W&B files and without (`[tracking] mode`), in turn. The ratio is that of the wall time from the first step's
start to the end of the run; beside it stand the CPU seconds of the whole command with all its processes, and how long
the command waits at its end until the mirror is complete, which it must say when it takes more than a second. `log`:
microseconds of one call of `log` with two values in a step.

Prints one line per round and a line of JSON with the medians. Exit code 1 when a limit is missed: 5 % of wall time for
tracking, 100 microseconds for a call.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
STEPS, CALLS = 6, 5000
SAYS = "Writing W&B runs"
LIMITS = {"tracking_ratio": 1.05, "log_microseconds": 100.0}
LEAST = ("run_seconds", "run_seconds_without", "log_microseconds")  # what a busy machine only makes longer
WORK = """
from mlops_nb import Metrics, flow, log
total = 0
for step in range(100):
    total += sum(number * number for number in range(rounds))
    log(step=step, loss=1 / (step + 1), auc=step / 100)
flow.metrics = Metrics({"auc": 0.9})
"""
LOG = f"""
import time
from mlops_nb import Metrics, flow, log
started = time.perf_counter()
for step in range({CALLS}):
    log(step=step, loss=1 / (step + 1), auc=0.5)
flow.metrics = Metrics({{"microseconds": (time.perf_counter() - started) / {CALLS} * 1e6}})
"""


def write_step(folder: Path, name: str, *sources: str) -> None:
    """A notebook of some cells."""
    cells = [
        {
            "cell_type": "code",
            "id": f"c{place}",
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for place, source in enumerate(sources)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def rounds_of_a_hundredth() -> int:
    """How much a cell has to count for a hundredth of a second of CPU."""
    best = float("inf")
    for _ in range(20):
        started = time.process_time()
        sum(number * number for number in range(100_000))
        best = min(best, time.process_time() - started)
    return round(100_000 * 0.01 / best)


def write_project(folder: Path) -> None:
    """A project with a pipeline of one-second steps, each after the one before, and one of a step that logs."""
    (folder / "settings.ini").write_text("[package]\nname = bench\n[pipeline]\njobs = 1\n")
    pipelines, counted = folder / "nbs" / "pipelines", rounds_of_a_hundredth()
    for number in range(STEPS):
        need = f"flow.s{number - 1}.metrics" if number else "1"
        write_step(pipelines / "seconds", f"{number}0_s{number}", f"rounds = {counted}", WORK, need)
    write_step(pipelines / "logging", "10_log", LOG)


def adopt_orphans() -> None:
    """Have processes that outlive the command become children of this one, so that their CPU seconds count (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def wait_for_orphans() -> None:
    """Wait until the last process that a command has left is gone."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def run(folder: Path, pipeline: str, mode: str) -> dict[str, Any]:
    """Run a pipeline anew: its document, wall and CPU seconds of the command, and what it said."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [str(BIN / "mlops-nb"), "run", pipeline, "--force", "--json"],
        cwd=folder,
        env={**os.environ, "MLOPS_NB_TRACKING_MODE": mode, "MLOPS_NB_PIPELINE_SERVER": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.monotonic() - started
    if done.returncode:
        sys.exit(f"mlops-nb run {pipeline} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    wait_for_orphans()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"document": json.loads(done.stdout), "wall": wall, "cpu": cpu, "said": done.stderr}


def tracking(folder: Path, number: int) -> dict[str, float]:
    """A pipeline of one-second steps with the mirror and without, first one or the other."""
    modes = ["offline", "off"] if number % 2 else ["off", "offline"]
    found = {mode: run(folder, "seconds", mode) for mode in modes}
    seconds = {mode: one["document"]["seconds"] for mode, one in found.items()}
    waits = {mode: one["wall"] - seconds[mode] for mode, one in found.items()}
    wait = max(waits["offline"] - waits["off"], 0.0)
    said = SAYS in found["offline"]["said"]
    if wait > 1.5 and not said:
        sys.exit(f"The command waited {wait:.1f} s for the mirror and did not say so.")
    return {
        "run_seconds": seconds["offline"],
        "run_seconds_without": seconds["off"],
        "cpu_seconds": found["offline"]["cpu"],
        "cpu_seconds_without": found["off"]["cpu"],
        "mirror_wait_seconds": wait,
        "said_that_it_waits": float(said),
    }


def log(folder: Path, number: int) -> dict[str, float]:
    """One call of `log` in a step."""
    [step] = run(folder, "logging", "off")["document"]["steps"]
    return {"log_microseconds": step["metrics"]["microseconds"]}


MEASUREMENTS: dict[str, Callable[[Path, int], dict[str, float]]] = {"tracking": tracking, "log": log}


def main() -> int:
    """Run the rounds, print a line for each and one of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlops-bench-") as place:
        folder = Path(place).resolve()
        adopt_orphans()
        write_project(folder)
        run(folder, "logging", "offline")  # fills the caches
        rounds: list[dict[str, float]] = []
        for number in range(1, options.rounds + 1):
            rounds.append({k: v for name in options.only for k, v in MEASUREMENTS[name](folder, number).items()})
            print(f"round {number}: {', '.join(f'{k} {v:.3f}' for k, v in rounds[-1].items())}", flush=True)
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    medians |= {name: min(found[name] for found in rounds) for name in LEAST if name in medians}
    if "run_seconds" in medians:
        medians["tracking_ratio"] = medians["run_seconds"] / medians["run_seconds_without"]
    limits = {name: limit for name, limit in LIMITS.items() if name in medians}
    rounded = {name: round(value, 3) for name, value in medians.items()}
    print(json.dumps({**rounded, "limits": limits, "rounds": options.rounds}))
    return int(any(medians[name] > limit for name, limit in limits.items()))


if __name__ == "__main__":
    sys.exit(main())
