"""Versions, aliases and releases under races."""

from itertools import pairwise

import pytest

from mlops_nb.core.errors import Busy, UsageError
from mlops_nb.core.ledger import Ledger

REGISTER = """
import sys
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
ledger = Ledger.open(load_settings(sys.argv[1], environ={}))
facts = dict(run_id="run-1", task="binary", metric="auc", schema_digest="s", metrics={}, details={})
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    version, created = ledger.register_version("churn", f"digest-{number}", **facts)
    print(version, created, ledger.add_release("churn", f"digest-{number}", {}), flush=True)
"""

MOVE = """
import sys
from mlops_nb.core.errors import Busy
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
ledger = Ledger.open(load_settings(sys.argv[1], environ={}))
print("ready", flush=True)
sys.stdin.readline()
moved = lost = 0
while moved < 20:
    here = ledger.alias("churn", "champion")
    try:
        moved += ledger.move_alias("churn", "champion", 3 - here, expected=here, reason="race")
    except Busy:
        lost += 1
print(moved)
"""


@pytest.fixture
def ledger(settings):
    """An empty ledger."""
    with Ledger.open(settings) as ledger:
        yield ledger


def register(ledger, digest):
    facts = {"run_id": "run-1", "task": "binary", "metric": "auc", "schema_digest": "s"}
    return ledger.register_version("churn", digest, metrics={"auc": 0.9}, details={"a": [1]}, **facts)


def race(processes, finish):
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [[line.split() for line in out.splitlines()] for out in finish(*processes)]


def test_a_digest_becomes_one_version_whoever_registers(settings, ledger, start_python, finish):
    first, second = race([start_python(REGISTER, settings.project) for _ in range(2)], finish)
    assert [line[0] for line in first] == [line[0] for line in second] == [str(number) for number in range(1, 21)]
    assert all({one[1], other[1]} == {"True", "False"} for one, other in zip(first, second, strict=True))
    assert [version["version"] for version in ledger.versions("churn")] == list(range(20, 0, -1))


def test_an_alias_takes_one_step_at_a_time(settings, ledger, start_python, finish):
    register(ledger, "d1")
    register(ledger, "d2")
    ledger.move_alias("churn", "champion", 1, expected=None, reason="first")
    printed = race([start_python(MOVE, settings.project) for _ in range(2)], finish)
    assert printed == [[["20"]], [["20"]]]
    events = ledger.alias_events("churn", "champion")
    assert [event["sequence"] for event in events] == list(range(41, 0, -1))
    for newer, older in pairwise(events):
        assert newer["previous"] == older["version"]
        assert newer["version"] != newer["previous"]


def test_versions_tell_what_was_registered(ledger):
    assert register(ledger, "d1") == (1, True)
    ledger.move_alias("churn", "champion", 1, expected=None, reason="first")
    ledger.move_alias("churn", "staging", 1, expected=None, reason="by hand")
    (version,) = ledger.versions()
    assert version | {"created": ""} == {
        "name": "churn",
        "version": 1,
        "digest": "d1",
        "run": "run-1",
        "task": "binary",
        "metric": "auc",
        "schema_digest": "s",
        "metrics": {"auc": 0.9},
        "details": {"a": [1]},
        "aliases": ["champion", "staging"],
        "created": "",
    }
    assert ledger.versions("other") == []


def test_an_alias_can_be_taken_away_and_set_again(ledger):
    register(ledger, "d1")
    assert ledger.alias("churn", "staging") is None
    ledger.move_alias("churn", "staging", 1, expected=None, reason="on")
    ledger.move_alias("churn", "staging", None, expected=1, reason="off")
    assert ledger.alias("churn", "staging") is None
    assert ledger.versions("churn")[0]["aliases"] == []
    assert ledger.move_alias("churn", "staging", 1, expected=None, reason="on again") is True
    assert [event["reason"] for event in ledger.alias_events("churn")] == ["on again", "off", "on"]
    assert all(event["actor"].count("@") == 1 for event in ledger.alias_events("churn"))


def test_wrong_moves_change_nothing(ledger):
    register(ledger, "d1")
    register(ledger, "d2")
    ledger.move_alias("churn", "champion", 1, expected=None, reason="first")
    with pytest.raises(Busy, match="stands on version 1, not on None") as caught:
        ledger.move_alias("churn", "champion", 2, expected=None, reason="late")
    assert caught.value.exit_code == 4
    with pytest.raises(UsageError, match="has no version 9"):
        ledger.move_alias("churn", "champion", 9, expected=1, reason="typo")
    assert ledger.alias("churn", "champion") == 1
    assert len(ledger.alias_events("churn")) == 1


def test_publishing_the_same_again_is_no_new_generation(ledger):
    assert [ledger.add_release("churn", digest, {"d": digest}) for digest in ("a", "a", "b", "a")] == [1, 1, 2, 3]
    assert [(row["generation"], row["digest"], row["document"]) for row in ledger.releases("churn")] == [
        (3, "a", {"d": "a"}),
        (2, "b", {"d": "b"}),
        (1, "a", {"d": "a"}),
    ]


def test_events_are_filtered_and_newest_first(ledger):
    for number in range(3):
        ledger.add_event("champion_kept", f"churn:{number}", {"number": number})
    ledger.add_event("doctor", "project")
    assert [event["subject"] for event in ledger.events("champion_kept")] == ["churn:2", "churn:1", "churn:0"]
    assert ledger.events(subject="project")[0]["details"] == {}
    assert len(ledger.events(limit=2)) == 2


def test_mirrors_remember_their_id(ledger):
    ledger.begin_run("run-1", "tabular", {})
    ledger.set_mirror_state("run-1", "", "begun")
    ledger.set_mirror_state("run-1", "train", "begun", "x1")
    ledger.set_mirror_state("run-1", "train", "complete")
    assert ledger.mirror_state("run-1")["state"] == "begun"
    assert ledger.mirror_state("run-1", "train")["wandb_id"] == "x1"
    assert [row["step"] for row in ledger.mirrors("run-1")] == ["", "train"]
    assert [row["step"] for row in ledger.mirrors(state="complete")] == ["train"]
