"""What comparing groups costs: the table of rates by group beside Fairlearn's MetricFrame, for the same rows and rates.

    python benchmarks/fairness.py [--rows 1000000] [--rounds 5] [--frame-rounds 1]

Draws rows with two sensitive columns (2 and 5 levels, both together 10 groups), a truth and a prediction, and computes
seven rates by `sex`, by `race` and by both, in one process. Medians of CPU seconds:

- `own`: our table, Wilson's intervals of every rate included; `bare` is the same without the intervals;
- `ranked`: with the area under the ROC curve (DeLong's interval) and the calibration error of every group besides;
- `frame`: MetricFrame for the same columns and rates, from the words of the columns and truth and prediction as 0, 1;
  it gives no interval;
- `ratio`: `frame` by `own`; `bare_ratio`: `frame` by `bare`; `ranked_ratio`: `frame` by `ranked`;
- `loop_ms`: milliseconds of CPU of a plain loop over a million numbers, to compare machines and how busy they were.

The rates of both are compared and must be equal to the last digit. Prints a line of JSON. Exit code 1 when one differs,
or `ratio` is below 50.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import fairlearn.metrics as fl
import numpy as np
import pandas as pd
from sklearn import metrics as sk

from mlops_nb.model.groups import GroupTable, group_rows, group_table
from mlops_nb.model.scores import Predictions

LIMIT = 50.0
COLUMNS = (["sex"], ["race"], ["sex", "race"])
METRICS: dict[str, Any] = {
    "selection_rate": fl.selection_rate,
    "true_positive_rate": fl.true_positive_rate,
    "false_positive_rate": fl.false_positive_rate,
    "true_negative_rate": fl.true_negative_rate,
    "false_negative_rate": fl.false_negative_rate,
    "accuracy": sk.accuracy_score,
    "precision": sk.precision_score,
}


def draw(rows: int) -> tuple[pd.DataFrame, Predictions]:
    """People of ten groups, and what a model says of them."""
    random = np.random.default_rng(0)
    people = pd.DataFrame(
        {
            "sex": pd.Series(random.choice(["female", "male"], rows), dtype="str"),
            "race": pd.Series(random.choice(list("abcde"), rows, p=[0.4, 0.3, 0.15, 0.1, 0.05]), dtype="str"),
        }
    )
    risk = np.clip(random.normal(0.35 + 0.1 * (people["sex"] == "male"), 0.2), 0.001, 0.999)
    truth, said = (np.where(part, "yes", "no").astype(object) for part in (random.random(rows) < risk, risk > 0.5))
    return people, Predictions("binary", truth, said, np.column_stack([1 - risk, risk]), ("no", "yes"), "yes")


def own_tables(people: pd.DataFrame, found: Predictions, ranked: bool, bounds: bool) -> list[GroupTable]:
    """Our table for each choice of columns."""
    tables = [group_table(found, group_rows(people, columns), ranked=ranked) for columns in COLUMNS]
    for estimate in (estimate for table in tables for estimate in table.metrics.values() if bounds):
        estimate.bounds()
    return tables


def frames(people: pd.DataFrame, truth: np.ndarray, said: np.ndarray) -> list[fl.MetricFrame]:
    """Fairlearn's table for each choice of columns."""
    options: dict[str, Any] = {"metrics": METRICS, "y_true": truth, "y_pred": said}
    made = [fl.MetricFrame(**options, sensitive_features=people[columns]) for columns in COLUMNS]
    return [frame for frame in made if len(frame.by_group)]


def median_cpu(rounds: int, work: Callable[[], Any]) -> float:
    """Median seconds of CPU."""
    found = []
    for _ in range(rounds):
        before = time.process_time()
        work()
        found.append(time.process_time() - before)
    return statistics.median(found)


def equal(tables: list[GroupTable], made: list[fl.MetricFrame]) -> bool:
    """Whether both give the same rates, to the last digit."""
    pairs = [(table.metrics[name].value[:, 0], frame.by_group[name].to_numpy()) for table, frame
             in zip(tables, made, strict=True) for name in METRICS]  # fmt: skip
    return all(np.array_equal(own, theirs) for own, theirs in pairs)


def main() -> int:
    """Exit code: 0 when both agree and the limit is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frame-rounds", type=int, default=1)
    asked = parser.parse_args()
    people, predicted = draw(asked.rows)
    truth, said = predicted.is_positive.astype(int), (predicted.predicted == "yes").astype(int)
    made: list[fl.MetricFrame] = []
    frame = median_cpu(asked.frame_rounds, lambda: made.extend(frames(people, truth, said)))
    alike = equal(own_tables(people, predicted, False, True), made[: len(COLUMNS)])
    found = {
        "own": median_cpu(asked.rounds, lambda: own_tables(people, predicted, False, True)),
        "bare": median_cpu(asked.rounds, lambda: own_tables(people, predicted, False, False)),
        "ranked": median_cpu(asked.rounds, lambda: own_tables(people, predicted, True, True)),
        "frame": frame,
    }
    found |= {
        f"{name}ratio": frame / found[part] for name, part in {"": "own", "bare_": "bare", "ranked_": "ranked"}.items()
    }
    found["loop_ms"] = 1000 * median_cpu(asked.rounds, lambda: [number * 2.0 for number in range(1_000_000)])
    print(json.dumps({"rows": asked.rows, "equal": alike} | {name: round(value, 3) for name, value in found.items()}))
    return int(not alike or found["ratio"] < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
