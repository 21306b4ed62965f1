"""Whatever is damaged is found and named; a ledger that is lost is made again."""

import contextlib
import json
import re
import signal
import sqlite3

import pytest
from support import gives, states
from upkeep_support import faults, object_of, overwrite, run


def flipped(path):
    """One bit of a file turned."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(path, bytes(data))


def halved(path):
    overwrite(path, path.read_bytes()[: path.stat().st_size // 2])


def removed(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flipped, halved, removed])
@pytest.mark.parametrize("what", ["artifact", "source", "manifest", "notebook", "ledger"])
def test_damage_is_found(demo, three_runs, what, damage):
    first = three_runs[1][0]
    places = {
        "artifact": object_of(demo, gives(first)["make.numbers"]),
        "source": object_of(demo, next(iter(demo.json("show", first["run"])["sources"].values()))),
        "manifest": demo.workspace / "attempts" / first["run"] / "make" / "manifest.json",
        "notebook": demo.folder / first["steps"][0]["notebook"],
        "ledger": demo.workspace / "ledger.sqlite",
    }
    if (what, damage) == ("notebook", flipped):
        overwrite(places[what], places[what].read_bytes().replace(b'"nbformat": 4', b'"nbformat": 7'))
    elif (what, damage) == ("ledger", flipped):
        overwrite(places[what], b"\0" * 100 + places[what].read_bytes()[100:])
    else:
        damage(places[what])
    kinds = {"artifact": "object", "source": "object", "manifest": "attempt"}
    assert {kind for kind, _ in faults(demo)} == {kinds.get(what, what)}
    if what == "artifact":
        assert gives(run(demo)) == gives(first) and faults(demo) == []
    if what == "ledger":
        assert demo.json("fsck", "--rebuild")["ok"] and faults(demo) == []


@pytest.mark.parametrize("schema", [False, True])
def test_a_text_in_the_ledger_that_is_none_any_more(demo, three_runs, schema):
    path = demo.workspace / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    places = [
        found.start() for found in re.finditer(b"CREATE TABLE" if schema else three_runs[1][0]["run"].encode(), data)
    ]
    for place in places:
        data[place - 4 if schema else place + 2] ^= 0x80
    overwrite(path, bytes(data))
    assert {kind for kind, _ in faults(demo)} == {"ledger"}
    assert demo.json("fsck", "--rebuild")["ok"] and faults(demo) == []


def test_a_result_that_its_manifest_does_not_have(demo, three_runs):
    path = demo.workspace / "attempts" / three_runs[1][0]["run"] / "make" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["gives"]["numbers"]["sha256"] = gives(three_runs[1][0])["train.metrics"]
    overwrite(path, json.dumps(manifest).encode())
    assert [kind for kind, _ in faults(demo)] == ["attempt"]


def test_orphans_are_told_and_do_no_harm(demo):
    (demo.workspace / "objects" / ".incoming.00.tmp").write_text("half")
    (demo.workspace / "objects" / "ab").mkdir(exist_ok=True)
    (demo.workspace / "objects" / "ab" / "note.txt").write_text("mine")
    document = demo.json("fsck")
    assert document["ok"] and [one["what"] for one in document["findings"]] == ["orphan", "orphan"]


def lose(project):
    """The ledger, with its log."""
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (project.workspace / name).unlink(missing_ok=True)


def test_a_rebuilt_ledger_tells_the_same(demo, three_runs):
    ids = [found["run"] for found in demo.json("runs")["runs"]]
    before = {run_id: demo.json("show", run_id) for run_id in ids}
    lose(demo)
    rebuilt = demo.json("fsck", "--rebuild")["rebuilt"]
    assert (rebuilt["runs"], rebuilt["results"], rebuilt["kept"]) == (3, 3, None)
    assert {run_id: demo.json("show", run_id) for run_id in ids} == before
    assert set(states(run(demo)).values()) == {"cached"}
    assert set(states(run(demo, "-p", "train.seed=1")).values()) == {"cached"}
    plan = demo.json("plan", "demo", "-p", "train.seed=2")["steps"]
    assert [step["reasons"] for step in plan] == [["up to date"], ["parameter seed: 1 -> 2"]]
    assert states(run(demo, "-p", "train.fail=true", expect=1))["train"] == "failed"


def test_a_damaged_ledger_is_kept(demo):
    overwrite(demo.workspace / "ledger.sqlite", b"no database at all")
    assert demo.json("fsck", expect=1)["findings"][0]["what"] == "ledger"
    kept = demo.json("fsck", "--rebuild")["rebuilt"]["kept"]
    assert (demo.workspace / kept).read_bytes().startswith(b"no database at all")
    assert set(states(run(demo)).values()) == {"cached"}


def test_without_the_runs_own_records(demo, three_runs):
    for record in demo.workspace.glob("runs/*/run.json"):
        record.unlink()
    lose(demo)
    unknown = demo.json("fsck", "--rebuild")["rebuilt"]["unknown"]
    assert any("2 runs have no record" in words for words in unknown)
    assert set(states(run(demo)).values()) == {"cached"} and faults(demo) == []


def test_an_attempt_of_an_older_version(demo, three_runs):
    for record in demo.workspace.glob("attempts/*/*/result.json"):
        record.unlink()
    assert demo.json("fsck")["ok"]
    lose(demo)
    rebuilt = demo.json("fsck", "--rebuild")["rebuilt"]
    assert rebuilt["results"] == 0 and "3 attempts have no record of their key" in rebuilt["unknown"][0]
    assert gives(run(demo)) == gives(three_runs[1][0]) and faults(demo) == []


@pytest.mark.parametrize("point", ["before-replace", "while-replacing"])
def test_killed_while_rebuilding(demo, point):
    done = demo.call("mlops-nb", "fsck", "--rebuild", MLOPS_NB_FAULT=point)
    assert done.returncode == -signal.SIGKILL
    document = demo.json("fsck", "--rebuild")
    assert document["ok"] and document["rebuilt"]["runs"] == 3
    demo.json("gc", "--delete")
    assert not list((demo.workspace / "tmp").glob("rebuild-*"))
    assert set(states(run(demo)).values()) == {"cached"}


@pytest.mark.parametrize("point", ["before-commit", "after-commit", "after-object-write"])
def test_a_run_that_was_killed_is_rebuilt(demo, three_runs, point):
    done = demo.call("mlops-nb", "run", "demo", "-p", "make.rows=4", MLOPS_NB_FAULT=point)
    assert done.returncode == -signal.SIGKILL
    lose(demo)
    assert demo.json("fsck", "--rebuild")["ok"]
    newest = demo.json("runs")["runs"][0]
    assert newest["status"] == "crashed" and newest["parameters"]["make.rows"] == 4
    states_then = states(run(demo, "-p", "make.rows=4"))
    assert states_then == {"make": "done" if point == "after-object-write" else "cached", "train": "done"}
    assert faults(demo) == []


def models_of(project):
    """Versions with all that is known about them."""
    return project.json("models")["models"]


def test_models_come_back(default_run, tmp_path):
    project = default_run[0].copy(tmp_path / "workspace")
    project.run("-p", "package.name=second")
    before = models_of(project)
    assert faults(project) == [] and len(before) == 2
    lose(project)
    document = project.json("fsck", "--rebuild")
    assert document["ok"] and document["rebuilt"]["versions"] == 2
    assert models_of(project) == before
    again = project.run()
    assert set(states(again).values()) == {"cached"} and again["models"] == default_run[1]["models"]
    assert models_of(project) == before and faults(project) == []


def test_models_come_back_from_packages_and_releases_alone(default_run, tmp_path):
    project = default_run[0].copy(tmp_path / "workspace")
    before = models_of(project)
    (project.workspace / "registry.json").unlink()
    lose(project)
    unknown = project.json("fsck", "--rebuild")["rebuilt"]["unknown"]
    assert any("the history of its aliases cannot be known" in words for words in unknown)
    assert before[0]["details"].pop("trainer"), "who trained it was in the ledger alone"
    same = ("name", "version", "digest", "aliases", "metrics", "metric", "task", "schema_digest", "details", "run")
    assert [[one[key] for key in same] for one in models_of(project)] == [[one[key] for key in same] for one in before]
    again = project.run()
    assert set(states(again).values()) == {"cached"} and again["models"] == default_run[1]["models"]
    assert len(models_of(project)) == 1 and faults(project) == []


def test_damaged_releases_and_packages(default_run, tmp_path):
    project = default_run[0].copy(tmp_path / "workspace")
    model = default_run[1]["models"][0]
    folder = next((project.workspace / "releases" / model["name"]).glob("0*"))
    file = next(path for path in folder.rglob("*") if path.is_file() and path.name == "schema.json")
    whole = file.read_bytes()
    flipped(file)
    assert {kind for kind, _ in faults(project)} == {"release"}
    overwrite(file, whole)
    (folder.parent / "current").unlink()
    assert {kind for kind, _ in faults(project)} == {"release"}
    project.run()
    assert faults(project) == []
    removed(object_of(project, model["digest"]))
    words = [words for _, words in faults(project)]
    assert any("(champion)" in text for text in words)


def test_references_that_lead_nowhere(demo):
    with sqlite3.connect(demo.workspace / "ledger.sqlite") as ledger:
        ledger.execute("DELETE FROM runs WHERE status = 'failed'")
    assert ("ledger", "refer") in {
        (kind, "refer" if "refer to what" in words else words) for kind, words in faults(demo)
    }
