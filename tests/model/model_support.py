"""Tables of every kind of column, and profiles as `ingest` gives them."""

from typing import Any

import numpy as np
import pandas as pd

KINDS = {
    "age": "integer",
    "income": "number",
    "member": "boolean",
    "plan": "category",
    "zip": "category",
    "since": "date",
}


def people(rows: int = 600, seed: int = 0, classes: int = 2) -> pd.DataFrame:
    """Numbers with gaps, truth values, few and many levels, times; `group` is a class, `spent` a number."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "age": random.integers(18, 90, rows),
            "income": np.where(random.random(rows) < 0.1, np.nan, random.lognormal(8, 1, rows)),
            "member": random.random(rows) < 0.4,
            "plan": pd.Series(
                random.choice(["basic", "plus", "pro", None], rows, p=[0.5, 0.3, 0.15, 0.05]), dtype="str"
            ),
            "zip": pd.Series(random.integers(1000, 1080, rows).astype(str), dtype="str"),
            "since": (np.datetime64("2021-03-01T09:30") + random.integers(0, 900 * 24 * 60, rows)).astype("M8[us]"),
        }
    )
    drift = (table["since"] - pd.Timestamp("2021-03-01")).dt.days / 300
    score = table["age"] / 20 + 1.5 * (table["plan"] == "pro") - table["member"] + drift + random.normal(0, 1, rows)
    cuts = np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1])
    names = np.array([f"class {number:02d}" for number in range(classes)])
    table["group"] = pd.Series(names[np.searchsorted(cuts, score)], dtype="str")
    table["spent"] = 100 * score
    return table


def profile_of(target: str, task: str, kinds: dict[str, str] = KINDS, positive: str | None = None) -> dict[str, Any]:
    """What `ingest` would say of a table."""
    columns = {name: {"kind": kind, "role": "feature", "reason": ""} for name, kind in kinds.items()}
    return {"target": target, "task": task, "positive": positive, "features": list(kinds), "columns": columns}


def learn(
    table: pd.DataFrame, target: str, task: str, model: str, kinds: dict[str, str] = KINDS, **settings: Any
) -> Any:
    """A pipeline fitted to some columns of a table."""
    from mlops_nb.model.train import fit

    return fit(table[[*kinds, target]], profile_of(target, task, kinds), model, **settings)


def model_of(
    table: pd.DataFrame, target: str, task: str, model: str, kinds: dict[str, str] = KINDS, **settings: Any
) -> Any:
    """The same with schema and examples."""
    from mlops_nb.model.artifact import Model
    from mlops_nb.model.schema import describe_inputs

    schema = describe_inputs(table, kinds, target, task)
    return Model(learn(table, target, task, model, kinds, **settings), table.head(5), schema)
