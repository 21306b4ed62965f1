"""Steps of one run, asked for by calls that know nothing of each other: in any order, twice, killed, at once."""

import os
import random
import shlex
import signal

import pytest
from pipeline_support import Project, finish, gives, states, stop, wait_for
from postgres_service import ledger_url
from support import shared_folder

from mlops_nb.core.errors import UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.pipeline.keyed import run_keyed

STEPS = ("split", "left", "right", "join")
COUNT = "flow.count = len(flow.split.rows)"
NAP = "import time\nfor i in range(20):\n    time.sleep(0.02)"


def build(folder, ledger="") -> Project:
    """A diamond; each step notes in a file that it ran."""
    project = Project(folder)
    if ledger:
        project.file("settings.ini", f"{(folder / 'settings.ini').read_text()}[workspace]\nledger = {ledger}\n")
    Ledger.open(project.settings).close()  # making one costs a second in every process
    note = "with open('ran', 'a') as ran:\n    ran.write({!r} + '\\n')"
    project.step("10_split", "#| parameters\nsize: int = 3", note.format("split"), "flow.rows = list(range(size))")
    project.step("20_left", note.format("left"), NAP, "flow.total = sum(flow.split.rows)")
    project.step("30_right", note.format("right"), NAP, COUNT)
    project.step("40_join", note.format("join"), "flow.mean = flow.left.total / flow.right.count")
    return project


def ran(project) -> list[str]:
    file = project.folder / "ran"
    return sorted(file.read_text().split()) if file.exists() else []


def call(project, step=None, key="nightly", **options):
    """One call in this process."""
    return run_keyed(project.settings, "churn", key, only=step, folder=project.folder, **options)


def whole(project) -> dict[str, str]:
    """What the one run of a project gave, all steps of it."""
    (run,) = project.ledger.runs()
    assert run["status"] == "ok" and run["key"] == "nightly"
    assert project.ledger.database.rows("SELECT key FROM leases") == []
    return {name: artifact["sha256"] for name, artifact in project.ledger.artifacts(run["run"]).items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What one plain run gives."""
    return gives(build(tmp_path_factory.mktemp("undisturbed") / "project").run())


@pytest.mark.parametrize("seed", range(2))
def test_any_order_with_repetitions_gives_the_same_run(tmp_path, undisturbed, listeners, seed):
    chance, completed, answers = random.Random(seed), [], {}
    listeners.on("run_completing", lambda run, settings, ledger: completed.append(run["run"]))
    project = build(tmp_path)
    while len(answers) < len(STEPS):
        step = chance.choice(STEPS)
        try:
            result = call(project, step)
        except UsageError as error:
            assert f"--only {error.value} --run-key nightly" in error.hint and error.value not in answers
            continue
        assert result.exit_code == 0 and answers.setdefault(step, result.document) == result.document
        left = [name for name in STEPS if name not in answers]
        assert project.ledger.runs()[0]["status"] == ("waiting" if left else "ok")
    assert whole(project) == undisturbed and ran(project) == sorted(STEPS)
    assert completed == [answers["split"]["run"]], "the registry is asked once, by the call that completed the run"
    assert call(project).document["status"] == "ok" and len(completed) == 1
    assert states(project.run()) == dict.fromkeys(STEPS, "cached"), "a plain run reuses it"


def test_a_key_may_be_pasted_from_a_hint(tmp_path):
    """Whatever a scheduler calls its run, a shell reads it as one word."""
    key = "'; touch pasted; '"
    with pytest.raises(UsageError) as refused:
        call(build(tmp_path), "join", key=key)
    assert shlex.split(refused.value.hint)[-2:] == ["--run-key", key]


@pytest.fixture(params=["sqlite", "postgres"])
def where(request, tmp_path_factory):
    """The address of a ledger."""
    if request.param == "sqlite":
        yield ""
        return
    with ledger_url(shared_folder(tmp_path_factory), f"test_keyed_{os.getpid()}") as url:
        yield url


def test_all_calls_at_once_twice_over(tmp_path, undisturbed, where):
    project, left = build(tmp_path, where), {(step, number): 2 for step in STEPS for number in (0, 1)}
    for _ in range(12):
        going = {place: project.start(only=place[0], key="nightly") for place in left}
        left = {place: code for place, process in going.items() if (code := finish(process)[0])}
        assert set(left.values()) <= {2}, "too early, and nothing else"
        if not left:
            break
    assert whole(project) == undisturbed and ran(project) == sorted(STEPS)


@pytest.mark.parametrize("point", ["after-object-write", "before-commit", "after-commit"])
def test_a_killed_call_is_made_again(tmp_path, undisturbed, point):
    project = build(tmp_path)
    assert call(project, "split").exit_code == 0
    code, _ = finish(project.start({"MLOPS_NB_FAULT": point}, only="left", key="nightly"))
    assert code == -signal.SIGKILL and project.ledger.runs()[0]["status"] == "crashed"
    again = call(project, "left")
    assert again.exit_code == 0 and states(again) == {"left": "done"}
    assert ran(project).count("left") == (1 if point == "after-commit" else 2)
    if point != "after-commit":
        assert again.document["steps"][0]["attempts"] == 2
    assert call(project).exit_code == 0 and whole(project) == undisturbed


def test_one_works_and_the_other_waits_and_takes_over_when_it_is_killed(tmp_path):
    project = build(tmp_path)
    call(project, "split")
    first = project.start(only="left", key="nightly")
    wait_for(lambda: "left" in ran(project))
    second = project.start(only="left", key="nightly")
    (code, document), (other, same) = finish(first), finish(second)
    assert code == other == 0 and document == same and ran(project) == ["left", "split"]
    first = project.start(only="right", key="nightly")
    wait_for(lambda: "right" in ran(project))
    second = project.start(only="right", key="nightly")
    stop(first)
    code, document = finish(second)
    assert code == 0 and states(document) == {"right": "done"} and ran(project).count("right") == 2
    assert call(project, "join").exit_code == 0 and len(whole(project)) == 4


def test_another_call_works_on_while_one_is_killed(tmp_path):
    project, gate = build(tmp_path), tmp_path / "gate"
    project.step(
        "30_right", "import os, time", f"while not os.path.exists({str(gate)!r}):\n    time.sleep(0.02)", COUNT
    )
    call(project, "split")
    slow = project.start(only="right", key="nightly")
    wait_for(lambda: project.ledger.run("latest")["steps"][-1]["step"] == "right")
    killed = project.start(only="left", key="nightly")
    wait_for(lambda: "left" in ran(project))
    stop(killed)
    assert project.ledger.reap() == [], "the run goes on in another process"
    gate.touch()
    assert finish(slow)[0] == 0
    steps = {step["step"]: step["state"] for step in project.ledger.run("latest")["steps"]}
    assert steps["right"] == "done" and steps["left"] != "done"
    assert call(project).exit_code == 0 and len(whole(project)) == 4


def test_a_step_that_failed_is_tried_again_by_the_next_call(tmp_path, undisturbed):
    project = build(tmp_path)
    good = (project.folder / "nbs/pipelines/churn/20_left.ipynb").read_bytes()
    project.step("20_left", "flow.total = 1 / (sum(flow.split.rows) - 3)")
    failed = call(project)
    assert failed.exit_code == 1 and project.ledger.runs()[0]["status"] == "failed"
    assert states(failed) == {"split": "done", "left": "failed", "right": "done", "join": "skipped"} or (
        states(failed)["right"] == "skipped"
    )
    assert call(project, "left").exit_code == 1
    (project.folder / "nbs/pipelines/churn/20_left.ipynb").write_bytes(good)
    assert call(project).exit_code == 0 and whole(project) == undisturbed
    folders = sorted(path.name for path in (project.workspace / "attempts").glob("*/left*"))
    assert folders == ["left", "left.2", "left.3"], "what the failed ones left stays"


def test_an_interrupted_call_says_so_and_is_made_again(tmp_path):
    project = build(tmp_path)
    call(project, "split")
    process = project.start(only="left", key="nightly")
    wait_for(lambda: "left" in ran(project))
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 130 and project.ledger.runs()[0]["status"] == "interrupted"
    assert call(project, "left").exit_code == 0 and project.ledger.runs()[0]["status"] == "waiting"


def test_parameters_belong_to_the_key(tmp_path):
    project = build(tmp_path)
    call(project, "split", parameters={"split.size": "7"})
    with pytest.raises(UsageError, match=r"split.size is 7 there and 8 here") as refused:
        call(project, "left", parameters={"split.size": "8"})
    assert "another key" in refused.value.hint
    assert call(project, "left", parameters={"split.size": 7}).exit_code == 0
    assert call(project, "right").document["parameters"] == {"split.size": 7}
    assert call(project, "split", key="other").document["parameters"] == {"split.size": 3}


def test_results_of_the_run_are_read_whatever_has_changed_since(tmp_path):
    project = build(tmp_path)
    call(project, "split")
    project.step("10_split", "#| parameters\nsize: int = 3", "flow.rows = [100]")
    assert call(project).exit_code == 0
    assert project.ledger.run("latest")["steps"][0]["state"] == "done"
    digest = whole(project)["join.mean"]
    assert (project.workspace / "objects" / digest[:2] / digest).read_bytes().strip() == b"1.0"


def test_a_lost_object_is_made_again_by_a_repeated_call(tmp_path, undisturbed):
    project = build(tmp_path)
    document = call(project, "split").document
    digest = document["steps"][0]["artifacts"]["rows"]["sha256"]
    (project.workspace / "objects" / digest[:2] / digest).unlink()
    with pytest.raises(UsageError, match="'split' has not finished"):
        call(project, "left")
    assert call(project, "split").exit_code == 0 and call(project).exit_code == 0
    assert whole(project) == undisturbed
