"""A Bento holds one release and what it needs; packaged, it serves in an environment made from its lock alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from access_support import ring_of
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from serve_support import environment, holding, make_project, marks, people, release, serving
from support import BIN, ROOT

WRITE_REQUIREMENTS = """
from pathlib import Path
from mlops_nb.registry.requirements import requirements
Path(".mlops/releases/requirements.txt").write_text(requirements(Path.cwd()))
"""
REGISTER = """
import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from serve_support import KINDS, people
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.core.store import Store
from mlops_nb.model.artifact import Model
from mlops_nb.model.onnx_parity import export_onnx
from mlops_nb.model.package import ModelPackage
from mlops_nb.model.schema import describe_inputs
from mlops_nb.model.train import fit

settings, table = load_settings(), people()
columns = {name: {"kind": kind} for name, kind in KINDS.items()}
profile = {"target": "churned", "task": "binary", "features": list(KINDS), "columns": columns}
schema = describe_inputs(table, KINDS, "churned", "binary")
with Ledger.open(settings) as ledger:
    ledger.begin_run("20261123-170501-0001", "tabular", {})
    for rounds in (5, 20):
        model = Model(fit(table, profile, "boosting", max_iter=rounds), table.head(3), schema)
        package = ModelPackage(model, "churn", {"roc_auc": 0.9}, table, onnx=export_onnx(model, table))
        package.write(settings.workspace.path / "package")
        digest = Store(settings.workspace.path / "objects").put_file(settings.workspace.path / "package")
        about = {"run_id": "20261123-170501-0001", "task": "binary", "metric": "roc_auc", "schema_digest": "0" * 64}
        ledger.register_version("churn", digest, **about, metrics={"roc_auc": 0.9}, details={})
    ledger.move_alias("churn", "champion", 1, expected=None, reason="first", evidence={})
"""
LAPTOP_ONLY = ("papermill", "wandb", "jupyterlab", "nbformat", "matplotlib", "sqlalchemy", "mlops-nb")


def call(folder, env, *command):
    """Run a command; what it printed."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the package's source, as this repository, two models, and much that a Bento should not take."""
    project = make_project(tmp_path_factory.mktemp("bento") / "project")
    shutil.copytree(ROOT / "mlops_nb", project / "mlops_nb", ignore=shutil.ignore_patterns("__pycache__"))
    release(project)
    release(project, "account")
    for name in ("nbs/10_step.ipynb", "data/secret.csv", ".env", ".mlops/ledger.sqlite", ".mlops/objects/ab/abcd"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("not for a Bento")
    (project / ".mlops/keys/project.pem").write_text("not for a Bento")
    (project / ".mlops/releases/churn/.000001-aaaaaaaaaaaa.0123.tmp").mkdir()
    (project / ".mlops/releases/churn/.000001-aaaaaaaaaaaa.0123.tmp/release.json").write_text("half")
    call(project, environment(project.parent / "home"), sys.executable, "-c", WRITE_REQUIREMENTS)
    return project


@pytest.fixture(scope="module")
def bento(project):
    """The Bento built from that project, in a home outside of it."""
    env = environment(project.parent / "home", MLOPS_NB_SERVING_MODEL="churn")
    tag = call(project, env, sys.executable, "-m", "bentoml", "build", "--output", "tag").strip()
    name, _, version = tag.removeprefix("__tag__:").partition(":")
    return project.parent / "home" / "bentos" / name / version


@pytest.fixture(scope="module")
def packaged(project):
    """Version 2 of a model whose champion is version 1, packaged twice; both documents."""
    shutil.copyfile(ROOT / "requirements.lock", project / "requirements.lock")
    runs = project.parent / "runs"
    runs.mkdir()
    env = environment(project.parent / "home", MLOPS_NB_WORKSPACE_PATH=str(runs))
    call(project, env, sys.executable, "-c", REGISTER, str(Path(__file__).parent))
    command = [sys.executable, "-m", "mlops_nb", "package", "churn:2", "--json", "--output"]
    return [json.loads(call(project, env, *command, str(project.parent / name))) for name in ("first", "second")]


@pytest.fixture(scope="module")
def fresh(packaged):
    """An environment with what the package's lock names, each file compared with its hash, and nothing else."""
    venv, folder = Path(packaged[0]["folder"]).parent / "venv", Path(packaged[0]["folder"])
    env = environment(folder.parent / "home")
    options = (
        "--quiet",
        "--require-hashes",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-r",
        str(folder / "requirements.txt"),
    )
    if (BIN / "uv").exists():
        call(folder, env, str(BIN / "uv"), "venv", "--quiet", "--python", sys.executable, str(venv))
        call(folder, env, str(BIN / "uv"), "pip", "install", "--python", str(venv / "bin/python"), *options)
    else:
        call(folder, env, sys.executable, "-m", "venv", str(venv))
        call(folder, env, str(venv / "bin/python"), "-m", "pip", "install", *options)
    return venv / "bin"


def test_it_holds_the_release_and_the_package_and_nothing_else(bento):
    files = {str(file.relative_to(bento / "src")) for file in (bento / "src").rglob("*") if file.is_file()}
    tops = {Path(file).parts[0] for file in files}
    assert tops == {"settings.ini", "bentofile.yaml", "mlops_nb", ".mlops"}
    kept = {file for file in files if file.startswith(".mlops")}
    keys = {".mlops/keys/trusted.json"}
    assert keys <= kept and all(file.startswith(".mlops/releases/") and ".tmp" not in file for file in kept - keys)
    assert {".mlops/releases/requirements.txt", ".mlops/releases/churn/current"} <= kept
    assert not any("account" in Path(file).parts for file in kept)
    assert {Path(file).suffix for file in files if file.startswith("mlops_nb")} == {".py"}
    assert "churn" in (bento / "bento.yaml").read_text()
    assert "account balance" in (bento / "apis/openapi.yaml").read_text()


def test_its_requirements_are_exact_and_few(bento):
    lines = (bento / "env/python/requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin and "://" not in pin for pin in pins)
    names = {pin.partition("==")[0].lower() for pin in pins}
    assert {"bentoml", "msgspec", "scikit-learn", "skops", "uvicorn", "httptools"} <= names
    assert not names & set(LAPTOP_ONLY)


def test_a_bento_without_its_release_is_not_built(project, tmp_path):
    elsewhere = tmp_path / "workspace"
    shutil.copytree(project / ".mlops", elsewhere)
    copy = make_project(tmp_path / "project")
    shutil.copytree(project / "mlops_nb", copy / "mlops_nb")
    env = environment(tmp_path / "home", MLOPS_NB_WORKSPACE_PATH=str(elsewhere), MLOPS_NB_SERVING_MODEL="churn")
    command = [sys.executable, "-m", "bentoml", "build"]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert "The Bento would hold no release that can be served" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_version_packaged_twice_is_the_same(packaged):
    first, second = packaged
    assert first["digest"] == second["digest"] and first["tag"] == second["tag"]
    assert first["tag"].startswith("churn:2-") and first["hashes"]
    folders = [Path(document["folder"]) for document in packaged]
    files, others = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in folders
    )
    assert files == others
    assert not any(str(folders[0]).encode() in content for content in files.values())


def test_what_lies_beside_the_bento_is_what_others_read(packaged):
    folder = Path(packaged[0]["folder"])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((folder / "sbom.cdx.json").read_text()) is None
    components = json.loads((folder / "sbom.cdx.json").read_text())["components"]
    [model] = [one for one in components if one["type"] == "machine-learning-model"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": packaged[0]["model"]}]
    assert model["modelCard"]["modelParameters"]["task"] == "classification"
    pins = [line.partition(" ")[0] for line in (folder / "requirements.txt").read_text().splitlines()[1:]]
    assert sorted(f"{one['name']}=={one['version']}" for one in components if one is not model) == sorted(pins)
    call(folder, dict(os.environ), str(BIN / "hadolint"), "Dockerfile")
    assert "\nUSER 10001\n" in (text := (folder / "Dockerfile").read_text())
    assert "urlopen('http://127.0.0.1:3000/livez')" in text, "a model that was stopped is no reason to restart"


def test_it_serves_in_a_fresh_environment_by_its_own_entry_point(packaged, fresh, tmp_path):
    folder = Path(packaged[0]["folder"])
    store = environment(folder.parent / "home")
    call(folder, store, sys.executable, "-m", "bentoml", "export", packaged[0]["tag"], str(tmp_path / "churn.bento"))
    shutil.unpack_archive(tmp_path / "churn.bento", tmp_path / "bento", "xztar")
    env = environment(tmp_path / "another-home", MLOPS_NB_WORKSPACE_PATH=str(tmp_path / "nowhere"))
    env |= {"BENTO_PATH": str(tmp_path / "bento"), "PATH": f"{fresh}{os.pathsep}{os.environ['PATH']}"}
    start = ("bash", str(tmp_path / "bento/env/docker/entrypoint.sh"))
    as_in_a_container = {**env, "BENTOML_HOST": "0.0.0.0"}
    told = subprocess.run(
        start, cwd=tmp_path, env=as_in_a_container, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 1 and "asks nobody for a key" in told.stdout + told.stderr
    (tmp_path / "settings.ini").write_text("[access]\n")
    key = {"authorization": f"Bearer {ring_of(tmp_path).create('shop', ('predict',))[0]}"}
    keys, audit = tmp_path / ".mlops/access/keys.json", tmp_path / "audit.jsonl"
    env |= {"MLOPS_NB_ACCESS_MODE": "on", "MLOPS_NB_ACCESS_KEYS": str(keys), "MLOPS_NB_ACCESS_AUDIT": str(audit)}
    with serving(tmp_path, tmp_path / "server.log", env, start=start) as server:
        assert server.ask("/docs.json").status == 401 and "access.refused" in audit.read_text()
        server.headers |= key
        answer = server.ask("/predict", [{"age": 41, "married": True, "job": "clerk", "since": "2021-03-01"}] * 2)
        assert answer.status == 200, answer.text
        assert answer.json["version"] == 2
        assert answer.json["predictions"][0]["prediction"] in set(people()["churned"])
        assert server.ask("/docs.json").json["info"]["title"] == "churn"


def test_an_encrypted_model_is_packed_encrypted_and_served_with_its_key(project, packaged, tmp_path):
    identity = pytest.importorskip("pyrage").x25519.Identity.generate()
    runs, plain = project.parent / "runs", Path(packaged[0]["folder"]) / "bento"
    onnx = next(plain.rglob("model.onnx")).read_bytes()
    pieces = [*marks(next(plain.rglob("model.skops")).read_bytes()), onnx[len(onnx) // 2 :][:48]]
    env = environment(tmp_path / "home", MLOPS_NB_WORKSPACE_PATH=str(runs))
    env |= {"MLOPS_NB_REGISTRY_RECIPIENTS": str(identity.to_public())}
    command = [sys.executable, "-m", "mlops_nb", "package", "churn:2", "--json", "--output", str(tmp_path / "packed")]
    document = json.loads(call(project, env, *command))
    assert document["tag"] == packaged[0]["tag"]
    copy = tmp_path / "home/bentos" / document["tag"].replace(":", "/")
    for folder in (tmp_path / "packed/bento", copy):
        assert {path.name for path in folder.rglob("*.age")} >= {"model.skops.age", "model.onnx.age"}
    assert "\npyrage==" in (tmp_path / "packed/requirements.txt").read_text()
    assert len(holding(pieces, plain)) == 2, "the search finds a plain model"
    assert holding(pieces, tmp_path) == []
    (tmp_path / "server.key").write_text(f"{identity}\n")
    env = environment(tmp_path / "another-home", MLOPS_NB_SERVING_IDENTITY=f"file:{tmp_path / 'server.key'}")
    env |= {"BENTO_PATH": str(copy)}
    start = ("bash", str(copy / "env/docker/entrypoint.sh"))
    with serving(tmp_path, tmp_path / "server.log", env, start=start) as server:
        answer = server.ask("/predict", {"age": 41, "married": True, "job": "clerk", "since": "2021-03-01"})
        assert answer.status == 200 and answer.json["version"] == 2, answer.text
    assert holding(pieces, tmp_path) == []


ASK = """
import sys
import mlflow
import pandas as pd

model = mlflow.pyfunc.load_model(sys.argv[1])
example = model.metadata.load_input_example(sys.argv[1])
answer = model.predict(pd.concat([example, example.assign(job=None)], ignore_index=True))
print(answer.to_json(orient="records"))
"""


def test_mlflow_opens_a_version_in_an_environment_of_its_own(project, packaged, tmp_path):
    env = environment(project.parent / "home", MLOPS_NB_WORKSPACE_PATH=str(project.parent / "runs"))
    command = [sys.executable, "-m", "mlops_nb", "package", "churn:2", "--json", "--mlflow"]
    first, again = (json.loads(call(project, env, *command, str(tmp_path / name))) for name in ("model", "again"))
    assert first["digest"] == again["digest"]
    python, needs = str(tmp_path / "venv/bin/python"), str(tmp_path / "model/requirements.txt")
    uv = [str(BIN / "uv"), "pip", "install", "--quiet", "--python", python, "-r", needs]
    call(tmp_path, env, sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    if not (BIN / "uv").exists():
        pytest.skip("there is no uv to install MLflow with")
    installed = subprocess.run(uv, env=env, capture_output=True, text=True, timeout=300, check=False)
    if installed.returncode:
        pytest.skip(f"MLflow cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    answers = json.loads(call(tmp_path, env, python, "-c", ASK, str(tmp_path / "model")))
    assert len(answers) == 6 and {one["prediction"] for one in answers} <= {"no", "yes"}
    assert all(abs(one["probability of no"] + one["probability of yes"] - 1) < 1e-9 for one in answers)
