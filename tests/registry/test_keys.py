"""Keys that are lost, late, revoked or made twice; versions that were signed by them, or never."""

import json
import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest
from registry_support import give, make_project, package, people

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.registry.fsck import fsck
from mlops_nb.registry.keyring import KeyRing, make_private, passphrase_file, public_text
from mlops_nb.registry.keys import moment, read_trusted
from mlops_nb.registry.register import run_completing
from mlops_nb.registry.releases import read_release
from mlops_nb.registry.signing import sign_versions, signed_by, verify_target
from mlops_nb.registry.versions import ModelTable

TABLE = people(120)
PACKAGE = package(TABLE.iloc[:100])
RUN = "20261123-170501-0001"


def changed(settings, **registry):
    """The settings with other values in [registry]."""
    return settings._replace(registry=settings.registry._replace(**registry))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, and a configuration folder of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return changed(make_project(tmp_path / "project"), bento_store=False)


def public_pem() -> bytes:
    """The public key of somebody else."""
    return public_text(make_private(b"secret")[0]).encode()


@pytest.fixture
def ledger(project):
    with Ledger.open(project) as opened:
        yield opened


def complete(settings, ledger, run_id=RUN):
    """A run that gave the package."""
    return run_completing(give(settings, ledger, run_id, PACKAGE, None), settings, ledger)


def folder_of(settings):
    return settings.workspace.path / "models" / "churn" / "1"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def faults(settings):
    """What fsck says of signatures: level and words."""
    return [(one["level"], one["words"]) for one in fsck(settings)["findings"] if one["what"] == "signature"]


def actions(ledger):
    return [(event["subject"], event["details"]["action"]) for event in reversed(ledger.events(kind="key"))]


def test_the_first_version_is_signed_without_asking_and_nothing_secret_can_be_read(project, ledger):
    complete(project, ledger)
    found = verify_target(project, "churn").document
    assert (found["verified"], found["key"], found["subject"]) == (True, "project", "churn:1")
    keys = project.workspace.path / "keys"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (keys, *keys.iterdir(), passphrase_file())}
    assert (modes["keys"], modes["project.pem"], modes["trusted.json"], modes["passphrase"]) == (0o700, *[0o600] * 3)
    assert b"ENCRYPTED PRIVATE KEY" in (keys / "project.pem").read_bytes()
    assert actions(ledger) == [("project", "new"), ("churn:1", "sign")]
    arm = read_release(project.workspace.path / "releases", "churn").folder / "versions" / "1"
    assert contents(arm) == contents(folder_of(project))
    data = json.loads((arm / "data.json").read_bytes())
    assert data == {"format": 1, "sources": {}, "tables": {}}


def test_a_passphrase_by_reference(project, ledger, monkeypatch):
    monkeypatch.setenv("SIGNING", "correct horse")
    settings = changed(project, passphrase="env:SIGNING")
    complete(settings, ledger)
    assert not passphrase_file().exists()
    monkeypatch.setenv("SIGNING", "battery staple")
    shutil.rmtree(folder_of(project))
    with pytest.raises(UsageError, match="cannot be opened with the passphrase of env:SIGNING"):
        sign_versions(settings, ledger)
    monkeypatch.delenv("SIGNING")
    with pytest.raises(UsageError, match="SIGNING is not set"):
        sign_versions(settings, ledger)


def test_a_version_from_before_is_signed_at_the_next_run(project, ledger):
    complete(changed(project, signatures="off"), ledger)
    assert not (folder_of(project) / "model.sig").exists()
    assert [level for level, _ in faults(project)] == ["warn", "warn"], "it is older than signatures"
    before = contents(folder_of(project))
    complete(project, ledger, "20261123-170502-0002")
    after = contents(folder_of(project))
    assert after.pop("model.sig") and after == before
    assert faults(project) == []
    assert read_release(project.workspace.path / "releases", "churn").document.generation == 2


@pytest.mark.parametrize("damage", ["lost", "changed", "added", "unsigned"])
def test_what_was_lost_comes_back_the_same(project, ledger, damage):
    complete(project, ledger)
    folder = folder_of(project)
    before = contents(folder)
    if damage == "lost":
        shutil.rmtree(folder)
    elif damage == "unsigned":
        (folder / "model.sig").unlink()
    else:
        (folder / ("schema.json" if damage == "changed" else "more")).write_bytes(b"{}")
    assert [level for level, _ in faults(project)] == ["fail"]
    assert sign_versions(project, ledger)[0]["state"] == "signed"
    assert contents(folder) == before and faults(project) == []
    assert read_release(project.workspace.path / "releases", "churn").document.generation == 1


def test_a_folder_that_is_there_needs_no_package(project, ledger):
    """A release is made from the signed folder, also when the store has lost the package."""
    complete(project, ledger)
    shutil.rmtree(project.workspace.path / "objects")
    shutil.rmtree(project.workspace.path / "releases")
    sign_versions(project, ledger)
    assert read_release(project.workspace.path / "releases", "churn").document.arms[0].version == 1


@pytest.mark.parametrize("end", ["expired", "revoked"])
def test_a_key_that_ended(project, ledger, end):
    complete(project, ledger)
    ring = KeyRing(project, ledger)
    if end == "revoked":
        ring.revoke("project", "laptop stolen")
    else:
        ring.change("project", "retire", lambda key: key._replace(expires=moment(-1)))
    refused = verify_target(project, "churn:1").document["problem"]
    assert refused["state"] == f"{end} key" and "mlops-nb keys rotate" in refused["hint"]
    assert {level for level, _ in faults(project)} == {"fail"}
    with pytest.raises(UsageError, match=f"There is no key to sign with: project is {end}"):
        sign_versions(project, ledger)
    assert [key.name for key in ring.known()] == ["project"]  # none is made without being asked
    ring.rotate(0)
    (signed,) = sign_versions(project, ledger)
    assert (signed["key"], signed["was"]) == ("project-2", f"{end} key")
    assert faults(project) == []
    assert [key.state() for key in ring.known()] == [end, "trusted"]


def test_a_rotation_signs_everything_again_and_changes_nothing_else(project, ledger):
    complete(project, ledger)
    before = contents(folder_of(project))
    ring = KeyRing(project, ledger)
    new, (old,) = ring.rotate(3600)
    assert signed_by(project, ledger, old) == ["churn:1"]
    sign_versions(project, ledger, anew=True)
    after = contents(folder_of(project))
    assert after.pop("model.sig") != before.pop("model.sig") and after == before
    assert (signed_by(project, ledger, old), signed_by(project, ledger, new)) == ([], ["churn:1"])


def test_a_workspace_on_another_machine_signs_with_a_key_of_its_own(project, ledger, tmp_path, monkeypatch, caplog):
    complete(project, ledger)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    shutil.rmtree(folder_of(project))
    complete(project, ledger, "20261123-170502-0002")
    assert "its passphrase is elsewhere; project-2 signs now" in caplog.text
    assert [key.state() for key in KeyRing(project, ledger).known()] == ["trusted", "trusted"]
    assert verify_target(project, "churn").document["key"] == "project-2"


def test_nothing_is_added_to_keys_that_were_pinned(project, ledger):
    """A file that somebody named is never extended without being asked."""
    pinned = project.project / "team.json"
    other, _ = make_private(b"x")
    KeyRing(changed(project, trusted_keys="team.json"), ledger).trust("other", public_text(other).encode(), ("serve",))
    settings = changed(project, trusted_keys="team.json")
    with pytest.raises(UsageError, match=r"None of the keys in team\.json has its private part"):
        complete(settings, ledger)
    assert [key.name for key in read_trusted(pinned)] == ["other"]
    KeyRing(settings, ledger).new("mine")
    complete(settings, ledger, "20261123-170502-0002")
    assert verify_target(settings, "churn").document["key"] == "mine"


def test_warn_registers_without_a_signature_where_none_can_be_made(project, ledger, caplog):
    settings = changed(project, signatures="warn", passphrase="env:NOT_SET_ANYWHERE")
    (model,) = complete(settings, ledger)
    assert model["aliases"] == ["champion"]
    assert "churn:1 is not signed: The environment variable NOT_SET_ANYWHERE is not set" in caplog.text
    assert verify_target(settings, "churn").document["problem"]["state"] == "unsigned"


def test_many_at_once_make_one_passphrase_and_one_key(project, ledger):
    found, failures = [], []

    def work():
        try:
            with Ledger.open(project) as own:
                found.append(KeyRing(project, own).signer()[0].id)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(found) == 6 and len(set(found)) == 1


def test_a_signature_that_was_damaged_is_made_again(project, ledger):
    """One flipped bit of the elliptic curve's numbers, which nothing but the curve itself can find."""
    complete(project, ledger)
    path = folder_of(project) / "model.sig"
    good = path.read_bytes()
    bundle = json.loads(good)
    value = bundle["dsseEnvelope"]["signatures"][0]
    value["sig"] = value["sig"][:40] + ("A" if value["sig"][40] != "A" else "B") + value["sig"][41:]
    path.write_text(json.dumps(bundle))
    assert verify_target(project, "churn").document["problem"]["state"] == "forged"
    complete(project, ledger, "20261123-170502-0002")
    assert path.read_bytes() == good


def test_a_listing_says_who_signed(project, ledger, monkeypatch):
    from mlops_nb.registry.look import models

    complete(project, ledger)
    monkeypatch.chdir(project.project)
    (version,) = models()
    assert (version["signature"], version["signed_by"]) == ("signed", "project")
    (folder_of(project) / "model.skops").write_bytes(b"x")
    table = models()
    assert isinstance(table, ModelTable) and "changed: model.skops (project)" in repr(table)


KILLED = """
import sys
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.registry.signing import sign_versions

settings = load_settings()
with Ledger.open(settings) as ledger:
    sign_versions(settings, ledger)
"""


@pytest.mark.parametrize("fault", ["before-version", "after-version"])
def test_killed_while_signing(project, ledger, fault):
    """A process that is killed while it makes a folder leaves nothing that the next one does not put right."""
    complete(project, ledger)
    before = contents(folder_of(project))
    (folder_of(project) / "schema.json").write_bytes(b"{}")
    environment = {**os.environ, "MLOPS_NB_FAULT": fault, "MLOPS_NB_REGISTRY_BENTO_STORE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=project.project, env=environment, capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr
    sign_versions(project, ledger)
    assert contents(folder_of(project)) == before and faults(project) == []


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("expires", "never"),
        ("expires", "31.12.2025"),
        ("expires", "Jan 1 2020"),
        ("expires", "2027-1-31T0:0:0Z"),
        ("expires", 5),
        ("revoked", True),
        ("revoked", ""),
        ("name", 7),
        ("public_key", 7),
        ("reason", None),
    ],
)
def test_a_trusted_key_with_a_value_of_no_sense_is_refused(project, ledger, part, value):
    """A date that cannot be compared would be no date at all: the key would be trusted for good."""
    ring = KeyRing(project, ledger)
    ring.new("project")
    document = json.loads(ring.path.read_text())
    document["keys"][0][part] = value
    ring.path.write_text(json.dumps(document))
    with pytest.raises(StorageError, match="cannot be read") as told:
        ring.known()
    assert f"{part} is {value!r}" in told.value.message and "key " in told.value.message


def test_trusting_a_key_again_extends_its_roles(project, ledger):
    ring, content = KeyRing(project, ledger), public_pem()
    ring.trust("ci", content, ("serve",))
    again = ring.trust("ci", content, ("import",))
    assert (again.name, again.roles) == ("ci", ("serve", "import")) and ring.known() == [again]
    with pytest.raises(UsageError, match="This key is there already: ci, trusted"):
        ring.trust("another", content, ("import",))
    ring.revoke("ci", "left")
    with pytest.raises(UsageError, match="This key is there already: ci, revoked"):
        ring.trust("ci", content, ("serve", "import"))
    with pytest.raises(UsageError, match="There is a key 'ci' already"):
        ring.trust("ci", public_pem(), ("import",))
