"""Definitions for other schedulers: the plan's edges, typed parameters, and no value that anything could execute."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import yaml
from pipeline_support import Project

from mlops_nb.core.errors import UsageError
from mlops_nb.core.settings import load_settings
from mlops_nb.pipeline.export import describe, read_environment
from mlops_nb.pipeline.export_airflow import airflow_text
from mlops_nb.pipeline.export_argo import argo_text
from mlops_nb.pipeline.export_github import github_text

AIRFLOW = os.environ.get("MLOPS_NB_TEST_AIRFLOW_PYTHON")  # an interpreter with Airflow 2.10 or 3
HERA = os.environ.get("MLOPS_NB_TEST_HERA_PYTHON")  # an interpreter with Hera's models of Argo's API
ZIZMOR = os.environ.get("MLOPS_NB_TEST_ZIZMOR") or shutil.which("zizmor", path=Path(sys.executable).parent)
VALIDATOR = os.environ.get("MLOPS_NB_TEST_ACTION_VALIDATOR")  # npm's @action-validator/cli
NASTY = "a\"b'c; touch pwned; $(touch pwned) `touch pwned` ${{ secrets.X }} {{workflow.name}} \\ %s é"
EDGES = {"split": [], "größe": ["split"], "train": ["split", "größe"]}
SHARED = {"MLOPS_NB_WORKSPACE_URL": "s3://bucket/prefix", "MLOPS_NB_WORKSPACE_LEDGER": "env:LEDGER"}
LIMITS = {"MLOPS_NB_PIPELINE_TIMEOUT": "60", "MLOPS_NB_PIPELINE_MEMORY": "1000"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Three steps with parameters of every type, and texts that no quoting survives."""
    project = Project(tmp_path_factory.mktemp("export"))
    declared = (
        f"#| parameters\nwords: str = {NASTY!r}  # {NASTY} ''' \"\"\"\nrows: list[int] = [1, 2]\nfast: bool = True"
    )
    project.step("10_split", declared, "flow.rows = [words, rows, fast]")
    project.step(
        "20_größe", "#| parameters\nlow: int | None = None\nrate: float = 0.5", "flow.n = len(flow.split.rows)"
    )
    choice = "from typing import Annotated, Literal\nfrom mlops_nb import Range, Secret"
    declared = '#| parameters\nmodel: Literal["a", "b"] = "b"\ndepth: Annotated[int, Range(1, 9)] = 3\n'
    declared += 'token: Secret = "env:SERVICE_TOKEN"'
    project.step("30_train", choice, declared, "flow.model = [flow.split.rows, flow.größe.n]")
    return project


def flow_of(project, schedule=None, image=None, **environ):
    return describe(load_settings(project.folder, environ=environ), "churn", schedule, image)


def strings(value):
    """All texts in a document, keys included."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings(part)]
    return [text for part in value for text in strings(part)] if isinstance(value, list) else [str(value)]


def test_github_has_the_plans_edges_and_no_expression_but_its_own(project):
    flow = flow_of(project, "0 2 * * *", **SHARED, **LIMITS)
    text = github_text(flow)
    document = yaml.safe_load(text)
    jobs = document["jobs"]
    assert {name: job.get("needs", []) for name, job in jobs.items()} == {
        "split": [],
        "gr__e": ["split"],
        "train": ["gr__e", "split"],
    }
    allowed = r"\$\{\{ (inputs\.\w+|secrets\.[A-Z_]+|github\.run_id) \}\}|github-\$\{\{ github\.run_id \}\}"
    assert all(re.fullmatch(allowed, one) for one in strings(document) if "${{" in one)
    assert document["permissions"] == {"contents": "read"} and document["on"]["schedule"] == [{"cron": "0 2 * * *"}]
    inputs = document["on"]["workflow_dispatch"]["inputs"]
    assert inputs["train__model"]["options"] == ["a", "b"] and inputs["train__depth"]["default"] == 3
    assert inputs["split__fast"] | {"description": ""} == {
        **{"description": "", "required": False, "type": "boolean", "default": True}
    }
    assert "default" not in inputs["split__words"] and not any("token" in name for name in inputs)
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    assert all(job["timeout-minutes"] == 12 for job in jobs.values())
    secrets = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "LEDGER", "SERVICE_TOKEN"}
    assert set(jobs["train"]["steps"][-1]["env"]) == secrets and "[s3,postgres]" in text


def test_github_without_a_shared_workspace_is_one_job(project):
    document = yaml.safe_load(github_text(flow_of(project)))
    (job,) = document["jobs"].values()
    called = [step["name"] for step in job["steps"] if "mlops-nb" in step.get("run", "") and step.get("shell")]
    assert called == list(EDGES) and job["steps"][-1]["if"] == "always()"


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_nothing_that_is_typed_is_executed(project, tmp_path, shell):
    (step,) = [
        s
        for s in yaml.safe_load(github_text(flow_of(project)))["jobs"]["pipeline"]["steps"]
        if s.get("name") == "train"
    ]
    fake = tmp_path / "mlops-nb"
    fake.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\n")
    fake.chmod(0o755)
    typed = {"PARAMETER_split__words": NASTY, "PARAMETER_train__depth": "4", "PARAMETER_split__rows": ""}
    typed |= {"PARAMETER_more": "train.model=a\n\ngröße.rate=0.25\n"}
    environment = {**os.environ, **typed, "RUN_KEY": NASTY, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([shell, "-c", step["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True)
    words, seen = json.loads(done.stdout)
    assert words == ["run", "churn", "--only", "train", "--run-key", NASTY, "--param-env", "PARAMETER_"]
    found = read_environment(project.settings, "churn", "PARAMETER_", seen)
    assert found == {"split.words": NASTY, "train.depth": "4", "train.model": "a", "größe.rate": "0.25"}
    assert not (tmp_path / "pwned").exists()


def test_a_variable_that_is_no_parameter_is_refused(project):
    with pytest.raises(UsageError, match="PARAMETER_train__dept is no parameter of churn") as refused:
        read_environment(project.settings, "churn", "PARAMETER_", {"PARAMETER_train__dept": "1"})
    assert "train__depth" in refused.value.hint


def assigned(text: str) -> dict:
    """The literals that a module assigns."""
    tree = ast.parse(text)
    pairs = [(node.targets[0].id, node.value) for node in tree.body if isinstance(node, ast.Assign)]
    return {
        name: ast.literal_eval(value) for name, value in pairs if name in ("PARAMS", "VARIABLES", "COMMANDS", "EDGES")
    }


def test_airflow_has_the_plans_edges_and_templates_that_hand_values_on(project):
    flow = flow_of(project, "0 2 * * *", **LIMITS)
    found = assigned(airflow_text(flow))
    names = {task.step: task.name for task in flow.tasks}
    assert sorted(found["EDGES"]) == sorted((names[b], names[step]) for step, needs in EDGES.items() for b in needs)
    facts = found["PARAMS"]
    assert facts["split__words"]["default"] == NASTY and facts["split__rows"]["items"] == {"type": "integer"}
    assert facts["train__depth"] | {"description": ""} == {
        **{"default": 3, "description": "", "type": "integer", "minimum": 1, "maximum": 9}
    }
    values = {name: fact["default"] for name, fact in facts.items()}
    rendered = {
        name: jinja2.Template(template).render(params=values, run_id=NASTY)
        for name, template in found["VARIABLES"].items()
    }
    assert rendered.pop("RUN_KEY") == NASTY
    given = read_environment(project.settings, "churn", "PARAMETER_", rendered)
    plan = project.plan(parameters=given)
    assert plan.values == project.plan().values, "defaults come back as they are"
    with pytest.raises(UsageError, match="--image does not go with airflow"):
        airflow_text(flow._replace(image="x"))


def test_argo_has_the_plans_edges_and_values_only_in_variables(project):
    flow = flow_of(project, None, "registry.example/churn:1", **SHARED, **LIMITS)
    document = yaml.safe_load(argo_text(flow))
    first, *steps = document["spec"]["templates"]
    names = dict(zip([task["name"] for task in first["dag"]["tasks"]], EDGES, strict=True))
    assert {names[t["name"]]: [names[d] for d in t.get("dependencies", [])] for t in first["dag"]["tasks"]} == EDGES
    for step in steps:
        own = [text for text in strings([step["container"]["command"], step["container"]["args"]]) if "{{" in text]
        assert own == ["{{workflow.name}}/{{workflow.uid}}"] and re.fullmatch(
            r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", step["name"]
        )
        assert step["container"]["resources"]["limits"] == {"memory": "1512Mi"} and step["activeDeadlineSeconds"] == 660
    parameters = {one["name"]: one for one in document["spec"]["arguments"]["parameters"]}
    assert not any("{{" in text for text in strings([parameters])), "a default cannot become a template"
    assert parameters["train__depth"]["value"] == "3" and parameters["train__model"]["enum"] == ["", "a", "b"]
    secret = [one for one in steps[-1]["container"]["env"] if one["name"] == "SERVICE_TOKEN"]
    assert secret[0]["valueFrom"]["secretKeyRef"] == {"name": "churn-secrets", "key": "SERVICE_TOKEN"}
    cron = yaml.safe_load(argo_text(flow._replace(schedule="0 2 * * *")))
    assert cron["kind"] == "CronWorkflow" and cron["spec"]["workflowSpec"] == document["spec"]


def test_the_same_project_gives_the_same_text(project):
    program = (
        "import sys\nfrom mlops_nb.core.settings import load_settings\nfrom mlops_nb.pipeline.export import describe\n"
    )
    program += "from mlops_nb.pipeline.export_airflow import airflow_text\n"
    program += "sys.stdout.write(airflow_text(describe(load_settings(sys.argv[1]), 'churn')))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, project.folder], env=environment, capture_output=True, text=True
    )
    assert done.stdout == airflow_text(flow_of(project))


@pytest.mark.skipif(not ZIZMOR, reason="zizmor is not installed, and MLOPS_NB_TEST_ZIZMOR names none")
@pytest.mark.parametrize("shared", [{}, SHARED])
def test_zizmor_finds_nothing(project, tmp_path, shared):
    file = tmp_path / ".github/workflows/churn.yml"
    file.parent.mkdir(parents=True)
    file.write_text(github_text(flow_of(project, "0 2 * * *", **shared)))
    done = subprocess.run([ZIZMOR, "--offline", "--no-progress", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    if VALIDATOR:
        done = subprocess.run([VALIDATOR, file], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


READ = """
import json, sys
from hera.workflows import models
document = json.load(open(sys.argv[1]))
kind = getattr(models, document["kind"])
given = kind.model_validate(document)
spec = given.spec.workflow_spec if document["kind"] == "CronWorkflow" else given.spec

def lost(a, b, at=""):  # keys that the model does not know would be dropped
    if isinstance(a, dict):
        for key in a:
            if key not in (b or {}):
                print(at + "/" + key)
            else:
                lost(a[key], b[key], at + "/" + key)
    elif isinstance(a, list):
        [lost(x, y, at) for x, y in zip(a, b)]
lost(document, given.model_dump(by_alias=True, exclude_none=True, mode="json"))
"""


@pytest.mark.skipif(not HERA, reason="MLOPS_NB_TEST_HERA_PYTHON names no interpreter with Hera")
@pytest.mark.parametrize("schedule", [None, "0 2 * * *"])
def test_argos_models_know_every_key(project, tmp_path, schedule):
    file = tmp_path / "churn.json"
    text = argo_text(flow_of(project, schedule, "registry.example/churn:1", **SHARED, **LIMITS))
    file.write_text(json.dumps(yaml.safe_load(text)))
    done = subprocess.run([HERA, "-c", READ, file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


DAG = """
import json, sys
try:
    from airflow.dag_processing.dagbag import DagBag  # Airflow 3
except ImportError:
    from airflow.models.dagbag import DagBag
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
dag = bag.dags["churn"]
print("edges", sorted((t.task_id, sorted(t.upstream_task_ids)) for t in dag.tasks))
state = dag.test(run_conf=json.loads(sys.argv[2]))
print("state", getattr(state, "state", state))
"""


@pytest.mark.skipif(not AIRFLOW, reason="MLOPS_NB_TEST_AIRFLOW_PYTHON names no interpreter with Airflow")
def test_airflow_imports_and_runs_it(project, tmp_path):
    shutil.copytree(project.folder, tmp_path / "project")
    (tmp_path / "project/dags").mkdir()
    (tmp_path / "project/dags/churn.py").write_text(airflow_text(flow_of(project)))
    path = f"{Path(sys.executable).parent}{os.pathsep}{Path(AIRFLOW).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path / "home"), "PATH": path, "SERVICE_TOKEN": "t"}
    environment |= {
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "project/dags"),
    }
    migrate = subprocess.run(
        [AIRFLOW, "-m", "airflow", "db", "migrate"], env=environment, capture_output=True, text=True
    )
    assert migrate.returncode == 0, migrate.stderr
    typed = {"train__depth": 5, "split__rows": [7], "split__fast": False, "split__words": f"{NASTY}!"}
    command = [AIRFLOW, "-c", DAG, tmp_path / "project/dags", json.dumps(typed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "state success" in done.stdout.lower(), done.stdout[-3000:] + done.stderr[-3000:]
    (run,) = Project(tmp_path / "project").ledger.runs()
    assert run["status"] == "ok" and "__" in run["key"]
    assert {f"{name.replace('__', '.')}": value for name, value in typed.items()}.items() <= run["parameters"].items()
    assert not list((tmp_path / "project").rglob("pwned"))
