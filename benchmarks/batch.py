"""What `mlops-nb predict` costs beside a bare loop over the same model.

    python benchmarks/batch.py [--rows 400000] [--rounds 5]

The bare loop reads the same Parquet file in pieces of the same size with pyarrow, asks the same estimator for
probabilities, and writes them with pyarrow; it keeps no pieces, checks no types and cannot go on after a crash. Both
run in this process, in turns, and the median of the rounds' ratios is the figure. `peak` is how much a process grows
that predicts the table and one of four times its length: it must not depend on the length.

Prints one line of JSON. Exit code 1 when a limit is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_breast_cancer

from mlops_nb.model.artifact import Model
from mlops_nb.model.schema import describe_inputs
from mlops_nb.model.train import fit
from mlops_nb.serve.batch import ROWS, BatchJob
from mlops_nb.serve.pieces import TableFile

THROUGHPUT, GROWTH = 0.8, 1.25  # at least, of the bare loop's; at most, of four times the rows


def fitted_model() -> SimpleNamespace:
    """The default algorithm, fitted on the default table."""
    data = load_breast_cancer(as_frame=True)
    table = data.data.assign(diagnosis=data.target.map({0: "malignant", 1: "benign"}))
    names = list(data.data.columns)
    profile = {
        "target": "diagnosis",
        "task": "binary",
        "features": names,
        "columns": {name: {"kind": "number"} for name in names},
    }
    schema = describe_inputs(table, dict.fromkeys(names, "number"), "diagnosis", "binary")
    model = Model(fit(table, profile, "boosting", max_iter=100), table.head(3), schema)
    known = {"model": "benchmark", "version": 1, "digest": "0" * 64, "format": "skops"}
    return SimpleNamespace(**known, inputs=schema, estimator=model.estimator)


def write_table(path: Path, rows: int) -> None:
    """As many rows as wanted, drawn from the default table."""
    source = load_breast_cancer(as_frame=True).data
    random = np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.Schema.from_pandas(source)) as writer:
        for start in range(0, rows, 100_000):
            drawn = source.iloc[random.integers(0, len(source), min(100_000, rows - start))]
            writer.write_table(pa.Table.from_pandas(drawn, schema=writer.schema, preserve_index=False))


def bare_loop(model: SimpleNamespace, table: Path, output: Path) -> None:
    """What somebody writes by hand."""
    writer = None
    for batch in pq.ParquetFile(table).iter_batches(ROWS, columns=model.inputs.names):
        chances = model.estimator.predict_proba(batch.to_pandas())
        labels = model.estimator.classes_[chances.argmax(axis=1)]
        answers = pa.Table.from_pandas(
            pd.DataFrame({"prediction": labels, "benign": chances[:, 0], "malignant": chances[:, 1]})
        )
        writer = writer or pq.ParquetWriter(output, answers.schema)
        writer.write_table(answers)
    writer.close()


def seconds(action) -> float:
    """Wall-clock seconds of a call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def peak() -> float:
    """Megabytes that this process has held at most, as Linux tells."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def grown(table: Path) -> float:
    """Megabytes by which a process of its own grows."""
    done = subprocess.run([sys.executable, __file__, "--grow", str(table)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def grow(table: Path) -> None:
    """Predict a table and say by how much this process grew."""
    model = fitted_model()
    model.estimator.predict_proba(load_breast_cancer(as_frame=True).data)
    before = peak()
    BatchJob(model, TableFile(table, model.inputs), table.with_name("grown.parquet")).run(overwrite=True)
    print(peak() - before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grow", type=Path, help=argparse.SUPPRESS)
    values = parser.parse_args()
    if values.grow:
        grow(values.grow)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        table, model = Path(folder, "table.parquet"), fitted_model()
        write_table(table, values.rows)
        bare, ours = [], []
        for _ in range(values.rounds):
            bare.append(seconds(partial(bare_loop, model, table, Path(folder, "bare.parquet"))))
            job = BatchJob(model, TableFile(table, model.inputs), Path(folder, "out.parquet"))
            ours.append(seconds(partial(job.run, overwrite=True)))
        write_table(longer := Path(folder, "longer.parquet"), 4 * values.rows)
        short, long = grown(table), grown(longer)
    share = statistics.median(one / other for one, other in zip(bare, ours, strict=True))
    figures = {"rows": values.rows, "bare": statistics.median(bare), "ours": statistics.median(ours)}
    figures |= {"throughput_share": share, "peak_mb": short, "peak_mb_of_four": long, "growth": long / short}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return int(share < THROUGHPUT or long / short > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
