"""What one machine made, seen from another one whose folder is empty: a shared folder, and a ledger in Postgres."""

import json
import shutil
from pathlib import Path

import pytest
from machines import Machine, machine
from postgres_service import ledger_url, shared_server
from support import ROOT, gives, shared_folder, states

NAME = "shared_elsewhere"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A machine that ran the pipeline twice, with the runs; where its files are shared, and its ledger."""
    place = tmp_path_factory.mktemp("elsewhere")
    with ledger_url(shared_folder(tmp_path_factory), NAME) as ledger:
        one = machine(place / "one", f"file://{place}/shared", ledger)
        yield one, [one.run(), one.run("-p", "package.strength=0.01")], place / "shared", ledger


@pytest.fixture
def another(made, tmp_path) -> Machine:
    """A machine with an empty folder, that trusts nobody."""
    return machine(tmp_path / "another", f"file://{made[2]}", made[3])


@pytest.fixture
def trusting(made, another) -> Machine:
    """A machine with an empty folder, that trusts the first one's key."""
    key = made[0].workspace / "keys" / "project.pub"
    another.json("keys", "trust", str(key), "--name", "one", "--role", "serve", "--role", "import")
    return another


def test_another_machine_looks_at_what_was_run(made, another):
    one, (first, second), _, _ = made
    run = first["run"]
    assert "LogisticRegression(" in (another.folder / another.json("open", run, "package")["notebook"]).read_text()
    assert another.json("show", run)["steps"] == one.json("show", run)["steps"]
    compared = another.json("diff", run, second["run"], expect=1)
    assert compared["identical"] is False and "package.package" in json.dumps(compared)
    assert compared == one.json("diff", run, second["run"], expect=1)
    assert another.json("lineage", "churn:1") == one.json("lineage", "churn:1")
    assert another.json("leaderboard")["runs"] == one.json("leaderboard")["runs"]
    assert "split it" in another.json("logs", run, "split")["steps"][0]["text"]


def test_another_machine_repeats_a_run(made, another):
    _, (first, _), _, _ = made
    repeated = another.json("rerun", first["run"])
    assert repeated["identical"] is True, repeated


def test_what_a_key_signed_that_is_unknown_here_is_refused_and_never_signed_again(made, another):
    one, _, shared, _ = made
    before = (shared / "models/churn/1/model.sig").read_bytes()
    assert {model["signature"] for model in another.json("models")["models"]} == {"unknown key"}
    ran = another.run(expect=3)
    for document in (ran, another.json("models", "export", "churn:1", str(another.folder / "x.zip"), expect=3)):
        error = document["error"]
        assert "models/churn/1 is signed by a key that is not trusted here" in error["message"]
        assert "mlops-nb keys trust FILE" in error["hint"] and "[registry] trusted_keys" in error["hint"]
    assert (shared / "models/churn/1/model.sig").read_bytes() == before
    assert {model["signature"] for model in one.json("models")["models"]} == {"signed"}


def test_another_machine_that_trusts_the_key_works_with_the_models(made, trusting):
    shared = made[2]
    before = {path: path.read_bytes() for path in shared.glob("models/*/*/*")}
    assert {model["signature"] for model in trusting.json("models")["models"]} == {"signed"}
    card = trusting.json("card", "churn:1")
    assert "is as it was signed" in json.dumps(card)
    assert trusting.json("verify", "churn:2")["verified"] is True
    exported = trusting.json("models", "export", "churn:1", str(trusting.folder / "churn.zip"))
    assert exported["signed"] is True
    shutil.copy(ROOT / "bentofile.yaml", trusting.folder / "bentofile.yaml")
    packed = trusting.json("package", "churn:1")
    assert [*Path(packed["folder"]).rglob("model.skops")]
    ran = trusting.run()
    assert set(states(ran).values()) == {"cached"}
    assert {path: path.read_bytes() for path in shared.glob("models/*/*/*")} == before


def test_a_signature_that_was_lost_on_the_way_is_taken_from_the_place(made, trusting):
    _, _, shared, _ = made
    trusting.json("verify", "churn:1")
    (trusting.workspace / "models/churn/1/model.sig").write_bytes(b"{")
    (trusting.workspace / "models/churn/1/metrics.json").write_bytes(b"{}")
    trusting.json("models", "export", "churn:1", str(trusting.folder / "churn.zip"))
    for name in ("model.sig", "metrics.json"):
        place = f"models/churn/1/{name}"
        assert (trusting.workspace / place).read_bytes() == (shared / place).read_bytes()


def test_a_ledger_that_was_lost_is_made_anew_by_a_machine_that_has_nothing(made, trusting, tmp_path_factory):
    one, runs = made[:2]
    one.json("runs", "note", runs[0]["run"], "the first one")
    trusting.json("runs", "tag", runs[1]["run"], "+weak")
    trusting.json("promote", "churn:2", "candidate")
    looks = (["runs"], ["models"], ["show", runs[0]["run"]], ["show", runs[1]["run"]], ["models", "churn:2"])

    def told() -> list[dict]:
        return [trusting.json(*words) for words in looks]

    before = told()
    shutil.rmtree(trusting.workspace / "runs", ignore_errors=True)
    (trusting.workspace / "registry.json").unlink()
    server = shared_server(shared_folder(tmp_path_factory))
    server.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public", NAME)
    assert trusting.json("runs")["runs"] == []
    rebuilt = trusting.json("fsck", "--rebuild")
    assert rebuilt["ok"], rebuilt["findings"]
    assert rebuilt["rebuilt"]["versions"] == 2 and rebuilt["rebuilt"]["runs"] == len(before[0]["runs"])
    assert told() == before
    ran = one.run()
    assert set(states(ran).values()) == {"cached"} and gives(ran) == gives(runs[0])


def test_a_project_that_one_machine_had_moves_to_a_place_that_machines_share(tmp_path, tmp_path_factory):
    with ledger_url(shared_folder(tmp_path_factory), f"{NAME}_moved", empty=True) as ledger:
        laptop = machine(tmp_path / "laptop", f"file://{tmp_path}/shared", ledger)
        other = machine(tmp_path / "other", f"file://{tmp_path}/shared", ledger)
        alone = {"MLOPS_NB_WORKSPACE_URL": "", "MLOPS_NB_WORKSPACE_LEDGER": ""}
        ini = laptop.folder / "settings.ini"
        three = ini.read_text()
        ini.write_text("\n".join(line for line in three.splitlines() if not line.startswith(("url", "ledger"))))
        first = laptop.run("-p", "package.strength=2.0", **alone)
        laptop.run("-p", "package.strength=0.01", **alone)
        laptop.json("ledger", "copy", "sqlite", ledger)
        ini.write_text(three)
        key = str(laptop.workspace / "keys" / "project.pub")
        other.json("keys", "trust", key, "--name", "one", "--role", "serve", "--role", "import")
        refused = other.run(expect=2)
        assert "the champion, is not on this machine, nor at file://" in refused["error"]["message"]
        assert "mlops-nb fsck --share" in refused["error"]["hint"]
        assert {model["version"] for model in other.json("models")["models"]} == {1, 2}
        reused = laptop.run("-p", "package.strength=2.0")
        assert set(states(reused).values()) == {"cached"} and gives(reused) == gives(first)
        for digest in gives(first).values():
            assert (tmp_path / "shared/objects" / digest[:2] / digest).is_file()
        found = [one["remedy"] for one in laptop.json("fsck", expect=1)["findings"] if one["level"] == "fail"]
        assert found and set(found) == {"mlops-nb fsck --share puts it there."}
        pushed = laptop.json("fsck", "--share")
        assert pushed["ok"] and pushed["shared"]["objects"] and not pushed["shared"]["missing"], pushed
        assert not any(laptop.json("fsck", "--share")["shared"].values())
        ran = other.run()
        assert [model["version"] for model in ran["models"]] == [3]
        assert other.json("fsck")["ok"]
