"""What a search adds to each trial: the same assignments as a sweep, without Optuna.

    python benchmarks/search.py [--trials 20] [--rounds 5] [--workspace FOLDER]

A pipeline of three small steps, two of which depend on the searched parameters. Each round runs a search of `--trials`
trials and the assignments that it drew as a sweep: `run_plan` with the same children, one step at a time. Both are
warm: the process that kernels are forked from has its imports, and Optuna's file is there. A trial lasts from the end
of the one before it to its own end; the overhead is the median trial of all searches less the median trial of all
sweeps, in seconds of the clock and in CPU seconds of the runner. On a machine that has other work, only the latter says
something. Prints a line per round and a line of JSON. Exit code 1 when the overhead by the clock is above 50 ms.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.locks import using
from mlops_nb.core.settings import Settings, load_settings
from mlops_nb.pipeline.graph import load_pipeline
from mlops_nb.pipeline.plan import Plan, Supply
from mlops_nb.pipeline.reporter import Reporter
from mlops_nb.pipeline.run import run_plan
from mlops_nb.pipeline.search import run_search
from mlops_nb.pipeline.underway import Run
from mlops_nb.pipeline.wanted import Wanted, parent_plan, trial_plan, what_is_wanted

LIMIT = 0.050  # seconds that Optuna may add to a trial
IMPORTS = "from typing import Annotated, Literal\nfrom mlops_nb import Json, LogRange, Metrics, Range, flow"
STEPS = {
    "10_split": ("flow.part = Json([1, 2, 3])",),
    "20_train": (
        "#| parameters\nrate: Annotated[float, LogRange(1e-4, 1)] = 0.1\ndepth: Annotated[int, Range(1, 60)] = 5\n"
        "model: Literal['forest', 'linear'] = 'forest'",
        "flow.model = Json([rate, depth, model, len(flow.split.part)])",
    ),
    "30_evaluate": (
        "rate, depth, *_ = flow.train.model\nflow.metrics = Metrics({'loss': abs(rate - 0.01) + depth / 60})",
    ),
}


class Clock(Reporter):
    """When trials ended: by the clock, and by what this process has computed."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, float]] = [(time.perf_counter(), time.process_time())]

    def trial(self, trial: dict[str, Any]) -> None:
        """One has ended."""
        self.moments.append((time.perf_counter(), time.process_time()))

    @property
    def lasted(self) -> list[tuple[float, float]]:
        """Seconds of each trial but the first, which also begins the run."""
        pairs = itertools.pairwise(self.moments[1:])
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


class Given(Supply):
    """Children with assignments that are known beforehand: what a sweep does, without an optimizer."""

    def __init__(self, wanted: Wanted, parent: Plan, assignments: list[dict[str, Any]], clock: Clock):
        self.clock, self.wanted, self.parent, self.assignments, self.steps = (
            clock,
            wanted,
            parent,
            list(assignments),
            wanted.steps,
        )

    def ask(self, run: Run) -> Plan | None:
        """The next assignment."""
        number = len(run.members)
        return trial_plan(self.wanted, self.parent, self.assignments.pop(0), number) if self.assignments else None

    def close(self, child: Run) -> None:
        """One has ended."""
        self.clock.trial({})


def write_project(folder: Path) -> Settings:
    """The pipeline, in a project of its own."""
    (folder / "nbs/pipelines/bench").mkdir(parents=True)
    (folder / "settings.ini").write_text("[package]\nname = bench\n[tracking]\nmode = off\n[pipeline]\nserver = off\n")
    for name, cells in STEPS.items():
        made = []
        for place, source in enumerate((IMPORTS, *cells)):
            tags = ["parameters"] if source.startswith("#|") else []
            cell = {"cell_type": "code", "id": f"c{place}", "metadata": {"tags": tags}, "source": source}
            made.append({**cell, "outputs": [], "execution_count": None})
        notebook = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (folder / f"nbs/pipelines/bench/{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return load_settings(folder, environ={})


def wish(settings: Settings, trials: int) -> Wanted:
    """What is searched."""
    pipeline = load_pipeline(settings, "bench")
    return what_is_wanted(settings, pipeline, "evaluate.loss", True, over=["train.*"], trials=trials)


def as_sweep(wanted: Wanted, assignments: list[dict[str, Any]]) -> Clock:
    """A parent run with those children."""
    clock = Clock()
    with Ledger.open(wanted.settings) as ledger, using(wanted.settings.workspace.path):
        plan = parent_plan(wanted, ledger)
        supply = Given(wanted, plan, assignments, clock)
        ended = run_plan(wanted.settings, plan, Reporter(), False, (), 1, supply)
    if ended.exit_code or len(ended.document["children"]) != len(assignments):
        sys.exit(f"the sweep failed: {ended.document}")
    return clock


def as_search(wanted: Wanted, trials: int, seed: int) -> tuple[Clock, list[dict[str, Any]]]:
    """A search, and the assignments that it tried."""
    clock = Clock()
    ended = run_search(wanted._replace(trials=trials), seed=seed, reporter=clock)
    tried = [trial["parameters"] for trial in ended.document["trials"]]
    if ended.exit_code or len(tried) != trials:
        sys.exit(f"the search failed: {ended.document}")
    return clock, tried


def one_round(folder: Path, trials: int, seed: int) -> tuple[Clock, Clock]:
    """A search and the same assignments as a sweep, each in a workspace of its own."""
    places = [folder / f"{kind}-{seed}" for kind in ("search", "sweep")]
    search, sweep = (wish(write_project(place), trials) for place in places)
    searched, assignments = as_search(search, trials, seed)
    return searched, as_sweep(sweep, assignments)


def medians(clocks: list[Clock]) -> tuple[float, float]:
    """The median trial, by the clock and by CPU."""
    lasted = [trial for clock in clocks for trial in clock.lasted]
    return statistics.median(wall for wall, _ in lasted), statistics.median(cpu for _, cpu in lasted)


def main() -> int:
    """Measure, print, compare with the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workspace", type=Path)
    options = parser.parse_args()
    folder, rounds = options.workspace or Path(tempfile.mkdtemp()), []
    for number in range(options.rounds):
        rounds.append(one_round(folder, options.trials, number))
        told = zip(("search", "sweep"), (medians([clock]) for clock in rounds[-1]), strict=True)
        print("  ".join(f"{kind} {wall:.3f} s, {cpu:.3f} s of CPU" for kind, (wall, cpu) in told), flush=True)
    search, sweep = (medians(list(clocks)) for clocks in zip(*rounds, strict=True))
    overhead = {"overhead_seconds": round(search[0] - sweep[0], 4), "overhead_cpu": round(search[1] - sweep[1], 4)}
    trial = {"search_trial": round(search[0], 4), "sweep_trial": round(sweep[0], 4)}
    print(json.dumps({"trials": options.trials * options.rounds, **trial, **overhead, "limit": LIMIT}))
    return int(overhead["overhead_seconds"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
