"""What `mlops-nb doctor` says of a store, a ledger and a scheduler that machines share."""

from support import Project

SETTINGS = "[package]\nname = demo\n[workspace]\nurl = {url}\nledger = {ledger}\n[pipeline]\non = {on}\n"


def told(tmp_path, **values: str) -> dict[str, dict]:
    """The findings of the doctor by check."""
    given = {"url": "", "ledger": "", "on": "", **values}
    (tmp_path / "settings.ini").write_text(SETTINGS.format(**given), encoding="utf-8")
    done = Project(tmp_path, tmp_path / ".mlops").json("doctor", expect=(values and 1) or 0)
    return {finding["check"]: finding for finding in done["findings"]}


def test_a_store_and_a_scheduler_that_do_not_answer_are_named_with_what_to_do(tmp_path):
    place, away = f"file://{tmp_path}/shared", "postgresql://ada@127.0.0.1:9/churn"
    found = told(tmp_path, url=place, ledger=away, on="dask://127.0.0.1:9")
    assert found["store"]["level"] == "ok" and place in found["store"]["words"]
    assert not [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert found["ledger"]["level"] == "fail" and "nothing listens there" in found["ledger"]["words"]
    assert found["cluster"]["level"] == "fail" and "No Dask scheduler answers" in found["cluster"]["words"]
    assert "dask scheduler" in found["cluster"]["fix"]
    alone = told(tmp_path, url=place)
    assert alone["store"]["level"] == "fail" and "postgresql://" in alone["store"]["fix"]
