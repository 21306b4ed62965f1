"""Workers, schedulers and runners that die, hang and come back: nothing is lost, little is computed twice."""

import json
import signal
import time
from pathlib import Path

from cluster_support import Cluster, begun, note, on, ran
from pipeline_support import Project, finish, gives, kernels_of, states, stop, wait_for

WAIT = "import os, time\nwhile not os.path.exists('enough'): time.sleep(0.02)"


def chain(folder: Path, place: str = "") -> Project:
    """Three steps, one after the other; the second waits for a file."""
    project = Project(folder)
    project.step("10_first", note("first"), "flow.x = 1")
    project.step("20_second", note("second"), WAIT, "flow.y = flow.first.x + 1")
    project.step("30_third", note("third"), "flow.z = flow.second.y + 1")
    return on(project, place) if place else project


def expected(tmp_path: Path) -> dict[str, str]:
    """What a run on this machine gives."""
    project = chain(tmp_path / "here")
    project.file("enough", "")
    return gives(project.run())


def worker_of(project: Project, step: str) -> str:
    """The worker that was last heard to execute a step."""
    lines = [json.loads(line) for line in (project.folder / "events").read_text().splitlines()]
    return [one["worker"] for one in lines if one["event"] == "cell" and one["step"] == step and "worker" in one][-1]


def commits(project: Project, step: str) -> int:
    """How often a step was committed."""
    return len(list(project.workspace.glob(f"commits/*/*.{step}.*.json")))


def test_what_is_lost_is_done_again_elsewhere(tmp_path: Path):
    usual = expected(tmp_path)
    with Cluster(tmp_path / "cluster", nanny=False, SCHEDULER__WORKER_TTL="4s") as cluster:
        # a worker is killed in mid-step
        project = chain(tmp_path / "killed", cluster.address)
        runner = project.start(events="events")
        begun(project, "second")
        wait_for(lambda: (project.folder / "events").read_text().count('"step": "second"') > 1, 30)
        lost = worker_of(project, "second")
        cluster.kill(lost)
        begun(project, "second", 2)
        project.file("enough", "")
        code, document = finish(runner, 90)
        assert code == 0, document
        assert gives(document) == usual
        assert ran(project).count("second") == 2 and ran(project).count("first") == 1
        assert "was lost" in (project.folder / "events").read_text()
        cluster.stop(lost)
        cluster.add("w2")
        with cluster.client() as client:
            client.wait_for_workers(2, timeout=60)
        # a worker is cut off, is given up, and comes back with its copy
        project = chain(tmp_path / "cut-off", cluster.address)
        runner = project.start(events="events")
        begun(project, "second")
        wait_for(lambda: (project.folder / "events").read_text().count('"step": "second"') > 1, 30)
        lost = worker_of(project, "second")
        cluster.kill(lost, signal.SIGSTOP)
        begun(project, "second", 2)
        cluster.kill(lost, signal.SIGCONT)
        project.file("enough", "")
        code, document = finish(runner, 90)
        assert code == 0, document
        assert gives(document) == usual
        assert [commits(project, step) for step in ("first", "second", "third")] == [1, 1, 1]
        wait_for(lambda: not kernels_of(project.folder), 30)
        assert commits(project, "second") == 1


def test_a_runner_or_a_scheduler_that_dies_loses_nothing(tmp_path: Path):
    usual = expected(tmp_path)
    with Cluster(tmp_path / "cluster") as cluster:
        # the runner is killed while a worker executes: that ends, and what was finished is reused
        project = chain(tmp_path / "runner", cluster.address)
        runner = project.start()
        begun(project, "second")
        stop(runner)
        wait_for(lambda: not kernels_of(project.folder), 30)
        project.file("enough", "")
        # and once more between the worker's commit and the ledger's
        code, _ = finish(project.start({"MLOPS_NB_FAULT": "before-commit:1"}), 90)
        assert code == -signal.SIGKILL
        assert ran(project) == ["first", "second", "second"]
        code, document = finish(project.start(), 90)
        assert code == 0 and gives(document) == usual
        assert states(document) == {"first": "cached", "second": "done", "third": "done"}
        assert ran(project) == ["first", "second", "second", "third"]
        assert (project.folder / document["steps"][1]["notebook"]).is_file()
        # the scheduler is killed
        project = chain(tmp_path / "scheduler", cluster.address)
        runner = project.start()
        begun(project, "second")
        cluster.kill("scheduler")
        since = time.monotonic()
        code, document = finish(runner, 90)
        assert code == 1 and time.monotonic() - since < 30
        failed = next(step for step in document["steps"] if step["state"] == "failed")
        assert failed["error"]["type"] == "ClusterGone" and "is gone" in failed["error"]["message"]
    wait_for(lambda: not kernels_of(project.folder), 30)
    project.file("enough", "")
    (project.folder / "settings.ini").write_text((tmp_path / "here/settings.ini").read_text())
    again = project.run()
    assert states(again) == {"first": "cached", "second": "done", "third": "done"}
    assert gives(again) == usual


def test_many_short_steps_on_four_workers(tmp_path: Path):
    count = 100
    with Cluster(tmp_path / "cluster", workers=4) as cluster:
        project = on(Project(tmp_path / "project"), cluster.address)
        project.step("10_short", "#| parameters\nx: int = 0  # counted", note("short"), "flow.y = x * x")
        code, document = finish(project.start(sweep={"short.x": list(range(count))}), 300)
        assert code == 0, document
        assert [step["state"] for step in document["steps"]] == ["done"] * count
        assert len({step["artifacts"]["y"]["sha256"] for step in document["steps"]}) == count
        assert ran(project) == ["short"] * count
        assert {step["worker"] for step in document["steps"]} == {"w0", "w1", "w2", "w3"}
