"""The model card: what it holds, what it leaves out, what a person has to write."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from registry_support import give, make_project, package, people
from support import ROOT, Project, gives

from mlops_nb.core.errors import UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.runs import user_name
from mlops_nb.core.settings import load_settings
from mlops_nb.core.store import Store
from mlops_nb.registry.annotate import note_version, tag_version
from mlops_nb.registry.approvals import APPROVAL, REJECTION, say
from mlops_nb.registry.card import card_contents, missing_parts, named_version, read_card
from mlops_nb.registry.card_parts import card_parts, is_written, read_parts
from mlops_nb.registry.check import check_version
from mlops_nb.registry.promote import carry_out, overridden, prepare
from mlops_nb.registry.register import Registrar, register, run_completing
from mlops_nb.registry.versions import find_version
from mlops_nb.registry.waivers import waive_gate

ASSESSMENT = {
    "format": 1,
    "rows": [
        {"metric": "selection_rate", "slice": "sex=female", "value": 0.4, "low": 0.3, "high": 0.5, "n": 90},
        {"metric": "roc_auc", "slice": "sex=<b>", "value": None, "low": None, "high": None, "n": 3},
        {"metric": "base_rate", "slice": "sex=female", "value": 0.3, "low": 0.2, "high": 0.4, "n": 90},
        {"metric": "base_rate", "slice": "sex=male", "value": 0.5, "low": 0.4, "high": 0.6, "n": 90},
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
    project, document = default_run
    told = project.json("card", "--html", str(tmp_path / "card.html"))
    text, page = told["markdown"], (tmp_path / "card.html").read_text()
    assert told["missing"] == ["Intended use", "Limits", "Data consent"]
    for words in ("roc_auc (ranks)", "worst concave points", "sklearn:breast_cancer", "Split by lot", told["digest"]):
        assert words in text and words in page
    assert page.count("data:image/svg+xml;base64,") == 3 and "<script" not in page
    assert "alias champion set on version 1" in text and "Nobody has approved this version" in text
    cost = re.search(
        r"Making it took ([\d.]+) s of processors, about (\S+) Wh and (\S+) g CO2e", section(text, "Energy")
    )
    assert cost and all(float(number) > 0 for number in cost.groups())
    lineage = section(text, "Lineage")
    shown = project.json("show", document["run"])
    assert (
        f"| Python | {shown['python']} |" in lineage
        and f"| package.package | ModelPackage | {told['digest']} |" in lineage
    )
    tables = [
        digest for name, digest in gives(document).items() if name in ("split.train", "split.test", "train.model")
    ]
    assert len(tables) == 3 and all(digest in lineage for digest in tables)
    assert f"| commit | {shown['git']['commit']}" in lineage and "| train.model | " in lineage


@pytest.fixture
def decided(tmp_path):
    """A second version that a gate refused, and about which people then said all that can be said; settings, ledger."""
    settings, table = make_project(tmp_path / "project"), people()
    settings = settings._replace(
        registry=settings.registry._replace(bento_store=False, approvers=user_name(), approvals=1, four_eyes=False)
    )
    row = {"metric": "roc_auc", "slice": "", "value": 0.93, "low": 0.88, "high": 0.97, "n": 143}
    gates = {"assessment": {"format": 1, "rows": [row]}, "gates": ["roc_auc >= 0.9", "model_size <= 5 MB"]}
    contents = [package(table.iloc[:100], inputs=("balance",)), package(table.iloc[:90], **gates)]
    with Ledger.open(settings) as ledger:
        for content, run_id in zip(contents, ("20261128-120000-0001", "20261128-120001-0002"), strict=True):
            run_completing(give(settings, ledger, run_id, content, table.iloc[100:]), settings, ledger)
            if run_id.endswith("1"):
                say(settings, ledger, find_version(ledger, "churn:1"), APPROVAL)
                carry_out(settings, ledger, prepare(settings, ledger, "churn:1"))
        yield settings, ledger


def section(text: str, title: str) -> str:
    """What a card says under a heading."""
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_what_people_and_gates_decided_is_told_in_their_words(decided):
    settings, ledger = decided
    version = find_version(ledger, "churn:2")
    signed = (settings.workspace.path / "models/churn/2/card.md").read_bytes()
    assert "churn:2 needs 1 approval and has none." in read_card(ledger, settings, version).markdown()
    tag_version(ledger, "churn:2", ["spring", "draft"])
    tag_version(ledger, "churn:2", [], ["draft"])
    note_version(ledger, "churn:2", "for the <spring> campaign")
    say(settings, ledger, version, REJECTION, "the source is old")
    say(settings, ledger, version, APPROVAL, "looked at it")
    refused = prepare(settings, ledger, "churn:2")
    carry_out(settings, ledger, overridden(settings, ledger, refused, "the old one is broken"))
    declared = [result.gate for result in check_version(settings, ledger, version)]
    waive_gate(settings, ledger, version, "roc_auc >= 0.9", "2099-01-31", "few rows", declared)
    registrar = SimpleNamespace(settings=settings, ledger=ledger)
    assert card_contents(registrar, find_version(ledger, "churn:2"))["card.md"] == signed

    made = read_card(ledger, settings, find_version(ledger, "churn:2"))
    told = section(made.markdown(), "Approvals and decisions")
    whys = [line.split(" | ", 2)[2] for line in told.splitlines() if line.startswith("| 20")]
    assert [why for why in whys if why.startswith("not made champion | churn:2 does not pass 1 of 2 gates")]
    assert {
        "tagged +draft +spring |  |",
        "tagged -draft |  |",
        "wrote a note | for the &lt;spring> campaign |",
        "rejected | the source is old |",
        "approved | looked at it |",
        "waived the gate roc_auc >= 0.9 until 2099-01-31 | few rows |",
        f"alias champion set on version 2 | churn:2 was promoted by hand, by an override of {user_name()} |",
    } < set(whys)
    assert [why for why in whys if re.match(r"overrode a refusal until \S+ \| the old one is broken \(refused: ", why)]
    assert f"Approved by {user_name()}; the settings want 1 approval." in told and version["digest"] not in told
    gates = section(made.markdown(), "Gates")
    why = "roc_auc is 0.9300, and the low end of its interval, 0.8800, is below 0.9"
    assert f"| roc_auc >= 0.9 | 0.9300 | 0.8800 to 0.9700 | 143 | missed | {why} |" in gates
    assert "| model_size &lt;= 5 MB |" in gates and "| passed |" in gates
    row = next(line for line in section(made.markdown(), "Beside the champion").splitlines() if "roc_auc" in line)
    assert re.fullmatch(r"\| roc_auc( \| 0\.\d{4}){3} \| -?0\.\d{4} to 0\.\d{4} \| 0\.\d{3} \| 200 \|", row), row
    assert "&lt;spring&gt;" in made.page() and "<spring>" not in made.page()


def test_gates_that_nobody_declared_and_an_override_that_moved_nothing(decided):
    settings, ledger = decided
    first, second = (find_version(ledger, f"churn:{number}") for number in (1, 2))
    told = read_card(ledger, settings, first).markdown()
    assert "held against no gate" in section(told, "Gates") and "with no champion" in section(
        told, "Beside the champion"
    )
    overridden(settings, ledger, prepare(settings, ledger, "churn:2"), "to be moved on Monday")
    told = section(read_card(ledger, settings, second).markdown(), "Approvals and decisions")
    assert "to be moved on Monday" in told and "Aliases now: none" in told


def test_the_card_says_who_signed_and_whether_it_holds(decided):
    settings, ledger = decided
    version = find_version(ledger, "churn:1")
    told = section(read_card(ledger, settings, version).markdown(), "Signature")
    root = ledger.events("key", "churn:1")[0]["details"]["root"]
    assert "| verifies | yes, every file of models/churn/1 is as it was signed |" in told
    assert f"| key | {ledger.events('key', 'churn:1')[0]['details']['name']} |" in told
    assert f"| by | {user_name()}@" in told and root in told
    file = settings.workspace.path / "models/churn/1/schema.json"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes().replace(b"age", b"agf"))
    assert "| verifies | no, changed: schema.json |" in read_card(ledger, settings, version).markdown()
    shutil.rmtree(file.parent)
    assert "not signed. Sign it: mlops-nb sign churn:1" in read_card(ledger, settings, version).markdown()
    off = settings._replace(registry=settings.registry._replace(signatures="off"))
    assert "[registry] signatures = off" in section(read_card(ledger, off, version).markdown(), "Signature")


def test_assessment_rows_are_told_with_their_rows(registered):
    settings, ledger, version = registered
    made = read_card(ledger, settings, version)
    assert "| selection_rate | sex=female | 0.4000 | 0.3000 to 0.5000 | 90 |" in made.markdown()
    assert "| roc_auc | sex=&lt;b> | not assessed | – | 3 |" in made.markdown()
    assert "Base rates on these rows are 0.30 in sex=female and 0.50 in sex=male." in made.markdown()
    assert "cannot all hold at once" in made.markdown(fixed=True)
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
        assert "written after the run and not in the signed card.md" in made.parts["Intended use"].origin
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
