"""Answers to be logged, without a model or a server."""

from types import SimpleNamespace
from typing import Any

from mlops_nb.serve.segments import Answered, Definition

NOON = 1_796_040_000_000_000  # 2026-11-30 12:00 UTC
ANSWER = {"prediction": "no", "probabilities": {"no": 0.75, "yes": 0.25}}


def definition(version: int = 7, **fields: str) -> Definition:
    """A version of the model churn; `fields` maps names to kinds."""
    fields = fields or {"age": "integer", "job": "category"}
    places = list(range(len(fields)))
    return Definition(0, "churn", version, "5d" * 32, "binary", list(fields), [*fields.values()], places, ["no", "yes"])


def said(name: str, rows: list[Any], moment: int = NOON) -> Answered:
    """One answered request."""
    return Answered(0, name, moment, len(rows), 2, "champion", "shop", 0.002, rows, [ANSWER] * len(rows))


def logged(name: str, rows: list[Any], features: dict[str, str], version: int = 7, **answer: Any) -> Any:
    """What the application hands to the log."""
    schema = {
        "task": "binary",
        "classes": ["no", "yes"],
        "features": [{"name": feature, "kind": kind, "nullable": True} for feature, kind in features.items()],
    }
    facts = {"model": "churn", "version": version, "digest": "5d" * 32, "generation": 2, "arm": "champion"}
    return SimpleNamespace(
        call=SimpleNamespace(name=name, caller=SimpleNamespace(name="shop")),
        slot=SimpleNamespace(**facts, predictor=SimpleNamespace(schema=schema)),
        records=SimpleNamespace(values=rows),
        predictions=[{**ANSWER, **answer}] * len(rows),
        seconds=0.002,
        explained="reasons" in answer,
        user="",
    )
