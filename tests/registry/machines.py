"""A small project that makes a model, checked out on machines that share a folder and a ledger."""

from dataclasses import dataclass, field
from pathlib import Path

from support import Project
from upkeep_support import write_step

SPLIT = (
    "import numpy as np\nimport pandas as pd\n\nfrom mlops_nb import Table, flow",
    "#| parameters\nrows: int = 160",
    "random = np.random.default_rng(1)\n"
    "age, balance = random.integers(18, 90, rows), random.normal(0, 1, rows)\n"
    "gone = np.where(age / 20 + balance + random.normal(0, 1, rows) > 2.7, 'yes', 'no')\n"
    "table = pd.DataFrame({'age': age, 'balance': balance, 'churned': pd.array(gone, dtype='str')})",
    "flow.train, flow.test = Table(table[:100]), Table(table[100:])\nprint('split it')",
)
PACKAGE = (
    "from sklearn.linear_model import LogisticRegression\n\n"
    "from mlops_nb import Metrics, Model, ModelPackage, flow\n"
    "from mlops_nb.model.schema import describe_inputs",
    "#| parameters\nstrength: float = 1.0",
    "inputs, train = {'age': 'integer', 'balance': 'number'}, flow.split.train\n"
    "estimator = LogisticRegression(C=strength).fit(train[[*inputs]], train['churned'].to_numpy(str))\n"
    "schema = describe_inputs(train, inputs, target='churned', task='binary')",
    "flow.metrics = Metrics({'roc_auc': 0.9 + strength / 1000})\n"
    "model = Model(estimator, example=train[[*inputs]].head(2), schema=schema)\n"
    "flow.package = ModelPackage(model, 'churn', {'roc_auc': 0.9}, trained_on=train, background=0)",
)
SETTINGS = """
[package]
name = demo
[tracking]
mode = off
[registry]
bento_store = false
[workspace]
url = {url}
ledger = {ledger}
"""


@dataclass
class Machine(Project):
    """A checkout of the project with a folder and keys of its own."""

    more: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "XDG_CONFIG_HOME": str(self.folder / "config"), **self.more}

    def run(self, *words: str, expect: int = 0, **extra: str) -> dict:
        """Run the pipeline."""
        return self.json("run", "demo", *words, expect=expect, **extra)

    def trust(self, other: "Machine") -> None:
        """Have what another machine signs, as a person does it."""
        for path in (other.workspace / "keys").glob("*.pub"):
            self.json("keys", "trust", str(path))


def machine(folder: Path, url: str, ledger: str) -> Machine:
    """A checkout of the project in a folder."""
    steps = folder / "nbs" / "pipelines" / "demo"
    write_step(steps / "10_split.ipynb", *SPLIT)
    write_step(steps / "20_package.ipynb", *PACKAGE)
    (folder / "settings.ini").write_text(SETTINGS.format(url=url, ledger=ledger), encoding="utf-8")
    return Machine(folder, folder / ".mlops")
