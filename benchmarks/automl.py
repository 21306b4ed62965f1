"""The search of `mlops-nb automl` against FLAML, and against LightGBM tuned with Optuna by hand.

    python benchmarks/automl.py TABLE TARGET [TABLE TARGET ...] [--budget 60] [--seeds 0] [--exclude COLUMN]

Every contender gets the same training rows, one thread, and the same wall seconds, each in a process of its own; the
held-out rows are a quarter, drawn by the seed, and are scored once. Shown are the score with its 95 % interval, the
difference to ours on the same bootstrap draws of rows, and what was used: wall and CPU seconds, trials. Seeds are fixed
beforehand (0 unless said otherwise), and nothing is tuned to the held-out rows. Needs the extra `automl`.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
FOLDS = 3  # of the search by hand


def parts(table: str, target: str, exclude: list[str], seed: int) -> Any:
    """Training and held-out rows, and the profile of the table."""
    from mlops_nb.data.profile import ingest
    from mlops_nb.data.reading import read_source
    from mlops_nb.data.splitting import split_table

    loaded = read_source(table)
    known = {column.name for column in loaded.columns}
    made = ingest(loaded, target, exclude=[name for name in exclude if name in known])
    split = split_table(made.table, made.profile, seed=seed)
    columns = [*made.profile["features"], target]
    return split.train[columns], split.test[columns], made.profile


class Untuned:
    """The train step with its defaults."""

    def __init__(self, profile: dict, budget: float, seed: int):
        self.profile, self.budget, self.seed, self.trials = profile, budget, seed, 1

    def fit(self, train: Any) -> Any:
        from mlops_nb.model.train import fit

        return fit(train, self.profile, **self.settings(train), seed=self.seed)

    def settings(self, train: Any) -> dict[str, Any]:
        return {"model": "boosting"}


class Ours(Untuned):
    """`search_settings`, as the command calls it."""

    def settings(self, train: Any) -> dict[str, Any]:
        from mlops_nb.model.search import search_settings

        found = search_settings(train, self.profile, budget=self.budget, seed=self.seed)
        self.trials = len(found.trials)
        return found.best.settings


class Theirs(Untuned):
    """What the two others have in common: categories as pandas knows them, dates as numbers."""

    def inputs(self, rows: Any) -> Any:
        from mlops_nb.model.schema import input_kinds

        found = rows[self.profile["features"]].copy()
        for name, kind in input_kinds(self.profile).items():
            if kind == "category":
                found[name] = found[name].astype(self.levels.setdefault(name, found[name].astype("category").dtype))
            elif kind == "date":
                found[name] = found[name].astype("int64")
            else:
                found[name] = found[name].astype("float64")
        return found

    def fit(self, train: Any) -> Any:
        self.levels: dict[str, Any] = {}
        target = train[self.profile["target"]]
        target = target.astype(float if self.profile["task"] == "regression" else str).to_numpy()
        self.model = self.learn(self.inputs(train), target)
        self.classes_ = getattr(self.model, "classes_", None)
        return self

    def predict(self, rows: Any) -> Any:
        return self.model.predict(self.inputs(rows))

    def predict_proba(self, rows: Any) -> Any:
        return self.model.predict_proba(self.inputs(rows))


class Flaml(Theirs):
    """FLAML with its own list of estimators."""

    def learn(self, inputs: Any, target: Any) -> Any:
        from flaml import AutoML

        task = self.profile["task"]
        metric = {"binary": "roc_auc", "multiclass": "macro_f1", "regression": "rmse"}[task]
        found = AutoML()
        kind = "regression" if task == "regression" else "classification"
        how = {"time_budget": self.budget, "metric": metric, "seed": self.seed, "n_jobs": 1, "verbose": 0}
        found.fit(inputs, target, task=kind, **how)
        self.trials = len(found.config_history)
        return found


class ByHand(Theirs):
    """LightGBM and Optuna, as a person writes it in ten minutes: three folds, early stopping, TPE, then a refit."""

    def learn(self, inputs: Any, target: Any) -> Any:
        import lightgbm
        import numpy as np
        import optuna
        from sklearn.metrics import f1_score, mean_squared_error, roc_auc_score
        from sklearn.model_selection import KFold, StratifiedKFold

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        task = self.profile["task"]
        learner = lightgbm.LGBMRegressor if task == "regression" else lightgbm.LGBMClassifier
        cut = (KFold if task == "regression" else StratifiedKFold)(FOLDS, shuffle=True, random_state=self.seed)
        folds, common = list(cut.split(inputs, target)), {"random_state": self.seed, "n_jobs": 1, "verbose": -1}
        deadline = time.monotonic() + 0.85 * self.budget
        rounds: dict[int, int] = {}

        def score(model: Any, rows: Any, truth: Any) -> float:
            if task == "regression":
                return -(mean_squared_error(truth, model.predict(rows)) ** 0.5)
            if task == "multiclass":
                return float(f1_score(truth, model.predict(rows), average="macro"))
            return float(roc_auc_score(truth, model.predict_proba(rows)[:, 1]))

        def objective(trial: Any) -> float:
            settings = {
                "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
                "num_leaves": trial.suggest_int("num_leaves", 8, 256, log=True),
                "min_child_samples": trial.suggest_int("min_child_samples", 5, 100, log=True),
                "reg_lambda": trial.suggest_float("reg_lambda", 1e-3, 100, log=True),
                "colsample_bytree": trial.suggest_float("colsample_bytree", 0.4, 1.0),
            }
            scores, best = [], []
            for fitted, held in folds:
                if time.monotonic() > deadline:
                    raise optuna.TrialPruned
                model = learner(n_estimators=1000, **settings, **common)
                stop = [lightgbm.early_stopping(20, verbose=False)]
                rest = (inputs.iloc[held], target[held])
                model.fit(inputs.iloc[fitted], target[fitted], eval_set=[rest], callbacks=stop)
                scores.append(score(model, *rest))
                best.append(model.best_iteration_)
            rounds[trial.number] = int(np.mean(best))
            return float(np.mean(scores))

        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.seed))
        study.optimize(objective, timeout=0.85 * self.budget)
        self.trials = len(study.trials)
        found = learner(n_estimators=rounds[study.best_trial.number], **study.best_params, **common)
        return found.fit(inputs, target)


CONTENDERS = {"untuned": Untuned, "mlops-nb automl": Ours, "FLAML": Flaml, "LightGBM + Optuna": ByHand}


def one(name: str, table: str, target: str, exclude: list[str], budget: float, seed: int, place: Path) -> None:
    """Let one contender learn and predict, in this process; leave its predictions and what it used in a file."""
    from mlops_nb.model.scores import predict_rows
    from mlops_nb.model.train import reproducible_threads

    warnings.filterwarnings("ignore")
    train, test, profile = parts(table, target, exclude, seed)
    contender = CONTENDERS[name](profile, budget, seed)
    wall, cpu = time.monotonic(), time.process_time()
    with reproducible_threads(0):
        model = contender.fit(train)
    used = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu, "trials": contender.trials}
    found = predict_rows(model, test, target, profile["task"], profile["positive"])
    place.write_bytes(pickle.dumps((found, used)))


def compete(table: str, target: str, exclude: list[str], budget: float, seed: int) -> list[dict[str, Any]]:
    """A row for each contender, after all have run, one after another."""
    from mlops_nb.model.bootstrap import difference_test, intervals
    from mlops_nb.model.measures import ranking_metric
    from mlops_nb.model.scores import score

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CONTENDERS:
            place = Path(folder) / "result"
            order = json.dumps([name, table, target, exclude, budget, seed, str(place)])
            command = [sys.executable, __file__, "--one", order]
            subprocess.run(command, env={**os.environ, **THREADS}, check=True, stdout=subprocess.DEVNULL)
            results[name] = pickle.loads(place.read_bytes())  # written by the process above
    metric = ranking_metric(results["untuned"][0].task).name
    ours, rows = results["mlops-nb automl"][0], []
    for name, (found, used) in results.items():
        difference = difference_test(found, ours, metric, seed=seed)[:2]
        row = {"table": Path(table).name, "seed": seed, "contender": name, "metric": metric}
        row |= {"score": score(found)[metric], "interval": intervals(found, seed=seed)[metric]}
        rows.append(row | {"difference_to_ours": difference} | used)
    return rows


def show(row: dict[str, Any]) -> str:
    """A line for a contender."""
    (low, high), (less, more) = row["interval"], row["difference_to_ours"]
    digits = 1 if row["score"] > 100 else 4
    score = f"{row['score']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    difference = "" if less == more else f"{less:+.{digits}f} to {more:+.{digits}f}"
    who = f"{row['table'][:24]:<24} {row['seed']:>2} {row['contender']:<18} {row['metric']:<8}"
    used = f"{row['wall']:6.1f} s wall {row['cpu']:6.1f} s CPU {row['trials']:5} trials"
    return f"{who} {score:<32} {difference:<22} {used}"


def main() -> None:
    """Parse the words, let all compete on each table, print a line for each contender."""
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("tables", nargs="*", metavar="TABLE TARGET", help="path of a table, and its target; repeat")
    words.add_argument("--budget", type=float, default=60, help="wall seconds of each contender")
    words.add_argument("--seeds", type=int, nargs="+", default=[0], help="of split, folds and sampler")
    words.add_argument("--exclude", action="append", default=[], help="a column to leave out, where a table has it")
    words.add_argument("--json", action="store_true", help="print one document")
    words.add_argument("--one", help=argparse.SUPPRESS)
    chosen = words.parse_args()
    if chosen.one:
        *order, place = json.loads(chosen.one)
        one(*order, Path(place))
        return
    if not chosen.tables or len(chosen.tables) % 2:
        words.error("give a target after each table")
    pairs = list(zip(chosen.tables[::2], chosen.tables[1::2], strict=True))
    rows = []
    for table, target in pairs:
        for seed in chosen.seeds:
            for row in compete(table, target, chosen.exclude, chosen.budget, seed):
                rows.append(row)
                if not chosen.json:
                    print(show(row), flush=True)
    if chosen.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
