"""The store keeps each content once, whole, whoever writes at the same time."""

import errno
import hashlib
import os
import signal

import pytest

from mlops_nb.core.errors import StorageError
from mlops_nb.core.store import Store

WRITERS = """
import sys
from mlops_nb.core.store import Store
store = Store(sys.argv[1])
for number in range(40):
    store.put_bytes(str(number % 10).encode() * 5000)
"""

ENDLESS = """
import itertools, sys
from mlops_nb.core.store import Store
store = Store(sys.argv[1])
for number in itertools.count():
    store.put_bytes(str(number).encode() * 20000)
    print(number, flush=True)
"""


def objects(store):
    return sorted(path for path in store.folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def test_many_writers_of_the_same_contents(tmp_path, start_python, finish):
    finish(*(start_python(WRITERS, tmp_path / "objects") for _ in range(4)))
    store = Store(tmp_path / "objects")
    assert len(objects(store)) == 10
    for path in objects(store):
        assert store.verify(path.name) == path
        assert path.stat().st_mode & 0o777 == 0o444
    assert not list(store.folder.glob(".*"))


def test_killed_writer_leaves_no_partial_object(tmp_path, start_python):
    writer = start_python(ENDLESS, tmp_path / "objects")
    for _ in range(20):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    store = Store(tmp_path / "objects")
    assert len(objects(store)) >= 20
    for path in objects(store):
        store.verify(path.name)


def test_full_disk_keeps_what_is_there(small_disk):
    store = Store(small_disk.path / "objects")
    kept = store.put_bytes(b"kept")
    small_disk.fill()
    with pytest.raises(StorageError, match="the disk is full"):
        store.put_bytes(b"x" * 100_000)
    assert store.read(kept) == b"kept"
    assert not list(store.folder.glob(".*"))


def test_full_disk_does_not_lose_a_moved_file(small_disk, tmp_path):
    source = tmp_path / "model.bin"
    source.write_bytes(b"m" * 600_000)
    with pytest.raises(StorageError, match="the disk is full"):
        Store(small_disk.path / "objects").put_file(source, move=True)
    assert source.stat().st_size == 600_000


@pytest.mark.parametrize("move", [False, True])
def test_file_from_another_disk(small_disk, tmp_path, move):
    source = small_disk.path / "rows.csv"
    source.write_bytes(b"1,2")
    store = Store(tmp_path / "objects")
    assert store.read(store.put_file(source, move=move)) == b"1,2"
    assert source.exists() is not move


def test_failed_rename_does_not_lose_a_moved_file(tmp_path, monkeypatch):
    source = tmp_path / "model.bin"
    source.write_bytes(b"model")
    store = Store(tmp_path / "objects")

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match="read-only"):
        store.put_file(source, move=True)
    assert source.read_bytes() == b"model"
    assert not list(store.folder.glob(".*"))


def test_an_absent_source_is_no_matter_of_the_store(tmp_path):
    with pytest.raises(FileNotFoundError):
        Store(tmp_path / "objects").put_file(tmp_path / "absent")


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "ab", "A" * 64, "g" * 64])
def test_only_digests_are_names(tmp_path, name):
    store = Store(tmp_path)
    for ask in (store.path, store.has, store.read, store.verify):
        with pytest.raises(StorageError, match="no name of an object"):
            ask(name)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o444), (0o027, 0o440), (0o077, 0o400)])
def test_objects_follow_the_umask(tmp_path, mask, mode):
    store, source = Store(tmp_path / "objects"), tmp_path / "model.bin"
    before = os.umask(mask)
    try:
        source.write_bytes(b"a model")
        digests = [store.put_bytes(b"bytes"), store.put_file(source)]
        source.write_bytes(b"another model")
        digests.append(store.put_file(source, move=True))
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert {store.path(digest).stat().st_mode & 0o777 for digest in digests} == {mode}


def test_absent_and_damaged_objects_are_told_apart(tmp_path):
    store = Store(tmp_path / "objects")
    digest = hashlib.sha256(b"one").hexdigest()
    assert not store.has(digest)
    with pytest.raises(StorageError, match="missing"):
        store.path(digest)
    store.put_bytes(b"one")
    os.chmod(store.path(digest), 0o644)
    store.path(digest).write_bytes(b"two")
    with pytest.raises(StorageError, match="damaged"):
        store.verify(digest)
    with pytest.raises(StorageError, match="damaged"):
        store.read(digest)


def test_a_damaged_object_is_replaced_when_its_content_comes_again(tmp_path):
    store = Store(tmp_path / "objects")
    digest = store.put_bytes(b"a notebook")
    (path,) = objects(store)
    path.chmod(0o644)
    path.write_bytes(b"A notebook")
    assert store.put_bytes(b"a notebook") == digest
    assert store.verify(digest) == path and path.read_bytes() == b"a notebook"
