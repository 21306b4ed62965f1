"""Rollouts: what each act publishes, what is refused, and what a crash in the middle leaves."""

import pytest
from registry_support import give, make_project, package, people, register

from mlops_nb.core.errors import Refused, UsageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.registry import rollout
from mlops_nb.registry.promote import carry_out, prepare
from mlops_nb.registry.register import run_completing
from mlops_nb.registry.releases import read_release
from mlops_nb.registry.rollback import go_back
from mlops_nb.registry.rollout import Plan, abort, canary, finish, history, hold, split, standing, start, step
from mlops_nb.registry.versions import verdict_of

TABLE = people()
PACKAGES = [package(TABLE.iloc[: 100 + 5 * number]) for number in range(4)]
OTHER_FIELDS = package(
    TABLE.iloc[:100],
    schema={
        "features": [
            {"name": "age", "kind": "integer", "nullable": False, "low": 18, "high": 90, "example": 41},
        ]
    },
)
MISSES = package(TABLE.iloc[:90], gates=["roc_auc >= 0.99"])
IDS = [f"20261129-10150{number}-000{number}" for number in range(1, 10)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with six versions; nobody decides which is champion but the tests."""
    settings = make_project(tmp_path_factory.mktemp("rollout") / "project")
    settings = settings._replace(registry=settings.registry._replace(bento_store=False))
    with Ledger.open(settings) as ledger:
        register(settings, ledger, [*PACKAGES, OTHER_FIELDS, MISSES], TABLE.iloc[150:])
    return settings


@pytest.fixture
def project(made, tmp_path):
    """A copy of it."""
    import shutil

    from mlops_nb.core.settings import load_settings

    folder = tmp_path / "project"
    shutil.copytree(made.project, folder)
    settings = load_settings(folder)
    return settings._replace(registry=settings.registry._replace(bento_store=False))


@pytest.fixture
def ledger(project):
    with Ledger.open(project) as opened:
        yield opened


def released(project):
    return read_release(project.workspace.path / "releases", "churn").document


def shares(project):
    return {(arm.name, arm.version): arm.weight for arm in released(project).arms}


def test_a_canary_grows_and_is_promoted(project, ledger):
    state = start(project, ledger, ["churn:2"], canary("10,50,100"), "try it")
    first = released(project)
    assert shares(project) == {("champion", 1): 0.9, ("challenger", 2): 0.1}
    assert {name.split("/")[1] for name in first.files} == {"1", "2"}
    step(project, ledger, "churn")
    assert shares(project) == {("champion", 1): 0.5, ("challenger", 2): 0.5}
    assert released(project).salt == first.salt == state["rollout"], "who had the candidate keeps it"
    step(project, ledger, "churn", to=0.6)
    assert shares(project)["challenger", 2] == 0.6
    step(project, ledger, "churn")
    assert shares(project) == {("champion", 1): 0.0, ("challenger", 2): 1.0}
    with pytest.raises(UsageError, match="stands at its last step"):
        step(project, ledger, "churn")
    assert ledger.alias("churn", "champion") == 1
    finish(project, ledger, "churn")
    assert ledger.alias("churn", "champion") == 2
    assert shares(project) == {("champion", 2): 1.0}
    assert [one["action"] for one in history(ledger, "churn")] == ["promote", "step", "step", "step", "start"]
    assert standing(ledger, "churn") is None


def test_an_aborted_one_gives_all_back_at_once(project, ledger):
    before = released(project)
    start(project, ledger, ["churn:2"], canary("10"))
    state = abort(project, ledger, "churn", "p99 too high")
    assert (state["state"], state["reason"]) == ("aborted", "p99 too high")
    assert released(project).digest() == before.digest()
    with pytest.raises(UsageError, match="No release of churn is under way"):
        abort(project, ledger, "churn")


def test_the_next_run_of_the_pipeline_leaves_it_alone(project, ledger):
    start(project, ledger, ["churn:2"], canary("10"))
    run_completing({"run": IDS[0], "pipeline": "tabular"}, project, ledger)
    assert standing(ledger, "churn")
    assert len(released(project).arms) == 2


def test_another_champion_ends_it(project, ledger):
    start(project, ledger, ["churn:2"], canary("10"))
    finish(project, ledger, "churn")
    start(project, ledger, ["churn:3"], canary("10"))
    go_back(project, ledger, "churn")
    assert shares(project) == {("champion", 1): 1.0}
    assert standing(ledger, "churn") is None
    assert start(project, ledger, ["churn:3"], canary("10"))["champion"] == 1


def test_a_switch_keeps_the_old_one_loaded(project, ledger):
    start(project, ledger, ["churn:5"], Plan("switch", ((1.0,),)))
    assert shares(project) == {("champion", 1): 0.0, ("challenger", 5): 1.0}


def test_other_fields_can_only_switch(project, ledger):
    with pytest.raises(UsageError, match="takes other requests than version 1: balance differ"):
        start(project, ledger, ["churn:5"], canary("10"))
    assert len(released(project).arms) == 1
    assert start(project, ledger, ["churn:2"], canary("10"))["state"] == "running", "the refused start is no obstacle"


def test_a_shadow_answers_nobody_and_needs_no_gate(project, ledger):
    with pytest.raises(Refused, match="roc_auc"):
        start(project, ledger, ["churn:6"], canary("1"))
    start(project, ledger, ["churn:6"], Plan("shadow", ((0.0,),)))
    arms = {arm.name: (arm.version, arm.weight, arm.shadow) for arm in released(project).arms}
    assert arms == {"champion": (1, 1.0, False), "shadow": (6, 0.0, True)}
    with pytest.raises(UsageError, match="has no share"):
        step(project, ledger, "churn", to=0.5)
    with pytest.raises(Refused):
        finish(project, ledger, "churn")
    assert len(released(project).arms) == 2


def test_a_segment_has_its_own(project, ledger):
    start(project, ledger, ["churn:2"], Plan("segment", ((0.0,),), segments=("eu", "uk"), by="age"))
    document = released(project)
    assert (document.segments, document.by) == ((("eu", "challenger"), ("uk", "challenger")), "age")
    assert shares(project)["champion", 1] == 1.0


def test_a_split_of_several(project, ledger):
    start(project, ledger, ["churn:2", "churn:3"], split("30,20", 2))
    assert shares(project) == {("champion", 1): 0.5, ("challenger-2", 2): 0.3, ("challenger-3", 3): 0.2}
    with pytest.raises(UsageError, match="2 candidates"):
        finish(project, ledger, "churn")
    finish(project, ledger, "churn", version=3)
    assert shares(project) == {("champion", 3): 1.0}


@pytest.mark.parametrize(
    ("candidates", "plan", "words"),
    [
        (["churn:1"], canary("10"), "is champion and has the traffic"),
        (["churn:2", "churn:3"], canary("10"), "A canary has one candidate"),
        (["churn:2", "churn:2"], split("10,10", 2), "stands twice"),
        (["churn:77"], canary("10"), "77"),
    ],
)
def test_what_cannot_be_started(project, ledger, candidates, plan, words):
    with pytest.raises(UsageError, match=words):
        start(project, ledger, candidates, plan)


def test_two_at_once(project, ledger):
    start(project, ledger, ["churn:2"], canary("10"))
    with pytest.raises(UsageError, match="is under way already, with version 2"):
        start(project, ledger, ["churn:3"], canary("10"))


def test_holding_and_going_on(project, ledger):
    start(project, ledger, ["churn:2"], canary("10,50"))
    assert hold(project, ledger, "churn")["state"] == "paused"
    with pytest.raises(UsageError, match="is paused already"):
        hold(project, ledger, "churn")
    assert not rollout.is_due(standing(ledger, "churn") | {"every": 0})
    assert hold(project, ledger, "churn", paused=False)["state"] == "running"
    assert rollout.is_due(standing(ledger, "churn") | {"every": 0})


@pytest.mark.parametrize("place", ["publish", "_note"])
@pytest.mark.parametrize("act", ["start", "step", "abort"])
def test_a_crash_in_the_middle_is_mended_by_the_same_command(project, ledger, monkeypatch, place, act):
    acts = {
        "start": lambda: start(project, ledger, ["churn:2"], canary("10,50,100")),
        "step": lambda: step(project, ledger, "churn"),
        "abort": lambda: abort(project, ledger, "churn"),
    }
    if act != "start":
        acts["start"]()

    def crash(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rollout, place, crash)
        if act == "abort":
            patch.setattr("mlops_nb.registry.register.publish", crash)
        with pytest.raises(KeyboardInterrupt):
            acts[act]()
    try:
        acts[act]()
    except UsageError as error:
        assert "No release of churn is under way" in str(error) and act == "abort"
    expected = {"start": 0.1, "step": 0.5}
    if act == "abort":
        assert shares(project) == {("champion", 1): 1.0}
    else:
        assert shares(project)["challenger", 2] == expected[act]
        assert standing(ledger, "churn")["step"] == (act == "step")


def test_a_run_makes_no_champion_while_versions_are_compared(project, ledger):
    start(project, ledger, ["churn:2"], canary("10"))
    better = package(TABLE.iloc[:140])
    (model,) = run_completing(give(project, ledger, IDS[6], better, TABLE.iloc[150:]), project, ledger)
    assert model["aliases"] == [] and standing(ledger, "churn")
    assert "a release with version 2 is under way" in verdict_of(ledger, "churn", model["version"])["reason"]
    abort(project, ledger, "churn")
    run_completing({"run": IDS[6], "pipeline": "tabular"}, project, ledger)
    assert "under way" not in verdict_of(ledger, "churn", model["version"])["reason"], "asked again when it was over"


def test_a_smaller_share_forgets_no_step_and_repeats_none(project, ledger):
    start(project, ledger, ["churn:2"], canary("10,50,100"))
    step(project, ledger, "churn")
    for share in (0.4, 0.2):
        step(project, ledger, "churn", to=share)
        assert shares(project)["challenger", 2] == share
    step(project, ledger, "churn")
    assert shares(project)["challenger", 2] == 1.0


def test_a_segment_is_named_by_an_input_of_the_model(project, ledger):
    with pytest.raises(UsageError, match="The model has no input 'aeg'"):
        start(project, ledger, ["churn:2"], Plan("segment", ((0.0,),), segments=("41",), by="aeg"))
    assert len(released(project).arms) == 1


def test_the_page_says_who_ended_it(project, ledger):
    from mlops_nb.serve.releasing import status

    start(project, ledger, ["churn:2"], canary("10"))
    carry_out(project, ledger, prepare(project, ledger, "churn:3"))
    first = status(project, ledger, "churn").document["history"][0]
    assert first["what"] == "canary ended: version 3 became champion"


def rotate(project, ledger):
    from mlops_nb.registry.keyring import KeyRing
    from mlops_nb.registry.signing import sign_versions

    KeyRing(project, ledger).rotate(3600)
    sign_versions(project, ledger, "churn", anew=True)


def seal(project, ledger):
    pyrage = pytest.importorskip("pyrage")
    from mlops_nb.registry.encrypting import encrypt_model

    encrypt_model(project, "churn", [str(pyrage.x25519.Identity.generate().to_public())])


def open_again(project, ledger):
    from mlops_nb.registry.encrypting import encrypt_model

    seal(project, ledger)
    encrypt_model(project, "churn", [])


def lose_requirements(project, ledger):
    (project.workspace.path / "releases/requirements.txt").unlink()
    run_completing({"run": IDS[0], "pipeline": "tabular"}, project, ledger)


PLANS = {
    "canary": (["churn:2"], canary("10,50")),
    "split": (["churn:2", "churn:3"], split("20,30", 2)),
    "shadow": (["churn:2"], Plan("shadow", ((0.0,),))),
    "switch": (["churn:5"], Plan("switch", ((1.0,),))),
    "segment": (["churn:2"], Plan("segment", ((0.0,),), segments=("41",), by="age")),
}


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("act", [rotate, seal, open_again, lose_requirements])
def test_what_makes_a_release_anew_keeps_its_arms(project, ledger, act, kind):
    start(project, ledger, *PLANS[kind])
    if kind == "canary":
        step(project, ledger, "churn")
    before = released(project)
    act(project, ledger)
    after = released(project)
    assert (after.arms, after.segments, after.by, after.salt) == (
        before.arms,
        before.segments,
        before.by,
        before.salt,
    )
    assert standing(ledger, "churn")["generation"] == after.generation
    assert (after.generation == before.generation) == (act is lose_requirements), "then only that file was missing"
    for arm in after.arms:
        assert (f"{arm.folder}/model.skops.age" in after.files) == (act is seal)
    if act is not lose_requirements:
        assert all(
            before.files[f"{arm.folder}/model.sig"] != after.files[f"{arm.folder}/model.sig"] for arm in after.arms
        ) or (act is open_again)
    run_completing({"run": IDS[0], "pipeline": "tabular"}, project, ledger)
    assert released(project) == after, "all is in order"


def test_a_lost_file_of_a_candidate_is_made_again(project, ledger):
    start(project, ledger, ["churn:2"], canary("10"))
    before = released(project)
    file = project.workspace.path / "releases/churn" / before.folder() / "versions/2/model.skops"
    file.write_bytes(b"")
    run_completing({"run": IDS[0], "pipeline": "tabular"}, project, ledger)
    assert released(project).arms == before.arms


def test_an_act_that_ended_a_rollout_is_not_undone_by_a_new_key(project, ledger):
    start(project, ledger, ["churn:2"], canary("10"))
    abort(project, ledger, "churn")
    rotate(project, ledger)
    assert shares(project) == {("champion", 1): 1.0} and standing(ledger, "churn") is None
