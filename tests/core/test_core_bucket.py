"""A bucket as a place, against moto (a stand-in for S3) and a server before it that misbehaves."""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import object_stores
import pytest

from mlops_nb.core.bucket import Bucket
from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.core.places import Folder, Place


@pytest.fixture(scope="module")
def store():
    with object_stores.moto() as address:
        yield address


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Pauses between tries are short."""
    monkeypatch.setattr("mlops_nb.core.bucket.FIRST", 0.02)


@pytest.fixture
def keys(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in object_stores.KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
def url(store, keys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    return f"s3://{object_stores.make_bucket(store)}/churn"


@pytest.fixture
def server(store, url, monkeypatch):
    with object_stores.unsteady(store) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        yield server


@pytest.fixture(params=["bucket", "folder"])
def place(request, tmp_path) -> Place:
    if request.param == "folder":
        return Folder(tmp_path / "shared")
    return Bucket(request.getfixturevalue("url"))


def reader(store: str, url: str) -> dict[str, bytes]:
    """What a client of Amazon's sees in the bucket, by name."""
    client = object_stores.client(store)
    bucket = url.split("/")[2]
    found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {one["Key"]: client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in found}


def test_objects_come_and_go(place, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100_000)
    assert place.create("commits/a.json", b"mine") and not place.create("commits/a.json", b"yours")
    assert not place.create("commits/a.json", b"mine"), "equal content of somebody else does not make it his"
    place.put_file("objects/ab/abcd", file)
    place.put("commits/b.json", b"1")
    place.put("commits/b.json", b"2")
    assert [*place.names()] == ["commits/a.json", "commits/b.json", "objects/ab/abcd"]
    assert [*place.names("commits/b")] == ["commits/b.json"] and [*place.names("none/")] == []
    entry = next(place.entries("objects/"))
    assert entry.size == 100_000 and abs(entry.modified - time.time()) < 60
    assert (
        place.fetch("objects/ab/abcd", tmp_path / "new" / "copy")
        and (tmp_path / "new" / "copy").stat().st_size == 100_000
    )
    assert place.has("objects/ab/abcd") and not place.has("objects/ab") and not place.has("objects/ab/abce")
    assert place.read("none") is None and not place.fetch("none", tmp_path / "none")
    for name in [*place.names(), "none"]:
        place.delete(name)
    assert [*place.names()] == []


def test_a_download_that_is_not_what_its_name_says_leaves_no_file(place, tmp_path):
    place.put("objects/x", b"content")
    with pytest.raises(StorageError, match="is damaged"):
        place.fetch("objects/x", tmp_path / "copy", sha256(b"other").hexdigest())
    assert place.fetch("objects/x", tmp_path / "good", sha256(b"content").hexdigest())
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["good"]


def test_of_many_that_create_one_name_one_wins(place):
    with ThreadPoolExecutor(16) as pool:
        won = [*pool.map(lambda number: place.create("commits/k", str(number).encode()), range(32))]
    assert won.count(True) == 1
    assert place.read("commits/k") == str(won.index(True)).encode()


def test_other_programs_read_what_is_put(store, url):
    Bucket(url).put("objects/x", b"content")
    assert reader(store, url) == {"churn/objects/x": b"content"}, "nothing of the proof is left"


def test_a_store_that_ignores_conditions_is_refused_and_would_have_lost_a_commit(server, url):
    server.drops.add("if-none-match")
    trusted = Bucket(url)
    trusted._proved = True
    assert trusted.create("commits/k", b"first") and trusted.create("commits/k", b"second"), "both were told they won"
    assert trusted.read("commits/k") == b"second", "the first commit is lost"
    with pytest.raises(UsageError, match="two machines could both win one commit"):
        Bucket(url).create("commits/l", b"first")
    assert [*trusted.names()] == ["commits/k"]


def test_a_good_proof_is_remembered_for_the_same_server_alone(server, url, store, tmp_path, monkeypatch):
    proofs = tmp_path / "cache" / "places.json"
    Bucket(url, proofs).put("x", b"1")
    server.seen.clear()
    Bucket(url, proofs).put("x", b"2")
    assert len(server.seen) == 1, "no second proof"
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.replace("127.0.0.1", "localhost"))
    before = proofs.read_bytes()
    Bucket(url, proofs).put("x", b"3")
    assert proofs.read_bytes() != before and "testing" not in proofs.read_text()


@pytest.mark.parametrize("fault", ["503", "500", "reset", "cut"])
def test_what_passes_is_tried_again(server, url, tmp_path, fault):
    bucket = Bucket(url)
    bucket.ready()
    server.faults = [("PUT", fault)] * 3
    bucket.put("objects/x", b"content" * 1000)
    assert not server.faults
    if fault != "cut":
        server.faults = [("GET", fault)] * 3 + [("HEAD", fault)] * 2
        assert bucket.fetch("objects/x", tmp_path / "copy")
        assert not [one for one in server.faults if one[0] == "GET"]


def test_a_commit_whose_answer_was_lost_is_known_as_its_own(server, url):
    bucket = Bucket(url)
    bucket.ready()
    server.faults = [("PUT", "lost")]
    assert bucket.create("commits/k", b"mine")
    assert not bucket.create("commits/k", b"mine")


def test_what_does_not_pass_ends_in_words(server, url, store):
    bucket = Bucket(url, patience=1.0)
    bucket.ready()
    server.faults = [("PUT", "503")] * 100
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"objects/x could not be reached.*503 SlowDown") as caught:
        bucket.put("objects/x", b"content")
    assert time.monotonic() - began < 5 and url in caught.value.message and "is up" in caught.value.hint
    assert reader(store, url) == {}


def test_an_upload_that_is_cut_shows_nothing(server, url, store, tmp_path):
    bucket = Bucket(url, patience=0.5)
    bucket.ready()
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    server.faults = [("PUT", "cut")] * 100
    with pytest.raises(StorageError):
        bucket.put_file("objects/big", tmp_path / "big")
    assert reader(store, url) == {}


def test_a_bucket_that_is_not_there_and_strangers_are_told_at_once(store, url, monkeypatch):
    began = time.monotonic()
    with pytest.raises(StorageError, match="no such bucket"):
        Bucket("s3://nobody-has-this/churn").put("x", b"1")
    with pytest.raises(StorageError, match="no such bucket"):
        [*Bucket("s3://nobody-has-this/churn").names()]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="credentials are missing") as caught:
        Bucket(url).put("x", b"1")
    assert "AWS_PROFILE" in caught.value.hint and time.monotonic() - began < 5


def test_a_profile_names_the_server_and_the_keys(store, url, tmp_path, monkeypatch):
    config = tmp_path / "config"
    config.write_text(
        "[profile team]\naws_access_key_id = a\naws_secret_access_key = b\nregion = us-east-1\n"
        f"endpoint_url = {store}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "team")
    Bucket(url).put("x", b"1")
    monkeypatch.delenv("AWS_PROFILE")
    assert reader(store, url) == {"churn/x": b"1"}


def test_uploads_in_parts_that_were_broken_off_are_taken_away(store, url):
    client, (_, _, bucket, _) = object_stores.client(store), url.split("/")
    client.create_multipart_upload(Bucket=bucket, Key="churn/objects/x")
    client.create_multipart_upload(Bucket=bucket, Key="elsewhere/y")
    assert Bucket(url).abandon(1e9) == [], "in 2001; to moto all of them began in 2010"
    assert Bucket(url).abandon(time.time()) == ["churn/objects/x"]
    left = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert [one["Key"] for one in left] == ["elsewhere/y"]


def test_an_upload_in_parts_that_fails_in_the_middle_is_aborted(server, url, store, tmp_path, monkeypatch):
    bucket = Bucket(url, patience=0.5)
    bucket.ready()
    (tmp_path / "big").write_bytes(os.urandom(12_000_000))
    whole = bucket.system.put_file
    monkeypatch.setattr(bucket.system, "put_file", lambda *words: whole(*words, chunksize=5 << 20))  # usually 50 MB
    server.only = "partNumber=2"
    server.faults = [("PUT", "503")] * 100
    with pytest.raises(StorageError, match="could not be reached"):
        bucket.put_file("objects/big", tmp_path / "big")
    assert any("partNumber=1" in path for _, path, _ in server.seen), "the first part had arrived"
    assert "Uploads" not in object_stores.client(store).list_multipart_uploads(Bucket=url.split("/")[2])
    assert reader(store, url) == {}


@pytest.mark.parametrize(
    ("code", "words"), [("ExpiredToken", "have expired"), ("InvalidAccessKeyId", "are missing or not accepted")]
)
def test_credentials_that_the_store_refuses_are_told_at_once(server, url, code, words):
    bucket = Bucket(url)
    bucket.ready()
    began = time.monotonic()
    for act in (lambda: bucket.put("x", b"1"), lambda: bucket.read("x"), lambda: [*bucket.names()]):
        server.faults = [(method, code) for method in ("PUT", "GET")]
        with pytest.raises(StorageError, match=f"the credentials {words}: .*{code}") as caught:
            act()
        assert "AWS_PROFILE" in caught.value.hint and "testing" not in str(caught.value)
    assert time.monotonic() - began < 5


def test_a_killed_upload_shows_nothing_or_all(place, tmp_path):
    content = os.urandom(20_000_000)
    (tmp_path / "big").write_bytes(content)
    started, begun = multiprocessing.Pipe(duplex=False)

    def upload() -> None:
        begun.send("go")
        while True:
            place.put_file("objects/big", tmp_path / "big")

    for pause in (0.02, 0.3, 0.6):
        process = multiprocessing.get_context("fork").Process(target=upload)
        process.start()
        started.recv()
        time.sleep(pause)
        process.kill()
        process.join()
        found = place.read("objects/big")
        assert found is None or found == content
        assert {*place.names()} <= {"objects/big"}


def test_a_forked_process_uses_a_client_of_its_own(url):
    bucket = Bucket(url)
    bucket.put("x", b"1")

    def child() -> None:
        bucket.put("y", b"2")
        os._exit(0 if bucket.read("x") == b"1" else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == 0 and bucket.read("y") == b"2"


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match="needs s3fs") as caught:
        Bucket("s3://models/churn").read("x")
    assert "mlops_nb[s3]" in caught.value.hint
