"""Signatures that the OpenSSF's own tool accepts, and folders that nobody can change unseen."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization as form
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import Refused
from mlops_nb.registry.keyring import make_private, public_text
from mlops_nb.registry.keys import TrustedKey
from mlops_nb.registry.signature import files_in, hash_files, parse_signature, sign_files
from mlops_nb.registry.verify import NotVerified, verify_folder

PRIVATE, _ = make_private(b"of no consequence")
KEY = TrustedKey("project", public_text(PRIVATE))
FILES = {"model.skops": os.urandom(300), "schema.json": b"{}", "card.md": "Modèle".encode(), "more/é ü.bin": b"\0" * 10}


def signed(folder, files=FILES):
    """A folder with a signature."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "model.sig").write_bytes(sign_files("churn:3", hash_files(folder, files_in(folder)), PRIVATE))
    return folder


@pytest.fixture
def folder(tmp_path):
    """A signed folder and, beside it, its key's files."""
    (tmp_path / "key.pub").write_text(KEY.public_key)
    plain = (form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    (tmp_path / "key.pem").write_bytes(PRIVATE.private_bytes(*plain))
    return signed(tmp_path / "3")


def tool(folder, command, *key):
    """The reference implementation's command, on a folder; exit code and what it said."""
    signature = ["--signature", str(folder / "model.sig")]
    words = [sys.executable, "-m", "model_signing", command, "key", str(folder), *signature, *key]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_their_tool_verifies_ours_and_refuses_what_was_changed(folder):
    public = ("--public_key", str(folder.parent / "key.pub"))
    assert tool(folder, "verify", *public) == (0, "Verification succeeded\n")
    (folder / "schema.json").write_bytes(b"[]")
    code, said = tool(folder, "verify", *public)
    assert code == 1 and "schema.json" in said


def test_ours_verifies_theirs(folder):
    (folder / "model.sig").unlink()
    code, said = tool(folder, "sign", "--private_key", str(folder.parent / "key.pem"))
    assert code == 0, said
    found = verify_folder(folder, [KEY])
    assert (found.key.name, found.signature.subject, set(found.signature.files)) == ("project", "3", set(FILES))
    (folder / ".gitignore").write_text("*")  # their tool ignores it, so nobody signed it
    with pytest.raises(NotVerified, match=r"\.gitignore was added"):
        verify_folder(folder, [KEY])


def refused(folder):
    """State and files of what does not verify."""
    with pytest.raises(Refused) as stopped:
        verify_folder(folder, [KEY], subject="churn:3")
    assert stopped.value.exit_code == 3 and stopped.value.hint
    return stopped.value.state, stopped.value.files


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory, data):
    folder = signed(tmp_path_factory.mktemp("flip") / "3")
    name = data.draw(st.sampled_from([*FILES, "model.sig"]))
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(content)
    if name != "model.sig":
        assert refused(folder) == ("changed", (name,))
        return
    try:  # base64 has bits without a meaning, and a key's identity may stand there without being signed
        claimed = parse_signature(bytes(content))
    except ValueError:
        claimed = None
    whole = parse_signature(sign_files("churn:3", hash_files(folder, files_in(folder)), PRIVATE))
    if claimed is None or claimed != whole:
        assert refused(folder)[0] in ("unreadable", "forged", "unknown key")


def test_files_that_are_missing_or_added_or_no_files(folder, tmp_path):
    def copy(name):
        return shutil.copytree(folder, tmp_path / name / "3", symlinks=True)

    missing = copy("missing")
    (missing / "more/é ü.bin").unlink()
    assert refused(missing) == ("missing", ("more/é ü.bin",))
    added = copy("added")
    (added / "sub").mkdir()
    (added / "sub/x").touch()
    (added / "model.sig.bak").touch()
    assert refused(added) == ("added", ("model.sig.bak", "sub/x"))
    linked = copy("linked")
    (linked / "schema.json").unlink()
    (linked / "schema.json").symlink_to(folder / "schema.json")
    assert refused(linked) == ("changed", ("schema.json",))
    folded = copy("folded")
    shutil.rmtree(folded / "more")
    (folded / "more").symlink_to(folder / "more")
    assert refused(folded) == ("changed", ("more",))
    piped = copy("piped")
    (piped / "card.md").unlink()
    os.mkfifo(piped / "card.md")
    assert refused(piped) == ("changed", ("card.md",))
    (tmp_path / "whole").symlink_to(folder)
    assert refused(tmp_path / "whole")[0] == "changed"
    signature = copy("signature")
    (signature / "model.sig").rename(tmp_path / "model.sig")
    (signature / "model.sig").symlink_to(tmp_path / "model.sig")
    assert refused(signature)[0] == "unreadable"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(empty) == ("unsigned", ("model.sig",))


def rewritten(folder, change):
    """Change what the signature says of the files, and sign nothing."""
    import base64

    bundle = json.loads((folder / "model.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement, bundle)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (folder / "model.sig").write_text(json.dumps(bundle))


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda s, b: s["subject"][0].update(name="churn:4"), "forged"),
        (lambda s, b: s["predicate"]["resources"].pop(), "unreadable"),
        (lambda s, b: s["predicate"]["resources"][0].update(digest="00"), "unreadable"),
        (lambda s, b: s["predicate"]["resources"][0].update(name=["a"]), "unreadable"),
        (lambda s, b: s["predicate"]["serialization"].update(hash_type="blake3"), "unreadable"),
        (lambda s, b: s["predicate"]["serialization"].update(method="shards"), "unreadable"),
        (lambda s, b: s.update(predicateType="other"), "unreadable"),
        (lambda s, b: s["subject"].append({"name": "b"}), "unreadable"),
        (lambda s, b: b["verificationMaterial"].pop("publicKey"), "unreadable"),
        (lambda s, b: b["verificationMaterial"]["publicKey"].update(hint="5d" * 32), "unknown key"),
        (lambda s, b: b["dsseEnvelope"]["signatures"].clear(), "unreadable"),
        (lambda s, b: b["dsseEnvelope"]["signatures"][0].update(sig="AAAA"), "forged"),
    ],
)
def test_a_signature_that_somebody_wrote(folder, change, state):
    rewritten(folder, change)
    assert refused(folder)[0] == state


@pytest.mark.parametrize("content", [b"", b"[]", b"{" * 100_000, b'{"a":' * 100_000, b"\xff", b"null"])
def test_what_is_no_signature_at_all(folder, content):
    (folder / "model.sig").write_bytes(content)
    assert refused(folder)[0] == "unreadable"


def test_a_text_that_is_no_key_trusts_nothing(folder):
    from mlops_nb.core.hashing import sha256_bytes

    rewritten(folder, lambda s, b: b["verificationMaterial"]["publicKey"].update(hint=sha256_bytes(b"no key")))
    with pytest.raises(NotVerified, match="did not sign what it says"):
        verify_folder(folder, [TrustedKey("odd", "no key")])


def test_a_large_folder_is_never_in_memory(tmp_path):
    """Verification streams: the peak of a process that verifies 300 MB stays far below that."""
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(3):
        with open(folder / f"{number}.bin", "wb") as file:
            file.truncate(100_000_000)
    (folder / "model.sig").write_bytes(sign_files("large:1", hash_files(folder, files_in(folder)), PRIVATE))
    code = (
        "import resource, sys, json; from pathlib import Path\n"
        "from mlops_nb.registry.keys import TrustedKey; from mlops_nb.registry.verify import verify_folder\n"
        "verify_folder(Path(sys.argv[1]), [TrustedKey('k', sys.argv[2])])\n"
        "status = Path('/proc/self/status')  # the usage would count what the forking process held, too\n"
        "told = dict(line.split(':', 1) for line in status.read_text().splitlines()) if status.exists() else {}\n"
        "print(told['VmHWM'].split()[0] if told else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), KEY.public_key], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert peak < 150_000_000
