"""The same rows give the same bytes, whatever the process, its hash seed and its threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_support import KINDS, learn, model_of, people

from mlops_nb.core.serializers import Figure, FigureSerializer
from mlops_nb.model.archive import dump_estimator, load_estimator
from mlops_nb.model.artifact import Model
from mlops_nb.model.evaluation import evaluate
from mlops_nb.model.onnx_parity import export_onnx
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.plots import plot_calibration, plot_errors, plot_loss, plot_outcomes
from mlops_nb.model.train import loss_curve

CASES = [
    ("group", "binary", "logistic"),
    ("group", "binary", "forest"),
    ("group", "binary", "boosting"),
    ("group", "multiclass", "boosting"),
    ("group", "binary", "voting"),
    ("group", "multiclass", "stacking"),
    ("spent", "regression", "linear"),
    ("spent", "regression", "forest"),
    ("spent", "regression", "boosting"),
    ("spent", "regression", "voting"),
    ("spent", "regression", "stacking"),
]


def digests(folder: Path) -> dict[str, str]:
    """Hash of every artifact that the three steps give, for every algorithm."""
    from mlops_nb.core.hashing import hash_json, sha256_bytes, sha256_file
    from mlops_nb.model import train as training

    training.LARGE = 0  # so that further threads are used, as on large tables
    found = {}
    for target, task, model in CASES:
        table = people(400, classes=3 if task == "multiclass" else 2)[[*KINDS, target]]
        known, test = table[:300], table[300:]
        fitted = model_of(known, target, task, model, trees=4, max_iter=6, clip=0.01)
        fitted.write(folder / "model.skops")
        evaluation = evaluate(Model.read(folder / "model.skops"), known, test)
        model_again = Model.read(folder / "model.skops")
        onnx = export_onnx(model_again, test, known)
        ModelPackage(model_again, "people", evaluation.metrics, known, onnx=onnx).write(folder / "package.zip")
        case = f"{task} {model}"
        found[f"{case} model"] = sha256_file(folder / "model.skops")
        found[f"{case} package"] = sha256_file(folder / "package.zip")
        found[f"{case} numbers"] = hash_json(
            [evaluation.metrics, evaluation.intervals, evaluation.baseline, evaluation.training]
        )
        found[f"{case} folds"] = sha256_bytes(evaluation.folds.to_json(double_precision=15).encode())
        if model != "boosting":
            continue
        pictures = [picture(evaluation.predictions) for picture in (plot_outcomes, plot_calibration, plot_errors)]
        for place, picture in enumerate([*pictures, plot_loss(loss_curve(fitted.estimator))]):
            if picture is not None:
                FigureSerializer().write(Figure(picture), folder / "figure.svg")
                found[f"{case} figure {place}"] = sha256_file(folder / "figure.svg")
    return found


if __name__ == "__main__":
    print(json.dumps(digests(Path(sys.argv[1]))))


def test_two_processes_agree_on_every_byte(tmp_path):
    answers = []
    for seed, threads in (("0", "1"), ("4242", "2")):
        (tmp_path / seed).mkdir()
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
        }
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
        command = [sys.executable, "-W", "ignore", __file__, str(tmp_path / seed)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
        answers.append(json.loads(done.stdout))
    assert answers[0] == answers[1]
    assert len(answers[0]) > 35


@pytest.mark.parametrize(("target", "task", "model"), CASES)
def test_a_model_that_is_read_and_written_again_keeps_its_bytes(target, task, model):
    table = people(400, classes=3 if task == "multiclass" else 2)
    archive = dump_estimator(learn(table, target, task, model, trees=5, max_iter=20, clip=0.01))
    copy = load_estimator(archive)
    assert dump_estimator(copy) == archive
    copy.predict(table)
    assert dump_estimator(copy) == archive, "predicting changes nothing"


def test_the_order_of_training_rows_may_change_but_not_their_set_of_hashes():
    table = people(300)[[*KINDS, "group"]]
    fitted = model_of(table, "group", "binary", "logistic")
    metrics = {"roc_auc": 0.5}
    one, two = (ModelPackage(fitted, "people", metrics, rows) for rows in (table, table.sample(frac=1, random_state=1)))
    assert one.manifest == two.manifest
