"""A search tries assignments, keeps what it learned, and says what came of it."""

import json
import subprocess

import pytest
from pipeline_support import Project
from search_support import IMPORTS, LOSS, Heard, search, wanted, write_churn
from support import memory_disk

from mlops_nb.core.errors import StorageError, UsageError


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path / "project")
    write_churn(made)
    return made


def states(document):
    return [trial["state"] for trial in document["trials"]]


def test_a_search_begins_with_the_defaults_and_computes_what_trials_share_once(project):
    heard = Heard()
    found = search(project, reporter=heard)
    document = found.document
    assert found.exit_code == 0
    assert states(document) == ["ok"] * 6
    assert document["trials"][0]["parameters"] == {"train.rate": 0.1}
    assert document["best"]["value"] == min(trial["value"] for trial in document["trials"])
    with project.ledger as ledger:
        parent = ledger.run(document["run"])
        assert parent["status"] == "ok"
        assert parent["children"] == [trial["run"] for trial in document["trials"]]
        assert {step["step"]: step["state"] for step in parent["steps"]} == {"split": "done"}
        for trial in document["trials"]:
            child = ledger.run(trial["run"])
            assert {step["step"]: step["state"] for step in child["steps"]} == {"split": "cached", "train": "done"}
            assert child["parameters"]["train.rate"] == trial["parameters"]["train.rate"]
            assert child["metrics"]["train.loss"] == trial["value"]
    assert [trial["trial"] for trial in heard.trials] == [1, 2, 3, 4, 5, 6]
    assert heard.trials[-1]["best"]["value"] == document["best"]["value"]


def test_steps_behind_the_metric_do_not_run(project):
    project.step("30_package", "flow.done = Json(flow.train.metrics['loss'])", "from mlops_nb import Json")
    found = search(project, trials=2)
    with project.ledger as ledger:
        child = ledger.run(found.document["trials"][0]["run"])
        assert {step["step"] for step in child["steps"]} == {"split", "train"}


def test_the_same_search_goes_on_and_another_one_begins_anew(project):
    first = search(project, trials=3).document
    again = search(project, trials=3).document
    more = search(project, trials=5).document
    assert again["trials"] == first["trials"] and again["best"] == first["best"]
    assert again["run"] is None and again["over"] == "3 trials are done"
    with project.ledger as ledger:
        assert len(ledger.runs(limit=100)) == 7, "two searches with their trials; the one between left nothing"
    assert more["trials"][:3] == first["trials"] and len(more["trials"]) == 5
    assert len(search(project, trials=2, parameters={"split.rows": 4}).document["trials"]) == 2
    write_churn(project, LOSS.replace("0.01", "0.02"))
    changed = search(project, trials=2).document
    assert changed["study"] != first["study"] and len(changed["trials"]) == 2


def test_the_same_seed_draws_the_same_values(tmp_path):
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        one = Project(tmp_path / name)
        write_churn(one)
        drawn.append([trial["parameters"] for trial in search(one, seed=seed, trials=4).document["trials"]])
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_combination_of_a_small_space_is_tried_once(project):
    parameters = "#| parameters\nmodel: Literal['a', 'b'] = 'b'\nflag: bool = False"
    write_churn(project, "flow.metrics = Metrics({'loss': len(model) + flag})", parameters=parameters)
    found = search(project, trials=50).document
    tried = sorted(json.dumps(trial["parameters"], sort_keys=True) for trial in found["trials"])
    assert len(tried) == len(set(tried)) == 4
    assert found["over"] == "every combination was tried"


def test_trials_run_at_once(project):
    write_churn(project, "import time; time.sleep(0.3)", LOSS)
    found = search(project, jobs=2, trials=6)
    assert states(found.document) == ["ok"] * 6
    with project.ledger as ledger:
        spans = [ledger.run(trial["run"]) for trial in found.document["trials"]]
    assert any(a["started"] < b["started"] < a["ended"] for a in spans for b in spans if a is not b)


def test_more_is_better_where_it_is_said(project):
    found = search(project, minimize=False).document
    assert found["goal"] == "maximize"
    assert found["best"]["value"] == max(trial["value"] for trial in found["trials"])


def test_a_logged_value_is_a_metric_too(project):
    write_churn(
        project, "for step in range(3):\n    log(loss=rate / (step + 1), step=step)", "flow.metrics = Metrics({'x': 1})"
    )
    found = search(project, trials=2).document
    assert found["trials"][0]["value"] == pytest.approx(0.1 / 3)


def test_a_metric_that_a_trial_does_not_give_is_no_end_of_a_curve(project):
    """The curve of the same name ends lower than the metric: a trial without the metric would win."""
    logs = "for step in range(3):\n    log(loss=(rate + 1) / (step + 1), step=step)"
    write_churn(project, logs, "flow.metrics = Metrics({'loss': rate + 1} if rate >= 0.01 else {'other': 1})")
    found = search(project, trials=10).document
    assert {trial["state"] for trial in found["trials"]} == {"ok", "failed"}
    good = [trial for trial in found["trials"] if trial["state"] == "ok"]
    assert all(trial["value"] == trial["parameters"]["train.rate"] + 1 for trial in good)


def test_trials_whose_runs_were_deleted_count_no_more(project):
    before = search(project, trials=4).document
    best = before["best"]["run"]
    with project.ledger as ledger, ledger.database.transaction() as execute:
        execute("UPDATE runs SET status = 'deleted' WHERE id = :id", id=best)
    after = search(project, trials=4).document
    assert after["best"]["run"] != best
    assert sorted(states(after)) == ["deleted", "ok", "ok", "ok", "ok"]


def test_trials_that_fail_are_entered_and_the_search_goes_on(project):
    write_churn(project, "if rate < 0.01:\n    raise ValueError('too small')", LOSS)
    heard = Heard()
    found = search(project, trials=10, reporter=heard)
    assert found.exit_code == 0 and found.document["status"] == "ok"
    assert set(states(found.document)) == {"ok", "failed"}
    assert all(trial["value"] is None for trial in found.document["trials"] if trial["state"] == "failed")
    assert any("ValueError: too small" in (trial["why"] or "") for trial in heard.trials)


def test_a_search_ends_when_its_first_trials_fail(project):
    write_churn(project, "raise ValueError('no such column')")
    found = search(project)
    assert found.exit_code == 1 and found.document["status"] == "failed"
    assert states(found.document) == ["failed"] * 3 and found.document["best"] is None
    assert "first 3 trials failed, the last one with ValueError: no such column" in found.document["error"]["message"]


def test_a_step_that_all_trials_need_and_that_fails_ends_the_search_before_any(project):
    project.step("10_split", "flow.part = 1 / 0")
    found = search(project)
    assert found.exit_code == 1 and found.document["trials"] == []
    assert found.document["error"]["type"] == "ZeroDivisionError"


def test_a_value_that_is_no_number_is_a_failed_trial(project):
    write_churn(project, "flow.metrics = Metrics({'loss': rate if rate > 0.01 else float('nan')})")
    found = search(project, trials=8)
    assert found.exit_code == 0
    assert {trial["value"] is None for trial in found.document["trials"] if trial["state"] == "failed"} == {True}


def test_a_metric_that_the_first_trial_does_not_give_ends_the_search(project):
    found = search(project, metric="train.lost")
    assert found.exit_code == 2 and len(found.document["trials"]) == 1
    assert found.document["error"]["message"] == "Step 'train' gives no metric 'lost'."
    assert found.document["error"]["hint"] == "Did you mean 'train.loss'?"
    with pytest.raises(UsageError, match="gives no metric 'lots'"):  # known from now on: nothing runs
        wanted(project, metric="train.lots")
    assert wanted(project, metric="loss", over=["train.rate"]).metric == "train.loss"


def test_a_metric_that_the_code_gives_since_it_was_edited_is_taken(project):
    project.run()
    write_churn(project, LOSS.replace("'loss'", "'error'"))
    assert search(project, metric="train.error", trials=1).exit_code == 0


def test_a_budget_that_is_too_small_for_one_trial_gives_one(project):
    found = search(project, budget=0.001, trials=None)
    assert found.exit_code == 0 and states(found.document) == ["ok"]
    assert found.document["over"] == "the budget is spent"


def test_a_space_of_one_point_is_one_trial(project):
    found = search(project, over=["train.*"], parameters={"train.rate": "0.5"})
    assert [trial["parameters"] for trial in found.document["trials"]] == [{}]
    assert found.document["best"]["value"] == pytest.approx(2.49)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "trian.loss"}, "there is no step 'trian'"),
        ({"over": ["train.rat"]}, "has no parameter 'rat'"),
        ({"over": ["train.x*"]}, "matches no parameter"),
        ({"over": ["train.rate"], "metric": "split.rows"}, "cannot change what step 'split' gives"),
        ({"over": ["train.rate"], "parameters": {"train.rate": 0.2}}, "searched, and set to one value as well"),
        ({"over": []}, "open what to search"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_runs(project, options, message):
    with pytest.raises(UsageError, match=message):
        wanted(project, **options)
    assert not project.workspace.exists() or not project.ledger.runs()


def test_seeds_are_searched_only_where_they_are_named(project):
    assert [one.name for one in wanted(project, over=["*"]).space] == ["split.rows", "train.rate"]
    assert [one.name for one in wanted(project, over=["train.seed"]).space] == ["train.seed"]


def test_the_steps_that_give_a_model_are_searched_where_nothing_is_said(project):
    project.step(
        "20_train", IMPORTS, "#| parameters\nrate: Annotated[float, LogRange(1e-4, 1)] = 0.1", "flow.model = Model(1)"
    )
    project.step(
        "30_judge",
        IMPORTS,
        "#| parameters\ncut: Annotated[float, Range(0, 1)] = 0.5",
        "flow.m = Metrics({'loss': 1})\nflow.train.model",
    )
    assert [one.name for one in wanted(project, metric="judge.loss", over=[]).space] == ["train.rate"]


def test_steps_that_read_all_variants_cannot_be_searched(project):
    project.step(
        "30_report",
        "from mlops_nb import Metrics",
        "flow.m = Metrics({'n': len(flow.train['*'].metrics)})",
        "flow.train.metrics",
    )
    with pytest.raises(UsageError, match="all variants at once"):
        wanted(project, metric="report.n")


def test_choices_with_which_every_trial_fails_are_not_drawn_any_more(project):
    parameters = "#| parameters\nrate: Annotated[float, LogRange(1e-4, 1)] = 0.1\nmodel: Literal['a', 'b'] = 'a'"
    write_churn(project, "if model == 'b':\n    raise ValueError(model)", LOSS, parameters=parameters)
    found = search(project, trials=14).document
    assert all(trial["state"] == "ok" for trial in found["trials"][-3:])


def test_the_best_is_compared_with_the_defaults_by_the_intervals_that_the_step_gives(project):
    from mlops_nb.pipeline.search import within_noise

    write_churn(project, LOSS, "flow.intervals = Json({'loss': [rate - 1, rate + 1]})")
    document = search(project).document
    assert document["defaults"]["interval"] == [-0.9, 1.1]
    assert within_noise(document["best"], document["defaults"]) is False  # 2.0 lies outside of both
    best = {"value": 0.5, "interval": None}
    assert within_noise(best, {"value": 0.4, "interval": [0.3, 0.6]}) is True
    assert within_noise(best, {"value": 0.4, "interval": None}) is None


def test_importance_is_told_from_ten_trials_on(project):
    parameters = (
        "#| parameters\nrate: Annotated[float, LogRange(1e-4, 1)] = 0.1\nidle: Annotated[float, Range(0, 1)] = 0.5"
    )
    write_churn(project, LOSS, parameters=parameters)
    assert search(project, trials=4).document["importance"] == {}
    assert next(iter(search(project, trials=11).document["importance"])) == "train.rate"


def test_a_read_only_disk_is_said_and_what_was_tried_is_kept(project, tmp_path):
    with memory_disk(tmp_path / "disk", "8m") as disk:
        project.file("settings.ini", f"[workspace]\npath = {disk}/workspace\n[tracking]\nmode = off\n")
        search(project, trials=2)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match="read-only") as caught:
            search(project, trials=4)
        assert caught.value.hint
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert len(search(project, trials=4).document["trials"]) == 4, "the study goes on with the two from before"
