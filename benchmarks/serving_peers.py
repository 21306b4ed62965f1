"""The services that `serving.py` compares ours with: their sources, their environments, how each is asked.

A peer gets an environment of its own under a folder that is named, made with uv once and used again; one that cannot
be installed is reported as such and left out. All that unpickle the fitted pipeline find this project's code on their
path, and the same scikit-learn, NumPy and pandas as it was fitted with. Every peer runs one worker with one thread per
library, and is asked in the way that its documentation shows, with its access log switched off.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLAIN = """
import json, os
import bentoml, joblib, pandas as pd

@bentoml.service(workers=1)
class Plain:
    def __init__(self):
        self.model = joblib.load(os.environ["PEER_MODEL"])
        self.names = [str(name) for name in self.model.classes_]

    @bentoml.api
    def predict(self, record: dict) -> dict:
        chances = self.model.predict_proba(pd.DataFrame([record]))[0]
        return {"prediction": self.names[chances.argmax()], "probabilities": dict(zip(self.names, chances.tolist()))}
"""
RAW = """
import os
BODY = os.environ["PEER_ANSWER"].encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]

async def app(scope, receive, send):
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY})
"""
FASTAPI = """
import json, os
from typing import Optional
import numpy as np, onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel, Field, create_model

schema = json.load(open(os.environ["PEER_SCHEMA"]))
TYPES = {"number": float, "integer": int, "boolean": bool, "category": str}
features = schema["features"]

def field(feature):
    kind, sized = TYPES[feature["kind"]], {"ge": -1e15, "le": 1e15} if feature["kind"] == "number" else {}
    if feature["nullable"]:
        return Optional[kind], Field(None, alias=feature["name"], **sized)
    return kind, Field(alias=feature["name"], **sized)

Record = create_model("Record", **{f"f{n}": field(feature) for n, feature in enumerate(features)})
Prediction = create_model("Prediction", prediction=(str, ...), probabilities=(dict[str, float], ...))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["PEER_ONNX"], options, providers=["CPUExecutionProvider"])
numbers = [f"f{n}" for n, f in enumerate(features) if f["kind"] != "category"]
texts = [f"f{n}" for n, f in enumerate(features) if f["kind"] == "category"]
names = schema["classes"]
app = FastAPI()

@app.post("/predict")
async def predict(record: Record) -> Prediction:
    feed = {}
    if numbers:
        feed["numbers"] = np.array([[getattr(record, name) for name in numbers]], dtype=np.float64)
    if texts:
        feed["texts"] = np.array([[getattr(record, name) or "" for name in texts]], dtype=object)
    chances = session.run(["probabilities"], feed)[0][0].tolist()
    best = max(range(len(names)), key=chances.__getitem__)
    return Prediction(prediction=names[best], probabilities=dict(zip(names, chances)))
"""
SAVE_MLFLOW = """
import sys, joblib, mlflow.sklearn
mlflow.sklearn.save_model(joblib.load(sys.argv[1]), sys.argv[2], pyfunc_predict_fn="predict_proba",
                          serialization_format="cloudpickle")
"""
SAME = [f"{name}=={version(name)}" for name in ("scikit-learn", "numpy", "pandas", "joblib", "msgspec", "narwhals")]
NEEDS = {
    "fastapi": ["fastapi", "uvicorn[standard]", "pydantic", f"onnxruntime=={version('onnxruntime')}", SAME[1]],
    "mlserver": ["mlserver", "mlserver-sklearn", *SAME],
    "mlflow": ["mlflow", *SAME],
}


@dataclass
class Peer:
    """A service that can be started."""

    name: str
    command: list[str]
    path: str
    body: bytes
    ready: str
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    media: str = "application/json"
    accept: str = "*/*"
    port: int = 0


def environment_of(name: str, folder: Path) -> Path | None:
    """The `bin` folder of a peer's environment, made when it is not there; None when it cannot be installed."""
    place = folder / name
    if (place / "complete").exists():
        return place / "bin"
    uv = str(Path(sys.executable).with_name("uv"))
    steps = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)],
        [uv, "pip", "install", "--quiet", "--python", str(place / "bin" / "python"), *NEEDS[name]],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} cannot be installed here: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            return None
    (place / "complete").touch()
    return place / "bin"


def typed(schema: dict[str, Any], record: dict[str, Any]) -> list[dict[str, Any]]:
    """A record as MLServer's protocol writes a frame of one row."""
    kinds = {"number": "FP64", "integer": "INT64", "boolean": "BOOL", "category": "BYTES"}
    content = {"category": {"parameters": {"content_type": "str"}}}
    return [
        {
            "name": item["name"],
            "shape": [1, 1],
            "datatype": kinds[item["kind"]],
            "data": [record[item["name"]]],
            **content.get(item["kind"], {}),
        }
        for item in schema["features"]
    ]


def peers_of(model: Any, folder: Path, environments: Path, wanted: set[str]) -> list[Peer]:
    """The peers that can be started, for one model; `model` is a `Served` of serving.py."""
    record, found = model.record, []
    python = Path(sys.executable).parent
    known = {"PEER_MODEL": str(model.joblib), "PEER_SCHEMA": str(model.schema_file), "PEER_ONNX": str(model.onnx)}
    for name, source in (("plain", PLAIN), ("raw", RAW), ("fast", FASTAPI)):
        (folder / f"peer_{name}.py").write_text(source)
    body = json.dumps(record).encode()
    wrapped = json.dumps({"record": record}).encode()
    serve = [str(python / "bentoml"), "serve", "peer_plain:Plain", "--host", "127.0.0.1", "--port", "{port}"]
    found.append(Peer("BentoML + scikit-learn", serve, "/predict", wrapped, "/readyz", known, folder))
    uvicorn = ["peer_raw:app", "--port", "{port}", "--no-access-log"]
    answer = {"PEER_ANSWER": json.dumps(model.answer)}
    found.append(Peer("raw uvicorn", [str(python / "uvicorn"), *uvicorn], "/", body, "/", answer, folder))
    if "fastapi" in wanted and model.onnx and (place := environment_of("fastapi", environments)):
        command = [str(place / "uvicorn"), "peer_fast:app", "--port", "{port}", "--no-access-log"]
        found.append(Peer("FastAPI + pydantic + ONNX", command, "/predict", body, "/openapi.json", known, folder))
    path = {"PYTHONPATH": str(ROOT)}
    if "mlserver" in wanted and (place := environment_of("mlserver", environments)):
        home = folder / "mlserver"
        home.mkdir(exist_ok=True)
        about = {
            "name": "m",
            "implementation": "mlserver_sklearn.SKLearnModel",
            "parameters": {"uri": str(model.joblib)},
        }
        (home / "model-settings.json").write_text(json.dumps(about))
        sent = {"parameters": {"content_type": "pd"}, "inputs": typed(model.schema, record)}
        sent["outputs"] = [{"name": "predict_proba"}]
        ports = {"MLSERVER_HTTP_PORT": "{port}", "MLSERVER_GRPC_PORT": "{port+1}", "MLSERVER_METRICS_PORT": "{port+2}"}
        quiet = {"MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_DEBUG": "false", "MLSERVER_HOST": "127.0.0.1"}
        command = [str(place / "mlserver"), "start", str(home)]
        asked = ("/v2/models/m/infer", json.dumps(sent).encode(), "/v2/models/m/ready")
        found.append(Peer("MLServer", command, *asked, {**path, **ports, **quiet}, home))
    if "mlflow" in wanted and (place := environment_of("mlflow", environments)):
        saved = folder / "mlflow"
        if not saved.exists():
            (folder / "save_mlflow.py").write_text(SAVE_MLFLOW)
            command = [str(place / "python"), "save_mlflow.py", str(model.joblib), str(saved)]
            subprocess.run(command, cwd=folder, env={**os.environ, **path}, check=True, capture_output=True)
        sent = {"dataframe_split": {"columns": list(record), "data": [list(record.values())]}}
        local = ["--env-manager", "local", "--host", "127.0.0.1", "--port", "{port}"]
        command = [str(place / "mlflow"), "models", "serve", "--model-uri", str(saved), *local]
        own = {**path, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "MLFLOW_TRACKING_URI": str(folder / "none")}
        found.append(
            Peer("mlflow models serve", command, "/invocations", json.dumps(sent).encode(), "/ping", own, folder)
        )
    return found
