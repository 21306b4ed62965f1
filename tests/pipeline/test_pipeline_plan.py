"""Each part of a key flips alone, and the plan says so; nothing else makes a step run."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from pipeline_support import ROOT, Project, settle, write_notebook
from test_pipeline_fingerprint import fake_distribution

from mlops_nb.core.errors import UsageError
from mlops_nb.pipeline import fingerprint

FEATURES = '''
"""Features of the churn data."""
from churn.limits import LIMITS

def scale(x):
    """Between 0 and 1."""
    return clip(x) / LIMITS["age"]

def clip(x):
    return max(0, x)  # no negative ages

def unrelated(x):
    return 2 * x
'''
TRAIN = ["from churn.features import scale", "#| parameters\nrate: float = 0.5  # how fast\nkind: str = 'tree'"]
TRAIN += ["# Fit", "x = len(flow.ingest.table)", "flow.model = scale(x) * rate"]


def build(folder) -> Project:
    project = Project(folder)
    project.file("churn.csv", "age,churned\n42,yes\n")
    project.file("churn/__init__.py", "")
    project.file("churn/features.py", FEATURES)
    project.file("churn/limits.py", 'LIMITS = {"age": 120}\nLIMITS["income"] = 10\nOTHER = 3\n')
    params = "#| parameters\nsource: Source = 'churn.csv'  # the data"
    project.step(
        "10_ingest", "from mlops_nb import Source\nimport tiny_one", params, "flow.table = open(source).read()"
    )
    project.step("20_train", *TRAIN)
    project.step("30_report", "flow.text = str(flow.train.model)")
    return project


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Packages that no one else has: one that a step imports, one that this one requires, one that nobody imports."""
    folder = tmp_path_factory.mktemp("installed") / "site-packages"
    fake_distribution(folder, "tiny_one", "1.0", ["tiny_two"])
    fake_distribution(folder, "tiny_two", "2.0")
    fake_distribution(folder, "tiny_three", "3.0")
    return folder


@pytest.fixture(scope="module")
def settled(tmp_path_factory, site):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        project = build(tmp_path_factory.mktemp("settled") / "project")
        settle(project)
    return project


@pytest.fixture
def project(settled, site, tmp_path, monkeypatch):
    """A project in which every step has a good result, to be changed freely."""
    monkeypatch.syspath_prepend(site)
    shutil.copytree(settled.folder, tmp_path / "project")
    return Project(tmp_path / "project")


def reasons(project, **options):
    """Step -> why it runs, without those that are up to date."""
    decisions = project.plan(**options).decisions
    return {name: decision.reasons for name, decision in decisions.items() if decision.action == "run"}


def edit(project, name, old, new):
    path = project.folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def upgrade(site, name, old, new):
    """Put another version in the place of an installed one."""
    (site / f"{name}-{old}.dist-info").rename(site / f"{name}-{new}.dist-info")
    path = site / f"{name}-{new}.dist-info/METADATA"
    path.write_text(path.read_text().replace(f"Version: {old}", f"Version: {new}"))


def test_settled(project):
    assert reasons(project) == {}
    assert {decision.reasons[0] for decision in project.plan().decisions.values()} == {"up to date"}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("churn/features.py", "# no negative ages", "# ages are not negative"),
        ("churn/features.py", '"""Between 0 and 1."""', '"""A number from 0 to 1."""'),
        ("churn/features.py", '    """Between 0 and 1."""\n', ""),
        ("churn/features.py", '"""Features of the churn data."""', ""),
        ("churn/features.py", "return 2 * x", "return 3 * x"),
        ("churn/features.py", "max(0, x)", "max(\n        0,\n        x,\n    )"),
        ("churn/limits.py", "OTHER = 3", "OTHER = 4"),
        ("churn/limits.py", "OTHER = 3", "OTHER = 3\nimport json"),
    ],
)
def test_what_does_not_count_in_modules(project, name, old, new):
    edit(project, name, old, new)
    assert reasons(project) == {}


HASHES = r"\([0-9a-f]{4} -> [0-9a-f]{4}\)"
WAITS = {"report": ["waits for train"]}


@pytest.mark.parametrize(
    ("name", "old", "new", "because"),
    [
        ("churn/features.py", "max(0, x)", "max(1, x)", rf"churn/features\.py::clip changed {HASHES}"),
        ("churn/features.py", "clip(x) /", "2 * clip(x) /", rf"churn/features\.py::scale changed {HASHES}"),
        ("churn/limits.py", "120", "130", rf"churn/limits\.py::LIMITS changed {HASHES}"),
        ("churn/limits.py", '["income"] = 10', '["income"] = 20', rf"churn/limits\.py::LIMITS changed {HASHES}"),
        (
            "churn/limits.py",
            "OTHER = 3",
            "OTHER = 3\nprint(1)",
            r"churn/limits\.py \(run by every import\) is reached now",
        ),
        ("churn/features.py", "def scale(x", "from functools import cache\n@cache\ndef scale(x", r"::scale changed"),
    ],
)
def test_what_counts_in_modules(project, name, old, new, because):
    edit(project, name, old, new)
    found = reasons(project)
    assert set(found) == {"train", "report"} and found["report"] == WAITS["report"]
    assert re.search(because, found["train"][0]) and len(found["train"]) == 1


def test_cells(project):
    project.step("20_train", "# A title", *TRAIN[:2], "# Fit, and why", *TRAIN[3:], "# The end")
    assert reasons(project) == {}
    project.step("20_train", *TRAIN[:4], "flow.model = scale(x) * rate * 2")
    assert re.fullmatch(rf"cell 6 changed {HASHES}", reasons(project)["train"][0])
    project.step("20_train", *TRAIN, "print(x)")
    assert reasons(project)["train"][0].startswith("cell 7 is new")
    project.step("20_train", TRAIN[0], "import json", *TRAIN[1:])
    assert reasons(project)["train"][0].startswith("cell 3 is new")


def test_parameters(project):
    assert reasons(project, parameters={"train.rate": "0.5"}) == {}
    assert reasons(project, parameters={"train.rate": "0.6"}) == {"train": ["parameter rate: 0.5 -> 0.6"], **WAITS}
    assert reasons(project, parameters={"train.kind": "bush"})["train"] == ["parameter kind: 'tree' -> 'bush'"]
    project.step("20_train", TRAIN[0], TRAIN[1].replace("0.5", "0.7"), *TRAIN[2:])
    assert reasons(project) == {"train": ["parameter rate: 0.5 -> 0.7"], **WAITS}
    assert reasons(project, parameters={"train.rate": "0.5"}) == {}, "the default does not count, the value does"
    project.step("20_train", TRAIN[0], TRAIN[1] + "\nseed: int = 0", *TRAIN[2:])
    assert reasons(project)["train"] == ["parameter rate: 0.5 -> 0.7", "parameter seed is new: 0"][1:]


def test_reasons_tell_no_secrets(project, monkeypatch):
    monkeypatch.setenv("CHURN_TEST_TOKEN", "hunter2hunter2")
    for value in ("postgres://shop:swordfish@db/x", "hunter2hunter2"):
        reasons = project.reasons("train", parameters={"train.kind": value})
        assert "parameter kind: 'tree' -> " in reasons[0] and "[redacted]" in reasons[0]
        assert "swordfish" not in reasons[0] and "hunter2" not in reasons[0]


def test_a_secret_in_a_parameter_is_no_change_by_itself(project):
    parameters = {"train.kind": "postgres://shop:swordfish@db/x"}
    settle(project, parameters=parameters)
    assert project.reasons("train", parameters={**parameters, "train.rate": "0.25"}) == ["parameter rate: 0.5 -> 0.25"]


def test_data(project):
    project.file("copy.csv", (project.folder / "churn.csv").read_text())
    assert reasons(project, parameters={"ingest.source": "copy.csv"}) == {}, "the same content under another name"
    project.file("churn.csv", "age,churned\n43,no\n")
    found = reasons(project)
    assert re.fullmatch(rf"data file churn\.csv changed {HASHES}", found["ingest"][0])
    assert found["train"] == ["waits for ingest"] and found["report"] == ["waits for train"]
    project.file("other.csv", "age\n")
    told = reasons(project, parameters={"ingest.source": "other.csv"})["ingest"][0]
    assert re.fullmatch(rf"data file: churn\.csv -> other\.csv {HASHES}", told)


def test_installation(project, site, tmp_path, monkeypatch):
    shutil.copytree(site, tmp_path / "site-packages")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    upgrade(tmp_path / "site-packages", "tiny_three", "3.0", "3.1")
    assert reasons(project) == {}
    upgrade(tmp_path / "site-packages", "tiny_one", "1.0", "1.1")
    assert reasons(project)["ingest"] == ["tiny-one 1.0 -> 1.1"]
    upgrade(tmp_path / "site-packages", "tiny_two", "2.0", "2.1")
    assert reasons(project)["ingest"] == ["tiny-one 1.0 -> 1.1", "tiny-two 2.0 -> 2.1"]


def test_python_and_format(project, monkeypatch):
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    with monkeypatch.context() as patch:
        patch.setattr(
            fingerprint, "sys", SimpleNamespace(version="3.99", version_info=SimpleNamespace(major=3, minor=99))
        )
        found = reasons(project)
        assert found["ingest"] == [f"python {here} -> 3.99"]
        assert found["train"] == [f"python {here} -> 3.99", "waits for ingest"]
    monkeypatch.setattr(fingerprint, "KEY_FORMAT", fingerprint.KEY_FORMAT + 1)
    assert reasons(project)["ingest"] == [f"key format {fingerprint.KEY_FORMAT - 1} -> {fingerprint.KEY_FORMAT}"]


def test_needs(project):
    digest = settle(project, {"ingest.table": b'"other"'}, parameters={"ingest.source": "settings.ini"})
    assert digest and reasons(project, parameters={"ingest.source": "settings.ini"}) == {}
    assert reasons(project) == {}, "the older results are still there"
    edit(project, "churn.csv", "42", "41")
    settle(project, {"ingest.table": b'"third"'})
    edit(project, "churn/features.py", "max(0, x)", "max(2, x)")
    edit(project, "churn.csv", "41", "42")
    assert re.search(rf"::clip changed {HASHES}", reasons(project)["train"][0])
    assert re.fullmatch(rf"need ingest\.table changed {HASHES}", reasons(project)["train"][1])


def test_lost_and_damaged_objects(project):
    gives = project.plan().decisions["train"].gives
    path = project.workspace / "objects" / gives["model"]["sha256"][:2] / gives["model"]["sha256"]
    path.chmod(0o644)
    path.write_bytes(b'"train.modex"')
    found = reasons(project)
    assert found == {"train": ["artifact model is damaged in the store"], **WAITS}
    path.unlink()
    assert reasons(project) == {"train": ["artifact model is missing from the store"], **WAITS}


def test_choosing_steps(project):
    edit(project, "churn/features.py", "max(0, x)", "max(1, x)")
    assert list(project.plan(to="train").decisions) == ["ingest", "train"]
    assert reasons(project, from_="train") == reasons(project)
    assert reasons(project, only="train").keys() == {"train"}
    assert reasons(project, only="train", force=True)["train"] == ["forced"]
    assert reasons(project, from_="train", force=True) == {"train": ["forced"], "report": ["forced"]}
    with pytest.raises(UsageError, match=r"'train' was not chosen to run, .*clip changed") as caught:
        project.plan(from_="report")
    assert "--from train" in caught.value.hint
    with pytest.raises(UsageError, match="no step 'trian'") as caught:
        project.plan(only="trian")
    assert "'train'" in caught.value.hint
    with pytest.raises(UsageError, match="No step is left by --from report --to train"):
        project.plan(from_="report", to="train")
    with pytest.raises(UsageError, match="No step is left by --to train --only report"):
        project.plan(to="train", only="report")


@pytest.mark.parametrize(
    ("parameters", "message", "hint"),
    [
        ({"train.rat": "1"}, "no parameter 'rat'", "'train.rate'"),
        ({"trian.rate": "1"}, "no step 'trian'", "'train.rate'"),
        ({"train.rate": "fast"}, "wants a finite number", "how fast"),
        ({"ingest.source": "churm.csv"}, "no file 'churm.csv'", "Did you mean 'churn.csv'?"),
        ({"ingest.source": "https://example.org/x.csv"}, "is an address", "Save it to a file"),
        ({"ingest.source": "postgresql://u:hunter2pw@h/db"}, "'postgresql://u:[redacted]@h/db'", "Save it to a file"),
        ({"ingest.source": ""}, "ingest.source is empty", "leave it at its default"),
        ({"ingest.source": "sklearn:wines"}, "no data set 'sklearn:wines'", "Did you mean 'sklearn:wine'?"),
        ({"ingest.source": "na\udcefve.csv"}, "'na?ve.csv', and not all of that is UTF-8", "Rename the file"),
    ],
)
def test_refused_parameters(project, parameters, message, hint):
    with pytest.raises(UsageError) as caught:
        project.plan(parameters=parameters)
    assert message in caught.value.message and hint in caught.value.hint


def test_a_folder_that_cannot_be_read_whole_names_the_file(project):
    project.file("data/rows.csv", "x")
    (project.folder / "data" / "lost.csv").symlink_to("nowhere.csv")
    with pytest.raises(UsageError, match=r"folder 'data' cannot be read whole, because of '.*/data/lost.csv'"):
        project.plan(parameters={"ingest.source": "data"})


def test_the_document(project):
    assert json.loads(json.dumps(project.plan().document())) == {
        "schema": 1,
        "pipeline": "churn",
        "steps": [
            {
                "step": step,
                "variant": None,
                "action": "cached",
                "reasons": ["up to date"],
                "needs": needs,
                "gives": gives,
            }
            for step, needs, gives in (
                ("ingest", [], ["table"]),
                ("train", ["ingest.table"], ["model"]),
                ("report", ["train.model"], ["text"]),
            )
        ],
    }


def test_planning_leaves_nothing_behind(tmp_path):
    project = Project(tmp_path / "fresh")
    project.step("10_a", "flow.x = 1")
    assert reasons(project) == {"a": ["never run"]}
    assert not project.workspace.exists()


PLAN = """
import resource, sys
from mlops_nb.core.settings import load_settings
from mlops_nb.pipeline.plan import make_plan
plan = make_plan(load_settings("."), "churn")
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
print(sorted({name.partition(".")[0] for name in sys.modules}))
print(plan.runs)
print(*(f"{key}" for key in (d.key for d in plan.decisions.values())))
"""
HEAVY = {
    "pandas",
    "sklearn",
    "wandb",
    "bentoml",
    "papermill",
    "nbformat",
    "nbclient",
    "sqlalchemy",
    "pydantic",
    "numpy",
}


def plan_in_process(project, root):
    """CPU seconds, imported packages, steps that run and keys of a plan in a process of its own."""
    command = [sys.executable, "-c", PLAN]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=True)
    cpu, modules, runs, keys = done.stdout.splitlines()
    return float(cpu), set(json.loads(modules.replace("'", '"'))), json.loads(runs.replace("'", '"')), keys.split()


def test_an_upgrade_of_the_plumbing_runs_nothing(tmp_path):
    project = Project(tmp_path / "project")
    project.step("10_a", "from mlops_nb.data.rows import row_hashes", "flow.x = row_hashes")
    project.step("20_b", "flow.y = flow.a.x")
    settle(project)
    copy = tmp_path / "lib"
    shutil.copytree(ROOT / "mlops_nb", copy / "mlops_nb", ignore=shutil.ignore_patterns("__pycache__"))
    before = plan_in_process(project, copy)
    assert before[2] == [], "where mlops_nb lies does not count"
    for room in ("core", "notebook", "pipeline", "track", "registry", "serve"):
        for path in (copy / "mlops_nb" / room).rglob("*.py"):
            path.write_text(path.read_text() + "\n\ndef added_by_an_upgrade():\n    return 1\n")
    assert plan_in_process(project, copy)[3] == before[3]
    rows = copy / "mlops_nb/data/rows.py"
    rows.write_text(
        rows.read_text().replace("def row_hashes(", "def row_hashes_before(") + "\ndef row_hashes(x): return x\n"
    )
    assert plan_in_process(project, copy)[2] == ["a", "b"]


def test_a_plan_of_six_steps_is_cheap(tmp_path):
    project = Project(tmp_path / "project")
    for number in range(1, 7):
        code = "import pandas, sklearn\nfrom mlops_nb.data.table import TableSerializer\nx = TableSerializer"
        need = f"flow.s{number - 1}.x" if number > 1 else "0"
        project.step(f"{number}0_s{number}", code, *(f"x{i} = {i}" for i in range(20)), f"flow.x = {need}")
    settle(project)
    plan_in_process(project, ROOT)
    runs = [plan_in_process(project, ROOT) for _ in range(3)]
    assert all(run[2] == [] for run in runs)
    assert not HEAVY & runs[0][1]
    assert min(run[0] for run in runs) < 0.3


def test_notebooks_of_other_pipelines_do_not_matter(project):
    write_notebook(project.folder / "nbs/pipelines/other/10_broken.ipynb", "def f(:")
    assert reasons(project) == {}
