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
