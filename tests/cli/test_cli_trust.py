"""Keys, signatures and verification on the command line, on the default run."""

import pytest


@pytest.fixture(scope="module")
def signed(default_run, tmp_path_factory):
    """A copy of the default run's workspace."""
    return default_run[0].copy(tmp_path_factory.mktemp("signed") / "workspace")


def test_the_default_run_is_signed(signed):
    (model,) = signed.json("models")["models"]
    assert (model["signature"], model["signed_by"]) == ("signed", "project")
    found = signed.json("verify", f"{model['name']}:champion")
    assert found["verified"] and found["key"] == "project" and found["subject"] == f"{model['name']}:1"
    assert {"model.skops", "schema.json", "manifest.json", "metrics.json", "data.json"} <= set(found["files"])
    assert signed.json("keys")["signs"] == "project"
    assert signed.json("verify", found["folder"])["verified"]


def test_what_does_not_verify_exits_3_and_names_the_file(signed, tmp_path):
    project = signed.copy(tmp_path / "workspace")
    (model,) = project.json("models")["models"]
    (folder,) = (project.workspace / "models").glob("*/1")
    (folder / "schema.json").write_text("{}")
    found = project.json("verify", model["name"], expect=3)
    assert (
        found["problem"]["files"] == ["schema.json"] and f"mlops-nb sign {model['name']}:1" in found["problem"]["hint"]
    )
    told = project.call("mlops-nb", "verify", str(folder))
    assert told.returncode == 3 and "schema.json was changed" in told.stdout
    (one,) = project.json("sign")["versions"]
    assert (one["state"], one["key"], one["was"]) == ("signed", "project", "changed: schema.json")
    rotated = project.json("keys", "rotate", "--keep", "0s")
    assert [key["state"] for key in rotated["retired"]] == ["expired"]
    assert project.json("fsck")["ok"]
    assert project.json("verify", model["name"])["key"] == "project-2"


def test_a_key_is_made_trusted_and_revoked(signed, tmp_path):
    project = signed.copy(tmp_path / "workspace")
    made = project.json("keys", "new", "release", "--expires", "30d")
    assert (made["name"], made["state"], made["private"]) == ("release", "trusted", True) and made["expires"]
    assert project.json("keys")["signs"] == "release"
    public = project.workspace / "keys" / "release.pub"
    told = project.call("mlops-nb", "keys", "new", "handover", "--role", "import")
    assert "signs from now on" not in told.stdout and "its public part, for others" in told.stdout
    other = signed.copy(tmp_path / "other")
    trusted = other.json("keys", "trust", str(public), "--role", "serve", "--role", "import")
    assert (trusted["name"], trusted["roles"], trusted["private"]) == ("release", ["serve", "import"], False)
    revoked = project.json("keys", "revoke", "project", "--reason", "laptop stolen")
    (model,) = signed.json("models")["models"]
    assert (revoked["state"], revoked["reason"]) == ("revoked", "laptop stolen")
    assert revoked["versions"] == [f"{model['name']}:1"]
    assert "was revoked" in project.json("verify", model["name"], expect=3)["problem"]["message"]
    assert project.json("sign")["versions"][0]["key"] == "release"


def test_a_version_is_encrypted_by_command(signed, tmp_path):
    pyrage = pytest.importorskip("pyrage")
    project = signed.copy(tmp_path / "workspace")
    (model,) = project.json("models")["models"]
    key = str(pyrage.x25519.Identity.generate().to_public())
    folder = tmp_path / "handover"
    handed = project.json("encrypt", model["name"], "--to", key, "-o", str(folder))
    assert handed["recipients"] == [key] and "model.skops.age" in handed["files"]
    assert (folder / "model.skops.age").is_file() and not (folder / "model.skops").exists()
    done = project.json("encrypt", model["name"], "--to", key)
    assert (done["version"], done["recipients"]) == (1, [key])
    release = project.workspace / "releases" / model["name"]
    newest = max((path for path in release.iterdir() if path.is_dir()), key=lambda path: path.name)
    assert list(newest.rglob("model.skops.age")) and not list(newest.rglob("model.skops"))
    told = project.call("mlops-nb", "encrypt", model["name"], "--off")
    assert told.returncode == 0 and "released, plain" in told.stdout
    for words, said in (((), "nobody is named"), (("--off", "--to", key), "--off goes with neither")):
        wrong = project.call("mlops-nb", "encrypt", model["name"], *words)
        assert wrong.returncode == 2 and said in wrong.stderr


def test_a_pickle_is_converted_with_consent_only(signed, tmp_path):
    import pickle

    from sklearn.linear_model import LinearRegression

    file = tmp_path / "old.pkl"
    file.write_bytes(pickle.dumps(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])))
    refused = signed.call("mlops-nb", "models", "import", str(file))
    assert refused.returncode in (2, 3) and "allow_pickle" in refused.stderr and "Traceback" not in refused.stderr
    assert not file.with_suffix(".skops").exists()
    told = signed.call("mlops-nb", "models", "import", str(file), MLOPS_NB_REGISTRY_ALLOW_PICKLE="true")
    assert told.returncode == 0 and "scan (advisory" in told.stdout and "It is no version yet" in told.stdout
    assert file.with_suffix(".skops").is_file() and len(signed.json("models")["models"]) == 1


def test_what_is_reached_is_not_deleted_by_command(signed):
    (model,) = signed.json("models")["models"]
    kept = signed.json("models", "delete", f"{model['name']}:1", "--delete", expect=2)["error"]
    assert f"{model['name']} version 1 stays: it is champion" in kept["message"]
    pruned = signed.json("models", "prune", model["name"], "--keep", "0", "--delete")
    assert pruned["versions"] == [] and pruned["kept"] == {f"{model['name']}:1": "it is champion"}
    assert "nothing to delete" in signed.call("mlops-nb", "models", "prune", model["name"]).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("verify", "brest-cancer-diagnosis"), "Did you mean 'breast-cancer-diagnosis'?"),
        (("verify", "breast-cancer-diagnosis:7"), "has no version '7'. It has: 1, champion."),
        (("verify", "no/such/folder"), "There is no folder no/such/folder."),
        (("verify",), "MODEL|FOLDER is missing"),
        (("keys", "revoke", "projekt"), "Did you mean 'project'?"),
        (("keys", "trust", "settings.ini"), "holds no public key"),
        (("keys", "new", "../x"), "is no name for a key"),
        (("keys", "new", "late", "--expires", "30"), "a number and a unit"),
        (("keys", "new", "late", "--role", "server"), "There is no role 'server'"),
        (("keys", "lst"), "Did you mean 'list'?"),
    ],
)
def test_a_mistake_is_told_in_words(signed, words, said):
    done = signed.call("mlops-nb", *words)
    assert done.returncode == 2 and said in " ".join((done.stdout + done.stderr).replace("→", "").split())
