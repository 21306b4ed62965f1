"""Runs compared, traced, reported and kept, as a person does it."""

import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import notebook

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.core.store import Store

MAKE = (
    "import pandas as pd\nfrom helpers import prices\n\nfrom mlops_nb import Table, flow",
    "#| parameters\nrows: int = 20  # how many",
    "flow.table = Table(pd.DataFrame({'id': [f'r{i}' for i in range(rows)], 'price': prices(rows)}))",
)
TRAIN = (
    "import matplotlib.pyplot as plt\n\nfrom mlops_nb import Figure, Json, Metrics, flow, log",
    "#| parameters\nname: str = 'plain'  # told in a cell\nlift: float = 0.0  # what is added",
    "table = flow.make.table\nmean = float(table.price.mean()) + lift\n"
    "for step in range(5):\n    log(loss=1 / (step + 1), step=step)",
    "print(f'{name}: mean {mean:.3f}')\ntable.describe()",
    "figure, axes = plt.subplots(figsize=(3, 2))\n"
    "axes.plot(table.price + lift * table.index)\nflow.plot = Figure(figure)",
    "flow.metrics = Metrics({'mean': mean})\nflow.intervals = Json({'mean': [mean - 1, mean + 1]})",
)
HOSTILE = "<script>alert(1)</script>"


def command(*words: str, cwd: Path, expect: int = 0) -> str:
    """What a command prints."""
    line = [sys.executable, "-m", "mlops_nb", *words]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def document(*words: str, cwd: Path, expect: int = 0) -> dict:
    """What a command prints for programs."""
    return json.loads(command(*words, "--json", cwd=cwd, expect=expect))


def write(project: Path, make: tuple[str, ...], train: tuple[str, ...], factor: int) -> None:
    """The project's two steps and its module."""
    steps = project / "nbs" / "pipelines" / "demo"
    steps.mkdir(parents=True, exist_ok=True)
    (steps / "10_make.ipynb").write_text(notebook(*make), encoding="utf-8")
    (steps / "20_train.ipynb").write_text(notebook(*train), encoding="utf-8")
    text = f"def prices(count):\n    return [float(i * {factor}) for i in range(count)]\n"
    (project / "helpers.py").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str, str]:
    """A project and two runs of it, with other code, parameters and data."""
    project = tmp_path_factory.mktemp("compared") / "demo"
    project.mkdir()
    (project / "settings.ini").write_text("[package]\nname = demo\n[tracking]\nmode = off\n", encoding="utf-8")
    write(project, MAKE, TRAIN, 2)
    first = document("run", "demo", cwd=project)["run"]
    command("snapshot", "demo", "train", "--update", cwd=project)
    write(project, (*MAKE[:2], MAKE[2].replace("'price'", "'size': 1, 'price'")), TRAIN, 3)
    words = ("-p", f"train.name={HOSTILE}", "-p", "make.rows=22", "-p", "train.lift=0.5")
    return project, first, document("run", "demo", *words, cwd=project)["run"]


@pytest.fixture
def project(made, tmp_path) -> tuple[Path, str, str]:
    """A copy to be changed."""
    return Path(shutil.copytree(made[0], tmp_path / "demo")), made[1], made[2]


def ledger_of(project: Path) -> Ledger:
    return Ledger.open(load_settings(project, environ={}))


class Tags(html.parser.HTMLParser):
    """Collects tags and addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


def assert_stands_alone(path: Path, most: int) -> str:
    """The page asks nothing of anybody, runs nothing, and is not too large."""
    text = path.read_text(encoding="utf-8")
    found = Tags(text)
    assert "script" not in found.tags and all(a.startswith(("data:", "#")) for a in found.addresses)
    assert "default-src 'none'" in text and HOSTILE not in text
    assert len(text) < most
    return text


def test_everything_that_differs_is_told(made):
    project, first, second = made
    found = document("diff", first, second, cwd=project, expect=1)
    told = {(one["section"], one["what"]): one for one in found["differences"]}
    assert found["identical"] is False and found["runs"] == [first, second] and found["notes"] == []
    assert told["parameters", "make.rows"]["a"] == 20 and told["parameters", "make.rows"]["b"] == 22
    assert "'size': 1" in told["code", "make, cell 3"]["b"]
    assert "i * 2" in told["code", "helpers.py::prices"]["a"] and "i * 3" in told["code", "helpers.py::prices"]["b"]
    data = told["data", "make.table"]["told"]
    assert "2 rows added, 19 rows changed (matched by 'id')" in data and "column 'size' is new (int64)" in data
    assert "do not overlap" in told["metrics", "train.mean"]["told"]
    assert ("artifacts", "train.plot") in told
    assert any(section == "outputs" and "cell 5" in what for section, what in told)


def test_a_run_does_not_differ_from_itself(made):
    project, first, _ = made
    assert document("diff", first, first, cwd=project)["differences"] == []
    assert "identical" in command("diff", first, first, cwd=project)


def test_the_page_and_the_lines_show_code_and_numbers(made, tmp_path):
    project, first, second = made
    lines = command("diff", first, second, "--html", str(tmp_path / "page.html"), cwd=project, expect=1)
    assert "-    return [float(i * 2) for i in range(count)]" in lines
    text = assert_stands_alone(tmp_path / "page.html", 300_000)
    assert "&lt;script&gt;alert(1)" in text and "is new" in text and "price" in text


def test_what_was_deleted_or_damaged_is_said_and_the_rest_compared(project):
    project, first, second = project
    ledger = ledger_of(project)
    store = Store(project / ".mlops" / "objects")
    table = store.path(ledger.artifact(second, "make.table")["sha256"])
    table.chmod(0o644)
    table.write_bytes(b"damaged")
    store.path(ledger.run(first)["sources"]["helpers.py"]).unlink()
    shutil.rmtree(project / ".mlops" / "runs" / first)
    found = document("diff", first, second, cwd=project, expect=1)
    assert {one["what"] for one in found["differences"]} >= {"make.rows", "make.table", "helpers.py::prices"}
    assert len(found["notes"]) >= 3
    assert any("is damaged" in note for note in found["notes"]) and any("is missing" in note for note in found["notes"])


@pytest.mark.parametrize("words", [("diff", "{}", "latest"), ("report", "{}"), ("rerun", "{}"), ("lineage", "{}")])
def test_an_unknown_run_is_refused_with_a_guess(made, words):
    project, first, _ = made
    wrong = f"{first[:-1]}{'0' if first[-1] != '0' else '1'}"
    error = document(*(word.format(wrong) for word in words), cwd=project, expect=2)["error"]
    assert wrong in error["message"]
    assert f"Did you mean '{first[:-5]}" in error["hint"]


def test_runs_of_two_pipelines_a_running_one_and_numbers_that_are_none(project):
    project, first, _ = project
    ledger = ledger_of(project)
    ledger.begin_run("20990101-000000-aaaa", "other", {"make.rows": 1})
    with ledger.database.transaction() as execute:
        execute("UPDATE metrics SET value = 9e999 WHERE run_id = :run", run=first)
    found = document("diff", first, "20990101-000000-aaaa", cwd=project, expect=1)
    assert {"section": "run", "what": "pipeline", "a": "demo", "b": "other"} in found["differences"]
    assert any("still going on" in note for note in found["notes"])
    assert [one["a"] for one in found["differences"] if one["what"] == "train.mean"] == [None]
    ledger.close()


def test_lineage_is_told_in_text_as_a_document_and_as_a_picture(made, tmp_path):
    project, _, second = made
    text = command("lineage", f"{second}/train.metrics", "--html", str(tmp_path / "page.html"), cwd=project)
    assert "train (done" in text and "<- make (table)" in text
    found = document("lineage", "latest", cwd=project)
    [edge] = found["edges"]
    assert (edge["from"], edge["to"], edge["artifacts"][0]["name"]) == ("step:make", "step:train", "make.table")
    digest = edge["artifacts"][0]["sha256"]
    assert document("lineage", digest[:16], cwd=project)["run"] == second
    assert digest in assert_stands_alone(tmp_path / "page.html", 100_000)


def test_a_report_holds_the_run_and_what_changed(made):
    project, first, second = made
    path = project / document("report", second, cwd=project)["html"]
    assert path == project / ".mlops" / "reports" / f"{second}.html"
    text = assert_stands_alone(path, 300_000)
    for part in (
        "Metrics",
        "Plots",
        "Curves",
        "What changed",
        "helpers.py::prices",
        first,
        "matched by",
        "Environment",
    ):
        assert part in text
    assert "first one" in (project / document("report", first, cwd=project)["html"]).read_text(encoding="utf-8")


def test_a_failed_run_has_a_report(project):
    project, _, _ = project
    write(project, MAKE, (*TRAIN, "raise ValueError('<b>no</b>')"), 2)
    run = document("run", "demo", cwd=project, expect=1)["run"]
    text = assert_stands_alone(project / document("report", run, cwd=project)["html"], 300_000)
    assert "&lt;b&gt;no&lt;/b&gt;" in text


def test_a_snapshot_is_small_clean_and_says_what_changed(made):
    project, first, second = made
    path = project / "nbs" / "pipelines" / "demo" / "snapshots" / "20_train.json"
    kept = path.read_text(encoding="utf-8")
    assert len(kept) < 20_000 and str(project) not in kept and not re.search(r"\d{8}-\d{6}-", kept)
    assert "as kept" in command("snapshot", "demo", "--run", first, cwd=project)
    found = document("snapshot", "demo", "train", "--run", second, cwd=project, expect=1)
    told = [one["told"] for one in found["differences"]]
    assert any("picture differs" in one for one in told) and "the text differs" in told
    text = assert_stands_alone(project / found["html"], 200_000)
    assert "expected" in text and "now" in text and text.count("data:image/png") >= 2


def test_a_snapshot_keeps_its_tolerances_and_refuses_what_is_none(project):
    project, _, second = project
    path = project / "nbs" / "pipelines" / "demo" / "snapshots" / "20_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tolerance": 0.5, "pictures": 1}), encoding="utf-8")
    command("snapshot", "demo", "train", "--update", "--run", second, cwd=project)
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert (kept["tolerance"], kept["pictures"]) == (0.5, 1)
    error = document("snapshot", "demo", "trian", cwd=project, expect=2)["error"]
    assert "Did you mean 'train'" in error["hint"]
    path.write_text("{", encoding="utf-8")
    assert "is no snapshot" in document("snapshot", "demo", cwd=project, expect=2)["error"]["message"]
    path.unlink()
    assert "has a snapshot" in document("snapshot", "demo", cwd=project, expect=2)["error"]["message"]


def test_a_run_is_repeated_by_command_and_differences_are_the_exit_code(project):
    project, first, second = project
    shutil.rmtree(project / "nbs" / "pipelines" / "demo")
    (project / "helpers.py").unlink()
    answer = document("rerun", first, cwd=project)
    assert answer["identical"] and answer["origin"] == first and answer["compared"]["artifacts"] == 4
    with ledger_of(project).database.transaction() as execute:
        execute("UPDATE metrics SET value = 0.25 WHERE run_id = :run", run=second)
    lines = command("rerun", second, cwd=project, expect=1)
    assert "✗ 1 difference" in lines and "train.mean  0.25 ->" in lines
    assert "repeats" in command("show", "latest", cwd=project)


def test_in_a_notebook_runs_are_compared_and_traced(made, monkeypatch):
    import mlops_nb

    project, first, second = made
    monkeypatch.chdir(project)
    comparison = mlops_nb.compare(first, second, first)
    assert not comparison.identical and [len(found) for _, found in comparison.pairs][1] == 0
    assert "make.rows" in repr(comparison) and HOSTILE not in comparison._repr_html_()
    assert mlops_nb.lineage("latest")._repr_html_().startswith("<img")
