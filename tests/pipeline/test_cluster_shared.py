"""Two machines and a worker that share nothing but a bucket (moto), a ledger (Postgres) and a scheduler with TLS."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import object_stores
import pytest
from cluster_support import Cluster, apart, certificates, note, ran
from pipeline_support import ROOT, Project, finish, gives, states, wait_for
from postgres_service import ledger_url
from support import shared_folder

from mlops_nb.core.places import place_of

COMMAND = """
import sys
from mlops_nb.cli import main
from mlops_nb.pipeline.cluster import window
window.PERIOD = 0.5
sys.exit(main())
"""
LINES = "[workspace]\nurl = {url}\nledger = {ledger}\n[pipeline]\non = {on}\n"


def churn(folder: Path) -> Project:
    """A table of a file, two steps that use a module of the project, and one that needs both."""
    project = Project(folder)
    project.file("data/rows.csv", "1\n2\n3\n")
    project.file("helper.py", "def total(rows):\n    return sum(rows)\n")
    source = '#| parameters\nsource: Source = "data/rows.csv"  # rows'
    project.step("10_read", "from mlops_nb import Source", source, "flow.rows = [int(x) for x in open(source)]")
    project.step("20_sum", "from helper import total", note("sum"), "flow.sum = total(flow.read.rows)")
    log = "from mlops_nb import Metrics, log\nimport os\nfor i in range(3): log(loss=1 / (i + 1), step=i)"
    scale = "#| parameters\nscale: int = 2  # factor"
    past = "print('scaled it')\nos.system('echo past the notebook')"
    project.step("30_scale", log, scale, past, "flow.metrics = Metrics({'top': scale * max(flow.read.rows)})")
    project.step("40_join", "flow.all = [flow.sum.sum, flow.scale.metrics['top']]")
    return project


@dataclass
class Machines:
    """Where two machines have their checkouts, and how commands find what they share."""

    folder: Path
    lines: str
    environment: dict[str, str]
    hidden: bool
    far: Path

    def machine(self, name: str) -> Project:
        """A checkout with the three lines."""
        project = churn(self.folder / name)
        ini = project.folder / "settings.ini"
        ini.write_text(ini.read_text() + self.lines)
        return project

    def start(self, project: Project, *words: str) -> subprocess.Popen[str]:
        """`mlops-nb WORDS --json` on a machine, where notebooks are shown twice a second and not twice a minute."""
        known = {**os.environ, **self.environment, "CI": "true", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", COMMAND, *words, "--json"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=project.folder, env=known, **pipes)

    def call(self, project: Project, *words: str) -> dict[str, Any]:
        """The document of a command that succeeds."""
        code, document = finish(self.start(project, *words), 120)
        assert code == 0, document
        return document


def worker_environment(folder: Path) -> dict[str, str]:
    """A home, and a copy of the package, of the worker's own."""
    shutil.copytree(ROOT / "mlops_nb", folder / "packages/mlops_nb", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "home").mkdir()
    own = {"HOME": str(folder / "home"), "PYTHONPATH": str(folder / "packages")}
    return own | {name: "" for name in os.environ if name.startswith("XDG_")}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder, far = tmp_path_factory.mktemp("machines"), tmp_path_factory.mktemp("far")
    tls = certificates(far / "certificates")
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(object_stores.moto())
        ledger = stack.enter_context(ledger_url(shared_folder(tmp_path_factory), "cluster_shared"))
        known = {**object_stores.KEYS, "AWS_ENDPOINT_URL": store, "AWS_EC2_METADATA_DISABLED": "true"}
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in known.items():
            patch.setenv(name, value)
        cluster, before = Cluster(far / "cluster", 0, False, "tls", **tls), apart(folder)
        cluster.add("far", before, **worker_environment(far))
        stack.enter_context(cluster)
        lines = LINES.format(url=f"s3://{object_stores.make_bucket(store)}/churn", ledger=ledger, on=cluster.address)
        yield Machines(
            folder, lines, {f"DASK_DISTRIBUTED__{name}": value for name, value in tls.items()}, bool(before), far
        )


def test_three_lines_take_a_project_to_a_cluster(machines: Machines, tmp_path: Path):
    here = churn(tmp_path / "here").run()
    one, two = machines.machine("one"), machines.machine("two")
    there = machines.call(one, "run", "churn")
    assert gives(there) == gives(here)
    assert {step["worker"] for step in there["steps"]} == {"far"}
    if machines.hidden:
        assert ran(one) == [], "the project was laid out again, and that is where steps worked"
    place = place_of(one.settings)
    assert place is not None
    assert all(place.has(f"objects/{digest[:2]}/{digest}") for digest in gives(there).values())
    assert [name for name in place.names() if name.endswith(".tar")] == []
    again = machines.call(two, "run", "churn")
    assert set(states(again).values()) == {"cached"} and gives(again) == gives(there)
    told = machines.call(two, "logs", there["run"], "scale")
    assert "scaled it" in told["steps"][0]["text"] and "past the notebook" in told["steps"][0]["text"]
    opened = machines.call(two, "diff", there["run"], again["run"])
    assert opened["identical"] is True
    points = two.ledger.points(there["run"], "scale")
    assert [point["values"] for point in points][2] == {"loss": 1 / 3}
    assert machines.call(two, "fsck")["ok"]


def test_a_step_on_a_far_worker_can_be_looked_at_from_everywhere(machines: Machines, tmp_path: Path):
    one, two = (machines.machine(name) for name in ("three", "four"))
    enough = machines.far / "enough"
    wait = f"import os, time\nwhile not os.path.exists({str(enough)!r}): time.sleep(0.02)"
    for project in (one, two):
        project.step("10_long", "print('half way')", wait, "flow.x = 1", pipeline="long")
    runner = machines.start(one, "run", "long")
    runs = one.workspace / "runs"
    wait_for(lambda: any("half way" in path.read_text() for path in runs.glob("*/10_long.ipynb")), 60)
    run = next(runs.glob("*/10_long.ipynb")).parent.name
    wait_for(lambda: "half way" in str(machines.call(two, "logs", run, "long")))
    enough.touch()
    code, document = finish(runner)
    assert code == 0, document
    place = place_of(one.settings)
    assert place is not None
    assert [name for name in place.names(f"attempts/{run}/") if name.endswith((".tar", ".ipynb"))] == [
        f"attempts/{run}/long/10_long.ipynb"
    ]
    own = [path for path in (machines.far / "cluster").rglob("attempts/*/*") if run in str(path)]
    assert own == [], "the worker keeps nothing of it"
