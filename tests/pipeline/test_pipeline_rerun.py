"""A run is repeated as it was, whatever became of the project since."""

import json
import os
import shutil
import sys

import pytest
from pipeline_support import ROOT, Project, gives

from mlops_nb.commands.rerun import compare_rerun
from mlops_nb.core.errors import MlopsError, UsageError
from mlops_nb.core.store import Store
from mlops_nb.pipeline.repeat import execute_rerun, prepare_rerun

SPLIT = (
    "from pathlib import Path\nfrom mlops_nb import Source\nfrom churn.rows import keep",
    "#| parameters\nsource: Source = 'data/rows.txt'\nmost: int = 2",
    "flow.rows = keep(Path(source).read_text().split(), most)",
)
SCORE = ("from mlops_nb import Metrics", "flow.metrics = Metrics({'rows': len(flow.split.rows)})")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two steps, a package whose functions the first one calls, and a file that it reads."""
    made = Project(tmp_path / "churn-project")
    made.file("churn/__init__.py", "")
    made.file("churn/rows.py", "def keep(rows, most):\n    return rows[:most]\n")
    made.file("data/rows.txt", "a b c d")
    made.step("10_split", *SPLIT)
    made.step("20_score", *SCORE)
    monkeypatch.chdir(made.folder)
    monkeypatch.syspath_prepend(str(made.folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(made.folder), str(ROOT)]))  # as an editable installation
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "churn"]:
        del sys.modules[name]


def repeat(project, run, **options):
    """Repeat a run; how it compares."""
    done = execute_rerun(prepare_rerun(project.settings, run, **options), project.settings)
    return compare_rerun(project.settings, run, done["run"])


def tree(project):
    """What lies in the working tree."""
    files = [path for path in project.folder.rglob("*") if path.is_file() and ".mlops" not in path.parts]
    return {str(path): path.read_bytes() for path in files if "__pycache__" not in path.parts}


def test_a_run_is_repeated_while_the_working_tree_moves_on(project):
    first = project.run(parameters={"split.most": 3})
    project.file("churn/rows.py", "def keep(rows, most):\n    return rows[:1]\n")
    project.step("10_split", *SPLIT[:2], "flow.rows = []")
    (project.folder / "nbs/pipelines/churn/20_score.ipynb").unlink()
    before = tree(project)
    answer = repeat(project, first.document["run"])
    assert answer["identical"] and answer["differences"] == [], answer
    assert tree(project) == before
    ledger = project.ledger
    again = ledger.run(answer["run"])
    assert gives({"steps": again["steps"]}) == gives(first)
    assert {step["state"] for step in again["steps"]} == {"done"}
    assert again["sources"] == ledger.run(answer["origin"])["sources"]
    assert ledger.rerun(answer["run"])["origin"] == first.document["run"]
    assert all((project.folder / step["notebook"]).is_file() for step in again["steps"])
    assert not list((project.workspace / "scratch" / "reruns").iterdir())


def test_a_repetition_leaves_nothing_to_reuse_and_is_not_the_latest_run(project):
    first = project.run()
    results = project.ledger.database.rows("SELECT cache_key FROM results WHERE cache_key IS NOT NULL ORDER BY id")
    repeat(project, first.document["run"])
    ledger = project.ledger
    assert ledger.database.rows("SELECT cache_key FROM results WHERE cache_key IS NOT NULL ORDER BY id") == results
    assert ledger.latest_run("churn") == first.document["run"]
    assert project.plan().runs == []


def test_every_difference_is_listed(project):
    project.step(
        "20_score", "import random\nfrom mlops_nb import Metrics", "flow.metrics = Metrics({'x': random.random()})"
    )
    first = project.run()
    answer = repeat(project, first.document["run"])
    assert not answer["identical"]
    found = {(one["section"], one["what"]) for one in answer["differences"]}
    assert found == {("metrics", "score.x"), ("artifacts", "score.metrics")}
    assert project.ledger.rerun(answer["run"])["identical"] is False


def test_changed_data_is_found_in_the_store_or_refused(project):
    first = project.run()
    content = (project.folder / "data/rows.txt").read_bytes()
    project.file("data/rows.txt", "x y z")
    with pytest.raises(UsageError, match=r"'data/rows\.txt', which split\.source .* is another one now") as caught:
        prepare_rerun(project.settings, first.document["run"])
    assert "Its content was not kept" in caught.value.hint
    (project.folder / "data/rows.txt").unlink()
    with pytest.raises(UsageError, match="is gone"):
        prepare_rerun(project.settings, first.document["run"])
    assert not list((project.workspace / "scratch" / "reruns").iterdir())
    Store(project.workspace / "objects").put_bytes(content)
    assert repeat(project, first.document["run"])["identical"]


def test_a_file_elsewhere_is_read_where_it_is_or_from_the_store(project, tmp_path):
    outside = tmp_path / "rows.txt"
    outside.write_text("p q r")
    first = project.run(parameters={"split.source": str(outside)})
    assert repeat(project, first.document["run"])["identical"]
    Store(project.workspace / "objects").put_bytes(outside.read_bytes())
    outside.unlink()
    answer = repeat(project, first.document["run"])
    assert [one["what"] for one in answer["differences"]] == [], "a path is no part of a result"


def test_another_environment_is_told_and_with_strict_refused(project):
    first = project.run()
    database = project.ledger.database
    with database.transaction() as execute:
        for row in execute("SELECT id, parts FROM results"):
            parts = json.loads(row["parts"]) | {"distributions": {"numpy": "0.1"}, "python": "2.7"}
            execute("UPDATE results SET parts = :parts WHERE id = :id", parts=json.dumps(parts), id=row["id"])
    prepared = prepare_rerun(project.settings, first.document["run"])
    assert [change["what"] for change in prepared.environment] == ["Python", "package numpy"]
    shutil.rmtree(prepared.folder)
    with pytest.raises(UsageError, match=r"Python was 2\.7, is .* and 1 more"):
        prepare_rerun(project.settings, first.document["run"], strict=True)


def test_what_cannot_be_repeated_is_refused(project):
    first = project.run()
    name = first.document["run"]
    with pytest.raises(UsageError, match=f"no run '{name[:-1]}x'") as caught:
        prepare_rerun(project.settings, f"{name[:-1]}x")
    assert f"Did you mean '{name}'" in caught.value.hint
    ledger = project.ledger
    ledger.begin_run("running", "churn", {})
    with pytest.raises(UsageError, match="still going on"):
        prepare_rerun(project.settings, "running")
    ledger.end_run("running", "ok")
    ledger.close()
    sweep = project.run(sweep={"split.most": [1, 2]}).document
    with pytest.raises(UsageError, match="a sweep of 2 runs"):
        prepare_rerun(project.settings, sweep["run"])
    assert repeat(project, sweep["children"][1])["identical"]


def test_an_error_of_the_process_is_told(project):
    first = project.run()
    prepared = prepare_rerun(project.settings, first.document["run"])
    (prepared.folder / "nbs/pipelines/churn/10_split.ipynb").unlink()
    with pytest.raises(MlopsError, match=r"score: needs split\.rows"):
        execute_rerun(prepared, project.settings)


def test_a_damaged_source_is_named(project):
    first = project.run()
    digest = project.ledger.run(first.document["run"])["sources"]["churn/rows.py"]
    Store(project.workspace / "objects").path(digest).unlink()
    with pytest.raises(MlopsError, match=f"{digest[:12]} is missing"):
        prepare_rerun(project.settings, first.document["run"])


def test_a_failed_run_fails_again(project):
    project.step("20_score", "1 / 0")
    first = project.run()
    assert first.document["status"] == "failed"
    answer = repeat(project, first.document["run"])
    assert answer["identical"], answer


def test_recorded_modules_of_mlops_nb_win_over_those_that_are_installed(project):
    project.step("20_score", "from mlops_nb.data.show import count", "flow.words = count(len(flow.split.rows), 'row')")
    first = project.run().document["run"]
    module, ledger = "mlops_nb/data/show.py", project.ledger
    source = Store(project.workspace / "objects").read(ledger.run(first)["sources"][module])
    older = source.replace(b"def count(", b"def count(*_):\n    return 'older'\n\n\ndef newer_count(")
    digest = Store(project.workspace / "objects").put_bytes(older)
    with ledger.database.transaction() as execute:
        execute("UPDATE run_sources SET sha256 = :digest WHERE path = :path", digest=digest, path=module)
    answer = repeat(project, first)
    assert [one["what"] for one in answer["differences"]] == ["score.words"]
    assert (
        Store(project.workspace / "objects").read(ledger.artifact(answer["run"], "score.words")["sha256"]) == b'"older"'
    )
    assert ledger.run(answer["run"])["sources"][module] == digest
