"""The same notebooks by hand, under other people's runners: the same gives, compared by hash."""

import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
import websocket
from support import ROOT, Project, ask, free_port, gives

FOLDER = ROOT / "nbs" / "pipelines" / "tabular"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))


@pytest.fixture
def project(tmp_path):
    return Project(ROOT, tmp_path / "workspace")


def by_hand(project: Project) -> dict[str, str]:
    """`step.artifact` -> sha256 of what lies in scratch."""
    found = {}
    for path in (project.workspace / "scratch" / "tabular").glob("*/manifest.json"):
        for name, artifact in json.loads(path.read_text(encoding="utf-8"))["gives"].items():
            found[f"{path.parent.name}.{name}"] = artifact["sha256"]
    return found


def test_bare_papermill_gives_the_same(project, default_run, tmp_path):
    for notebook in NOTEBOOKS:
        done = project.call("papermill", str(notebook), str(tmp_path / notebook.name), "--no-progress-bar")
        assert done.returncode == 0, done.stderr[-3000:]
    assert by_hand(project) == gives(default_run[1])


def test_bare_papermill_takes_changed_parameters(project, default_run, tmp_path):
    source = Project(ROOT, default_run[0].workspace).copy(project.workspace)
    changed = source.run("-p", "train.model=logistic", "-p", "train.seed=3")
    train = next(path for path in NOTEBOOKS if path.stem.endswith("_train"))
    fresh = default_run[0].copy(tmp_path / "fresh")
    words = ["-p", "model", "logistic", "-p", "seed", "3", "--no-progress-bar"]
    done = fresh.call("papermill", str(train), str(tmp_path / "out.ipynb"), *words)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = {name: digest for name, digest in gives(changed).items() if name.startswith("train.")}
    assert by_hand(fresh) == expected
    assert expected != {name: digest for name, digest in gives(default_run[1]).items() if name.startswith("train.")}


def test_our_engine_under_bare_papermill(project, default_run, tmp_path):
    done = project.call("papermill", "--engine", "mlops_nb", str(NOTEBOOKS[0]), str(tmp_path / "out.ipynb"))
    assert done.returncode == 0, done.stderr[-3000:]
    expected = {name: digest for name, digest in gives(default_run[1]).items() if name.startswith("ingest.")}
    assert by_hand(project) == expected


def test_nbdevs_test_runner_gives_the_same(project, default_run):
    for notebook in NOTEBOOKS:
        done = project.call("nbdev-test", str(notebook), "--n-workers", "0")
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert by_hand(project) == gives(default_run[1])


@pytest.fixture
def jupyter(project):
    """A real Jupyter server on the project's folder; its address and token."""
    port, token = free_port(), uuid.uuid4().hex
    command = [str(project.binaries / "jupyter-server"), "--no-browser", f"--ServerApp.port={port}", "--allow-root"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={project.folder}"]
    log = project.workspace.parent / "jupyter.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=project.environment, stdout=out, stderr=out, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            try:
                if ask(f"{address}/api/status?token={token}")[0] == 200:
                    break
            except OSError:
                assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield address, token
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def run_all(address: str, token: str, notebook: Path) -> None:
    """Open the notebook as JupyterLab does, and run every cell."""
    path = notebook.relative_to(ROOT).as_posix()
    body = {"path": path, "name": notebook.name, "type": "notebook", "kernel": {"name": "python3"}}
    status, session = ask(f"{address}/api/sessions?token={token}", body, timeout=60)
    assert status == 201
    kernel = session["kernel"]["id"]
    socket = websocket.create_connection(
        f"{address.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={token}", timeout=120
    )
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            execute(socket, "".join(cell["source"]))
    socket.close()


def execute(socket: websocket.WebSocket, code: str) -> None:
    """Run one cell through the server and wait for its reply."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "version": "5.4",
        "username": "",
        "session": "s",
    }
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    socket.send(json.dumps(message))
    while True:
        answer = json.loads(socket.recv())
        if answer["msg_type"] == "execute_reply" and answer["parent_header"].get("msg_id") == header["msg_id"]:
            assert answer["content"]["status"] == "ok", answer["content"]
            return


def test_jupyterlab_gives_the_same(project, default_run, jupyter):
    address, token = jupyter
    before = {path: path.read_bytes() for path in NOTEBOOKS}
    for notebook in NOTEBOOKS:
        run_all(address, token, notebook)
    assert by_hand(project) == gives(default_run[1])
    assert {path: path.read_bytes() for path in NOTEBOOKS} == before
