"""Predictions do not depend on threads: a forest's trees are added up in one order."""

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from mlops_nb.model.scores import predict_rows
from mlops_nb.model.train import LARGE, reproducible_threads


@pytest.mark.parametrize(
    ("task", "forest"), [("binary", RandomForestClassifier), ("regression", RandomForestRegressor)]
)
def test_many_rows_are_predicted_alike_each_time(monkeypatch, task, forest):
    random = np.random.default_rng(0)
    inputs = pd.DataFrame(random.normal(size=(20_000, 5)).astype("float32"), columns=list("abcde"))
    spent = inputs["a"] + random.normal(size=len(inputs))
    target = spent if task == "regression" else (spent > 0).map({True: "yes", False: "no"})
    fitted = forest(40, max_depth=8, random_state=0).fit(inputs[:2000], target[:2000])
    rows = inputs.assign(target=target)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    results = set()
    for _ in range(6):
        with reproducible_threads(LARGE + 1):
            found = predict_rows(fitted, rows, "target", task, "yes")
        results.add((found.predicted if found.probabilities is None else found.probabilities).tobytes())
    assert len(results) == 1
