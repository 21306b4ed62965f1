"""Projects with a release, made without running a pipeline, and servers started on them."""

import contextlib
import io
import json
import os
import signal
import ssl
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from support import BIN, ROOT, free_port

from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.model.background import draw_background
from mlops_nb.model.schema import InputSchema, describe_inputs
from mlops_nb.registry.keyring import make_private, public_text
from mlops_nb.registry.keys import TrustedKey, trusted_text
from mlops_nb.registry.releases import Arm, Document, publish
from mlops_nb.registry.signature import sign_files

NOT_FOR_SERVING = """
import sys

BLOCKED = {BLOCKED}

class Blocker:
    "Fail every import that a serving environment could not satisfy"

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{{name}} is not there when serving", name=name)

sys.meta_path.insert(0, Blocker())
"""
BLOCKED = (
    "sqlalchemy",
    "alembic",
    "papermill",
    "nbclient",
    "nbformat",
    "nbconvert",
    "ipykernel",
    "IPython",
    "jupyter_client",
    "pyarrow",
    "matplotlib",
    "wandb",
    "nbdev",
    "fastcore",
    "execnb",
)


def people(rows: int = 200) -> pd.DataFrame:
    """A table with a column of every kind, some values missing."""
    random = np.random.default_rng(0)
    age = random.integers(18, 90, rows)
    balance = np.where(random.random(rows) < 0.1, np.nan, random.normal(1000, 500, rows).round(2))
    return pd.DataFrame(
        {
            "age": age,
            "account balance": balance,
            "married": random.random(rows) < 0.5,
            "job": pd.array(random.choice(["clerk", "nurse", "cook", None], rows), dtype="str"),
            "since": pd.to_datetime("2020-01-01") + pd.to_timedelta(random.integers(0, 1500, rows), unit="D"),
            "churned": np.where(age + random.normal(0, 10, rows) > 55, "yes", "no"),
        }
    ).astype({"since": "datetime64[us]", "churned": "str"})


KINDS = {"age": "integer", "account balance": "number", "married": "boolean", "job": "category", "since": "date"}


def fitted(table: pd.DataFrame, foreign: bool) -> Any:
    """A pipeline over all kinds of columns; a foreign one holds a function that no model needs."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["job", "married"]),
        ("passthrough", ["age", "account balance"]),
    )
    steps = [columns, FunctionTransformer(inverse_func=os.getenv if foreign else None)]
    model = make_pipeline(*steps, HistGradientBoostingClassifier(max_iter=20))
    return model.fit(table[list(KINDS)], table["churned"])


def contents_of(estimator: Any, inputs: InputSchema, examples: list[dict]) -> dict[str, bytes]:
    """The files of one version of a release."""
    from skops.io import dumps

    return {
        "versions/1/model.skops": dumps(estimator),
        "versions/1/manifest.json": json.dumps({"packages": [], "requirements": {"numpy": np.__version__}}).encode(),
        "versions/1/schema.json": json.dumps(inputs.document()).encode(),
        "versions/1/examples.json": json.dumps(examples).encode(),
        "versions/1/metrics.json": b"{}",
    }


SIGNER = make_private(b"of no consequence")[0]


def signature(contents: dict[str, bytes], subject: str) -> bytes:
    """What signs the files of one version."""
    return sign_files(subject, {name.rpartition("/")[2]: sha256_bytes(data) for name, data in contents.items()}, SIGNER)


def trust(project: Path, *keys: TrustedKey) -> Path:
    """Write the project's file of trusted keys."""
    path = project / ".mlops" / "keys" / "trusted.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(trusted_text(keys), encoding="utf-8")
    return path


def make_project(folder: Path) -> Path:
    """A project that has nothing but its settings and a bentofile."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.ini").write_text("[package]\nname = demo\nimport_name = demo\n")
    (folder / "bentofile.yaml").write_bytes((ROOT / "bentofile.yaml").read_bytes())
    return folder


def release(project: Path, model: str = "churn", foreign: bool = False) -> Path:
    """Release a small model of mixed types; the release's folder."""
    table = people()
    inputs = describe_inputs(table, KINDS, target="churned", task="binary")
    examples = json.loads(table[list(KINDS)].head(3).to_json(orient="records", date_format="iso"))
    contents = contents_of(fitted(table, foreign), inputs, examples)
    contents["versions/1/background.json"] = draw_background(table, inputs, 10).content()
    contents["versions/1/model.sig"] = signature(contents, f"{model}:1")
    trust(project, TrustedKey("project", public_text(SIGNER)))
    files = {name: sha256_bytes(content) for name, content in contents.items()}
    document = Document(model, "binary", (Arm(1, "5d" * 32, 1.0, "versions/1"),), files, generation=1)
    return publish(project / ".mlops" / "releases", document, contents)


def marks(model: bytes) -> list[bytes]:
    """Pieces of a plain model that occur nowhere else: from the tree of types, and from the largest arrays."""
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        contents = sorted((archive.read(name) for name in archive.namelist()), key=len)[-4:]
    return [content[len(content) // 2 : len(content) // 2 + 48] for content in contents]


def holding(pieces: list[bytes], *folders: Path) -> list[str]:
    """Files that hold one of the pieces."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path) for path in files if any(piece in path.read_bytes() for piece in pieces)]


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Variables of a server's process: a home of its own, and nothing that says whether to report usage."""
    kept = {name: value for name, value in os.environ.items() if name != "BENTOML_DO_NOT_TRACK"}
    return {**kept, "BENTOML_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **extra}


def block_imports(folder: Path, *more: str) -> Path:
    """A folder for PYTHONPATH in which processes can import only what serving needs, and nothing of `more` either."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(textwrap.dedent(NOT_FOR_SERVING.format(BLOCKED=(*BLOCKED, *more))))
    return folder


@dataclass
class Answer:
    """What a server said."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Server:
    """A `bentoml serve` process, and how to ask it."""

    process: subprocess.Popen
    port: int
    log: Path
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    tls: ssl.SSLContext | None = None  # what is trusted; None: HTTP

    def ask(self, path: str, body: Any = None, method: str | None = None, headers: dict | None = None) -> Answer:
        """Send one request; a body that is no bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = self.headers if headers is None else headers
        scheme = "https" if self.tls else "http"
        request = urllib.request.Request(f"{scheme}://127.0.0.1:{self.port}{path}", data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.tls) as said:
                return Answer(said.status, dict(said.headers), said.read().decode())
        except urllib.error.HTTPError as said:
            return Answer(said.code, dict(said.headers), said.read().decode())

    def wait(self, seconds: float = 60) -> None:
        """Return when the model is loaded; fail when the process ends or takes too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError):
                if self.ask("/readyz").status == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"not ready after {seconds} s:\n{self.log.read_text()}")


def workers(server: Server) -> list[int]:
    """Process ids of a server's workers."""
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # or a zombie
            if "_bentoml_impl.worker.service" in child.cmdline():
                found.append(child.pid)
    return sorted(found)


@contextlib.contextmanager
def serving(
    folder: Path,
    log: Path,
    env: dict[str, str],
    target: str = ".",
    start: tuple[str, ...] = (),
    tls: ssl.SSLContext | None = None,
):
    """Run `bentoml serve TARGET` in `folder` until the block ends; or another command that starts it."""
    port = free_port()
    serve = ["serve", "--port", str(port), "--host", "127.0.0.1"]
    command = [*start, *serve] if start else [sys.executable, "-m", "bentoml", *serve, target]
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
    server = Server(process, port, log, tls=tls)
    try:
        server.wait(180 if start else 60)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
