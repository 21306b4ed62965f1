"""A model answers in an environment with nothing but what serving needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_support import KINDS, model_of, people

from mlops_nb.model.package import ModelPackage

ABSENT = ["pyarrow", "matplotlib", "sqlalchemy", "papermill", "click", "rich", "wandb", "nbformat", "alembic", "psutil"]

ASK = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())

from mlops_nb.model.package import ModelPackage

package = ModelPackage.read({path!r})
assert "sklearn" not in sys.modules, "a look at the manifest imports no scikit-learn"
rows = package.examples
assert str(rows["plan"].dtype) == "str"
print(package.load_model().predict(rows).tolist())
"""


@pytest.mark.parametrize("model", ["logistic", "forest", "boosting", "stacking"])
def test_a_package_answers_without_pyarrow_and_the_like(tmp_path, model):
    table = people(200)
    fitted = model_of(table, "group", "binary", model, trees=5, max_iter=50)
    path = tmp_path / "package.zip"
    ModelPackage(fitted, "people", {"roc_auc": 0.9}, table[[*KINDS, "group"]]).write(path)
    program = ASK.format(absent=ABSENT, path=str(path))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(fitted.predict(table.head(5)).tolist())
