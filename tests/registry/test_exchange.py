"""Models that travel in a file: what arrives, and what is refused before it is let in."""

import errno
import io
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from registry_support import give, make_project, package, people
from support import Project

from mlops_nb.core.errors import MlopsError, Refused, StorageError, UsageError
from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.ledger.costs import Factors
from mlops_nb.core.ledger.runs import user_name
from mlops_nb.core.settings import load_settings
from mlops_nb.model.archive import pack
from mlops_nb.registry.approvals import APPROVAL, say
from mlops_nb.registry.check import check_version
from mlops_nb.registry.exchange import export_version, import_version, read_facts
from mlops_nb.registry.folder import version_folder
from mlops_nb.registry.keyring import KeyRing
from mlops_nb.registry.keys import trusted_keys
from mlops_nb.registry.register import Registrar, release_champion, run_completing
from mlops_nb.registry.releases import read_release
from mlops_nb.registry.verify import NotVerified, verify_arm, verify_folder
from mlops_nb.registry.versions import find_version


@pytest.fixture(scope="module")
def ci(tmp_path_factory):
    """A project with a registered version, and its export."""
    folder = tmp_path_factory.mktemp("ci")
    settings = make_project(folder / "ci")
    settings = settings._replace(name="ci", registry=settings.registry._replace(bento_store=False))
    with Ledger.open(settings) as ledger:
        run_completing(give(settings, ledger, "20261123-170501-0001", package(people()), None), settings, ledger)
    export_version(settings, "churn:1", folder / "churn-1.zip")
    return settings, folder / "churn-1.zip"


@pytest.fixture
def mine(tmp_path, ci):
    """An empty project that trusts CI's key for imports."""
    settings = make_project(tmp_path / "mine")
    settings = settings._replace(registry=settings.registry._replace(bento_store=False))
    with Ledger.open(settings) as ledger:
        KeyRing(settings, ledger).trust("ci", (ci[0].workspace.path / "keys/project.pub").read_bytes())
    return settings


def nothing_came(settings) -> bool:
    """Whether an import left no trace."""
    with Ledger.open(settings) as ledger:
        versions = ledger.versions()
    left = [*(settings.workspace.path / "tmp").iterdir()] if (settings.workspace.path / "tmp").exists() else []
    return not versions and not left and not (settings.workspace.path / "objects").exists()


def test_a_version_arrives_with_its_numbers_and_its_origin(ci, mine):
    done = import_version(mine, ci[1])
    assert (done["name"], done["version"], done["new"], done["key"]) == ("churn", 1, True, "ci")
    with Ledger.open(mine) as ledger:
        (version,) = ledger.versions()
    with Ledger.open(ci[0]) as ledger:
        (theirs,) = ledger.versions()
    for key in ("digest", "run", "metrics", "metric", "task", "schema_digest"):
        assert version[key] == theirs[key]
    assert version["aliases"] == [], "nothing is promoted by itself"
    assert version["details"]["origin"]["project"] == "ci"
    folder = version_folder(mine.workspace.path, "churn", 1)
    assert verify_folder(folder, trusted_keys(mine), subject="churn:1").key.name == "project"


def test_importing_twice_is_importing_once(ci, mine):
    first, again = import_version(mine, ci[1]), import_version(mine, ci[1])
    assert (again["version"], again["new"]) == (first["version"], False)
    with Ledger.open(mine) as ledger:
        assert len(ledger.versions()) == 1


def test_it_can_be_promoted_and_served(ci, mine):
    import_version(mine, ci[1])
    with Ledger.open(mine) as ledger:
        ledger.move_alias("churn", "champion", 1, expected=None, reason="wanted")
        release_champion(Registrar({}, mine, ledger), "churn")
    release = read_release(mine.workspace.path / "releases", "churn")
    assert verify_arm(release, release.document.arms[0], mine).key.name == "project"


WORDS = {"Intended use": "To call people.", "Limits": "Not for companies.", "Data consent": "The contract."}
GATES = ["energy <= 1 Wh", "carbon <= 10 g", "card_complete", "champion_difference >= -0.5", "contract", "signature"]
GATES += ["latency <= 5 s", "model_size <= 1 MB", "roc_auc >= 0.8"]


def written_project(folder: Path) -> Project:
    """An empty project on disk, for commands."""
    settings = make_project(folder)
    text = f"[package]\nname = {folder.name}\n[tracking]\nmode = off\n[registry]\nbento_store = false\n"
    (folder / "settings.ini").write_text(text, encoding="utf-8")
    return Project(folder, settings.workspace.path)


def registered(project: Project, run: str, rows: int, test=None) -> None:
    settings = load_settings(project.folder)
    with Ledger.open(settings) as ledger:
        document = give(settings, ledger, run, package(people().iloc[:rows]), test)
        ledger.add_cost(run, "package", 60.0, Factors(10.0, 400.0))
        run_completing(document, settings, ledger)


def test_an_import_is_promoted_through_the_gates_by_the_command(tmp_path):
    """What only CI's ledger knows comes along: energy, the card's words, who trained it; rows are the champion's."""
    ci, mine = written_project(tmp_path / "ci"), written_project(tmp_path / "mine")
    registered(ci, "20261123-170501-0001", 90)
    registered(mine, "20261124-170501-0001", 100, people().iloc[100:])
    with open(mine.folder / "settings.ini", "a", encoding="utf-8") as file:
        file.write(f"gates = {'; '.join(GATES)}\n")
    before = mine.json("models", "export", "churn", str(tmp_path / "mine.zip"))
    assert before["signed"] and before["bytes"] == (tmp_path / "mine.zip").stat().st_size
    file = str(tmp_path / "churn.zip")
    shown = ci.call("mlops-nb", "models", "export", "churn:1", file)
    assert "churn version 1" in shown.stdout and "mlops-nb keys trust FILE" in shown.stdout
    refused = mine.json("models", "import", file, expect=3)["error"]
    assert "signed by a key that is not trusted here" in refused["message"]
    trusted = mine.json("keys", "trust", str(ci.workspace / "keys/project.pub"), "--name", "ci")
    assert (trusted["name"], trusted["roles"], trusted["state"]) == ("ci", ["import"], "trusted")
    assert "imported as churn version 2, signed by ci" in mine.call("mlops-nb", "models", "import", file).stdout

    asked = mine.json("lineage", "churn:2", expect=2)["error"]["message"]
    assert "was imported: it is version 1 of the project ci" in asked

    checked = mine.json("promote", "churn:2", "--check", expect=3)
    found = {gate["gate"]: gate for gate in checked["gates"]}
    assert [gate for gate, one in found.items() if one["verdict"] != "passed"] == ["card_complete"]
    assert found["energy <= 1 Wh"]["value"] == pytest.approx(1 / 6) and found["carbon <= 10 g"]["value"] > 0
    assert found["champion_difference >= -0.5"]["n"] == 200
    assert found["card_complete"]["why"] == "the card lacks Intended use, Limits, Data consent"
    assert "in ci, where it was trained, export it again and import that file" in found["card_complete"]["todo"]

    cells = [f"## {name}\n\n{text}" for name, text in WORDS.items()]  # the remedy, word for word
    told = {"cells": [{"cell_type": "markdown", "source": cell} for cell in cells]}
    (ci.folder / "card.ipynb").write_text(json.dumps(told), encoding="utf-8")
    assert "is there already" in ci.json("models", "export", "churn:1", file, expect=2)["error"]["message"]
    ci.json("models", "export", "churn:1", file, "--overwrite", MLOPS_NB_REGISTRY_CARD_NOTEBOOK="card.ipynb")
    again = mine.json("models", "import", file)
    assert (again["version"], again["new"], again["origin"]["trainer"]) == (2, False, user_name())
    assert "written in ci, where it was trained" in mine.json("card", "churn:2")["markdown"]
    eyes = {"MLOPS_NB_REGISTRY_APPROVALS": "1", "MLOPS_NB_REGISTRY_APPROVERS": user_name()}
    assert "trained churn:2" in mine.json("approve", "churn:2", expect=3, **eyes)["error"]["message"]
    done = mine.json("promote", "churn:2", "--reason", "CI is better")
    assert done["moved"] and {gate["verdict"] for gate in done["gates"]} == {"passed"}
    release = read_release(mine.workspace / "releases", "churn")
    assert verify_arm(release, release.document.arms[0], load_settings(mine.folder)).key.name == "project"


def test_what_an_import_did_not_bring_is_said(ci, mine, tmp_path):
    """A file of before: no trainer, no cost, no words; and no champion with rows here."""
    from mlops_nb.registry import exchange

    def older(members):
        facts = json.loads(members["export.json"])
        for name in ("trainer", "costs", "parts"):
            del facts["origin"][name]
        members["export.json"] = json.dumps(facts).encode()
        del members["model.sig"]

    keys = {"gates": "energy <= 1 Wh; champion_difference >= 0", "approvals": 1, "approvers": user_name()}
    settings = mine._replace(registry=mine.registry._replace(signatures="warn", **keys))
    with Ledger.open(settings) as ledger:
        content = package(people().iloc[:60])
        run_completing(give(settings, ledger, "20261124-170501-0001", content, None), settings, ledger)
        ledger.move_alias("churn", "champion", 1, expected=None, reason="by hand")
    exchange.import_version(settings, rewritten(ci[1], tmp_path / "older.zip", older))
    with Ledger.open(settings) as ledger:
        version = find_version(ledger, "churn:2")
        energy, beside = check_version(settings, ledger, version)
        with pytest.raises(Refused, match="It is not known who trained churn:2") as told:
            say(settings, ledger, version, APPROVAL)
    assert "what run 20261123-170501-0001 cost is not in the file" in energy.why and "Export it again" in energy.todo
    assert "imported from ci without rows" in beside.why and beside.todo == "Let a person decide, and waive the gate."
    assert told.value.hint.startswith("Export it again where it was trained, and import that file")


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_a_folder_that_was_lost_comes_back_by_importing_again(ci, mine, damage):
    import_version(mine, ci[1])
    folder = version_folder(mine.workspace.path, "churn", 1)
    if damage == "lost":
        shutil.rmtree(folder)
    else:
        (folder / "metrics.json").write_text("{}")
    from mlops_nb.registry.folder import save_version

    with Ledger.open(mine) as ledger:
        with pytest.raises(StorageError, match="lost or damaged, and was imported") as told:
            save_version(Registrar({}, mine, ledger), "churn", 1)
        assert "models import FILE" in told.value.hint
    import_version(mine, ci[1])
    assert verify_folder(folder, trusted_keys(mine), subject="churn:1")


def test_the_same_version_gives_the_same_file_but_for_the_signature(ci, tmp_path):
    export_version(ci[0], "churn", tmp_path / "again.zip")
    with zipfile.ZipFile(ci[1]) as first, zipfile.ZipFile(tmp_path / "again.zip") as second:
        assert first.namelist() == second.namelist()
        contents = [(name, first.read(name), second.read(name)) for name in first.namelist()]
        times = {entry.date_time for entry in second.infolist()}
    assert [name for name, one, other in contents if one != other] in ([], ["model.sig"])
    assert times == {(1980, 1, 1, 0, 0, 0)}


def test_every_way_of_cutting_it_off_is_refused(ci, mine):
    content = ci[1].read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        cut = mine.project / "cut.zip"
        cut.write_bytes(content[:length])
        with pytest.raises(StorageError, match=r"cut\.zip is no model that mlops-nb models export wrote"):
            import_version(mine, cut)
    assert nothing_came(mine)


def rewritten(source: Path, target: Path, change) -> Path:
    """An export with another list of members: `change` gets name -> content and may change it."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def a_fact(**changes):
    def change(members):
        members["export.json"] = json.dumps({**json.loads(members["export.json"]), **changes}).encode()

    return change


CHANGES = {
    "metrics": (a_fact(metrics={"roc_auc": 1.0}), "export.json was changed"),
    "another name": (a_fact(name="other"), "was signed as churn:1 and is offered as other:1"),
    "model": (lambda m: m.update({"version/model.skops": b"x"}), "version/model.skops was changed"),
    "added": (lambda m: m.update({"version/more.json": b"{}"}), "version/more.json was added"),
    "missing": (lambda m: m.pop("version/schema.json"), "version/schema.json is missing"),
    "unsigned": (lambda m: m.pop("model.sig"), "is not signed"),
    "format": (a_fact(format=2), "has format 2, this mlops_nb reads format 1"),
    "no facts": (lambda m: m.pop("export.json"), "it lacks export.json"),
    "no JSON": (lambda m: m.update({"export.json": b"{"}), "export.json is not readable"),
    "name": (a_fact(name="../x"), "is no name of a version"),
    "stranger": (lambda m: m.update({"setup.py": b""}), "'setup.py' does not belong into an export"),
    "slip": (lambda m: m.update({"version/../../x": b""}), "leads out of the folder"),
    "root": (lambda m: m.update({"/etc/x": b""}), "leads out of the folder"),
    "windows": (lambda m: m.update({"version\\..\\x": b""}), "leads out of the folder"),
    "deep": (lambda m: m.update({"version/a/b": b""}), "does not belong into an export"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_altered_is_refused_in_words(ci, mine, what):
    change, message = CHANGES[what]
    file = rewritten(ci[1], mine.project / "altered.zip", change)
    with pytest.raises(MlopsError) as told:
        import_version(mine, file)
    assert message in told.value.message, told.value.message
    assert "altered.zip" in told.value.message and "tmp" not in told.value.message
    assert told.value.hint
    assert nothing_came(mine)


def test_links_doubles_and_bombs_are_refused(ci, mine):
    file = mine.project / "bad.zip"

    def with_member(name: str, data: bytes, compression: int = zipfile.ZIP_STORED, mode: int = 0o100644) -> None:
        shutil.copyfile(ci[1], file)
        entry = zipfile.ZipInfo(name)
        entry.external_attr, entry.compress_type, entry.create_system = mode << 16, compression, 3
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(entry, data)

    with_member("version/link.json", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)
    with pytest.raises(StorageError, match="is a link"):
        import_version(mine, file)
    with_member("version/bomb.json", bytes(50_000_000), zipfile.ZIP_DEFLATED)
    with pytest.raises(StorageError, match="is compressed or encrypted"):
        import_version(mine, file)
    with pytest.warns(UserWarning, match="Duplicate name"):
        with_member("export.json", b"{}")
    with pytest.raises(StorageError, match="is there twice"):
        import_version(mine, file)
    assert nothing_came(mine)


def test_a_key_that_is_not_trusted(ci, tmp_path):
    stranger = make_project(tmp_path / "stranger")
    with pytest.raises(NotVerified, match="signed by a key that is not trusted here") as told:
        import_version(stranger, ci[1])
    assert "keys trust FILE --name NAME --role import" in told.value.hint
    assert told.value.exit_code == 3
    with Ledger.open(stranger) as ledger:
        key = (ci[0].workspace.path / "keys/project.pub").read_bytes()
        ring = KeyRing(stranger, ledger)
        ring.trust("ci", key, ("serve",))
        with pytest.raises(NotVerified, match="trusted for serve and not for import"):
            import_version(stranger, ci[1])
        ring.revoke("ci", "left")
        with pytest.raises(NotVerified, match="was revoked"):
            import_version(stranger, ci[1])


def test_a_package_of_another_model_is_refused(ci, mine, tmp_path):
    """Signed by a trusted key, and still not what it says: the three parts have to belong together."""
    from mlops_nb.registry import exchange

    settings = mine._replace(registry=mine.registry._replace(signatures="off"))
    other = package(people(100))
    file = rewritten(ci[1], tmp_path / "mixed.zip", lambda members: members.update({"package.zip": other}))
    with pytest.raises(StorageError, match="do not belong together"):
        exchange.import_version(settings, file)


def repackaged(members: dict[str, bytes], **changes) -> None:
    """Put another package into an export, as somebody would who knows how it is made; a text is the whole manifest."""
    with zipfile.ZipFile(io.BytesIO(members["package.zip"])) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts |= changes.pop("parts", {})
    manifest = json.loads(parts["manifest.json"])
    manifest["files"] = {name: sha256_bytes(content) for name, content in parts.items() if name != "manifest.json"}
    manifest = {name: value for name, value in (manifest | changes).items() if value is not None}
    parts["manifest.json"] = changes.get("text") or json.dumps(manifest).encode()
    sealed(members, pack(parts))
    members |= {f"version/{name}": parts[name] for name in parts if f"version/{name}" in members}


def sealed(members: dict[str, bytes], content: bytes) -> None:
    """A package with the digest that fits."""
    members.pop("model.sig", None)
    facts = json.loads(members["export.json"]) | {"digest": sha256_bytes(content)}
    members |= {"package.zip": content, "export.json": json.dumps(facts).encode()}


def torn(members: dict[str, bytes]) -> None:
    """A package whose manifest is a deflate stream that ends in noise."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", members["version/manifest.json"])
    content = bytearray(buffer.getvalue())
    content[60] ^= 0xFF
    sealed(members, bytes(content))


def typed(members: dict[str, bytes], module: str, name: str, **changes) -> None:
    """A model that is of another type."""
    with zipfile.ZipFile(io.BytesIO(members["version/model.skops"])) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    tree = json.loads(parts["schema.json"]) | {"__module__": module, "__class__": name}
    model = pack(parts | {"schema.json": json.dumps(tree).encode()})
    repackaged(members, parts={"model.skops": model}, **changes)


def of_origin(**changes):
    def change(members):
        members.pop("model.sig")
        origin = json.loads(members["export.json"])["origin"] | changes
        a_fact(origin={name: value for name, value in origin.items() if value is not None})(members)

    return change


FORGED = {
    "no package": lambda members: sealed(members, b"junk"),
    "torn stream": torn,
    "manifest no JSON": lambda members: repackaged(members, text=b"{"),
    "manifest a list": lambda members: repackaged(members, text=b"[]"),
    "manifest empty": lambda members: repackaged(members, text=b"{}"),
    "no task": lambda members: repackaged(members, task=None),
    "no packages": lambda members: repackaged(members, packages=None),
    "name a number": lambda members: repackaged(members, name=5),
    "files a text": lambda members: repackaged(members, files="x"),
    "metrics a text": lambda members: repackaged(members, metrics="x"),
    "schema a list": lambda members: repackaged(members, parts={"schema.json": b"[]"}),
    "model no archive": lambda members: repackaged(members, parts={"model.skops": b"junk"}),
    "foreign type": lambda members: typed(members, "os", "system"),
    "foreign type on the list": lambda members: typed(members, "os", "system", trusted=["os.system"]),
    "foreign and absent": lambda members: typed(members, "os", "system", packages=["nowhere"]),
    "no run": of_origin(run=None),
    "run a list": of_origin(run=["x"]),
    "run a path": of_origin(run="../../x"),
    "escapes": of_origin(project="\x1b[31mred\x1b[0m"),
    "escapes in words": of_origin(parts={"Limits": "\x1b[2J"}),
    "origin a list": lambda members: (members.pop("model.sig"), a_fact(origin=[])(members)),
    "version below one": lambda members: (members.pop("model.sig"), a_fact(version=-1)(members)),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_is_no_version_is_refused_although_nobody_has_to_sign(ci, mine, what):
    settings = mine._replace(registry=mine.registry._replace(signatures="warn"))
    file = rewritten(ci[1], mine.project / "forged.zip", FORGED[what])
    with pytest.raises(MlopsError) as told:
        import_version(settings, file)
    assert "forged.zip" in told.value.message and "\x1b" not in str(told.value)
    assert "Nothing was imported." in told.value.hint
    assert nothing_came(mine)


def test_a_model_whose_package_is_not_here_comes_with_a_word(ci, mine, caplog):
    """What is built of the exporting project's own classes is taken, and who would use it is told what is missing."""
    settings = mine._replace(registry=mine.registry._replace(signatures="warn"))
    names = {"packages": ["nowhere"], "trusted": ["nowhere.features.Columns"]}
    file = rewritten(ci[1], mine.project / "own.zip", lambda m: typed(m, "nowhere.features", "Columns", **names))
    words = "The model holds nowhere.features.Columns, and nowhere.features is not installed here."
    with caplog.at_level("WARNING"):
        done = import_version(settings, file)
    assert words in caplog.text
    with Ledger.open(settings) as ledger, pytest.raises(UsageError) as told:
        version = find_version(ledger, f"churn:{done['version']}")
        Registrar({}, settings, ledger).package(version["digest"]).load_model()
    assert told.value.message == words and "Install the package" in told.value.hint


def test_a_full_disk_is_not_told_as_a_damaged_file(ci, mine, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mlops_nb.registry.exchange.shutil.copyfileobj", full)
    with pytest.raises(StorageError) as told:
        import_version(mine, ci[1])
    assert "cut off" not in told.value.message and "churn-1.zip" not in told.value.message


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.zip", "There is no file"), (".", "is a folder"), ("settings.ini", "is no model that")],
)
def test_what_is_no_file_of_ours(mine, name, message):
    with pytest.raises(MlopsError, match=message):
        read_facts(mine.project / name)


def test_export_says_what_it_cannot_find(ci, tmp_path):
    with pytest.raises(UsageError, match=r"There is no model 'chrun'"):
        export_version(ci[0], "chrun", tmp_path / "x.zip")
    with pytest.raises(UsageError, match="is a folder"):
        export_version(ci[0], "churn", tmp_path)
    assert [*tmp_path.iterdir()] == []
