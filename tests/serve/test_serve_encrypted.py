"""A server of an encrypted model holds it in memory alone, however it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serve_support import (
    KINDS,
    SIGNER,
    contents_of,
    environment,
    fitted,
    holding,
    make_project,
    marks,
    people,
    serving,
    signature,
    trust,
)
from support import free_port

from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.model.schema import describe_inputs
from mlops_nb.registry.encryption import encrypt_files
from mlops_nb.registry.keyring import public_text
from mlops_nb.registry.keys import TrustedKey
from mlops_nb.registry.releases import Arm, Document, publish

pyrage = pytest.importorskip("pyrage")


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    """A project whose only release is encrypted, pieces of the plain model, and the key file."""
    folder = tmp_path_factory.mktemp("encrypted")
    project, table, identity = make_project(folder / "project"), people(), pyrage.x25519.Identity.generate()
    inputs = describe_inputs(table, KINDS, target="churned", task="binary")
    examples = json.loads(table[list(KINDS)].head(3).to_json(orient="records", date_format="iso"))
    plain = {Path(name).name: data for name, data in contents_of(fitted(table, False), inputs, examples).items()}
    files = encrypt_files(plain, [str(identity.to_public())])
    contents = {f"versions/1/{name}": data for name, data in files.items()}
    contents["versions/1/model.sig"] = signature(contents, "churn:1")
    trust(project, TrustedKey("project", public_text(SIGNER)))
    hashes = {name: sha256_bytes(data) for name, data in contents.items()}
    document = Document("churn", "binary", (Arm(1, "5d" * 32, 1.0, "versions/1"),), hashes, generation=1)
    publish(project / ".mlops" / "releases", document, contents)
    pieces = marks(plain["model.skops"])
    (folder / "control").write_bytes(plain["model.skops"])
    assert holding(pieces, folder) == [str(folder / "control")], "the search finds a plain model"
    (folder / "control").unlink()
    (folder / "server.key").write_text(f"{identity}\n")
    return project, pieces, folder / "server.key", examples


@pytest.fixture
def copied(encrypted, tmp_path):
    """The same, in folders of this test alone, with the environment of a server."""
    project = tmp_path / "project"
    shutil.copytree(encrypted[0], project)
    (tmp_path / "tmp").mkdir()
    return project, environment(tmp_path / "home", TMPDIR=str(tmp_path / "tmp"))


def test_it_answers_and_leaves_nothing_when_it_is_killed(encrypted, copied, tmp_path):
    _, pieces, key, examples = encrypted
    project, env = copied
    env |= {"MLOPS_NB_SERVING_IDENTITY": f"file:{key}"}
    with serving(project, tmp_path / "server.log", env) as server:
        answer = server.ask("/predict", examples[0])
        assert answer.status == 200 and answer.json["prediction"] in ("yes", "no")
        assert holding(pieces, tmp_path) == []
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
    assert holding(pieces, tmp_path) == []
    assert "AGE-SECRET-KEY" not in (tmp_path / "server.log").read_text()


def start(project: Path, env: dict[str, str], reference: str) -> subprocess.CompletedProcess:
    """Start a server that will not come up."""
    command = [sys.executable, "-m", "bentoml", "serve", "--port", str(free_port())]
    env = env | {"MLOPS_NB_SERVING_IDENTITY": reference}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=90, check=False)


def test_with_a_wrong_key_it_does_not_start_and_leaves_nothing(encrypted, copied, tmp_path):
    project, env = copied
    wrong = pyrage.x25519.Identity.generate()
    done = start(project, env | {"MODEL_KEY": str(wrong)}, "env:MODEL_KEY")
    text = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in text
    assert text.count("No key behind env:MODEL_KEY opens the model") == 1
    assert str(wrong) not in text
    assert holding(encrypted[1], tmp_path) == []


def load(project: Path, reference: str = ""):
    """Load the released model in this process."""
    from mlops_nb.registry.releases import read_release
    from mlops_nb.serve.predictor import load_model

    return load_model(read_release(project / ".mlops" / "releases", "churn"), identity=reference, project=project)


def test_without_a_key_it_says_for_whom_it_is_encrypted(encrypted, copied):
    with pytest.raises(Exception, match=r"model\.skops is encrypted, and no key is named") as told:
        load(copied[0])
    assert "[serving] identity" in told.value.hint and "age1" in told.value.hint


def test_tampering_is_told_without_the_key(encrypted, copied):
    (file,) = copied[0].glob(".mlops/releases/churn/*/versions/1/model.skops.age")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(Exception, match=r"model\.skops\.age is missing or has another content"):
        load(copied[0])
