"""The default run, repeated."""

from pathlib import Path

from support import gives


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_default_run_is_repeated_bit_for_bit(default_run, tmp_path):
    shared, first = default_run
    project = shared.copy(tmp_path / "workspace")
    released = contents(project.workspace / "releases")
    answer = project.json("rerun", first["run"])
    assert answer["identical"] and answer["differences"] == [] and answer["environment"] == []
    again = project.json("show", answer["run"])
    assert gives(again) == gives(first)
    assert {step["state"] for step in again["steps"]} == {"done"}
    models = project.json("models")["models"]
    assert [(model["version"], model["aliases"]) for model in models] == [(1, ["champion"])]
    assert contents(project.workspace / "releases") == released
    project.json("fsck")
    report = project.workspace / "reports" / f"{answer['run']}.html"
    project.json("report", answer["run"])
    text = report.read_text(encoding="utf-8")
    figures = sum(
        a["size"] * 4 / 3 for step in again["steps"] for a in step["artifacts"].values() if a["type"] == "Figure"
    )
    assert f"repeats {first['run']}: identical" in text and len(text) - figures <= 300_000
