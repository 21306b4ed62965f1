"""A package that somebody put into the store in another's place is not loaded, and nothing is made from it."""

import pytest
from registry_support import give, make_project, package, people

from mlops_nb.core.errors import StorageError
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.store import Store
from mlops_nb.registry.check import Candidate, check_version, run_gates
from mlops_nb.registry.folder import save_version, version_folder
from mlops_nb.registry.register import Registrar, run_completing
from mlops_nb.registry.verify import NotVerified
from mlops_nb.registry.versions import find_version, verdict_of

TABLE = people()
FIRST, BETTER = package(TABLE.iloc[:100], inputs=("balance",)), package(TABLE.iloc[:100])
FOREIGN = package(TABLE.iloc[:40])  # whole, with a manifest that lists its own hashes
IDS = ("20261129-101501-0001", "20261129-101502-0002")
GATES = "latency <= 10 s; champion_difference >= -1"


@pytest.fixture
def registered(tmp_path):
    """A project that asks two gates which load models, its ledger, and the first version."""
    settings = make_project(tmp_path / "project")
    settings = settings._replace(registry=settings.registry._replace(bento_store=False, gates=GATES))
    with Ledger.open(settings) as ledger:
        run_completing(give(settings, ledger, IDS[0], FIRST, TABLE.iloc[100:]), settings, ledger)
        yield settings, ledger, find_version(ledger, "churn:1")


def replace(settings, version, content):
    """Put another package under a version's digest."""
    place = Store(settings.workspace.path / "objects").path(version["digest"])
    place.unlink()
    place.write_bytes(content)


def test_gates_and_the_champion_rule_load_what_is_signed(registered):
    settings, ledger, version = registered
    assert check_version(settings, ledger, version).passed
    (model,) = run_completing(give(settings, ledger, IDS[1], BETTER, TABLE.iloc[100:]), settings, ledger)
    assert model["aliases"] == ["champion"]


def test_another_package_in_the_store_is_not_loaded(registered):
    settings, ledger, version = registered
    replace(settings, version, FOREIGN)
    (result, _) = check_version(settings, ledger, version)
    assert "latency could not be checked: The package" in result.why
    assert "is not what was signed as churn:1" in result.why
    off = settings._replace(registry=settings.registry._replace(signatures="off"))
    (result, _) = run_gates(Candidate.of_version(version, off, ledger))
    assert "its content is not what its name says" in result.why, "its digest is in the ledger"
    (model,) = run_completing(give(settings, ledger, IDS[1], BETTER, TABLE.iloc[100:]), settings, ledger)
    assert model["aliases"] == []
    assert "champion_difference could not be checked" in verdict_of(ledger, "churn", 2)["reason"]


def test_the_champion_stays_when_it_is_not_what_was_signed(registered):
    settings, ledger, version = registered
    settings = settings._replace(registry=settings.registry._replace(gates=""))
    replace(settings, version, FOREIGN)
    (model,) = run_completing(give(settings, ledger, IDS[1], BETTER, TABLE.iloc[100:]), settings, ledger)
    assert model["aliases"] == []
    reason = verdict_of(ledger, "churn", 2)["reason"]
    assert reason.startswith("version 1 stays champion: The package")


def test_a_changed_folder_is_not_loaded_either(registered):
    settings, ledger, version = registered
    (version_folder(settings.workspace.path, "churn", 1) / "schema.json").write_text("{}")
    with pytest.raises(NotVerified, match=r"models/churn/1 does not verify: schema\.json was changed"):
        Candidate.of_version(version, settings, ledger).verify()


def test_a_lost_folder_is_not_made_from_another_package(registered):
    settings, ledger, version = registered
    replace(settings, version, FOREIGN)
    (version_folder(settings.workspace.path, "churn", 1) / "schema.json").unlink()
    registrar = Registrar({"run": IDS[0], "pipeline": "tabular"}, settings, ledger)
    with pytest.raises(StorageError, match="its content is not what its name says"):
        save_version(registrar, "churn", 1)
