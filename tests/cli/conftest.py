"""A small project whose two steps need nothing but Python."""

import shutil
from pathlib import Path

import pytest
from cli_support import notebook

MAKE = """\
#| parameters
rows: int = 3  # how many"""
TRAIN = """\
#| parameters
model: Literal["forest", "logistic"] = "forest"  # algorithm to fit
seed: int = 0  # seeds every random choice
fail: bool = False  # raise in the last cell"""


def make_project(folder: Path) -> Path:
    """Write the project into `folder`."""
    steps = folder / "nbs" / "pipelines" / "demo"
    steps.mkdir(parents=True)
    (folder / "settings.ini").write_text("[package]\nname = demo\n[tracking]\nmode = off\n", encoding="utf-8")
    make = notebook(
        "from mlops_nb import Json, flow", MAKE, ("markdown", "## Make"), "flow.numbers = Json(list(range(rows)))"
    )
    train = notebook(
        "from typing import Literal\n\nfrom mlops_nb import Metrics, flow",
        TRAIN,
        "numbers = flow.make.numbers",
        ("markdown", "## Score"),
        'if fail:\n    raise ValueError(f"cannot fit {model}")',
        "flow.metrics = Metrics({'score': sum(numbers) + seed})",
    )
    (steps / "10_make.ipynb").write_text(make, encoding="utf-8")
    (steps / "20_train.ipynb").write_text(train, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def template_project(tmp_path_factory) -> Path:
    """The project, to be copied."""
    return make_project(tmp_path_factory.mktemp("demo") / "demo")


@pytest.fixture
def project(template_project, tmp_path) -> Path:
    """A fresh copy of the project."""
    return Path(shutil.copytree(template_project, tmp_path / "demo"))
