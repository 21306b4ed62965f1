"""Sweep files of W&B are searched as they are, and refused where they cannot work."""

import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_support import Project
from search_support import IMPORTS, search, write_churn

from mlops_nb.core.errors import UsageError
from mlops_nb.notebook.parameters import Parameter
from mlops_nb.pipeline.graph import load_pipeline
from mlops_nb.pipeline.sweep_file import DISTRIBUTIONS, dimension_from, read_sweep_file

PARAMETERS = """#| parameters
rate: Annotated[float, Range(0, 100)] = 0.1
depth: int = 3
model: Literal["a", "b"] = "a"
columns: list[str] = []
seed: int = 0"""
LOSS = "flow.metrics = Metrics({'loss': abs(rate - 0.01) + depth + len(model) + len(columns) + len(flow.split.part)})"


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path / "project")
    write_churn(made, LOSS, parameters=PARAMETERS)
    made.step("30_other", IMPORTS, "#| parameters\nseed: int = 1", "flow.x = Json(1)")
    return made


def read(project, text):
    project.file("sweep.yaml", text)
    return read_sweep_file(project.folder / "sweep.yaml", load_pipeline(project.settings, "churn"))


GRID = """
program: train.py
command: ["${env}", python, "${program}"]
method: grid
metric: {name: train.loss, goal: minimize}
parameters:
  depth: {values: [1, 2]}
  train.model: {value: b}
  rate: {value: 1e-1}
  columns: {values: [["x"], ["x", "y"]]}
"""


def test_a_grid_is_searched_whole_and_in_its_order(project):
    file = read(project, GRID)
    assert (file.method, file.metric, file.minimize, file.fixed) == (
        "grid",
        "train.loss",
        True,
        {"train.model": "b", "train.rate": 0.1},
    )
    found = search(project, file=file, over=[], trials=None)
    assert found.exit_code == 0
    tried = [tuple(trial["parameters"].values()) for trial in found.document["trials"]]
    assert tried == [(d, c) for d in (1, 2) for c in (["x"], ["x", "y"])]
    assert found.document["defaults"] is None
    assert found.document["best"]["parameters"] == {"train.depth": 1, "train.columns": ["x"]}


def test_a_random_search_stops_at_its_cap(project):
    text = "method: random\nmetric: {name: train.loss}\nrun_cap: 3\nparameters: {rate: {min: 0.5, max: 2.0}}"
    file = read(project, text)
    found = search(project, file=file, over=[], trials=file.trials)
    assert len(found.document["trials"]) == 3
    assert all(0.5 <= trial["parameters"]["train.rate"] <= 2 for trial in found.document["trials"])


def test_nested_names_and_slashes_are_steps(project):
    file = read(
        project,
        "method: random\nparameters:\n  train: {parameters: {depth: {min: 1, max: 4}}}\n  train/rate: {values: [1, 2]}",
    )
    assert [str(one) for one in file.space] == ["1 to 4", "1.0 or 2.0"]
    assert [one.name for one in file.space] == ["train.depth", "train.rate"]


def test_early_termination_is_read(project):
    bands = (
        "method: bayes\nparameters: {depth: {values: [1, 2]}}\nearly_terminate: {type: hyperband, max_iter: 27, s: 2}"
    )
    assert read(project, bands).stopping == {"type": "hyperband", "min_iter": 3, "eta": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: gird\nparameters: {depth: {values: [1]}}", "no method 'gird'.*\n.*'grid'"),
        ("methd: grid\nparameters: {depth: {values: [1]}}", "no 'methd'.*\n.*'method'"),
        (
            "method: grid\nparameters: {detph: {values: [1]}}",
            "sweep.yaml: No step of churn has a parameter 'detph'.*\n.*'depth'",
        ),
        ("method: grid\nparameters: {seed: {values: [1, 2]}}", "Write train.seed or other.seed"),
        ("method: grid\nparameters: {}", "names no parameters"),
        ("method: grid", "names no parameters"),
        ("method: grid\nparameters: {depth: 3}", "is 3, which is no space"),
        ("method: grid\nparameters: {depth: {values: []}}", "no list of one or more"),
        ("method: grid\nparameters: {model: {values: [a, c]}}", "wants one of 'a', 'b'"),
        ("method: grid\nparameters: {rate: {min: 0.1, max: 1.5}}", "a grid cannot be made of train.rate"),
        ("method: random\nparameters: {rate: {min: 0.1, max: 150.0}}", "must be at most 100"),
        ("method: random\nparameters: {rate: {min: 2, max: 1}}", "nothing lies between"),
        ("method: random\nparameters: {rate: {min: x, max: 1}}", "min is 'x', which is no finite number"),
        ("method: random\nparameters: {rate: {distribution: unifrom, min: 0, max: 1}}", "Did you mean 'uniform'"),
        ("method: random\nparameters: {rate: {distribution: log_uniform_values, min: 0, max: 1}}", "above 0"),
        ("method: random\nparameters: {model: {min: 0, max: 1}}", "takes a or b, no range"),
        ("method: random\nparameters: {depth: {values: [1, 2], probabilities: [0.5]}}", "as many probabilities"),
        ("method: random\nmetric: loss\nparameters: {depth: {values: [1]}}", "the metric has no name"),
        ("method: random\nmetric: {name: a.b, goal: up}\nparameters: {depth: {values: [1]}}", "goal is 'up'"),
        ("method: random\nrun_cap: 0\nparameters: {depth: {values: [1]}}", "run_cap is 0"),
        ("method: random\nearly_terminate: {type: median}\nparameters: {depth: {values: [1]}}", "of type 'median'"),
        ("- a\n- b", "holds no names"),
        ("method: [", "line 1: this is no YAML"),
    ],
)
def test_a_file_that_cannot_work_is_refused_in_a_sentence(project, text, message):
    with pytest.raises(UsageError) as raised:
        read(project, text)
    assert re.search(message, str(raised.value)), str(raised.value)


def test_a_file_that_is_not_there_is_said(project):
    with pytest.raises(UsageError, match="cannot be read"):
        read_sweep_file(project.folder / "none.yaml", load_pipeline(project.settings, "churn"))


WORDS = {"min": 0.5, "max": 3.0, "mu": 0.0, "sigma": 1.0, "a": 2.0, "b": 3.0, "q": 0.25}


@pytest.mark.parametrize(
    "name", [name for name in DISTRIBUTIONS if name not in ("constant", "categorical", "categorical_w_probabilities")]
)
@settings(deadline=None)  # the first one imports SciPy
@given(share=st.floats(0.001, 0.999))
def test_every_distribution_gives_values_of_its_kind(name, share):
    dimension = dimension_from(Parameter("rate", "float", 0.1, step="train"), {"distribution": name, **WORDS})
    kind, low, high, ratios = dimension.drawn_as
    drawn = math.exp(math.log(low) + share * (math.log(high) - math.log(low))) if ratios else low + share * (high - low)
    value = dimension.value(round(drawn) if kind == "int" else drawn)
    assert math.isfinite(value)
    if name.startswith("q_"):
        assert abs(value / 0.25 - round(value / 0.25)) < 1e-6
    if "values" in name or name in ("uniform", "q_uniform"):
        assert 0.5 <= value <= 3.0
    if name in ("log_uniform", "q_log_uniform"):
        assert math.exp(0.5) - 0.13 <= value <= math.exp(3) + 0.13


def test_the_exponents_of_log_uniform_are_natural():
    dimension = dimension_from(Parameter("rate", "float", 0.1), {"distribution": "log_uniform", "min": -2, "max": 0})
    assert (dimension.low, dimension.high) == (math.exp(-2), 1.0)


def test_weights_are_followed():
    words = {"values": [1, 2], "probabilities": [0.9, 0.1]}
    dimension = dimension_from(Parameter("depth", "int", 3), words)
    chance = random.Random(0)
    drawn = [dimension.value(chance.random()) for _ in range(1000)]
    assert 0.85 < drawn.count(1) / 1000 < 0.95
