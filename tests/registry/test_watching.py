"""A rollout that steps by itself while all is well and aborts when it is not, on numbers of a real meter."""

import pytest
from registry_support import make_project, package, people, register

from mlops_nb.core.ledger import Ledger
from mlops_nb.registry.releases import read_release
from mlops_nb.registry.rollout import Plan, canary, hold, standing, start
from mlops_nb.serve.health import Health
from mlops_nb.serve.meter import Meter
from mlops_nb.serve.releasing import status
from mlops_nb.serve.slots import Slot, Table
from mlops_nb.serve.watching import look, watch

TABLE = people()


@pytest.fixture
def project(tmp_path):
    settings = make_project(tmp_path / "project")
    return settings._replace(registry=settings.registry._replace(bento_store=False))


@pytest.fixture
def ledger(project):
    with Ledger.open(project) as opened:
        register(project, opened, [package(TABLE.iloc[: 100 + number]) for number in range(3)], TABLE.iloc[150:])
        yield opened


class Service:
    """A meter that counts what it is told, for two versions."""

    def __init__(self):
        self.meter = Meter()
        self.follow(2)

    def follow(self, generation):
        self.slots = {
            name: Slot("churn", version, "5d" * 32, generation, name, 0.5, None)
            for name, version in (("champion", 1), ("challenger", 2))
        }
        self.meter.serves(Table(list(self.slots.values())))

    def answer(self, arm, count, status=200, seconds=0.003):
        for _ in range(count):
            self.meter.answered("/predict", status, seconds, self.slots[arm])

    def read(self):
        return Health.parse(self.meter.text().decode())


@pytest.fixture
def service(monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    return Service()


def arms(project):
    return {arm.version: arm.weight for arm in read_release(project.workspace.path / "releases", "churn").document.arms}


def test_it_steps_while_all_is_well_and_promotes_at_the_end(project, ledger, service):
    start(project, ledger, ["churn:2"], canary("10,50")._replace(every=0.0))
    service.answer("champion", 500)
    service.answer("challenger", 5, status=500)  # before the step was looked at: somebody else's
    assert look(project, ledger, "churn", service.read).verdict == "wait"
    service.answer("champion", 900)
    service.answer("challenger", 40)
    few = look(project, ledger, "churn", service.read)
    assert (few.verdict, few.action) == ("wait", ""), "40 requests are too few"
    assert any("100" in sentence for sentence in few.sentences)
    service.answer("challenger", 120)
    found = look(project, ledger, "churn", service.read)
    assert (found.verdict, found.action) == ("go", "step")
    assert found.numbers["2"]["requests"] == 160
    assert arms(project) == {1: 0.5, 2: 0.5}
    behind = look(project, ledger, "churn", service.read)
    assert (behind.verdict, "Servers answer by generation 2" in behind.sentences[0]) == ("wait", True)
    service.follow(3)
    look(project, ledger, "churn", service.read)
    service.answer("champion", 200)
    service.answer("challenger", 200)
    assert look(project, ledger, "churn", service.read).action == "", "nobody said that it may promote"
    assert look(project, ledger, "churn", service.read, promote=True).action == "promote"
    assert (ledger.alias("churn", "champion"), arms(project)) == (2, {2: 1.0})
    page = status(project, ledger, "churn")
    assert [one["action"] for one in page.document["health"]][:2] == ["promote", ""]
    assert page._repr_html_().count("<path") == len(page.looks) == 7


@pytest.mark.parametrize("harm", ["errors", "latency"])
def test_it_goes_back_as_soon_as_the_evidence_suffices(project, ledger, service, harm):
    start(project, ledger, ["churn:2"], canary("10,50"))
    look(project, ledger, "churn", service.read)
    service.answer("champion", 2000)
    if harm == "errors":
        service.answer("challenger", 60)
        service.answer("challenger", 12, status=500)
    else:
        service.answer("challenger", 400, seconds=0.4)
    found = look(project, ledger, "churn", service.read)
    assert (found.verdict, found.action) == ("stop", "abort")
    assert arms(project) == {1: 1.0}
    assert standing(ledger, "churn") is None
    assert status(project, ledger, "churn").document["history"][0]["why"].startswith("by the watch: ")


def test_paused_it_looks_and_leaves_the_shares(project, ledger, service):
    start(project, ledger, ["churn:2"], canary("10,50")._replace(every=0.0))
    hold(project, ledger, "churn")
    look(project, ledger, "churn", service.read)
    service.answer("champion", 500)
    service.answer("challenger", 500)
    found = look(project, ledger, "churn", service.read)
    assert (found.verdict, found.action, arms(project)) == ("go", "", {1: 0.9, 2: 0.1})


def test_a_step_lasts_as_long_as_it_should(project, ledger, service):
    start(project, ledger, ["churn:2"], canary("10,50")._replace(every=3600.0))
    look(project, ledger, "churn", service.read)
    service.answer("champion", 500)
    service.answer("challenger", 500)
    assert look(project, ledger, "churn", service.read).action == ""


def test_a_shadow_is_judged_by_what_differs(project, ledger, service):
    start(project, ledger, ["churn:3"], Plan("shadow", ((0.0,),)))
    look(project, ledger, "churn", service.read)
    shadow = Slot("churn", 3, "5d" * 32, 2, "shadow", 0.0, None)
    for outcome, count in (("same", 150), ("differs", 150)):
        for _ in range(count):
            service.meter.mirrored(shadow, outcome)
    assert look(project, ledger, "churn", service.read).action == "abort"


def test_a_watch_goes_on_while_the_service_is_away(project, ledger, service):
    from mlops_nb.core.errors import UsageError

    start(project, ledger, ["churn:2"], canary("10")._replace(every=0.0))
    looks, failures = [], []

    def read():
        if not failures:
            raise UsageError("it does not answer.", "Start it.")
        service.answer("champion", 300)
        service.answer("challenger", 300)
        return service.read()

    ended = watch(project, ledger, "churn", read, 0.01, True, looks.append, failures.append)
    assert (ended, len(failures), looks[-1].action) == ("promoted", 1, "promote")


def test_a_restart_is_noticed_although_the_new_numbers_have_outgrown_the_old_ones(project, ledger, service):
    """A candidate that fails from its first answer after the restart is not excused by what was counted before."""
    start(project, ledger, ["churn:2"], canary("10,50"))
    service.answer("champion", 900)
    service.answer("challenger", 30)
    look(project, ledger, "churn", service.read)  # the baseline of the step
    restarted = Service()
    restarted.answer("champion", 2000)
    restarted.answer("challenger", 60)
    restarted.answer("challenger", 12, status=500)
    found = look(project, ledger, "churn", restarted.read)
    assert found.numbers["2"]["requests"] == 72, "all that the new server counted, not what it counted beyond the old"
    assert found.action == "abort"


def test_workers_agree_on_when_their_server_began(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    first, second = Service(), Service()
    assert first.read().began == second.read().began is not None
