"""Nothing is loaded that no trusted key has signed, and who is trusted can be said from outside."""

import shutil

import pytest
from serve_support import SIGNER, make_project, release, trust

from mlops_nb.registry.keyring import make_private, public_text
from mlops_nb.registry.keys import TrustedKey, trusted_text
from mlops_nb.registry.releases import Release, read_release
from mlops_nb.serve.service import StartError, check_contents, find_releases, make_service

KEY = TrustedKey("project", public_text(SIGNER))
OTHER = TrustedKey("other", public_text(make_private(b"x")[0]))


@pytest.fixture
def project(tmp_path, served_project, monkeypatch):
    """A copy of the project with a released model, entered."""
    copy = tmp_path / "project"
    shutil.copytree(served_project, copy)
    monkeypatch.chdir(copy)

    def never(*_):
        raise AssertionError("the model was opened")

    monkeypatch.setattr("mlops_nb.model.archive.load_estimator", never)
    return copy


def refusal():
    with pytest.raises(StartError) as stopped:
        make_service()
    return str(stopped.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ((), "by a key that is not trusted here"),
        ((OTHER,), "mlops-nb keys trust FILE --name NAME --role serve"),
        ((KEY._replace(expires="2026-01-01T00:00:00Z"),), "the key project, which expired on 2026-01-01"),
        (
            (KEY._replace(revoked="2026-01-01T00:00:00Z", reason="stolen"),),
            "was revoked on 2026-01-01T00:00:00Z (stolen)",
        ),
        ((KEY._replace(roles=("import",)),), "trusted for import and not for serve"),
    ],
)
def test_a_key_that_does_not_count_is_named(project, keys, words):
    trust(project, *keys)
    assert words in refusal()


def unsigned(project):
    """Publish the release anew, without its signature."""
    from mlops_nb.registry.releases import publish

    releases = project / ".mlops" / "releases"
    document = read_release(releases, "churn").document
    files = {name: digest for name, digest in document.files.items() if not name.endswith("model.sig")}
    old = releases / "churn" / document.folder()
    contents = {name: (old / name).read_bytes() for name in files}
    publish(releases, document._replace(files=files, generation=2), contents)


def test_an_unsigned_release_says_how_to_sign_it(project):
    unsigned(project)
    text = refusal()
    assert "is not signed: it holds no model.sig" in text
    assert "mlops-nb sign NAME:VERSION" in text


def test_warn_serves_it_all_the_same(project, monkeypatch, caplog):
    unsigned(project)
    monkeypatch.setenv("MLOPS_NB_REGISTRY_SIGNATURES", "warn")
    assert find_releases()[1][0].document.generation == 2
    assert "is not signed" in caplog.text


def republished(project, change):
    """A release whose own hashes are right after a change that somebody made who can write there."""
    from mlops_nb.core.hashing import sha256_bytes
    from mlops_nb.registry.releases import publish

    releases = project / ".mlops" / "releases"
    document = read_release(releases, "churn").document
    old = releases / "churn" / document.folder()
    contents = change({name: (old / name).read_bytes() for name in document.files})
    files = {name: sha256_bytes(content) for name, content in contents.items()}
    publish(releases, document._replace(files=files, generation=2), contents)


@pytest.mark.parametrize("name", ["model.skops", "schema.json", "examples.json", "manifest.json", "metrics.json"])
def test_one_flipped_bit_is_found_although_the_release_is_consistent(project, name):
    def flip(contents):
        data = bytearray(contents[f"versions/1/{name}"])
        data[len(data) // 2] ^= 1
        return contents | {f"versions/1/{name}": bytes(data)}

    republished(project, flip)
    assert f"{name} was changed: it is not what was signed" in refusal()


def test_an_added_file_is_found(project):
    republished(project, lambda contents: contents | {"versions/1/extra.py": b"import os"})
    assert "extra.py was added: nobody signed it" in refusal()


def test_a_signed_version_under_another_number_is_refused(project):
    releases = project / ".mlops" / "releases"
    release(project, model="income")  # signed as income:1
    income = read_release(releases, "income")
    republished(project, lambda contents: {name: (income.folder / name).read_bytes() for name in contents})
    shutil.rmtree(releases / "income")
    assert "was signed as income:1 and is offered as churn:1" in refusal()


def test_pinned_keys_alone_count(project, tmp_path, monkeypatch):
    pinned = tmp_path / "pinned.json"
    monkeypatch.setenv("MLOPS_NB_REGISTRY_TRUSTED_KEYS", str(pinned))
    assert "there is no such file" in refusal()
    pinned.write_text(trusted_text([OTHER]))
    assert "is not trusted here" in refusal()
    pinned.write_text(trusted_text([OTHER, KEY]))
    trust(project, OTHER)
    assert isinstance(find_releases()[1][0], Release)


def test_what_is_exchanged_after_the_start_is_not_loaded(tmp_path, served_project, monkeypatch):
    from mlops_nb.core.errors import MlopsError
    from mlops_nb.serve.service import followed

    project = tmp_path / "project"
    shutil.copytree(served_project, project)
    monkeypatch.chdir(project)
    service = make_service()
    (model,) = project.glob(".mlops/releases/churn/*/versions/1/model.skops")
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(MlopsError, match=r"model\.skops"):
        followed(service.inner)


def test_a_bento_without_the_keys_is_not_built(project, tmp_path):
    (project / ".mlops/keys/trusted.json").unlink()
    with pytest.raises(StartError, match=r"List /\.mlops/keys/trusted\.json"):
        check_contents(project)


def test_a_bento_holds_no_private_key(project):
    (project / ".mlops/keys/project.pem").write_text("secret")
    with pytest.raises(StartError, match=r"private key.*project\.pem"):
        check_contents(project)


def test_a_project_with_nothing_signed_can_go_without(tmp_path, monkeypatch):
    project = make_project(tmp_path / "project")
    release(project)
    unsigned(project)
    (project / ".mlops/keys/trusted.json").unlink()
    with open(project / "settings.ini", "a") as settings:
        settings.write("[registry]\nsignatures = off\n")
    monkeypatch.chdir(project)
    assert make_service().name == "churn"
