"""Promotion, rollback, approvals and waivers: in one process, by command, and by two processes at once."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from registry_support import give, make_project, package, people
from support import Project

import mlops_nb
from mlops_nb.core.errors import Busy, Refused, StorageError, UsageError
from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.costs import Factors
from mlops_nb.core.ledger.runs import user_name
from mlops_nb.core.settings import load_settings
from mlops_nb.registry import register
from mlops_nb.registry.approvals import APPROVAL, REJECTION, read_approvals, say
from mlops_nb.registry.check import Candidate, check_version, run_gates
from mlops_nb.registry.keyring import KeyRing
from mlops_nb.registry.keys import moment
from mlops_nb.registry.look import search_versions, version_page
from mlops_nb.registry.packages import PackageFile
from mlops_nb.registry.promote import carry_out, overridden, override_of, prepare
from mlops_nb.registry.register import run_completing
from mlops_nb.registry.releases import read_release
from mlops_nb.registry.rollback import go_back
from mlops_nb.registry.score import PARTS, score_version
from mlops_nb.registry.signing import sign_versions
from mlops_nb.registry.versions import find_version, verdict_of
from mlops_nb.registry.waivers import WAIVER, waive_gate

TABLE = people()
TEST = TABLE.iloc[100:]
ROW = {"metric": "roc_auc", "slice": "", "value": 0.93, "low": 0.88, "high": 0.97, "n": 143}
GIRLS = {"metric": "recall", "slice": "sex=female", "value": None, "low": None, "high": None, "n": 3}
ASSESSMENT = {"format": 1, "rows": [ROW, GIRLS]}
FIRST = package(TABLE.iloc[:100], inputs=("balance",))
SECOND = package(TABLE.iloc[:100])
GATED = package(TABLE.iloc[:90], assessment=ASSESSMENT, gates=["roc_auc >= 0.9"])
IDS = [f"20261129-10150{number}-000{number}" for number in range(1, 10)]


@pytest.fixture
def project(tmp_path):
    """An empty project without a BentoML store."""
    settings = make_project(tmp_path / "project")
    return settings._replace(registry=settings.registry._replace(bento_store=False))


@pytest.fixture
def ledger(project):
    with Ledger.open(project) as opened:
        yield opened


def with_keys(settings, **keys):
    return settings._replace(registry=settings.registry._replace(**keys))


def complete(settings, ledger, run_id, content, test=TEST):
    """A run that gave `content`, and what the registry made of it."""
    (model,) = run_completing(give(settings, ledger, run_id, content, test), settings, ledger)
    ledger.end_run(run_id, "ok")
    return model


def served(settings):
    return read_release(settings.workspace.path / "releases", "churn").document.arms[0].version


def test_a_version_that_misses_its_gate_is_registered_and_stays_aside(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    model = complete(project, ledger, IDS[1], GATED)
    assert (model["version"], model["aliases"]) == (2, [])
    assert model["refused"]["type"] == "Refused"
    assert "the low end of its interval, 0.8800, is below 0.9" in model["refused"]["message"]
    verdict = verdict_of(ledger, "churn", 2)
    assert verdict["evidence"]["gates"][0]["verdict"] == "missed"
    assert served(project) == 1


def test_a_refused_version_whose_champion_is_lost_says_that_it_was_not_compared(project, ledger):
    digest = complete(project, ledger, IDS[0], FIRST)["digest"]
    (project.workspace.path / "objects" / digest[:2] / digest).unlink()
    assert "refused" in complete(project, ledger, IDS[1], GATED)
    assert "missing" in verdict_of(ledger, "churn", 2)["evidence"]["not_compared"]


def test_a_first_version_that_is_refused_is_not_released(project, ledger):
    model = complete(project, ledger, IDS[0], GATED)
    assert model["aliases"] == [] and "refused" in model
    assert not (project.workspace.path / "releases" / "churn").exists()


def test_gates_of_the_settings_hold_for_every_model(project, ledger):
    settings = with_keys(project, gates="roc_auc >= 0.95; contract")
    model = complete(settings, ledger, IDS[0], FIRST)
    assert "roc_auc is 0.9000, below 0.95" in model["refused"]["message"]
    assert complete(project, ledger, IDS[1], FIRST)["aliases"] == ["champion"]  # asked again, without that gate


def test_a_waiver_lets_the_next_run_move_the_champion(project, ledger):
    settings = with_keys(project, approvers=user_name())
    complete(settings, ledger, IDS[0], GATED)
    version = find_version(ledger, "churn:1")
    declared = [result.gate for result in check_version(settings, ledger, version)]
    waive_gate(settings, ledger, version, "roc_auc >= 0.9", "2099-01-31", "few rows", declared)
    model = complete(settings, ledger, IDS[1], GATED)
    assert model["aliases"] == ["champion"] and "refused" not in model


def test_an_expired_waiver_is_told(project, ledger):
    complete(project, ledger, IDS[0], GATED)
    version = find_version(ledger, "churn:1")
    old = {"digest": version["digest"], "gate": "roc_auc >= 0.9", "by": "al@x", "until": "2020-01-31", "reason": "r"}
    ledger.add_event(WAIVER, "churn:1", old)
    with pytest.raises(Refused, match="the waiver of al@x expired on 2020-01-31"):
        carry_out(project, ledger, prepare(project, ledger, "churn:1"))


def test_promotion_moves_releases_and_keeps_its_evidence(project, ledger):
    complete(project, ledger, IDS[0], SECOND)
    complete(project, ledger, IDS[1], FIRST)
    settings = with_keys(project, gates="champion_difference >= -0.5; contract; model_size <= 1 MB; latency <= 5 s")
    promotion = prepare(settings, ledger, "churn:2")
    assert carry_out(settings, ledger, promotion, "to see it fail")
    event = ledger.alias_events("churn", "champion")[0]
    assert (event["version"], event["previous"], event["reason"]) == (2, 1, "to see it fail")
    assert [gate["verdict"] for gate in event["evidence"]["gates"]] == ["passed"] * 4
    assert event["evidence"]["gates"][0]["n"] == len(TEST)
    assert served(settings) == 2
    assert not carry_out(settings, ledger, prepare(settings, ledger, "churn:champion"))


def test_a_worse_version_misses_non_inferiority(project, ledger):
    complete(project, ledger, IDS[0], SECOND)
    complete(project, ledger, IDS[1], FIRST)
    result = check_version(
        with_keys(project, gates="champion_difference >= -0.01"), ledger, find_version(ledger, "churn")
    )[0]
    assert result.verdict == "missed"
    assert result.low < result.value < -0.01 and result.n == len(TEST)


def test_another_contract_is_no_champion(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], package(TABLE.iloc[:80], schema={"target": "left"}))
    report = check_version(
        with_keys(project, gates="contract; champion_difference >= 0"), ledger, find_version(ledger, "churn")
    )
    assert ["its target is left" in result.why for result in report] == [True, True]
    assert report.stopped


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("roc_auk >= 0.9", "nobody gives roc_auk"),
        ("recall[sex=female] >= 0.8", r"recall\[sex=female\] was not assessed: 3 rows"),
        ("roc_auc >= 0.8, n >= 200", "rests on 143 rows, and the gate wants 200"),
        ("card_complete", "the card lacks "),
        ("onnx_parity", "the package has no ONNX form"),
        ("data_consent", "nobody said on what ground"),
        ("energy <= 1 Wh", "nothing was measured"),
        ("champion_difference >= 0", "only 0 of 0 rows|no split.test"),
    ],
)
def test_what_is_not_there_is_not_passed(project, ledger, gate, words):
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], package(TABLE.iloc[:80], assessment=ASSESSMENT), None)
    with pytest.raises(Refused, match=words):
        check_version(with_keys(project, gates=gate), ledger, find_version(ledger, "churn:2")).enforce()


def test_a_model_of_another_scikit_learn_is_told_by_every_gate(project, ledger):
    """Nothing of it is loaded: not for its latency, not beside the champion, whichever of the two it is."""
    settings = with_keys(project, gates="latency <= 5 s; champion_difference >= -0.5")
    complete(project, ledger, IDS[0], package(TABLE.iloc[:70], requirements={"scikit-learn": "0.1.0"}))
    complete(project, ledger, IDS[1], FIRST)
    latency, beside = check_version(settings, ledger, find_version(ledger, "churn:2"))
    assert latency.verdict == "passed"
    assert "the champion was trained with scikit-learn 0.1.0" in beside.why and "waive" in beside.todo
    ledger.move_alias("churn", "champion", 2, expected=1, reason="a new server")
    for result in check_version(settings, ledger, find_version(ledger, "churn:1")):
        assert result.verdict == "missing" and "was trained with scikit-learn 0.1.0, and here" in result.why
        assert "pip install scikit-learn==0.1.0" in result.todo


JUDGED = [
    ROW,
    {"metric": "roc_auc", "slice": "sex=female", "value": 0.90, "low": 0.86, "high": 0.94, "n": 60},
    {"metric": "expected_calibration_error", "slice": "", "value": 0.03, "low": 0.02, "high": 0.04, "n": 143},
    {"metric": "demographic_parity_difference", "slice": "sex", "value": 0.08, "low": 0.02, "high": 0.12, "n": 143},
]
PARITY = {"ok": True, "max_difference": 1e-6, "flips": 0, "rows": 143, "reason": None}
NO_PARITY = {
    "ok": False,
    "max_difference": None,
    "flips": None,
    "rows": 0,
    "reason": "KNeighbors has no counterpart",
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A champion; version 2, with a number for every kind of gate; version 3, with another target and no ONNX form."""
    settings = make_project(tmp_path_factory.mktemp("judged") / "project")
    settings = with_keys(settings, bento_store=False, card_notebook="card.ipynb")
    cells = [f"## {part}\n\nIt is said." for part in ("Intended use", "Limits", "Data consent")]
    told = {"cells": [{"cell_type": "markdown", "source": cell} for cell in cells]}
    (settings.project / "card.ipynb").write_text(json.dumps(told), encoding="utf-8")
    second = {"assessment": {"format": 1, "rows": JUDGED}, "formats": {"onnx": PARITY}, "consent": "a contract"}
    other = {"formats": {"onnx": NO_PARITY}, "schema": {"target": "left"}}
    contents = (SECOND, package(TABLE.iloc[:90], inputs=("balance",), **second), package(TABLE.iloc[:80], **other))
    with Ledger.open(settings) as opened:
        for run_id, content in zip(IDS, contents, strict=False):
            complete(settings, opened, run_id, content)
            opened.add_cost(run_id, "package", 60.0, Factors(10.0, 400.0))
        (settings.workspace.path / "models/churn/3/schema.json").write_text("{}")
        yield settings, opened


@pytest.mark.parametrize(
    ("passes", "misses", "words"),
    [
        ("roc_auc >= 0.85", "roc_auc >= 0.9", "the low end of its interval, 0.8800, is below 0.9"),
        ("roc_auc[sex=female] >= 0.85, n >= 60", "roc_auc[sex=female] >= 0.9", "0.8600, is below 0.9"),
        (
            "roc_auc[sex=female] >= 0.85",
            "roc_auc[sex=female] >= 0.8, n >= 61",
            "60 rows, and the gate wants 61",
        ),
        (
            "demographic_parity_difference[sex] <= 0.15",
            "demographic_parity_difference[sex] <= 0.1",
            "demographic_parity_difference[sex] is 0.0800, and the high end of its interval, 0.1200, is above 0.1",
        ),
        ("expected_calibration_error <= 0.05", "expected_calibration_error <= 0.035", "0.0400, is above 0.035"),
        ("champion_difference >= -0.9", "champion_difference >= -0.001", "is below -0.001"),
        ("latency <= 30 s", "latency <= 0.000001 ms", "above 1e-06 ms"),
        ("model_size <= 1 MB", "model_size <= 1 kB", "above 1 kB"),
        ("energy <= 0.2 Wh", "energy <= 0.1 Wh", "energy is 0.1667 Wh, above 0.1 Wh"),
        ("carbon <= 1 g", "carbon <= 0.01 g", "above 0.01 g"),
    ],
)
def test_every_number_passes_and_misses(judged, passes, misses, words):
    settings, ledger = judged
    good, bad = check_version(with_keys(settings, gates=f"{passes}; {misses}"), ledger, find_version(ledger, "churn:2"))
    assert good.verdict == "passed" and good.value is not None, good.why
    assert bad.stops and words in bad.why and bad.todo


@pytest.mark.parametrize(
    ("gate", "words", "remedy"),
    [
        ("onnx_parity", "KNeighbors has no counterpart", "scikit-learn's form is what is served"),
        ("contract", "its target is left", "waive it when they know"),
        ("signature", "schema.json was changed", "mlops-nb sign NAME:VERSION"),
        ("data_consent", "nobody said on what ground", "the parameter consent"),
    ],
)
def test_every_question_is_answered_with_yes_and_no(judged, gate, words, remedy):
    settings, ledger = judged
    settings = with_keys(settings, gates=gate)
    (good,) = check_version(settings, ledger, find_version(ledger, "churn:2"))
    (bad,) = check_version(settings, ledger, find_version(ledger, "churn:3"))
    assert (good.verdict, good.value, bad.verdict, bad.value) == ("passed", 1.0, "missed", 0.0), (good.why, bad.why)
    assert words in bad.why and remedy in bad.todo


def test_a_card_is_complete_when_every_part_is_written(judged):
    settings, ledger = judged
    settings, version = with_keys(settings, gates="card_complete"), find_version(ledger, "churn:2")
    assert check_version(settings, ledger, version).passed
    (bad,) = check_version(with_keys(settings, card_notebook=""), ledger, version)
    assert bad.verdict == "missed" and "Intended use, Limits, Data consent" in bad.why


def test_a_changed_file_fails_the_signature(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    settings, version = with_keys(project, gates="signature"), find_version(ledger, "churn")
    assert check_version(settings, ledger, version).passed
    file = project.workspace.path / "models/churn/1/schema.json"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes().replace(b"age", b"agf"))
    assert "schema.json" in check_version(settings, ledger, version)[0].why


def test_an_override_needs_a_role_and_a_reason_and_expires(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], GATED)
    found = prepare(project, ledger, "churn:2")
    with pytest.raises(Refused, match="may not override a gate: nobody is named"):
        overridden(project, ledger, found, "the old one is broken")
    settings = with_keys(project, approvers=user_name())
    with pytest.raises(UsageError, match="An override needs a reason"):
        overridden(settings, ledger, found, "")
    with pytest.raises(UsageError, match="expired before it began"):
        overridden(settings, ledger, found, "broken", "2020-01-31")
    assert carry_out(settings, ledger, overridden(settings, ledger, found, "the old one is broken"))
    event = ledger.alias_events("churn")[0]
    assert event["evidence"]["override"]["reason"] == "the old one is broken"
    assert override_of(ledger, find_version(ledger, "churn:2"))["until"] > event["at"][:10]
    old = override_of(ledger, find_version(ledger, "churn:2")) | {"until": "2020-01-31"}
    ledger.add_event("override", "churn:2", old)
    with pytest.raises(Refused, match="expired on 2020-01-31"):
        carry_out(settings, ledger, prepare(settings, ledger, "churn:2"))


def test_an_override_holds_for_one_alias_and_for_who_gave_it(project, ledger, monkeypatch):
    settings = with_keys(project, approvers=user_name())
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], GATED)
    found = prepare(settings, ledger, "churn:2", "challenger")
    assert carry_out(settings, ledger, overridden(settings, ledger, found, "to try it"), "to try it")
    assert ledger.alias_events("churn", "challenger")[0]["reason"] == f"to try it, by an override of {user_name()}"
    with pytest.raises(Refused, match=r"is below 0\.9"):
        carry_out(settings, ledger, prepare(settings, ledger, "churn:2"))
    ledger.move_alias("churn", "challenger", None, expected=2, reason="tried")
    me = user_name()
    with monkeypatch.context() as other:
        other.setenv("LOGNAME", "eve")
        with pytest.raises(Refused, match=rf"The override of {me}@.* holds for nobody else"):
            carry_out(settings, ledger, prepare(settings, ledger, "churn:2", "challenger"))
    assert carry_out(settings, ledger, prepare(settings, ledger, "churn:2", "challenger"))
    assert ledger.alias("churn", "champion") == 1


def test_two_pairs_of_eyes(project, ledger):
    settings = with_keys(project, approvals=1, approvers=f"{user_name()}, bob")
    model = complete(settings, ledger, IDS[0], FIRST)
    assert model["aliases"] == [] and "refused" not in model
    assert "churn:1 needs 1 approval and has none" in verdict_of(ledger, "churn", 1)["reason"]
    with pytest.raises(Refused, match="needs 1 approval and has none"):
        carry_out(settings, ledger, prepare(settings, ledger, "churn:1"))
    with pytest.raises(Refused, match=r"trained churn:1 .* and may not approve it"):
        say(settings, ledger, find_version(ledger, "churn:1"), APPROVAL)
    assert carry_out(settings, ledger, prepare(settings, ledger, "churn:1", "staging"))  # needs none
    version = find_version(ledger, "churn:1")
    with ledger.database.transaction() as execute:  # another person ran it
        execute("UPDATE runs SET user_name = 'carol'")
    assert say(settings, ledger, version, APPROVAL, "looked at it").enough
    assert say(settings, ledger, version, REJECTION, "wrong source").missing("churn:1").endswith("wrong source")
    assert say(settings, ledger, version, APPROVAL).enough
    assert carry_out(settings, ledger, prepare(settings, ledger, "churn:1"))
    assert ledger.alias_events("churn", "champion")[0]["evidence"]["approvals"]["given"][0]["by"].startswith(
        user_name()
    )


def test_who_trained_it_neither_waives_nor_overrides(project, ledger):
    """Where approvals with four eyes are demanded; without, a project of one person goes on."""
    strict = with_keys(project, approvals=1, approvers=f"{user_name()}, bob")
    alone = with_keys(project, approvers=user_name())
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], GATED)
    version, found = find_version(ledger, "churn:2"), prepare(project, ledger, "churn:2")
    gates = [result.gate for result in found.report]
    waiver = ("roc_auc >= 0.9", "2099-01-31", "few rows", gates)
    with pytest.raises(Refused, match=r"trained churn:2 .* and may not waive a gate of it"):
        waive_gate(strict, ledger, version, *waiver)
    with pytest.raises(Refused, match=r"trained churn:2 .* and may not override its gates"):
        overridden(strict, ledger, found, "the old one is broken")
    assert waive_gate(alone, ledger, version, *waiver) and overridden(alone, ledger, found, "broken").override
    with ledger.database.transaction() as execute:
        execute("UPDATE runs SET user_name = 'carol'")
    assert waive_gate(strict, ledger, version, *waiver) and overridden(strict, ledger, found, "broken").override


def test_a_trainer_is_known_after_the_run_was_deleted(project, ledger):
    strict = with_keys(project, approvals=1, approvers=user_name())
    complete(project, ledger, IDS[0], FIRST)
    version = find_version(ledger, "churn:1") | {"run": "20260101-101500-0000"}  # not on record
    with pytest.raises(Refused, match=r"trained churn:1 .* and may not approve it"):
        say(strict, ledger, version, APPROVAL)
    nobody = version | {"details": {}}  # as versions were registered before the trainer was written down
    with pytest.raises(Refused, match="It is not known who trained churn:1") as told:
        say(strict, ledger, nobody, APPROVAL)
    assert told.value.hint == "Train it again; or set [registry] four_eyes = false."
    ledger.add_event(APPROVAL, "churn:1", {"digest": version["digest"], "note": ""})
    assert not read_approvals(strict, ledger, nobody).enough
    assert say(with_keys(strict, four_eyes=False), ledger, nobody, APPROVAL).enough


@pytest.mark.parametrize(
    ("model", "alias", "words"),
    [
        ("chrun", "champion", "There is no model 'chrun'.* Did you mean 'churn'"),
        ("churn:7", "champion", "no version or alias '7'"),
        ("churn:chmpion", "staging", "Did you mean 'champion'"),
        ("churn", "champoin", "no alias 'champoin'.* Did you mean 'champion'"),
        ("churn", "a b", "no name for an alias"),
    ],
)
def test_what_does_not_exist_is_named(project, ledger, model, alias, words):
    complete(project, ledger, IDS[0], FIRST)
    with pytest.raises(UsageError) as caught:
        prepare(project, ledger, model, alias)
    assert re.search(words, f"{caught.value.message} {caught.value.hint}")


def test_an_alias_that_moved_meanwhile_is_not_moved(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    complete(
        project,
        ledger,
        IDS[1],
        package(TABLE.iloc[:95], inputs=("balance",), metric="log_loss", metrics={"log_loss": 0.5}),
    )
    promotion = prepare(project, ledger, "churn:2")
    ledger.move_alias("churn", "champion", None, expected=1, reason="taken away")
    with pytest.raises(Busy, match="it was moved meanwhile"):
        carry_out(project, ledger, promotion)


def test_rollback_goes_back_step_by_step(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    with pytest.raises(UsageError, match="no version was champion before version 1"):
        go_back(project, ledger, "churn")
    complete(project, ledger, IDS[1], SECOND)
    assert served(project) == 2
    found = go_back(project, ledger, "churn", reason="wrong units")
    assert (found["from"], found["version"], served(project)) == (2, 1, 1)
    event = ledger.alias_events("churn")[0]
    assert event["reason"] == "wrong units" and event["evidence"]["rollback"] and event["actor"]
    assert verdict_of(ledger, "churn", 1)["reason"] == "version 1 is the first champion"
    with pytest.raises(UsageError, match="version 1 is champion already"):
        go_back(project, ledger, "churn", to=1)
    with pytest.raises(UsageError, match="no version or alias '9'"):
        go_back(project, ledger, "churn", to="9")
    with pytest.raises(UsageError, match="has no staging"):
        go_back(project, ledger, "churn", alias="staging")
    assert complete(project, ledger, IDS[2], SECOND)["aliases"] == []  # the rule does not take it back


def way_back(settings, ledger, number):
    """Whether the safety score says that there is a version to go back to."""
    version = find_version(ledger, f"churn:{number}")
    parts = score_version(settings, ledger, version, check_version(settings, ledger, version))
    return next(part.done for part in parts if part.name == "there is a version to go back to")


def test_a_rollback_goes_only_to_what_was_champion(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], GATED)  # refused
    with pytest.raises(UsageError, match="version 2 was never champion") as told:
        go_back(project, ledger, "churn", to=2)
    assert told.value.hint == "To make it champion, its gates are asked: mlops-nb promote churn:2"
    assert [way_back(project, ledger, number) for number in (1, 2)] == [False, True]
    with pytest.raises(UsageError, match="no version was champion before version 1") as told:
        go_back(project, ledger, "churn")
    assert "2" not in told.value.hint
    complete(project, ledger, IDS[2], SECOND)
    with pytest.raises(UsageError, match="version 2 was never champion") as told:
        go_back(project, ledger, "churn", to=2)
    assert told.value.hint.startswith("Versions that were: 1. ")
    assert way_back(project, ledger, 3)
    assert go_back(project, ledger, "churn", to=1)["version"] == served(project) == 1
    assert not way_back(project, ledger, 1)


@pytest.mark.parametrize("end", ["expired", "revoked"])
def test_what_an_ended_key_signed_is_neither_promoted_nor_gone_back_to(project, ledger, end):
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], SECOND)
    ring = KeyRing(project, ledger)
    if end == "revoked":
        ring.revoke("project", "laptop stolen")
    else:
        ring.change("project", "retire", lambda key: key._replace(expires=moment(-1)))
    for move in (
        lambda: carry_out(project, ledger, prepare(project, ledger, "churn:1", "staging")),
        lambda: go_back(project, ledger, "churn"),
    ):
        with pytest.raises(Refused, match=f"signed by the key project, which (was )?{end}") as told:
            move()
        assert "mlops-nb sign (after mlops-nb keys rotate" in told.value.hint
    assert (ledger.alias("churn", "champion"), ledger.alias("churn", "staging")) == (2, None)
    ring.rotate(0)
    sign_versions(project, ledger)
    assert go_back(project, ledger, "churn")["version"] == served(project) == 1


@pytest.mark.parametrize("to", [None, 1])
def test_a_rollback_that_was_killed_is_finished_by_the_same_command(project, ledger, to):
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], SECOND)
    ledger.move_alias("churn", "champion", 1, expected=2, reason="units", evidence={"rollback": True, "from": 2})
    found = go_back(project, ledger, "churn", to)
    assert (found["from"], found["version"], found["reason"], served(project)) == (2, 1, "units", 1)
    assert len(ledger.alias_events("churn")) == 3
    with pytest.raises(UsageError):
        go_back(project, ledger, "churn", to)


def test_what_is_released_is_champion_whoever_moves_it_meanwhile(project, ledger, monkeypatch):
    """A rollback begins while a promotion has read the champion and has not written its release yet."""
    complete(project, ledger, IDS[0], SECOND)
    complete(project, ledger, IDS[1], FIRST)
    started, write = [], register.write_requirements

    def back():
        with Ledger.open(project) as other:
            go_back(project, other, "churn")

    def meanwhile(*given):
        write(*given)
        if not started:
            started.append(threading.Thread(target=back))
            started[0].start()
            while ledger.alias("churn", "champion") == 2:
                time.sleep(0.01)

    monkeypatch.setattr(register, "write_requirements", meanwhile)
    carry_out(project, ledger, prepare(project, ledger, "churn:2"))
    started[0].join()
    assert (ledger.alias("churn", "champion"), served(project)) == (1, 1)


def lose(settings, ledger, text):
    """Delete the package of a version and its folder."""
    version, workspace = find_version(ledger, text), settings.workspace.path
    (workspace / "objects" / version["digest"][:2] / version["digest"]).unlink()
    shutil.rmtree(workspace / "models" / version["name"] / str(version["version"]))


def test_rollback_needs_no_file_of_the_newer_model(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], SECOND)
    lose(project, ledger, "churn:2")
    assert go_back(project, ledger, "churn")["version"] == 1
    assert served(project) == 1


def test_rollback_takes_the_release_where_the_package_is_gone(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], SECOND)
    lose(project, ledger, "churn:1")
    go_back(project, ledger, "churn")
    release = read_release(project.workspace.path / "releases", "churn")
    assert (release.document.generation, release.document.arms[0].version) == (3, 1)
    lose(project, ledger, "churn:2")
    shutil.rmtree(project.workspace.path / "releases")
    with pytest.raises(StorageError, match="missing from the store"):
        go_back(project, ledger, "churn", to=2)


def test_the_registry_can_be_searched(project, ledger):
    first = complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], GATED)
    found = search_versions(project, ledger, run=IDS[1][:16])
    assert [(one["version"], one["gates"][0]["verdict"]) for one in found] == [(2, "missed")]
    assert [one["version"] for one in search_versions(project, ledger, data=first["digest"][:8])] == [1]
    assert [one["version"] for one in search_versions(project, ledger, where=f"run == '{IDS[0]}'")] == [1]
    with pytest.raises(UsageError, match="is no hash"):
        search_versions(project, ledger, data="people.csv")


def test_a_version_whole(project, ledger):
    complete(project, ledger, IDS[0], FIRST)
    complete(project, ledger, IDS[1], GATED)
    go = with_keys(project, approvers=user_name())
    carry_out(go, ledger, overridden(go, ledger, prepare(go, ledger, "churn:2"), "<b>the old one is broken</b>"))
    page = version_page(go, ledger, "churn:2")
    text, html = repr(page), page._repr_html_()
    assert "roc_auc >= 0.9" in text and "version 1 → version 2" in text and "0 of 1 passed" in text
    assert "deployment safety" in text and page.score.total == 35
    found = page.document()["comparison"]
    assert (found["champion"], found["rows"]) == (1, len(TEST)) and found["low"] < found["gain"] < found["high"]
    assert f"version 1 then: roc_auc {found['candidate_score']:.6g} against {found['champion_score']:.6g}" in text
    assert "95 % interval" in text and page.report[0].gate.metric == "roc_auc", "no gate asked for the comparison"
    assert "<b>the old" not in html and "&lt;b&gt;the old one" in html
    assert page.document()["history"][0]["evidence"]["override"]["by"].startswith(user_name())


@pytest.mark.parametrize(
    ("rows", "slices", "fairness"),
    [
        ([("recall", "sex=female", None)], False, False),
        ([("recall", "plan=basic & age=[20, 30)", 0.8)], True, False),
        ([("recall", "sex=female", 0.8), ("demographic_parity_difference", "sex", 0.1)], False, True),
        ([("demographic_parity_difference", "sex", None)], False, False),
        ([("mean_absolute_error_ratio", "sex", 0.9), ("mae", "sex=female", 2.5)], False, True),
        ([("recall", "plan=basic", 0.8), ("recall", "sex=f", 0.7), ("equalized_odds_ratio", "sex", 0.9)], True, True),
    ],
)
def test_only_what_has_a_number_scores_and_groups_are_no_slices(project, ledger, rows, slices, fairness):
    empty = {"low": None, "high": None, "n": 50}
    found = [{"metric": metric, "slice": part, "value": value, **empty} for metric, part, value in rows]
    content = package(TABLE.iloc[:100], assessment={"format": 1, "rows": found})
    candidate = Candidate(PackageFile(path := project.project / "package.zip", sha256_bytes(content)), project)
    path.write_bytes(content)
    looks = {name: look for name, _, look, _ in PARTS}
    told = [looks[name](candidate, run_gates(candidate)) for name in ("slices are assessed", "fairness is assessed")]
    assert told == [slices, fairness]


@pytest.fixture(scope="module")
def three_versions(tmp_path_factory):
    """A project whose model has three versions, the second one champion."""
    folder = tmp_path_factory.mktemp("three") / "project"
    make_project(folder)
    ini = "[package]\nname = demo\n[tracking]\nmode = off\n[registry]\nbento_store = false\n"
    (folder / "settings.ini").write_text(ini, encoding="utf-8")
    settings = load_settings(folder)
    with Ledger.open(settings) as ledger:
        for run_id, content in zip(IDS, (FIRST, SECOND, GATED), strict=False):
            complete(settings, ledger, run_id, content)
    return Project(folder, settings.workspace.path)


@pytest.fixture
def copied(three_versions, tmp_path):
    return three_versions.copy(tmp_path / "workspace")


def test_a_notebook_has_the_same_functions(copied, monkeypatch):
    monkeypatch.chdir(copied.folder)
    monkeypatch.setenv("MLOPS_NB_WORKSPACE_PATH", str(copied.workspace))
    monkeypatch.setenv("MLOPS_NB_REGISTRY_APPROVERS", user_name())
    report = mlops_nb.check_gates("churn:3")
    assert (report.model, [result.verdict for result in report]) == ("churn:3", ["missed"])
    for refused in (report.enforce, lambda: mlops_nb.promote("churn:3")):
        with pytest.raises(Refused, match=r"0\.8800, is below 0\.9") as told:
            refused()
        assert told.value.exit_code == 3
    mlops_nb.check_gates("churn:3", "roc_auc >= 0.8; contract").enforce()
    digest = sha256_bytes(GATED)
    unregistered = mlops_nb.check_gates(mlops_nb.ModelPackage.read(copied.workspace / "objects" / digest[:2] / digest))
    assert (unregistered.model, unregistered.document()) == ("churn", report.document())
    mlops_nb.waive("churn:3", "roc_auc >= 0.9", until="2099-01-31", reason="few rows")
    mlops_nb.check_gates("churn:3").enforce()
    waived = mlops_nb.promote("churn:3", reason="spring")
    assert waived.passed and "1 gate, 0 of 1 passed, 1 waived" in repr(waived)
    assert mlops_nb.models("churn:champion").version["version"] == 3
    back = mlops_nb.rollback("churn", reason="units")
    assert (back["from"], back["version"]) == (3, 2)
    before = mlops_nb.safety_score("churn:3")
    assert before.total == sum(part.points for part in before if part.done) < 100
    with pytest.raises(Refused, match="may not approve it"):
        mlops_nb.approve("churn:3")
    monkeypatch.setenv("MLOPS_NB_REGISTRY_FOUR_EYES", "false")
    assert mlops_nb.approve("churn:3", "looked at it")["given"][0]["note"] == "looked at it"
    assert mlops_nb.safety_score("churn:3").total == before.total + 5
    mlops_nb.tag_model("churn:3", "spring")
    said = mlops_nb.models("churn")
    found = [
        mlops_nb.models("churn", **how) for how in ({"tag": "spring"}, {"run": IDS[1]}, {"data": said[2]["digest"]})
    ]
    assert [[version["version"] for version in one] for one in found] == [[3], [2], [1]]


def test_versions_are_found_by_metric_and_by_source(project, ledger):
    """The numbers of the run that gave a version, and the hash of what its steps read."""
    for run_id, content, score, source in ((IDS[0], FIRST, 0.85, "ab" * 32), (IDS[1], SECOND, 0.95, "cd" * 32)):
        run_completing(give(project, ledger, run_id, content, TEST, {"roc_auc": score}, source), project, ledger)
    found = [
        search_versions(project, ledger, **how)
        for how in ({"where": "roc_auc >= 0.9"}, {"where": "roc_auc < 0.9"}, {"data": "cdcd"}, {"data": "ab" * 32})
    ]
    assert [[one["version"] for one in table] for table in found] == [[2], [1], [2], [1]]
    assert len(search_versions(project, ledger, data="efef")) == 0


def test_the_commands_of_a_day(copied):
    me = {"MLOPS_NB_REGISTRY_APPROVERS": user_name()}
    refused = copied.json("promote", "churn:3", expect=3)
    assert refused["error"]["type"] == "Refused" and refused["gates"][0]["verdict"] == "missed"
    assert not refused["moved"]
    shown = copied.call("mlops-nb", "promote", "churn:3", "--check")
    assert shown.returncode == 3
    assert "the low end of its interval, 0.8800, is below 0.9" in shown.stdout and "→ " in shown.stdout
    waiver = ("waive", "churn:3", "roc_auc >= 0.9", "--until", "2099-01-31", "--reason", "few rows")
    assert "may not waive" in copied.json(*waiver, expect=3)["error"]["message"]
    assert copied.json(*waiver, **me)["until"] == "2099-01-31"
    assert copied.json("promote", "churn:3", "--check")["gates"][0]["verdict"] == "waived"
    done = copied.json("promote", "churn", "--reason", "spring")
    assert (done["moved"], done["from"], done["aliases"]) == (True, 2, ["champion"])
    copied.json("models", "tag", "churn:3", "+candidate", "+q4")
    copied.json("models", "note", "churn:3", "for spring")
    (found,) = copied.json("models", "--tag", "candidate")["models"]
    assert (found["version"], found["tags"], found["note"]) == (3, ["candidate", "q4"], "for spring")
    back = copied.json("rollback", "churn", "--reason", "units")
    assert (back["from"], back["version"]) == (3, 2)
    page = copied.json("models", "churn:3")
    assert page["history"][0]["reason"] == "units" and page["score"]["of"] == 100
    assert "went back" not in copied.call("mlops-nb", "models", "churn:2").stderr
    alone = {**me, "MLOPS_NB_REGISTRY_FOUR_EYES": "false"}
    assert "may not approve it" in copied.json("approve", "churn:3", expect=3, **me)["error"]["message"]
    assert copied.json("approve", "churn:3", "--note", "yes", **alone)["given"][0]["note"] == "yes"
    assert copied.json("reject", "churn:3", "--note", "no", **me)["rejected"][0]["note"] == "no"
    assert "rejected churn:3" in copied.json("promote", "churn:3", expect=3, **me)["error"]["message"]
    kept = json.loads((copied.workspace / "registry.json").read_text())  # what a lost ledger is made from
    assert {"waiver", "rejection", "model_tag", "model_note"} <= {event["kind"] for event in kept["events"]}


def test_versions_go_by_command(copied):
    told = copied.call("mlops-nb", "models", "delete", "churn:3")
    assert "would delete 1 version: churn:3" in told.stdout and "add --delete" in told.stdout
    gone = copied.json("models", "delete", "churn:3", "--delete")
    assert (gone["versions"], gone["deleted"]) == (["churn:3"], True)
    assert copied.json("models", "prune", "churn", "--keep", "1")["deleted"] is False
    assert {one["version"] for one in copied.json("models")["models"]} == {1, 2}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("promote", "churn:33"), "no version or alias '33'"),
        (("promote", "churn", "champion", "--until", "2099-01-01"), "--until is the last day of an override"),
        (("waive", "churn:3", "roc_auc >= 0.9", "--reason", "x"), "no day is given"),
        (("rollback", "chrun"), "There is no model 'chrun'"),
        (("models", "tag", "churn:3"), "a change are missing"),
        (("models", "churn:9"), "no version or alias '9'"),
    ],
)
def test_wrong_words_are_answered_in_one_sentence(three_versions, words, told):
    done = three_versions.call("mlops-nb", *words)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


RACE = """
import sys, time
from pathlib import Path
from mlops_nb.core.errors import MlopsError
from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.registry.promote import carry_out, prepare

settings = load_settings()
with Ledger.open(settings, create=False) as ledger:
    promotion = prepare(settings, ledger, sys.argv[1])
    Path(sys.argv[1].replace(":", "-") + ".ready").touch()
    while len(list(Path().glob("*.ready"))) < 2:
        time.sleep(0.01)
    try:
        carry_out(settings, ledger, promotion)
    except MlopsError as error:
        print(error.message)
        sys.exit(error.exit_code)
"""


def test_of_two_that_promote_at_once_one_wins(tmp_path):
    folder = tmp_path / "project"
    settings = make_project(folder)
    settings = with_keys(settings, bento_store=False)
    with Ledger.open(settings) as ledger:
        for run_id, content in zip(IDS, (SECOND, FIRST, package(TABLE.iloc[:70], inputs=("balance",))), strict=False):
            complete(settings, ledger, run_id, content)
        standing = ledger.alias("churn", "champion")
    others = [f"churn:{number}" for number in (1, 2, 3) if number != standing]
    command = [sys.executable, "-c", textwrap.dedent(RACE)]
    started = [subprocess.Popen([*command, text], cwd=folder, stdout=subprocess.PIPE, text=True) for text in others]
    said = [process.communicate(timeout=120)[0] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 4]
    assert "it was moved meanwhile" in said[codes.index(4)]
    winner = int(others[codes.index(0)].partition(":")[2])
    with Ledger.open(settings) as ledger:
        assert ledger.alias("churn", "champion") == winner
        assert len(ledger.alias_events("churn")) == 2
    assert served(settings) == winner
