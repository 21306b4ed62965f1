"""What every test shares: nothing reaches the user's own stores, no network is asked for."""

import json
import os
import signal
from pathlib import Path

import pytest
from support import ROOT, Project, shared_folder


@pytest.fixture(scope="session", autouse=True)
def private_homes(tmp_path_factory):
    """What lies outside the project (BentoML, Jupyter's signatures, passphrases) lives in a temporary folder."""
    home = tmp_path_factory.mktemp("homes")
    names = {
        "BENTOML_HOME": "bentoml",
        "JUPYTER_DATA_DIR": "jupyter-data",
        "JUPYTER_RUNTIME_DIR": "jupyter-runtime",
        "IPYTHONDIR": "ipython",
        "MPLCONFIGDIR": "matplotlib",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(home / folder) for name, folder in names.items()})
    before["XDG_CONFIG_HOME"] = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(shared_folder(tmp_path_factory) / "config")  # all work with the default run
    for name in [name for name in os.environ if name.startswith(("MLOPS_NB_", "WANDB_"))]:
        before[name] = os.environ.pop(name)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    before["MLOPS_NB_PIPELINE_SERVER"] = None
    os.environ["MLOPS_NB_PIPELINE_SERVER"] = "off"  # commands of tests leave nothing behind
    yield home
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Commands that tests start can be interrupted, even where a shell started the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository."""
    return ROOT


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    """The default run of the tabular pipeline, made once for all test processes; copy it to change it."""
    from mlops_nb.core.locks import FileLock

    shared = shared_folder(tmp_path_factory)
    project = Project(ROOT, shared / "default" / "workspace")
    answer = shared / "default" / "run.json"
    answer.parent.mkdir(exist_ok=True)
    with FileLock(shared / "default" / "lock", timeout=600):
        if not answer.exists():
            document = project.run()
            answer.write_text(json.dumps(document), encoding="utf-8")
    return project, json.loads(answer.read_text(encoding="utf-8"))
