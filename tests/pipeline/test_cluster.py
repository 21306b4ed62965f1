"""Runs whose steps are executed by the workers of a real Dask cluster on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_support import Cluster, begun, note, on, ran
from pipeline_support import ROOT, Project, finish, gives, kernels_of, states, wait_for
from search_support import search, write_churn

from mlops_nb.core.errors import UsageError
from mlops_nb.pipeline.cluster import executor as elsewhere
from mlops_nb.pipeline.reporter import Reporter

VALUE = "tr0ub4dor-and-3"  # of a secret


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_PLACE", VALUE)
        with Cluster(tmp_path_factory.mktemp("cluster")) as started:
            yield started


def churn(folder: Path) -> Project:
    """A table of a file, two steps that use a module of the project, and one that needs both."""
    project = Project(folder)
    project.file("data/rows.csv", "1\n2\n3\n")
    project.file("helper.py", "def total(rows):\n    return sum(rows)\n")
    source = '#| parameters\nsource: Source = "data/rows.csv"  # rows'
    project.step("10_read", "from mlops_nb import Source", source, "flow.rows = [int(x) for x in open(source)]")
    project.step("20_sum", "from helper import total", note("sum"), "flow.sum = total(flow.read.rows)")
    log = "from mlops_nb import Metrics, log\nfor i in range(3): log(loss=1 / (i + 1), step=i)"
    scale = "#| parameters\nscale: int = 2  # factor"
    project.step("30_scale", log, scale, "flow.metrics = Metrics({'top': scale * max(flow.read.rows)})")
    project.step("40_join", "flow.all = [flow.sum.sum, flow.scale.metrics['top']]")
    return project


class Heard(Reporter):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.cells: list[tuple[str, int, str | None]] = []
        self.warnings: list[str] = []

    def progress(self, step, cell, total, heading, variant=None, worker=None) -> None:
        self.cells.append((step, cell, worker))

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_a_cluster_gives_what_this_machine_gives(cluster: Cluster, tmp_path: Path):
    here, heard = churn(tmp_path / "here").run(), Heard()
    project = on(churn(tmp_path / "there"), cluster.address)
    there = project.run(reporter=heard)
    assert there.exit_code == 0, there.document
    assert gives(there) == gives(here)
    steps = {step["step"]: step for step in there.document["steps"]}
    assert {step["worker"] for step in steps.values()} <= {"w0", "w1"}
    assert project.ledger.workers(there.document["run"]) == {name: step["worker"] for name, step in steps.items()}
    assert steps["scale"]["metrics"] == {"top": 6}
    assert [point["values"] for point in project.ledger.points(there.document["run"], "scale")][2] == {"loss": 1 / 3}
    notebook = json.loads((project.folder / steps["sum"]["notebook"]).read_bytes())
    assert notebook["cells"][-1]["execution_count"] == 4
    assert {("sum", 4, steps["sum"]["worker"])} <= set(heard.cells)
    assert project.ledger.costs([there.document["run"]])[there.document["run"]]["cpu_seconds"] > 0
    assert set(states(project.run()).values()) == {"cached"}
    project.file("helper.py", "def total(rows):\n    return 10 * sum(rows)\n")
    again = project.run()
    assert states(again) == {"read": "cached", "sum": "done", "scale": "cached", "join": "done"}
    assert gives(again)["sum.sum"] != gives(there)["sum.sum"]
    assert states(project.run(only="sum", force=True))["sum"] == "done"
    assert ran(project) == ["sum", "sum", "sum"]


def test_children_of_a_sweep_run_there(cluster: Cluster, tmp_path: Path):
    here = churn(tmp_path / "here").run(sweep={"scale.scale": [1, 2, 3]})
    project = on(churn(tmp_path / "there"), cluster.address)
    there = project.run(sweep={"scale.scale": [1, 2, 3]})
    assert there.exit_code == 0, there.document
    tops = [
        sorted(s["artifacts"]["metrics"]["sha256"] for s in r.document["steps"] if s["step"] == "scale")
        for r in (here, there)
    ]
    assert tops[0] == tops[1] and len(set(tops[0])) == 3
    assert {step["worker"] for step in there.document["steps"] if step["state"] == "done"} == {"w0", "w1"}


CURVE = """import time
for step in range(6):
    log(loss=abs(rate - 0.1) + 1 / (step + 1), step=step)
    time.sleep(0.2)"""


def test_a_search_prunes_there(cluster: Cluster, tmp_path: Path):
    project = on(Project(tmp_path / "project"), cluster.address)
    write_churn(project, CURVE, "flow.metrics = Metrics({'loss': abs(rate - 0.1)})")
    found = search(project, trials=12, prune_on="train.loss")
    assert found.exit_code == 0, found.document
    states = [trial["state"] for trial in found.document["trials"]]
    assert "pruned" in states and set(states) == {"ok", "pruned"}
    run = project.ledger.run(next(trial["run"] for trial in found.document["trials"] if trial["state"] == "pruned"))
    assert run["status"] == "interrupted"
    step = next(step for step in run["steps"] if step["step"] == "train")
    assert "pruned: train.loss is" in step["error"]["message"]
    assert (project.folder / step["notebook"]).is_file()


def test_a_step_can_be_looked_at_while_a_worker_executes_it(cluster: Cluster, tmp_path: Path):
    project = on(Project(tmp_path / "project"), cluster.address)
    wait = "import os, time\nwhile not os.path.exists('enough'): time.sleep(0.02)"
    project.step("10_long", "print('half way')", wait, "flow.x = 1")
    runner = project.start()
    runs = project.workspace / "runs"
    wait_for(lambda: any("half way" in path.read_text() for path in runs.glob("*/10_long.ipynb")), 60)
    project.file("enough", "")
    code, document = finish(runner)
    assert code == 0, document
    shown = project.folder / document["steps"][0]["notebook"]
    assert [path.name for path in shown.parent.glob("*.ipynb")] == ["10_long.ipynb"]
    assert json.loads(shown.read_text())["cells"][-1]["execution_count"] == 4
    assert [path.name for path in (project.workspace / "attempts").glob("*/long/*") if path.is_dir()] == []


def test_secrets_travel_as_references(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHURN_PLACE", VALUE)
    project = on(Project(tmp_path / "project"), cluster.address)
    secret = '#| parameters\nplace: Secret = "env:CHURN_PLACE"  # where'
    wait = "import os, time\nwhile not os.path.exists('enough'): time.sleep(0.02)"
    told = "from mlops_nb import secret\nprint('it is', secret(place))\nos.system(f'echo past {secret(place)}')"
    project.step(
        "10_ask", "from mlops_nb import Secret", secret, note("ask"), wait, told, "flow.size = len(secret(place))"
    )
    project.step("20_tell", "import os", "size = flow.ask.size\nprint('again', os.environ['CHURN_PLACE'])")
    runner = project.start()
    begun(project, "ask")
    with cluster.client() as client:
        known = specs(client)
    project.file("enough", "")
    code, document = finish(runner)
    assert code == 0, document
    assert any(b"env:CHURN_PLACE" in spec for spec in known)
    assert not any(VALUE.encode() in spec for spec in known)
    for path in (path for path in project.workspace.rglob("*") if path.is_file()):
        assert VALUE.encode() not in path.read_bytes(), path
    for step, told in zip(document["steps"], ("it is [redacted]", "again [redacted]"), strict=True):
        assert told in (project.folder / step["notebook"]).read_text()


def specs(client: Any) -> list[bytes]:
    """What scheduler and workers know of tasks, as bytes."""

    def here(dask_worker: Any) -> list[bytes]:  # or the scheduler
        import pickle

        tasks = getattr(dask_worker, "state", dask_worker).tasks.values()
        return [pickle.dumps(task.run_spec) for task in tasks if task.run_spec is not None]

    return client.run_on_scheduler(here) + [spec for found in client.run(here).values() for spec in found]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_steps_on_the_workers(cluster: Cluster, tmp_path: Path, number: int):
    project = on(Project(tmp_path / "project"), cluster.address)
    for name in ("10_one", "20_two", "30_three"):
        project.step(name, note(name[3:]), "print('so far')", "import time; time.sleep(60)", "flow.x = 1")
    runner = project.start()
    wait_for(lambda: len(ran(project)) == 2 and len(kernels_of(project.folder)) >= 2, 90)
    time.sleep(0.3)
    since = time.monotonic()
    runner.send_signal(number)
    code, document = finish(runner, 90)
    assert code == 130 and document["status"] == "interrupted"
    assert time.monotonic() - since < 15
    wait_for(lambda: not kernels_of(project.folder), 10)
    for name in ran(project):
        path = next((project.workspace / "runs" / document["run"]).glob(f"*_{name}.ipynb"))
        assert "so far" in path.read_text()
    with cluster.client() as client:
        wait_for(lambda: not specs(client), 10)


def test_a_failure_and_limits_are_those_of_this_machine(cluster: Cluster, tmp_path: Path):
    project = on(Project(tmp_path / "project"), cluster.address, "timeout = 2\nretries = 1\nbackoff = 0\n")
    project.step("10_bad", "1 / 0", "flow.x = 1", pipeline="bad")
    project.step("10_slow", note("slow"), "import time; time.sleep(30)", "flow.y = 1", pipeline="slow")
    result = project.run(pipeline="bad")
    error = result.document["steps"][0]["error"]
    assert result.exit_code == 1 and error["type"] == "ZeroDivisionError" and error["cell"] == 2
    assert error["notebook"].endswith("nbs/pipelines/bad/10_bad.ipynb")
    result = project.run(pipeline="slow")
    step = result.document["steps"][0]
    assert result.exit_code == 1 and step["error"]["type"] == "StepTimeout" and step["attempts"] == 2
    assert ran(project) == ["slow", "slow"]
    ini = project.folder / "settings.ini"
    ini.write_text(ini.read_text().replace("timeout = 2\nretries = 1\n", "memory = 600\n"))
    project.step("10_big", "from pathlib import Path", "big = bytearray(2_000_000_000)", "flow.z = 1", pipeline="big")
    big = project.run(pipeline="big").document["steps"][0]
    assert big["error"]["type"] == "StepMemory" and big["worker"] in ("w0", "w1")
    assert (project.workspace / "runs" / result.document["run"] / "10_slow.failed-1.ipynb").is_file()


def test_two_runs_at_once_compute_each_key_once(cluster: Cluster, tmp_path: Path):
    project = on(Project(tmp_path / "project"), cluster.address)
    for number in range(4):
        project.step(f"{number + 1}0_s{number}", note(f"s{number}"), f"flow.x = {number}")
    runners = [project.start() for _ in range(2)]
    ended = [finish(runner) for runner in runners]
    assert [code for code, _ in ended] == [0, 0]
    assert gives(ended[0][1]) == gives(ended[1][1])
    assert sorted(ran(project)) == ["s0", "s1", "s2", "s3"]


def test_another_machine_without_a_shared_place_is_refused(cluster: Cluster, tmp_path: Path, monkeypatch):
    project = on(churn(tmp_path / "project"), cluster.address)
    monkeypatch.setattr(elsewhere, "mark_workspace", lambda workspace: "unseen")
    with pytest.raises(UsageError, match="does not see the workspace") as refused:
        project.run()
    assert "url under [workspace]" in refused.value.hint
    assert project.ledger.runs() == []


def test_another_version_is_refused(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project, usual = on(churn(tmp_path / "project"), cluster.address), elsewhere.order_of
    with monkeypatch.context() as patch:
        patch.setattr(elsewhere, "versions", lambda named: {"numpy": "0.9.1"})
        with pytest.raises(UsageError, match=r"numpy: here 0\.9\.1, there \d"):
            project.run()
    monkeypatch.setattr(elsewhere, "order_of", lambda *w, **f: usual(*w, **f) | {"versions": {"mlops_nb": "0"}})
    late = project.run()  # workers that joined after the first look
    assert late.exit_code == 2
    assert "mlops_nb: here 0, there" in late.document["error"]["message"]


def test_a_plain_connection_beyond_this_machine_is_refused(tmp_path: Path):
    project = on(churn(tmp_path), "dask://192.0.2.1:8786")
    with pytest.raises(UsageError, match="would not be encrypted"):
        project.run()
    with pytest.raises(UsageError, match="cannot be imported"):
        on(churn(tmp_path / "b"), "no_such_module.Cluster").run()


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path):
    project = on(churn(tmp_path / "project"), "local-cluster")
    code = "import sys; sys.modules['dask'] = sys.modules['distributed'] = None\nfrom mlops_nb.cli import main\n"
    command = [sys.executable, "-c", f"{code}sys.exit(main())", "run", "churn", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CI": "true"}
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert "needs distributed" in error["message"] and "pip install 'mlops_nb[dask]'" in error["hint"]
    assert not (project.workspace / "runs").exists()


def test_a_cluster_of_the_moment_ends_with_the_command(tmp_path: Path):
    project = churn(tmp_path / "project")
    command = [sys.executable, "-m", "mlops_nb", "run", "churn", "--json", "--on", "local-cluster"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CI": "true"}
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert {step["worker"] for step in json.loads(done.stdout)["steps"]} <= {f"worker {n}" for n in range(64)}
    assert kernels_of(project.folder) == []
