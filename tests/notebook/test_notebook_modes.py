"""One notebook, run in every way: the same gives, compared by hash."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from step_files import IMPORTS, text_of, write_notebook, write_project

import mlops_nb
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.notebook.artifacts import fetch, read_manifest
from mlops_nb.notebook.engine import execute_step

ROOT = Path(mlops_nb.__file__).parents[1]
ROWS = [0, 1, 2, 3]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, and an environment that knows nothing of the one around it."""
    for name in ("MLOPS_NB_STEP", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    write_project(tmp_path / "demo")
    return tmp_path / "demo"


def scratch(project, step):
    return read_manifest(project / ".mlops/scratch/demo" / step / "manifest.json")


def hashes(manifest):
    return {name: record["sha256"] for name, record in manifest["gives"].items()}


def run_step(project, name, needs, gives, output):
    """Play the runner for one step; its manifest."""
    attempt = project / ".mlops/attempts/r1" / name.split("_")[1]
    attempt.mkdir(parents=True)
    place = {"project": str(project), "workspace": str(project / ".mlops"), "attempt": str(attempt)}
    document = {"run": "r1", "pipeline": "demo", "step": attempt.name, "needs": needs, "gives": gives, **place}
    (attempt / "context.json").write_text(json.dumps(document))
    result = execute_step(
        project / "nbs/pipelines/demo" / f"{name}.ipynb",
        output,
        {},
        cwd=project,
        environment={"MLOPS_NB_STEP": str(attempt / "context.json")},
    )
    assert result["error"] is None
    return read_manifest(attempt / "manifest.json")


def papermill(project, name, output, *arguments, cwd=None):
    """Bare papermill, with the ordinary kernel."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", f"nbs/pipelines/demo/{name}.ipynb", str(output)]
    done = subprocess.run([*command, *arguments], cwd=cwd or project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path(output).read_text())


def test_run_papermill_and_nbdev_give_the_same_hashes(project, tmp_path):
    made = run_step(project, "10_make", {}, ["rows", "count"], tmp_path / "make.ipynb")
    totals = run_step(project, "20_total", {"make.rows": made["gives"]["rows"]}, ["metrics"], tmp_path / "total.ipynb")
    assert (project / ".mlops/attempts/r1/total/points.ndjson").read_text().count("\n") == 1

    papermill(project, "10_make", tmp_path / "o1.ipynb")
    shown = text_of(papermill(project, "20_total", tmp_path / "o2.ipynb"))
    assert "make.rows was made by hand" in shown
    assert hashes(scratch(project, "make")) == hashes(made)
    assert hashes(scratch(project, "total")) == hashes(totals)

    changed = papermill(project, "20_total", tmp_path / "o3.ipynb", "-p", "scale", "2.0")
    assert changed["metadata"]["papermill"]["parameters"] == {"scale": 2.0}
    record = scratch(project, "total")["gives"]["metrics"]
    assert fetch(record, project / ".mlops") == {"total": 12.0}

    (project / "pyproject.toml").write_text(
        '[project]\nname = "demo"\nversion = "0"\n[tool.nbdev]\nlib_path = "demo"\n'
    )
    subprocess.run(["rm", "-r", str(project / ".mlops/scratch")], check=True)
    command = [str(Path(sys.executable).with_name("nbdev-test")), "--n-workers", "0", "nbs/pipelines/demo"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert "Success" in done.stdout + done.stderr, done.stderr[-3000:]
    assert hashes(scratch(project, "make")) == hashes(made)
    assert hashes(scratch(project, "total")) == hashes(totals)


def test_a_script_made_from_a_notebook_is_that_step(project):
    script = project / "make.py"
    script.write_text(
        "from mlops_nb import flow\n\nn = 4\nrows = list(range(n))\nflow.rows = rows\nflow.count = {'n': n}\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=project, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert fetch(scratch(project, "make")["gives"]["rows"], project / ".mlops") == ROWS


def test_a_copied_line_does_not_make_a_notebook_that_step(project, tmp_path):
    papermill(project, "10_make", tmp_path / "o.ipynb")
    analysis = project / "analysis.py"
    analysis.write_text(
        "from mlops_nb import flow\nrows = flow.make.rows\nmore = [r * 2 for r in rows]\nprint(more)\n"
        "text = str(more)\nflow.metrics = {'other': 1}\n"
    )
    done = subprocess.run([sys.executable, str(analysis)], cwd=project, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "[0, 2, 4, 6]" in done.stdout
    assert "not known which step" in done.stderr
    assert not scratch(project, "total")["gives"]


def commit_run(project, manifest):
    """Enter a good run of step `make` in the ledger; its id."""
    with Ledger.open(load_settings(project)) as ledger:
        ledger.begin_run("20261123-104500-3f2a", "demo", {})
        ledger.begin_step("20261123-104500-3f2a", "make", position=10, key="k", reasons=[])
        ledger.commit_step(
            "20261123-104500-3f2a",
            "make",
            key="k",
            parts={},
            manifest=manifest,
            points=[],
            cached=False,
            seconds=1.0,
            notebook="n",
        )
        ledger.end_run("20261123-104500-3f2a", "ok")
    return "20261123-104500-3f2a"


class Server:
    """A Jupyter server, and a kernel for one of its notebooks as JupyterLab would start it."""

    def __init__(self, root, log):

        self.root, self.token = root, "t" * 24
        arguments = ["--no-browser", "--ServerApp.port=0", "--allow-root", f"--IdentityProvider.token={self.token}"]
        command = [sys.executable, "-m", "jupyter_server", *arguments, f"--ServerApp.root_dir={root}"]
        environment = {**os.environ, "JUPYTER_RUNTIME_DIR": str(root / "runtime")}
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.url = self._wait(root / "runtime")

    def _wait(self, folder):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for file in folder.glob("jpserver-*.json"):  # written before the server listens
                facts = json.loads(file.read_text() or "{}")
                with suppress(OSError, KeyError), socket.create_connection(("localhost", facts["port"]), 5):
                    return facts["url"]
            assert self.process.poll() is None, "the server ended"
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    def request(self, method, path, body=None):
        from urllib.request import Request, urlopen

        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        with urlopen(Request(f"{self.url}api/{path}", data, headers, method=method), timeout=60) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def run(self, path):
        """Run all cells of a notebook; what they printed and the errors."""
        from websocket import create_connection

        name = Path(path).name
        session = self.request(
            "POST", "sessions", {"path": path, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
        )
        kernel = session["kernel"]["id"]
        address = f"{self.url}api/kernels/{kernel}/channels".replace("http", "ws", 1)
        socket = create_connection(f"{address}?token={self.token}", timeout=60)
        cells = json.loads((self.root / path).read_text())["cells"]
        texts = [self._execute(socket, item["source"]) for item in cells if item["cell_type"] == "code"]
        socket.close()
        self.request("DELETE", f"sessions/{session['id']}")
        return "".join(texts)

    def _execute(self, socket, code):
        identity = os.urandom(8).hex()
        header = {"msg_id": identity, "msg_type": "execute_request", "username": "", "session": "s", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        socket.send(json.dumps({**message, "buffers": []}))
        texts = []
        while True:
            answer = json.loads(socket.recv())
            if answer["parent_header"].get("msg_id") != identity:
                continue
            kind, content = answer["header"]["msg_type"], answer["content"]
            if kind == "stream":
                texts.append(content["text"])
            elif kind == "error":
                texts.append("\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                return "".join(texts)


def test_by_hand_in_jupyter(project, tmp_path):
    made = run_step(project, "10_make", {}, ["rows", "count"], tmp_path / "make.ipynb")
    run_id = commit_run(project, made)
    folder = project / "nbs/pipelines/demo"
    write_notebook(folder / "30_wrong.ipynb", IMPORTS, "flow.make.rowz")
    twin = project / "nbs/pipelines/twin"
    twin.mkdir()
    (twin / "10_make.ipynb").write_bytes((folder / "10_make.ipynb").read_bytes())
    with open(tmp_path / "server.log", "wb") as log:
        server = Server(project, log)
        try:
            shown = server.run("nbs/pipelines/demo/20_total.ipynb")
            assert f"flow: needs come from run {run_id}" in shown
            assert fetch(scratch(project, "total")["gives"]["metrics"], project / ".mlops") == {"total": 6.0}

            server.run("nbs/pipelines/demo/10_make.ipynb")
            assert hashes(scratch(project, "make")) == hashes(made)
            assert not (project / ".mlops/scratch/twin").exists()

            assert "make.rows was made by hand" in server.run("nbs/pipelines/demo/20_total.ipynb")
            shown = server.run("nbs/pipelines/demo/30_wrong.ipynb")
            assert shown == "UsageError: Step 'make' gives rows, count, not rowz.\n→ Did you mean 'rows'?"
        finally:
            server.process.terminate()
            server.process.wait(20)


def test_a_papermill_started_from_a_jupyter_kernel_is_not_that_notebook(project, tmp_path, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", str(project / "nbs/pipelines/demo/20_total.ipynb"))
    papermill(project, "10_make", tmp_path / "o.ipynb")
    assert set(scratch(project, "make")["gives"]) == {"rows", "count"}
    assert not scratch(project, "total")["gives"]
