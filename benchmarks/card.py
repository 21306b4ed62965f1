"""What a model card costs: the command `mlops-nb card` as a process, and the parts of it.

    python benchmarks/card.py [--rounds 5]

Makes a project in a temporary folder with one run that gave a package of 40 inputs, its evaluation, its importance and
three figures of 100 kB. Then, medians of the rounds:

- `command`: seconds on the clock of `mlops-nb card --html FILE`, from the start of the process to its end;
- `cpu`: seconds of CPU of the same;
- `read`, `page`: milliseconds of CPU from the ledger to the card, and from the ledger to the page, in one process;
- `loop`: milliseconds of CPU of a plain loop over a million numbers, to compare machines and how busy they were.

Prints a line of JSON. Exit code 1 when a limit is missed: 2 s for the command.
"""

import argparse
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

from mlops_nb.core.hashing import canonical_json, sha256_bytes
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import Settings, load_settings
from mlops_nb.core.store import Store
from mlops_nb.model.archive import pack

LIMITS = {"command": 2.0}
INPUTS = [f"column {number}" for number in range(40)]
METRICS = {"roc_auc": 0.91, "accuracy": 0.85, "f1": 0.8, "log_loss": 0.4, "brier": 0.12}


def package() -> bytes:
    """A package with everything but a model."""
    features = [{"name": name, "kind": "number", "nullable": False, "low": 0.0, "high": 9.5} for name in INPUTS]
    schema = {"task": "binary", "target": "y", "classes": ["no", "yes"], "positive": "yes", "rows": 1000}
    background = {"format": 1, "rows": [], "usual": dict.fromkeys(INPUTS, 4.5)}
    slices = [
        {"metric": "roc_auc", "slice": f"group={n}", "value": 0.9, "low": 0.8, "high": 0.95, "n": 50} for n in range(60)
    ]
    members = {
        "model.skops": b"no model",
        "schema.json": canonical_json({**schema, "features": features}),
        "background.json": canonical_json(background),
    }
    manifest = {"format": 1, "name": "bench", "task": "binary", "target": "y", "metric": "roc_auc", "metrics": METRICS}
    manifest |= {"holdout": "split.test", "requirements": {"numpy": "2"}, "assessment": {"format": 1, "rows": slices}}
    manifest |= {"files": {name: sha256_bytes(content) for name, content in members.items()}}
    return pack({"manifest.json": canonical_json(manifest), **members})


def importance() -> dict[str, Any]:
    """As `evaluate` gives it."""
    rows = [{"input": name, "loss": 0.01, "low": 0.0, "high": 0.02} for name in INPUTS]
    return {"format": 1, "metric": "roc_auc", "score": 0.91, "n": 500, "repeats": 10, "inputs": 40, "rows": rows}


def make_project(folder: Path) -> Settings:
    """A project with one version."""
    (folder / "settings.ini").write_text("[package]\nname = bench\n", encoding="utf-8")
    settings = load_settings(folder)
    store, digest = Store(settings.workspace.path / "objects"), ""

    def put(kind: str, content: bytes, **meta: str) -> dict[str, Any]:
        return {"type": kind, "sha256": store.put_bytes(content), "size": len(content), "meta": meta}

    figures = {
        name: put("Figure", f"<svg><!--{name}{'x' * 100_000}--></svg>".encode())
        for name in ("explanation", "outcomes", "calibration")
    }
    documents = {"importance": importance(), "intervals": {name: [0.7, 0.95] for name in METRICS}, "baseline": METRICS}
    evaluated = {name: put("Json", canonical_json(value)) for name, value in documents.items()}
    packaged = put("ModelPackage", package())
    digest = packaged["sha256"]
    with Ledger.open(settings) as ledger:
        ledger.begin_run("20260101-000000-ab12", "tabular", {f"train.p{number}": number for number in range(30)})
        for position, (step, gives) in enumerate(
            {"evaluate": {**figures, **evaluated}, "package": {"package": packaged}}.items()
        ):
            manifest = {"format": 1, "step": step, "gives": gives, "metrics": {}}
            ledger.commit_step("20260101-000000-ab12", step, key=step, parts={}, manifest=manifest, position=position)
        ledger.end_run("20260101-000000-ab12", "ok")
        facts = {"task": "binary", "metric": "roc_auc", "schema_digest": "0" * 64, "metrics": METRICS, "details": {}}
        ledger.register_version("bench", digest, run_id="20260101-000000-ab12", **facts)
    return settings


def median(rounds: int, clock: Callable[[], float], work: Callable[[], Any]) -> float:
    """Median of the rounds after one that warms up."""
    work()
    found = []
    for _ in range(rounds):
        before = clock()
        work()
        found.append(clock() - before)
    return statistics.median(found)


def children() -> float:
    """Seconds of CPU of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(settings: Settings, rounds: int) -> dict[str, float]:
    """The command, and its parts."""
    from mlops_nb.registry.card import named_version, read_card

    command = [sys.executable, "-m", "mlops_nb", "card", "--html", "card.html"]

    def run() -> None:
        subprocess.run(command, cwd=settings.project, check=True, capture_output=True)

    with Ledger.open(settings) as ledger:
        found = {
            "read": 1000
            * median(rounds, time.process_time, lambda: read_card(ledger, settings, named_version(ledger, ""))),
            "page": 1000
            * median(rounds, time.process_time, lambda: read_card(ledger, settings, named_version(ledger, "")).page()),
        }
    return {"command": median(rounds, time.perf_counter, run), "cpu": median(rounds, children, run), **found}


def main() -> int:
    """Exit code: 0 when no limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for name in [name for name in os.environ if name.startswith("MLOPS_NB_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(make_project(Path(folder)), rounds)
    found["loop"] = 1000 * median(rounds, time.process_time, lambda: [number * 2.0 for number in range(1_000_000)])
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    return int(any(found[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
