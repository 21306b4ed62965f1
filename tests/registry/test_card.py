"""The model card: what it holds, what it leaves out, what a person has to write."""

import json
import shutil
from types import SimpleNamespace

import pytest
from registry_support import give, make_project, package, people
from support import ROOT, Project

from mlops_nb.core.errors import UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.core.store import Store
from mlops_nb.registry.card import card_contents, missing_parts, named_version, read_card
from mlops_nb.registry.card_parts import card_parts, is_written, read_parts
from mlops_nb.registry.register import Registrar, register

ASSESSMENT = {
    "format": 1,
    "rows": [
        {"metric": "selection_rate", "slice": "sex=female", "value": 0.4, "low": 0.3, "high": 0.5, "n": 90},
        {"metric": "roc_auc", "slice": "sex=<b>", "value": None, "low": None, "high": None, "n": 3},
    ],
}


def cell(*lines: str, kind: str = "markdown") -> dict:
    return {"cell_type": kind, "source": "\n".join(lines)}


def notebook(*cells: dict) -> str:
    return json.dumps({"cells": list(cells)})


@pytest.fixture
def registered(tmp_path):
    """A project with one version whose package has an assessment; settings, ledger, version."""
    settings = make_project(tmp_path / "project")
    content = package(people(), assessment=ASSESSMENT)
    with Ledger.open(settings) as ledger:
        run = give(settings, ledger, "20261128-120000-0001", content, None)
        registrar = Registrar(run, settings, ledger)
        digest = ledger.artifacts(run["run"])["package.package"]["sha256"]
        name, version = register(registrar, digest)
        yield settings, ledger, registrar.version_of(name, version)


def test_the_card_of_a_run(default_run, tmp_path):
    project, _ = default_run
    told = project.json("card", "--html", str(tmp_path / "card.html"))
    text, page = told["markdown"], (tmp_path / "card.html").read_text()
    assert told["missing"] == ["Intended use", "Limits", "Data consent"]
    for words in ("roc_auc (ranks)", "worst concave points", "sklearn:breast_cancer", "Split by lot", told["digest"]):
        assert words in text and words in page
    assert page.count("data:image/svg+xml;base64,") == 3 and "<script" not in page
    assert "alias champion set on version 1" in text and "Nobody has approved" in text and "Signed: model.sig" in text


def test_the_signed_card_tells_nothing_that_changes(registered):
    settings, ledger, version = registered
    registrar = SimpleNamespace(settings=settings, ledger=ledger)
    before = card_contents(registrar, version)
    ledger.move_alias("churn", "champion", 1, expected=None, reason="the first")
    ledger.add_event("approval", "churn:1", {"role": "risk", "reason": "looked at it"})
    after = card_contents(registrar, named_version(ledger, "churn"))
    assert before == after and list(before) == ["card.md"]
    now = read_card(ledger, settings, named_version(ledger, "churn")).markdown()
    assert "looked at it" in now and "alias champion set on version 1" in now and "looked at it" not in str(after)


def test_assessment_rows_are_told_with_their_rows(registered):
    settings, ledger, version = registered
    made = read_card(ledger, settings, version)
    assert "| selection_rate | sex=female | 0.4000 | 0.3000 to 0.5000 | 90 |" in made.markdown()
    assert "| roc_auc | sex=&lt;b> | not assessed | – | 3 |" in made.markdown()
    assert "sex=&lt;b&gt;" in made.page() and "sex=<b>" not in made.page()
    assert "Not written yet" in made._repr_html_() and "<style" not in made._repr_html_()


def test_words_written_before_the_run_win_and_later_ones_are_told_as_such(default_run, tmp_path):
    project = Project(tmp_path / "project", default_run[0].copy(tmp_path / "workspace").workspace)
    shutil.copytree(ROOT / "nbs" / "pipelines", project.folder / "nbs" / "pipelines")
    (project.folder / "settings.ini").write_text("[package]\nname = demo\n")
    file = project.folder / "nbs" / "pipelines" / "tabular" / "60_package.ipynb"
    placeholder = "*Not written yet: for which decisions about whom, and for which not?*"
    assert placeholder in file.read_text()
    file.write_text(file.read_text().replace(placeholder, "Second opinions; <script>alert(1)</script>."))
    settings = load_settings(project.folder, {"MLOPS_NB_WORKSPACE_PATH": str(project.workspace)})
    with Ledger.open(settings) as ledger:
        version = named_version(ledger, "")
        made = read_card(ledger, settings, version)
        assert missing_parts(made) == ["Limits", "Data consent"]
        assert "written after the run" in made.parts["Intended use"].origin
        assert "<script>" not in made.page() and "<script>" not in made._repr_html_()
        signed = card_contents(SimpleNamespace(settings=settings, ledger=ledger), version)["card.md"].decode()
        assert "Second opinions" not in signed
        recorded = notebook(cell("## Intended use", "As it was."))
        digest = Store(settings.workspace.path / "objects").put_bytes(recorded.encode())
        run = ledger.run(version["run"]) | {"sources": {"nbs/pipelines/tabular/60_package.ipynb": digest}}
        part = card_parts(settings, run, version["digest"])["Intended use"]
        assert part.text == "As it was." and part.origin == "recorded with the run"


def test_a_notebook_of_its_own(registered, tmp_path):
    settings, ledger, version = registered
    chosen = settings._replace(registry=settings.registry._replace(card_notebook="docs/words.ipynb"))
    with pytest.raises(UsageError, match=r"card_notebook is 'docs/words.ipynb'"):
        card_parts(chosen, ledger.run(version["run"]), version["digest"])
    (settings.project / "docs").mkdir()
    (settings.project / "docs" / "words.ipynb").write_text(notebook(cell("# Data consent", "Contract 7, §2.")))
    parts = card_parts(chosen, ledger.run(version["run"]), version["digest"])
    assert parts["Data consent"].text == "Contract 7, §2." and parts["Limits"].text == ""


def test_where_a_part_ends():
    found = read_parts(
        notebook(
            cell("## Limits", "One.", "### Deeper", "Two.", "## Else", "Three."),
            cell("## intended USE ##", "Four."),
            cell("x = 1", kind="code"),
            cell("Five."),
        )
    )
    assert found == {"Limits": "One.\n### Deeper\nTwo.", "Intended use": "Four."}


@pytest.mark.parametrize("text", ["", "  ", "TODO: write", "> *Not yet written.*", "tbd", "...", "…", "<!-- why? -->"])
def test_a_placeholder_counts_as_missing(text):
    assert not is_written(text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chrun", "Did you mean 'churn'"),
        ("churn:2", "It has: 1"),
        ("churn:champoin", "no version or alias 'champoin'"),
        ("churn:", "no version or alias ''"),
    ],
)
def test_what_is_no_version(registered, name, message):
    with pytest.raises(UsageError) as error:
        named_version(registered[1], name)
    assert message in str(error.value)


def test_a_run_that_is_gone_leaves_what_the_package_says(registered):
    settings, ledger, version = registered
    made = read_card(ledger, settings, {**version, "run": "20200101-000000-0000"})
    assert "no longer on record" in made.markdown() and "selection_rate" in made.page()
