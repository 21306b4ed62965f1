"""What is asked of every kind of store: S3 (moto), and Azure and Google Cloud where a stand-in for them is named."""

import os
from concurrent.futures import ThreadPoolExecutor

import object_stores
import pytest
from object_stores import AZURITE, FAKE_GCS

from mlops_nb.core.bucket import Bucket
from mlops_nb.core.errors import StorageError

NAMED = {"az": (AZURITE, "MLOPS_NB_TEST_AZURITE"), "gs": (FAKE_GCS, "MLOPS_NB_TEST_GCS")}


@pytest.fixture(scope="module", params=["s3", "az", "gs"])
def store(request, tmp_path_factory):
    """The kind of a store and its address."""
    program, variable = NAMED.get(request.param, ("moto", ""))
    if not program:
        pytest.skip(f"{variable} names no program")
    folder = tmp_path_factory.mktemp("azurite")
    servers = {"s3": object_stores.moto, "az": lambda: object_stores.azurite(folder), "gs": object_stores.fake_gcs}
    with servers[request.param]() as address:
        yield request.param, address


def lead(monkeypatch, kind: str, address: str) -> None:
    """Let clients of a kind find a server."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_"))]:
        monkeypatch.delenv(name)
    variables = {
        "s3": {**object_stores.KEYS, "AWS_ENDPOINT_URL": address},
        "az": {"AZURE_STORAGE_CONNECTION_STRING": object_stores.connection_string(address)},
        "gs": {"STORAGE_EMULATOR_HOST": address},
    }
    for name, value in variables[kind].items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def url(store, monkeypatch):
    kind, address = store
    monkeypatch.setattr("mlops_nb.core.bucket.FIRST", 0.02)  # pauses between tries are short
    lead(monkeypatch, kind, address)
    makers = {"s3": "make_bucket", "az": "make_container", "gs": "make_gcs_bucket"}
    return f"{kind}://{getattr(object_stores, makers[kind])(address)}/churn"


def test_of_sixteen_that_create_one_name_one_wins(url):
    bucket = Bucket(url)
    with ThreadPoolExecutor(16) as pool:
        won = [*pool.map(lambda number: bucket.create("commits/k", str(number).encode()), range(16))]
    assert won.count(True) == 1
    assert bucket.read("commits/k") == str(won.index(True)).encode()
    assert not bucket.create("commits/k", str(won.index(True)).encode()), "equal content does not make it his"


def test_large_objects_come_and_go_whole(url, tmp_path):
    bucket, content = Bucket(url), os.urandom(12_000_000)
    (tmp_path / "big").write_bytes(content)
    bucket.put_file("objects/ab/big", tmp_path / "big")
    bucket.put("objects/ab/small", b"1")
    bucket.put("objects/ab/small", b"2")
    assert bucket.fetch("objects/ab/big", tmp_path / "copy") and (tmp_path / "copy").read_bytes() == content
    assert bucket.read("objects/ab/big") == content and bucket.read("objects/ab/small") == b"2"
    assert [(one.name, one.size) for one in bucket.entries("objects/")] == [
        ("objects/ab/big", 12_000_000),
        ("objects/ab/small", 1),
    ]
    assert not bucket.has("objects/ab") and bucket.has("objects/ab/big") and bucket.read("objects/none") is None
    assert not bucket.fetch("objects/none", tmp_path / "none")
    for name in ("objects/ab/big", "objects/ab/small", "objects/none"):
        bucket.delete(name)
    assert [*bucket.names()] == []


def test_an_upload_that_is_cut_shows_nothing(store, url, tmp_path, monkeypatch):
    kind, address = store
    (tmp_path / "big").write_bytes(os.urandom(12_000_000))
    with object_stores.unsteady(address) as server:
        lead(monkeypatch, kind, server.address)
        bucket = Bucket(url, patience=0.5)
        bucket.ready()
        server.faults = [(method, "cut") for method in ("PUT", "POST", "PUT", "POST")] * 50
        with pytest.raises(StorageError, match="could not be reached"):
            bucket.put_file("objects/big", tmp_path / "big")
    lead(monkeypatch, kind, address)
    assert [*Bucket(url).names()] == []


def test_what_passes_is_tried_again(store, url, tmp_path, monkeypatch):
    kind, address = store
    (tmp_path / "file").write_bytes(b"content" * 1000)
    with object_stores.unsteady(address) as server:
        lead(monkeypatch, kind, server.address)
        bucket = Bucket(url)
        bucket.ready()
        server.faults = [(method, fault) for method in ("PUT", "POST", "GET") for fault in ("503", "reset", "500")]
        bucket.put_file("objects/x", tmp_path / "file")
        assert bucket.fetch("objects/x", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content" * 1000


def test_a_bucket_that_is_not_there_is_told(url):
    missing = f"{url.partition('://')[0]}://nobody-has-this-one/churn"
    with pytest.raises(StorageError, match="no such bucket"):
        Bucket(missing, patience=1.0).put("x", b"1")


def test_credentials_that_are_not_accepted_are_told(store, url, monkeypatch):
    kind, address = store
    if kind != "az":  # the others take every key
        return
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", object_stores.connection_string(address, "c3RyYW5nZXI="))
    with pytest.raises(StorageError, match=r"not accepted|is forbidden.*failed to authenticate") as caught:
        Bucket(url, patience=1.0).put("x", b"1")
    assert "credentials" in f"{caught.value.message} {caught.value.hint}" and "c3RyYW5nZXI" not in str(caught.value)
