"""The table of scores, as a person reads it."""

import numpy as np
import pandas as pd
import pytest

from mlops_nb.model.evaluation import Evaluation
from mlops_nb.model.scores import Predictions


def evaluation(test: float, bounds: tuple[float, float], guess: float) -> Evaluation:
    """Numbers of a regression by one metric."""
    values = np.arange(4.0)
    folds = pd.DataFrame({"rmse": [test, test * 1.1]})
    found = Predictions("regression", values, values, None, (), None)
    return Evaluation({"rmse": test}, {"rmse": bounds}, {"rmse": test}, {"rmse": guess}, folds, found)


@pytest.mark.parametrize(
    ("numbers", "row"),
    [
        ((290_123.4, (280_000.2, 301_000.9), 5.1e6), "290,123 280,000 to 301,001 5,100,000 290,123 304,630 ± 20,515"),
        ((0.12, (0.1, 0.1449), 0.5), "0.1200 0.1000 to 0.1449 0.5000 0.1200 0.1260 ± 0.0085"),
        ((0.9, (0.8, 0.99), -6.5e-6), "0.9000 0.8000 to 0.9900 0 0.9000 0.9450 ± 0.0636"),
    ],
)
def test_numbers_of_a_row_have_equally_many_decimals(numbers, row):
    grid = evaluation(*numbers).grid()
    assert " ".join(grid.rows[0][1:]) == row
    assert grid.sides == ["left", "right", "right", "right", "right", "right"]


def test_a_model_that_does_no_better_than_a_guess_is_told():
    assert not len(evaluation(1.0, (0.9, 1.1), 1.2).findings)
    [finding] = evaluation(1.0, (0.9, 1.1), 1.05).findings
    assert finding.level == "warning" and "no better than a guess (1.0500)" in finding.message
    assert len(evaluation(1.0, (0.9, 1.1), 0.2).findings) == 1, "worse than a guess"
