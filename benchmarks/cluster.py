"""What a Dask cluster of two local workers costs beside this machine's own engine.

    python benchmarks/cluster.py [--rounds 3] [--short 40] [--fits 64] [--json FILE]

- `overhead`: a sweep of short steps on this machine and on two workers with one thread each, two at once on either
  side; milliseconds that a step takes more there, over all slots.
- `rate`: a sweep of fits (the engine's notebook B) on both; steps per second there over steps per second here.

Rounds take turns, and medians are the figures. Scheduler, workers and this machine's server are started and warm
before anything is measured. Prints a table; exit code 1 when a limit of `LIMITS` is missed.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import FIT, IMPORTS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/pipeline"))

from cluster_support import Cluster, on
from pipeline_support import Project

LIMITS = {"overhead": ("<=", 10.0), "rate": (">=", 0.9)}


def write(folder: Path, place: str) -> Project:
    """A project with a short step and a fit, each with one parameter."""
    project = Project(folder)
    project.step("10_short", "#| parameters\nx: int = 0  # counted", "flow.y = x", pipeline="short")
    project.step(
        "10_fit",
        IMPORTS,
        "#| parameters\nC: float = 1.0  # strength",
        FIT,
        "flow.y = float(scores.mean())",
        pipeline="fit",
    )
    return on(project, place) if place else project


def seconds(project: Project, pipeline: str, values: list[Any]) -> float:
    """How long a sweep takes, all its steps executed, two at once."""
    began = time.perf_counter()
    name = {"short": "short.x", "fit": "fit.C"}[pipeline]
    result = project.run(pipeline=pipeline, sweep={name: values}, force=True, jobs=2)
    assert result.exit_code == 0, result.document
    return time.perf_counter() - began


def measure(rounds: int, short: int, fits: int) -> dict[str, float]:
    """The figures."""
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder) / "cluster") as cluster:
        here, there = write(Path(folder) / "here", ""), write(Path(folder) / "there", cluster.address)
        work = {"short": list(range(short)), "fit": [1 + n / 100 for n in range(fits)]}
        took: dict[tuple[str, Any], list[float]] = {}
        for pipeline, values in work.items():
            for project in (here, there):
                seconds(project, pipeline, values[:4])
            for _ in range(rounds):
                for name, project in (("here", here), ("there", there)):
                    took.setdefault((pipeline, name), []).append(seconds(project, pipeline, values))
        more = [(b - a) * 1000 * 2 / short for a, b in zip(took["short", "here"], took["short", "there"], strict=True)]
        rates = [a / b for a, b in zip(took["fit", "here"], took["fit", "there"], strict=True)]
        each = {f"{name} {kind}": statistics.median(took[kind, name]) / len(work[kind]) for kind, name in took}
    return {"overhead": statistics.median(more), "rate": statistics.median(rates), **each}


def main() -> int:
    """Exit code: 0 when all limits hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--rounds", 3), ("--short", 40), ("--fits", 64)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures, bad = measure(options.rounds, options.short, options.fits), 0
    for name, value in figures.items():
        sign, limit = LIMITS.get(name, ("", None))
        held = limit is None or (value <= limit if sign == "<=" else value >= limit)
        bad += not held
        print(f"{name:12} {value:8.3f} {sign} {limit if limit is not None else ''} {'' if held else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
