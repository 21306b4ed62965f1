"""Facts that the mirror keeps for speed agree with those who own them."""

import pytest

from mlops_nb.core.serializers import serializers
from mlops_nb.track.record import KINDS, history, step_record, wandb_id


@pytest.mark.parametrize("name", KINDS)
def test_endings_are_those_of_the_serializers(name):
    assert KINDS[name][1] == serializers[name].suffix


def test_a_run_id_is_one_that_wandb_takes():
    for text in ("a/b", "a:b", "ä" * 300, "a b#c?d%e\\f"):
        identity = wandb_id("20261101-120000-aaaa", text)
        assert len(identity) <= 128 and not set(identity) & set("/\\#?%: ")
    assert wandb_id("r", "x" * 300) != wandb_id("r", "x" * 301)


def test_points_without_steps_continue_after_those_with():
    points = [{"t": 1.0, "step": 7, "values": {"a": 1}}, {"t": 2.0, "step": None, "values": {"a": 2}}]
    assert [step for step, _ in history(points)] == [7, 8]
    assert history([{"t": 1.0, "step": -3, "values": {"a": 1}}])[0][0] == 0


def test_parameters_of_other_steps_and_names_that_start_alike_are_not_config(tmp_path):
    from mlops_nb.core.settings import load_settings

    (tmp_path / "settings.ini").write_text("[tracking]\nproject = other\n")
    run = {"run": "r", "pipeline": "p", "parameters": {"train.a": 1, "train_more.a": 2, "split.a": 3}}
    record = step_record(run, {"step": "train", "state": "done"}, load_settings(tmp_path, {}))
    assert {name: value for name, value in record["config"].items() if name != "mlops_nb"} == {"a": 1}
    assert record["project"] == "other" and record["outputs"] == record["inputs"] == record["history"] == []


def test_a_workspace_elsewhere_keeps_paths_relative_to_itself(tmp_path):
    from mlops_nb.core.settings import load_settings

    (tmp_path / "churn").mkdir()
    (tmp_path / "churn" / "settings.ini").write_text("[tracking]\n")
    settings = load_settings(tmp_path / "churn", {"MLOPS_NB_WORKSPACE_PATH": str(tmp_path / "elsewhere")})
    step = {"step": "train", "state": "done", "artifacts": {"m": {"type": "Model", "sha256": "ab" * 32}}}
    [item] = step_record({"run": "r", "pipeline": "p"}, step, settings)["outputs"]
    assert item["path"] == f"objects/ab/{'ab' * 32}" and item["file"] == "m.skops"
