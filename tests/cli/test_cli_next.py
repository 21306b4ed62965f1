"""What a run proposes next."""

from mlops_nb.core.settings import load_settings


def test_the_model_of_the_run_is_proposed_to_be_served(tmp_path):
    from mlops_nb.commands.execute import serve_command

    (tmp_path / "settings.ini").write_text("[workspace]\n", encoding="utf-8")
    settings = load_settings(tmp_path, {})
    releases = settings.workspace.path / "releases"
    for model in ("ants", "bees"):
        (releases / model).mkdir(parents=True)
        (releases / model / "current").write_text("000001-abc\n", encoding="utf-8")
    assert serve_command(settings, "bees").startswith("MLOPS_NB_SERVING_MODEL=bees ")
    chosen = load_settings(tmp_path, {"MLOPS_NB_SERVING_MODEL": "ants"})
    assert "SERVING_MODEL" not in serve_command(chosen, "ants")
