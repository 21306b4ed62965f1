"""Notebook-first MLOps: a notebook is a function, a folder of notebooks is a pipeline."""

from typing import TYPE_CHECKING, Any

from mlops_nb.facade import PUBLIC, connect, public_name

if TYPE_CHECKING:
    from mlops_nb.core.errors import MlopsError, Refused
    from mlops_nb.core.serializers import Figure, File, Json, Metrics, Report
    from mlops_nb.data.table import Table
    from mlops_nb.model.artifact import Model
    from mlops_nb.model.callbacks import LogScores, log_fit, log_trial
    from mlops_nb.model.counterfactual import counterfactual
    from mlops_nb.model.package import ModelPackage
    from mlops_nb.notebook.flow import flow, log, note
    from mlops_nb.notebook.parameters import LogRange, Path, Pattern, Range, Secret, Source
    from mlops_nb.notebook.redact import secret
    from mlops_nb.registry.card import card
    from mlops_nb.registry.check import check_gates
    from mlops_nb.registry.look import approve, models, note_model, reject, tag_model, waive
    from mlops_nb.registry.promote import promote
    from mlops_nb.registry.rollback import rollback
    from mlops_nb.registry.score import safety_score
    from mlops_nb.serve.received import ServiceError
    from mlops_nb.serve.client import AsyncClient, Client
    from mlops_nb.serve.predictions import predictions
    from mlops_nb.serve.releasing import release
    from mlops_nb.track.annotate import note_run, star_run, tag_run
    from mlops_nb.track.board import leaderboard
    from mlops_nb.track.compare import compare
    from mlops_nb.track.curves import curves
    from mlops_nb.track.lineage import lineage
    from mlops_nb.track.tables import runs

__all__ = [  # the type checker wants the names as text; a test compares them with PUBLIC
    "AsyncClient",
    "Client",
    "Figure",
    "File",
    "Json",
    "LogRange",
    "LogScores",
    "Metrics",
    "MlopsError",
    "Model",
    "ModelPackage",
    "Path",
    "Pattern",
    "Range",
    "Refused",
    "Report",
    "Secret",
    "ServiceError",
    "Source",
    "Table",
    "approve",
    "card",
    "check_gates",
    "compare",
    "counterfactual",
    "curves",
    "flow",
    "leaderboard",
    "lineage",
    "log",
    "log_fit",
    "log_trial",
    "models",
    "note",
    "note_model",
    "note_run",
    "predictions",
    "promote",
    "reject",
    "release",
    "rollback",
    "runs",
    "safety_score",
    "secret",
    "star_run",
    "tag_model",
    "tag_run",
    "waive",
]


def __getattr__(name: str) -> Any:
    return public_name(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])


connect()
