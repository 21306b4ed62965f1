"""Where 10,000 steps on 1,000 workers lose time: a simulation by discrete events, fed with measured figures.

    python benchmarks/scale_simulation.py [--steps 10000] [--workers 1000] [--chain 5] [--figures FILE] [--json FILE]

A step becomes ready, is decided and sent by the runner (one thread), given to a worker by the scheduler (one thread),
fetches what it reads from the store, runs, uploads what it gives, and is told to the scheduler and committed by the
runner, which waits for the ledger. Everything that is one thread is a queue here; the store is as many streams as its
bandwidth has room for. Steps fail and are tried again, some take many times as long as others, workers die with what
they were doing and come back.

The overhead is the time that the whole takes beyond the same steps, failures and deaths with everything else at no
cost. Printed: the overhead for steps of 1 s to 10 min, which part is busiest, the shortest steps for which it stays
below 1 %, and how many steps a second each part could serve. `--figures` reads what `scale.py --json` measured;
without it the figures of `FIGURES` are taken. `--validate` compares with a real run on this machine first: exit code 1
when the simulation is off by more than a quarter.
"""

import argparse
import heapq
import json
import random
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIGURES = {  # seconds, unless the name says otherwise; measured on two cores, or named as an assumption
    "decide": 0.004,  # runner: read files, look up the key, send
    "commit": 0.006,  # runner: hash the sources again, write the records; without the ledger
    "ledger": 0.004,  # ledger: the transactions of a step
    "scheduler": 0.001,  # Dask's scheduler: for each of the two words about a task
    "engine": 0.15,  # worker: fork a kernel, save the notebook
    "latency": 0.03,  # store: one request (assumption: object storage in the same region)
    "reads": 3.0,  # requests before a step
    "writes": 4.0,  # requests after it
    "megabytes_in": 2.0,
    "megabytes_out": 2.0,
    "stream": 80.0,  # megabytes a second of one stream (assumption)
    "streams": 400.0,  # at once, over all workers (assumption)
    "failing": 0.01,  # share of attempts that fail half-way
    "straggling": 0.01,  # share of steps that take `straggle` times as long
    "straggle": 5.0,
    "spread": 0.3,  # sigma of the logarithm of step times
    "lifetime": 48 * 3600.0,  # mean seconds between two deaths of a worker
    "notice": 30.0,  # until a dead worker is noticed
    "restart": 120.0,  # until there is another one
}
FREE = ("decide", "commit", "ledger", "scheduler", "engine", "latency", "megabytes_in", "megabytes_out")
TIMES = (1, 3, 10, 30, 60, 120, 300, 600)
GOAL = 0.01


class Server:
    """A queue with some servers; serves in the order of asking."""

    def __init__(self, count: int = 1):
        self.free, self.busy, self.count = [0.0] * count, 0.0, count

    def serve(self, now: float, seconds: float) -> float:
        """When it is done."""
        if seconds <= 0:
            return now
        start = max(now, heapq.heappop(self.free))
        heapq.heappush(self.free, start + seconds)
        self.busy += seconds
        return start + seconds


class Steps:
    """How long each step takes, how often it fails first; the same for every simulation of a seed."""

    def __init__(self, steps: int, seconds: float, figures: dict[str, float], seed: int):
        chance = random.Random(seed)
        self.seconds, self.failures = [], []
        for _ in range(steps):
            slow = figures["straggle"] if chance.random() < figures["straggling"] else 1.0
            self.seconds.append(seconds * slow * chance.lognormvariate(0, figures["spread"]))
            failures = 0
            while chance.random() < figures["failing"] and failures < 3:
                failures += 1
            self.failures.append(failures)


class Simulation:
    """A run; children of a sweep, each a chain of steps."""

    def __init__(self, steps: Steps, workers: int, chain: int, figures: dict[str, float], seed: int = 0):
        self.steps, self.chain, self.figures = steps, chain, figures
        self.runner, self.scheduler, self.ledger = Server(), Server(), Server()
        self.store = Server(max(1, int(figures["streams"])))
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.count, self.idle, self.waiting = 0, workers, deque[int]()
        self.tries = [0] * len(steps.seconds)
        self.deaths = random.Random(seed + 1)
        self.lost = self.end = 0.0

    def at(self, moment: float, what: Callable[[float], None]) -> None:
        """Have something happen."""
        self.count += 1
        heapq.heappush(self.events, (moment, self.count, what))

    def run(self) -> float:
        """Seconds until the last commit."""
        for step in range(0, len(self.steps.seconds), self.chain):
            self.at(0.0, lambda now, step=step: self.ready(now, step))
        while self.events:
            moment, _, what = heapq.heappop(self.events)
            what(moment)
        return self.end

    def ready(self, now: float, step: int) -> None:
        """The runner decides and sends."""
        sent = self.runner.serve(now, self.figures["decide"])
        self.at(sent, lambda now: self.send(now, step))

    def send(self, now: float, step: int) -> None:
        """The scheduler takes it."""
        self.at(self.scheduler.serve(now, self.figures["scheduler"]), lambda now: self.queue(now, step))

    def queue(self, now: float, step: int) -> None:
        self.waiting.append(step)
        self.assign(now)

    def assign(self, now: float) -> None:
        while self.idle and self.waiting:
            self.idle -= 1
            self.fetch(now, self.waiting.popleft())

    def _transfer(self, now: float, requests: float, megabytes: float) -> float:
        return self.store.serve(now, requests * self.figures["latency"] + megabytes / self.figures["stream"])

    def fetch(self, now: float, step: int) -> None:
        """The worker fetches what the step reads, and executes it; a failure comes half-way, a death at any time."""
        figures = self.figures
        begun = self._transfer(now, figures["reads"], figures["megabytes_in"])
        fails = self.tries[step] < self.steps.failures[step]
        ended = begun + figures["engine"] + self.steps.seconds[step] * (0.5 if fails else 1.0)
        death = now + self.deaths.expovariate(1 / figures["lifetime"])
        if death < ended:
            self.lost += death - now
            self.at(death + figures["notice"], lambda now: self.send(now, step))
            self.at(death + figures["restart"], self.back)
        else:
            self.at(ended, lambda now: self.upload(now, step, fails))

    def back(self, now: float) -> None:
        self.idle += 1
        self.assign(now)

    def upload(self, now: float, step: int, fails: bool) -> None:
        kept = now if fails else self._transfer(now, self.figures["writes"], self.figures["megabytes_out"])
        self.at(kept, lambda now: self.told(now, step, fails))

    def told(self, now: float, step: int, fails: bool) -> None:
        """The scheduler hears of the end, and the worker may have the next task."""
        heard = self.scheduler.serve(now, self.figures["scheduler"])
        self.at(heard, self.back)
        self.at(heard, lambda now: self.commit(now, step, fails))

    def commit(self, now: float, step: int, fails: bool) -> None:
        """The runner commits, and waits for the ledger meanwhile."""
        cost = self.figures["ledger"]
        self.ledger.busy += cost
        done = self.runner.serve(now, self.figures["commit"] + cost)
        self.at(done, lambda now: self.committed(now, step, fails))

    def committed(self, now: float, step: int, fails: bool) -> None:
        self.end = max(self.end, now)
        if fails:
            self.tries[step] += 1
            self.ready(now, step)
        elif (step + 1) % self.chain and step + 1 < len(self.tries):
            self.ready(now, step + 1)

    def shares(self) -> dict[str, float]:
        """How busy each part was."""
        parts = {"runner": self.runner, "scheduler": self.scheduler, "ledger": self.ledger, "store": self.store}
        return {name: server.busy / server.count / self.end for name, server in parts.items()}


def simulate(
    steps: int, workers: int, chain: int, seconds: float, figures: dict[str, float], seed: int = 0
) -> dict[str, Any]:
    """Makespan beside one at no cost, and how busy each part was."""
    drawn = Steps(steps, seconds, figures, seed)
    real = Simulation(drawn, workers, chain, figures, seed)
    took = real.run()
    ideal = Simulation(drawn, workers, chain, {**figures, **dict.fromkeys(FREE, 0.0)}, seed).run()
    shares = real.shares()
    worker = figures["engine"] + (figures["reads"] + figures["writes"]) * figures["latency"]
    worker += (figures["megabytes_in"] + figures["megabytes_out"]) / figures["stream"]
    return {
        "step": seconds,
        "seconds": took,
        "ideal": ideal,
        "overhead": took / ideal - 1,
        "around a step": worker / seconds,
        "shares": shares,
        "busiest": max(shares, key=lambda name: shares[name]),
    }


def capacities(figures: dict[str, float]) -> dict[str, float]:
    """Steps a second that each part could serve alone."""
    transfers = (figures["reads"] + figures["writes"]) * figures["latency"]
    transfers += (figures["megabytes_in"] + figures["megabytes_out"]) / figures["stream"]
    return {
        "runner": 1 / (figures["decide"] + figures["commit"] + figures["ledger"]),
        "scheduler": 1 / (2 * figures["scheduler"]),
        "ledger": 1 / figures["ledger"],
        "store": figures["streams"] / transfers,
    }


def shortest(found: list[dict[str, Any]]) -> float | None:
    """The shortest steps from which on the overhead stays below the goal."""
    good = None
    for one in reversed(found):
        if one["overhead"] >= GOAL:
            break
        good = one["step"]
    return good


def validate(folder: Path) -> dict[str, float]:
    """A real run of 24 steps on two slots of this machine, and what the simulation says of it."""
    from scale import measured_here, real_run

    measured = measured_here(folder / "figures")
    figures = {**FIGURES, **dict.fromkeys(FREE, 0.0), **measured}
    figures |= {"failing": 0.0, "straggling": 0.0, "spread": 0.0, "lifetime": 1e12}
    took = real_run(folder / "run", steps=24, seconds=0.5, jobs=2)
    told = simulate(24, 2, 1, 0.5, figures)["seconds"]
    return {"measured": took, "simulated": told, "ratio": told / took}


def main() -> int:
    """Simulate, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--chain", type=int, default=5, help="steps that follow each other in a child")
    parser.add_argument("--figures", type=Path, help="what scale.py --json measured")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--json", type=Path)
    values = parser.parse_args()
    measured = json.loads(values.figures.read_text())["figures"] if values.figures else {}
    figures = {**FIGURES, **measured}
    checked = {}
    if values.validate:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            checked = validate(Path(folder))
        print("24 steps of 0.5 s, two slots: {measured:.2f} s; simulated {simulated:.2f} s".format(**checked))
    found = [simulate(values.steps, values.workers, values.chain, seconds, figures) for seconds in TIMES]
    print(f"{values.steps} steps in chains of {values.chain} on {values.workers} workers")
    print(f"{'step':>7} {'run':>10} {'overhead':>9} {'of it around a step':>20}  busy: runner scheduler ledger store")
    for one in found:
        busy = " ".join(f"{one['shares'][name]:>8.0%}" for name in ("runner", "scheduler", "ledger", "store"))
        told = f"{one['step']:>5} s {one['seconds']:>8.0f} s {one['overhead']:>9.1%} {one['around a step']:>20.1%}"
        print(f"{told}  {busy}  {one['busiest']}")
    limits = capacities(figures)
    print(
        "steps a second: "
        + ", ".join(f"{name} {rate:.0f}" for name, rate in sorted(limits.items(), key=lambda p: p[1]))
    )
    first, good = min(limits, key=lambda name: limits[name]), shortest(found)
    print(f"overhead below {GOAL:.0%} from steps of {good} s on" if good else f"overhead never below {GOAL:.0%}")
    full = values.workers / limits[first]
    print(f"limit first: the {first}; with {values.workers} workers it is full at steps of {full:.1f} s")
    document = {
        "steps": values.steps,
        "workers": values.workers,
        "table": found,
        "capacities": limits,
        "shortest": good,
    }
    if values.json:
        values.json.write_text(json.dumps({**document, "validated": checked}, indent=1))
    return int(bool(checked) and not 0.75 < checked["ratio"] < 1.25)


if __name__ == "__main__":
    sys.exit(main())
