"""Parameters that stand in a YAML file."""

import pytest
from pipeline_support import Project, settle

from mlops_nb.core.errors import UsageError
from mlops_nb.pipeline.graph import load_pipeline
from mlops_nb.pipeline.parameters import flat, read_parameters_file, resolve_parameters

INGEST = """#| parameters
source: Source = 'data/churn.csv'  # the table
exclude: list[str] = []  # columns
token: Secret = 'env:TOKEN'  # of the shop"""
TRAIN = """#| parameters
model: Literal["forest", "no", "2026-11-28"] = "forest"  # algorithm
rate: Annotated[float, Range(0, 1)] = 0.5  # how fast
rounds: int | None = 3  # how often
fast: bool = False  # hurry
folds: list[int] = [1]  # sizes"""


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / "project")
    project.step("10_ingest", "from mlops_nb import Secret, Source", INGEST, "flow.x = source")
    project.step("20_train", TRAIN, "flow.y = [rate, flow.ingest.x]")
    return project


def resolved(project, text, **given):
    """The parameters that a file sets in the project, without those that it leaves alone."""
    file = project.file("conf/params.yaml", text)
    pipeline = load_pipeline(project.settings, "churn")
    values = flat(resolve_parameters(project.settings, pipeline, {**read_parameters_file(file), **given}))
    defaults = flat(resolve_parameters(project.settings, pipeline, {}))
    return {name: value for name, value in values.items() if value != defaults[name]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  rate: 0.25\n  rounds: 5\n", {"train.rate": 0.25, "train.rounds": 5}),
        ("train.rate: 0.25\ntrain.rounds: 5\n", {"train.rate": 0.25, "train.rounds": 5}),
        ("train: {rate: 0.25}\ntrain.rounds: 5\n", {"train.rate": 0.25, "train.rounds": 5}),
        ('{"train": {"rate": 0.25}}', {"train.rate": 0.25}),
        ("train: {model: no, fast: yes}", {"train.model": "no", "train.fast": True}),
        ("train: {model: 2026-11-28}", {"train.model": "2026-11-28"}),
        ("train: {rate: 1e-3, rounds: 010}", {"train.rate": 0.001, "train.rounds": 10}),
        ("train: {rounds: null}", {"train.rounds": None}),
        ("train: {rounds: }", {"train.rounds": None}),
        (
            "train: {folds: [2, 3]}\ningest: {exclude: [id, 'a,b']}",
            {"train.folds": [2, 3], "ingest.exclude": ["id", "a,b"]},
        ),
        ("ingest:\n  exclude:\n    - id\n    - no\n", {"ingest.exclude": ["id", "no"]}),
        ("ingest: {exclude: 'id,name'}", {"ingest.exclude": ["id", "name"]}),
        ("ingest.exclude: &names [a]\ntrain: {folds: [1]}\n", {"ingest.exclude": ["a"]}),
        ("# nothing yet\n", {}),
        ("train:\n  # rate: 0.1\n", {}),
        ("\ufefftrain: {rate: 0.1}\n", {"train.rate": 0.1}),
    ],
)
def test_values_mean_what_they_mean_behind_p(project, text, expected):
    assert resolved(project, text) == expected


def test_the_command_line_wins(project):
    assert resolved(project, "train: {rate: 0.25, rounds: 5}", **{"train.rate": "0.75"}) == {
        "train.rate": 0.75,
        "train.rounds": 5,
    }


def test_relative_paths_start_at_the_projects_root(project, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolved(project, "ingest: {source: other/x.csv}") == {"ingest.source": "other/x.csv"}
    assert resolved(project, f"ingest: {{source: {project.folder}/y.csv}}") == {"ingest.source": "y.csv"}
    assert resolved(project, "ingest: {source: 'sklearn:iris'}") == {"ingest.source": "sklearn:iris"}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("train:\n  rat: 1\n", "line 2: Step 'train' has no parameter 'rat'.", "'train.rate'"),
        ("\n\ntrian.rate: 1\n", "line 3: There is no step 'trian' in churn.", "'train.rate'"),
        ("rate: 1\n", "line 1: 'rate' does not say which step it belongs to.", "train.rate"),
        ("train:\n  fast: true\n  rate: quick\n", "line 3: train.rate wants a finite number, not 'quick'.", "how fast"),
        ("train: {rate: 7}\n", "line 1: train.rate", "how fast"),
        ("train: {rounds: 1.5}\n", "line 1: train.rounds wants a whole number", "how often"),
        ("train: {model: tree}\n", "line 1: train.model", ""),
        ("train: {rate: [1, 2]}\n", "line 1: train.rate wants a finite number", "how fast"),
        ("train: {rate: {low: 1}}\n", "line 1: train.rate holds a mapping, which no parameter takes.", "a list"),
        ("train: {rate: 0.1}\ntrain.rate: 0.2\n", "line 2: train.rate was set before (", "Leave one"),
        ("train:\n  rate: 0.1\n rate: 2\n", "line 3: this is no YAML", "name: value"),
        ("a: 1\n---\nb: 2\n", "this is no YAML", "name: value"),
        ("- train\n", "holds no names", "name: value"),
        ("just words\n", "holds no names", "name: value"),
        ("train: {<<: 3}\n", "line 1: Step 'train' has no parameter '<<'.", ""),
    ],
)
def test_refused_with_file_and_line(project, text, message, hint):
    with pytest.raises(UsageError) as caught:
        resolved(project, text)
    assert "params.yaml" in caught.value.message and message in caught.value.message
    assert hint in caught.value.hint


def test_a_secret_is_refused_and_not_repeated(project):
    with pytest.raises(UsageError, match=r"line 1: ingest\.token wants a reference") as caught:
        resolved(project, "ingest: {token: hunter2hunter2}")
    assert "hunter2" not in str(caught.value)


def test_files_that_cannot_be_read(project):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_parameters_file(project.folder / "nowhere.yaml")
    (project.folder / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UsageError, match="this is no YAML"):
        read_parameters_file(project.folder / "binary.yaml")


def test_text_is_never_made_an_object(project):
    text = "train: {model: !!python/object/apply:os.system ['touch made']}"
    with pytest.raises(UsageError, match=r"train\.model"):
        resolved(project, text)
    assert not (project.folder / "made").exists()


def test_a_plan_says_what_a_file_changed(project):
    project.file("data/churn.csv", "a\n1\n")
    settle(project)
    file = project.file("params.yaml", "train: {rate: 0.25}\n")
    assert project.reasons("train", parameters=read_parameters_file(file)) == ["parameter rate: 0.5 -> 0.25"]
