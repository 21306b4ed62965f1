"""Workspaces with runs that gave model packages, made without running a pipeline."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import Settings, load_settings
from mlops_nb.core.store import Store

INPUTS = {"age": "integer", "balance": "number"}


def people(rows: int = 300) -> pd.DataFrame:
    """A small table for two classes."""
    random = np.random.default_rng(1)
    age, balance = random.integers(18, 90, rows), random.normal(0, 1, rows)
    churned = np.where(age / 20 + balance + random.normal(0, 1, rows) > 2.7, "yes", "no")
    return pd.DataFrame({"age": age, "balance": balance, "churned": pd.array(churned, dtype="str")})


def package(train: pd.DataFrame, inputs: tuple[str, ...] = ("age", "balance"), name: str = "churn", **changes) -> bytes:
    """The bytes of a model package: a logistic regression on some columns, whatever its schema says."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from mlops_nb.data.rows import row_hashes
    from mlops_nb.model.archive import dump_estimator, pack
    from mlops_nb.model.schema import describe_inputs

    columns = make_column_transformer(("passthrough", list(inputs)))
    model = make_pipeline(columns, LogisticRegression()).fit(train[list(INPUTS)], train["churned"].to_numpy(np.str_))
    schema = describe_inputs(train, INPUTS, target="churned", task="binary").document() | changes.pop("schema", {})
    members = {
        "model.skops": dump_estimator(model),
        "schema.json": json.dumps(schema).encode(),
        "examples.json": json.dumps(train[list(INPUTS)].head(2).to_dict("records")).encode(),
        "trained_on.bin": np.unique(row_hashes(train)).astype("<u8").tobytes(),
    }
    manifest = {
        "format": 1,
        "name": name,
        "task": "binary",
        "target": "churned",
        "metric": "roc_auc",
        "metric_greater_is_better": True,
        "metrics": {"roc_auc": 0.9},
        "holdout": "split.test",
        "trusted": [],
        "packages": [],
        "requirements": {"numpy": np.__version__},
        "files": {member: sha256_bytes(content) for member, content in members.items()},
    }
    return pack({"manifest.json": json.dumps(manifest | changes, sort_keys=True).encode(), **members})


def make_project(folder: Path) -> Settings:
    """A project with nothing in it."""
    folder.mkdir(parents=True)
    (folder / "settings.ini").write_text("[package]\nname = demo\n")
    return load_settings(folder)


def give(
    settings: Settings,
    ledger: Ledger,
    run_id: str,
    content: bytes,
    test: pd.DataFrame | None,
    metrics: dict[str, float] | None = None,
    source: str = "",
) -> dict:
    """Record a run whose steps gave a holdout table and a package, by a source of this hash; the run's document."""
    from mlops_nb.data.table import Table, serializer

    store = Store(settings.workspace.path / "objects")
    gives = {
        "package": {"package": {"type": "ModelPackage", "sha256": store.put_bytes(content), "size": 1, "meta": {}}}
    }
    if test is not None:
        file = settings.workspace.path / "table"
        meta = serializer.write(Table(test), file)
        gives = {"split": {"test": {"type": "Table", "sha256": store.put_file(file), "size": 1, "meta": meta}}, **gives}
    ledger.begin_run(run_id, "tabular", {})
    read = {"inputs": {"source": {"kind": "file", "value": "people.csv", "sha256": source}}} if source else {}
    for position, (step, values) in enumerate(gives.items()):
        manifest = {"format": 1, "step": step, "gives": values, "metrics": {}}
        facts = {"position": position, "reasons": ["first run"], "parts": {}}
        if step == "package":
            manifest, facts = manifest | {"metrics": metrics or {}}, facts | {"parts": read}
        key = f"{sha256_bytes(json.dumps(values, sort_keys=True).encode())}"
        ledger.commit_step(run_id, step, key=key, manifest=manifest, **facts)
    return {"schema": 1, "run": run_id, "pipeline": "tabular", "steps": []}


def register(settings: Settings, ledger: Ledger, contents: list[bytes], test: pd.DataFrame) -> None:
    """Runs that gave these packages, each registered; only the first has rows to be judged on, and stays champion."""
    from mlops_nb.registry.register import run_completing

    for number, content in enumerate(contents, 1):
        run_id = f"20261129-10150{number}-000{number}"
        run_completing(give(settings, ledger, run_id, content, test if number == 1 else None), settings, ledger)
        ledger.end_run(run_id, "ok")


def standing(settings: Settings) -> dict:
    """All that the registry is responsible for, as it stands."""
    from mlops_nb.registry.releases import read_release, released_models

    releases = settings.workspace.path / "releases"
    with Ledger.open(settings) as ledger:
        versions = [(one["name"], one["version"], one["digest"], one["aliases"]) for one in ledger.versions()]
    published = {name: read_release(releases, name).document.content() for name in released_models(releases)}
    for files in (document["files"] for document in published.values()):
        files |= {name: "" for name in files if name.endswith("model.sig")}  # another project has another key
    return {"versions": versions, "published": published, "requirements": (releases / "requirements.txt").is_file()}
