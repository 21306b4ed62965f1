"""Encrypted models: others open them, only recipients do, and plain copies go."""

import io
import subprocess
import sys

import pytest
from registry_support import give, make_project, package, people
from support import debian_program

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.registry.bento_store import model_folder
from mlops_nb.registry.encrypting import encrypt_model, encrypt_to_folder
from mlops_nb.registry.encryption import decrypt, encrypt_bytes, encrypt_stream, recipients_of
from mlops_nb.registry.exchange import export_version
from mlops_nb.registry.keys import trusted_keys
from mlops_nb.registry.mlflow import mlflow_version
from mlops_nb.registry.register import run_completing
from mlops_nb.registry.releases import read_release
from mlops_nb.registry.verify import verify_folder

pyrage = pytest.importorskip("pyrage")


@pytest.fixture(scope="module")
def archive():
    return package(people())


@pytest.fixture
def project(tmp_path, archive, monkeypatch):
    """A project with one registered and released model."""
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    settings = make_project(tmp_path / "project")
    with Ledger.open(settings) as ledger:
        run_completing(give(settings, ledger, "20261123-170501-0001", archive, None), settings, ledger)
    return settings


@pytest.fixture
def pair(tmp_path):
    """A key file as age-keygen writes it, and its public key."""
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "server.key").write_text(f"# created: 2026-11-23T17:05:01Z\n# public key: ...\n{identity}\n")
    return tmp_path / "server.key", str(identity.to_public())


def test_the_age_tool_opens_what_is_encrypted_and_the_other_way_round(tmp_path, pair):
    age = debian_program("age", "age")
    key, recipient = pair
    content = bytes(range(256)) * 1000  # several pieces
    second = str(pyrage.x25519.Identity.generate().to_public())
    (tmp_path / "model.skops.age").write_bytes(encrypt_bytes(content, [second, recipient]))
    opened = subprocess.run([age, "-d", "-i", key, tmp_path / "model.skops.age"], capture_output=True, check=True)
    assert opened.stdout == content
    sealed = subprocess.run([age, "-r", recipient], input=content, capture_output=True, check=True)
    assert decrypt(sealed.stdout, f"file:{key}") == content


def test_every_recipient_opens_it_and_nobody_else(tmp_path, pair):
    _, recipient = pair
    identities = [pyrage.x25519.Identity.generate() for _ in range(3)]
    sealed = encrypt_bytes(b"model", [recipient, *(str(one.to_public()) for one in identities[:2])])
    for number, identity in enumerate(identities):
        (tmp_path / f"{number}.key").write_text(str(identity))
    assert {decrypt(sealed, f"file:{tmp_path / name}") for name in ("server.key", "0.key", "1.key")} == {b"model"}
    with pytest.raises(UsageError, match=r"No key behind file:.*2\.key opens the model") as told:
        decrypt(sealed, f"file:{tmp_path / '2.key'}")
    assert str(identities[2]) not in str(told.value)
    assert str(identities[2].to_public()) in told.value.hint


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[:300] + bytes([b[300] ^ 1]) + b[301:], lambda b: b""])
def test_damaged_bytes_are_refused(pair, change):
    key, recipient = pair
    sealed = encrypt_bytes(b"x" * 500, [recipient])
    with pytest.raises(StorageError, match="An encrypted file is damaged"):
        decrypt(change(sealed), f"file:{key}")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("file:absent.key", r"absent\.key cannot be read"),
        ("env:NO_SUCH_KEY", "NO_SUCH_KEY is not set"),
        ("AGE-SECRET-KEY-1ABC", "something else than a reference"),
    ],
)
def test_a_key_that_is_not_there(tmp_path, pair, reference, message):
    with pytest.raises(UsageError, match=message) as told:
        decrypt(encrypt_bytes(b"x", [pair[1]]), reference, tmp_path)
    assert "AGE-SECRET" not in str(told.value)


def test_a_large_file_is_encrypted_in_constant_memory(pair):
    """More bytes go through than a process with little memory could hold."""
    code = """
import resource, sys
from mlops_nb.registry.encryption import encrypt_stream, age_library
age_library()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000,) * 2)
class Zeros:
    left = 120_000_000
    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)
with open("/dev/null", "wb") as writer:
    encrypt_stream(Zeros(), writer, [sys.argv[1]])
print(Zeros.left)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is limited by a feature of Linux")
    done = subprocess.run([sys.executable, "-c", code, pair[1]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrage", None)
    with pytest.raises(UsageError, match="pyrage, and it is not installed") as told:
        encrypt_stream(io.BytesIO(b""), io.BytesIO(), [])
    assert "mlops-nb[security]" in told.value.hint


def test_decrypting_leaves_no_memory_image(pair):
    key, recipient = pair
    code = (
        "import resource, sys; from mlops_nb.registry.encryption import decrypt, encrypt_bytes;"
        "decrypt(encrypt_bytes(b'x', [sys.argv[1]]), sys.argv[2]); print(resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    words = [sys.executable, "-c", code, recipient, f"file:{key}"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "0\n"


def test_a_setting_encrypts_what_is_released_by_the_next_run(project, pair, archive):
    """The run computes nothing: the release and BentoML's copy are brought in line, and plain ones go."""
    settings = project._replace(registry=project.registry._replace(recipients=pair[1]))
    with Ledger.open(settings) as ledger:
        run = {"run": "20261123-170501-0001", "pipeline": "tabular"}
        run_completing(run, settings, ledger)
        release = read_release(settings.workspace.path / "releases", "churn")
        assert recipients_of(release.folder / "versions/1") == (pair[1],)
        (version,) = ledger.versions()
        copy = model_folder("churn", 1, version["digest"])
        assert (copy / "model.skops.age").is_file() and recipients_of(copy) == (pair[1],)
        run_completing(run, settings, ledger)
        assert len(ledger.releases("churn")) == 2, "nothing changed, so nothing is published"
    home = settings.project.parent
    assert [*(home / "bentoml").rglob("model.skops")] == [*(settings.workspace.path / "releases").rglob("model.skops")]
    assert [*(home / "bentoml").rglob("model.skops")] == []
    text = (settings.workspace.path / "releases/requirements.txt").read_text()
    assert "pyrage==" in text


def test_other_recipients_replace_the_first_ones(project, pair):
    other = str(pyrage.x25519.Identity.generate().to_public())
    encrypt_model(project, "churn", [pair[1]])
    assert encrypt_model(project, "churn", [other])["recipients"] == [other]
    with Ledger.open(project) as ledger:
        (version,) = ledger.versions()
        assert [event["details"]["recipients"] for event in ledger.events(kind="encryption")] == [[other], [pair[1]]]
    folders = [model_folder("churn", 1, version["digest"])]
    folders.append(read_release(project.workspace.path / "releases", "churn").folder / "versions/1")
    assert {recipients_of(folder) for folder in folders} == {(other,)}


def test_a_choice_that_was_not_carried_out_is_by_the_next_run(project, pair):
    with Ledger.open(project) as ledger:
        ledger.add_event("encryption", "churn", {"recipients": [pair[1]]})
        run_completing({"run": "20261123-170501-0001", "pipeline": "tabular"}, project, ledger)
    release = read_release(project.workspace.path / "releases", "churn")
    assert recipients_of(release.folder / "versions/1") == (pair[1],)


def test_a_folder_for_somebody(project, pair, tmp_path):
    done = encrypt_to_folder(project, "churn:1", [pair[1]], tmp_path / "out")
    assert {"encryption.json", "manifest.json", "model.sig", "model.skops.age"} <= {*done["files"]}
    assert "model.skops" not in done["files"]
    assert verify_folder(tmp_path / "out", trusted_keys(project), subject="churn:1").key.name == "project"
    with pytest.raises(UsageError, match="exists already"):
        encrypt_to_folder(project, "churn:1", [pair[1]], tmp_path / "out")
    with pytest.raises(UsageError, match="Nobody is named"):
        encrypt_to_folder(project, "churn:1", [], tmp_path / "other")
    with pytest.raises(UsageError, match="is no recipient of age"):
        encrypt_to_folder(project, "churn:1", ["age1nobody"], tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bentoml", "out", "project", "server.key"]


def test_what_would_be_plain_is_refused_or_said(project, pair, tmp_path, caplog):
    export_version(project, "churn", tmp_path / "before.zip")
    assert "plain" not in caplog.text
    encrypt_model(project, "churn", [pair[1]])
    export_version(project, "churn", tmp_path / "churn.zip")
    assert "churn is released encrypted, and churn.zip holds it plain" in caplog.text
    assert "mlops-nb encrypt churn:1 --to KEY -o FOLDER" in caplog.text
    with Ledger.open(project) as ledger, pytest.raises(UsageError, match="an MLflow model would be plain") as told:
        mlflow_version(project, ledger, "churn", tmp_path / "model")
    assert "mlops-nb encrypt churn --off" in told.value.hint and not (tmp_path / "model").exists()
