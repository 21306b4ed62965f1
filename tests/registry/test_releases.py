"""Publishing: whole or not at all, also on a full disk and beside another publisher."""

import errno
import os
import threading
import time

import pytest

from mlops_nb.core.errors import StorageError
from mlops_nb.core.hashing import sha256_bytes
from mlops_nb.registry import releases as module
from mlops_nb.registry.releases import Arm, Document, is_current, prune, publish, read_release


def release(generation, content=b"model"):
    contents = {"versions/1/model.skops": content * generation, "versions/1/schema.json": b"{}"}
    files = {name: sha256_bytes(data) for name, data in contents.items()}
    return Document("churn", "binary", (Arm(1, "5d" * 32, 1.0, "versions/1"),), files, generation), contents


def hidden(folder):
    return [entry.name for entry in (folder / "churn").iterdir() if entry.name.startswith(".")]


def test_a_full_disk_leaves_the_old_release_and_no_rubbish(tmp_path, monkeypatch):
    publish(tmp_path, *release(1))
    write, calls = module.atomic_write, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(module, "atomic_write", full)
    with pytest.raises(StorageError, match="the disk is full"):
        publish(tmp_path, *release(2))
    assert read_release(tmp_path, "churn").document.generation == 1
    assert hidden(tmp_path) == []


def test_contents_that_are_not_those_listed_are_never_published(tmp_path):
    document, contents = release(1)
    with pytest.raises(ValueError, match="not the files"):
        publish(tmp_path, document, contents | {"versions/1/model.skops": b"other"})
    assert not (tmp_path / "churn" / "current").exists()


def test_two_publishers_of_one_release(tmp_path):
    document, contents = release(1)
    failures = []

    def work():
        try:
            publish(tmp_path, document, contents)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert is_current(tmp_path, document)
    assert hidden(tmp_path) == []


def test_what_a_killed_publisher_left_is_swept_away_later(tmp_path):
    publish(tmp_path, *release(1))
    left = tmp_path / "churn" / ".000002-aaaaaaaaaaaa.0011.tmp"
    left.mkdir()
    (left / "release.json").write_text("half")
    prune(tmp_path / "churn")
    assert left.exists()
    old = time.time() - 2 * module.LEFT_BEHIND
    os.utime(left, (old, old))
    prune(tmp_path / "churn")
    assert not left.exists()


def test_the_current_release_is_never_pruned(tmp_path):
    for generation in range(1, 4):
        publish(tmp_path, *release(generation))
    first = release(1)
    publish(tmp_path, *first)
    publish(tmp_path, *release(4))
    (tmp_path / "churn" / "current").write_text(release(2)[0].folder())
    for generation in range(5, 8):
        (tmp_path / "churn" / f"{generation:06d}-aaaaaaaaaaaa").mkdir()
    prune(tmp_path / "churn")
    assert read_release(tmp_path, "churn").document.generation == 2


def test_a_release_of_a_later_format_is_refused(tmp_path):
    document, contents = release(1)
    publish(tmp_path, document._replace(format=3), contents)
    with pytest.raises(StorageError, match="has format 3, this mlops_nb reads formats 1 and 2"):
        read_release(tmp_path, "churn")
