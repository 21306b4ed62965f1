"""What a prediction costs in ONNX and in scikit-learn, and what packaging a version costs.

    python benchmarks/formats.py [--rounds 15] [--package]

Fits each algorithm to a table with a column of every kind, converts it, and measures in one process, interleaved,
medians of the rounds, in microseconds of CPU per call:

- `row` and `thousand`: one row and 1,000 rows as a frame, by `scikit-learn` and by `onnx`, and how many times less the
  latter takes (`ratio`);
- `served_row` and `served_thousand`: the same from parsed records through the released model, as a server does it;
- `parity`: the largest difference of probabilities, and the decisions that flip, on all rows;
- `package`: with --package, seconds of CPU of `mlops-nb package` for one version, BentoML's own build among them;
- `loop`: milliseconds of CPU of a plain loop over a million numbers, to compare machines and how busy they were.

Prints a line of JSON. Exit code 1 when a limit is missed: ONNX takes no longer than scikit-learn for a served row, and
no decision flips.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlops_nb.core.hashing import canonical_json, sha256_bytes
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.core.store import Store
from mlops_nb.model.artifact import Model
from mlops_nb.model.onnx_parity import export_onnx
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.schema import describe_inputs
from mlops_nb.model.train import fit
from mlops_nb.registry.releases import Arm, Document, Release, publish
from mlops_nb.serve.predictor import load_model

KINDS = {"age": "integer", "income": "number", "member": "boolean", "plan": "category", "since": "date"}
MODELS = ("logistic", "forest", "boosting")


def people(rows: int = 3_000) -> pd.DataFrame:
    """Numbers with gaps, truth values, texts and times, and a class."""
    draw = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": draw.integers(18, 90, rows),
            "income": np.where(draw.random(rows) < 0.1, np.nan, draw.lognormal(8, 1, rows)),
            "member": draw.random(rows) < 0.4,
            "plan": pd.Series(draw.choice(["basic", "plus", "pro", None], rows), dtype="str"),
            "since": np.datetime64("2021-03-01T09:30", "us") + draw.integers(0, 20_000, rows).astype("m8[h]"),
        }
    )
    score = table["age"] / 20 + (table["plan"] == "pro") - table["member"] + draw.normal(0, 1, rows)
    return table.assign(bought=np.where(score > 3, "yes", "no"))


def packaged(table: pd.DataFrame, algorithm: str) -> ModelPackage:
    """A fitted model with its ONNX twin."""
    columns = {name: {"kind": kind} for name, kind in KINDS.items()}
    profile = {"target": "bought", "task": "binary", "features": list(KINDS), "columns": columns}
    schema = describe_inputs(table, KINDS, "bought", "binary")
    model = Model(fit(table, profile, algorithm), table.head(3), schema)
    return ModelPackage(model, algorithm, {"roc_auc": 0.9}, table, onnx=export_onnx(model, table))


def released(folder: Path, package: ModelPackage) -> Release:
    """The package as a release."""
    names = ("model.skops", "schema.json", "examples.json", "model.onnx")
    contents = {f"versions/1/{name}": package.member(name) for name in names}
    contents["versions/1/manifest.json"] = canonical_json(package.manifest)
    files = {name: sha256_bytes(content) for name, content in contents.items()}
    arms = (Arm(1, "5d" * 32, 1.0, "versions/1"),)
    return Release(publish(folder, Document(package.manifest["name"], "binary", arms, files, generation=1), contents))


def compared(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Microseconds of CPU per call of each, interleaved, and how many times longer the first takes than the second."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started, times = time.process_time(), 0
            while times < 3 or time.process_time() - started < 0.02:
                call()
                times += 1
            found[name].append((time.process_time() - started) / times * 1e6)
    medians = {name: statistics.median(values) for name, values in found.items()}
    first, second = medians.values()
    return {**{name: round(value, 1) for name, value in medians.items()}, "ratio": round(first / second, 2)}


def measure(folder: Path, table: pd.DataFrame, algorithm: str, rounds: int) -> dict[str, Any]:
    """One algorithm's figures."""
    package = packaged(table, algorithm)
    release = released(folder, package)
    models = {name: load_model(release, wanted=form) for name, form in (("scikit-learn", "skops"), ("onnx", "onnx"))}
    rows = table[list(KINDS)]
    records = json.loads(rows.head(1_000).to_json(orient="records", date_format="iso"))
    document: dict[str, Any] = {
        "parity": package.manifest["formats"]["onnx"],
        "bytes": len(package.member("model.onnx")),
    }
    for name, count in (("row", 1), ("thousand", 1_000)):
        frame, body = rows.head(count), json.dumps(records[:count]).encode()
        parsed = next(iter(models.values())).reader.read(body)
        calls = {name: partial(one.estimator.predict_proba, frame) for name, one in models.items()}
        document[name] = compared(calls, rounds)
        calls = {name: partial(one.predict, parsed) for name, one in models.items()}
        document[f"served_{name}"] = compared(calls, rounds)
    return document


def cost_of_packaging(folder: Path, table: pd.DataFrame) -> float:
    """Seconds of CPU of the command, in a project with one registered version."""
    (folder / "settings.ini").write_text("[package]\nname = demo\n")
    (folder / "bentofile.yaml").write_text(
        'service: "mlops_nb.serve.service:Service"\ninclude: [/settings.ini, /.mlops/releases/]\n'
    )
    settings = load_settings(folder)
    settings.workspace.path.mkdir()
    packaged(table, "boosting").write(folder / "package")
    digest = Store(settings.workspace.path / "objects").put_file(folder / "package")
    with Ledger.open(settings) as ledger:
        run = "20260101-000000-ab12"
        ledger.begin_run(run, "tabular", {})
        about = {"task": "binary", "metric": "roc_auc", "schema_digest": "0" * 64, "metrics": {"roc_auc": 0.9}}
        ledger.register_version("boosting", digest, run_id=run, **about, details={})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "mlops_nb", "package", "boosting:1"]
    subprocess.run(command, cwd=folder, env={**os.environ, "BENTOML_HOME": str(folder / "home")}, check=True, stdout=2)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)


def loop() -> float:
    started = time.process_time()
    for _ in range(1_000_000):
        pass
    return round((time.process_time() - started) * 1e3, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--package", action="store_true")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    table = people()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = {model: measure(folder / "releases", table, model, chosen.rounds) for model in MODELS}
        if chosen.package:
            (folder / "project").mkdir()
            document["package"] = cost_of_packaging(folder / "project", table)
    missed = [name for name in MODELS if document[name]["served_row"]["ratio"] < 1 or document[name]["parity"]["flips"]]
    print(json.dumps({**document, "loop": loop(), "missed": missed}))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
