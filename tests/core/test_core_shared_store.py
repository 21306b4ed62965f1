"""The cache of a machine under many processes, on a folder that stands for the bucket."""

import os
import time

import pytest

from mlops_nb.core.errors import StorageError
from mlops_nb.core.places import Folder
from mlops_nb.core.shared_store import FRESH, SharedStore, held_digests

FETCH = """
import sys
from mlops_nb.core.places import Folder
from mlops_nb.core.shared_store import SharedStore
class Counting(Folder):
    def fetch(self, name, path, digest=None):
        print("fetched", flush=True)
        return super().fetch(name, path, digest)
store = SharedStore(sys.argv[1], Counting(sys.argv[2]))
sys.stdin.readline()
print(len(store.read(sys.argv[3])), flush=True)
"""
BOUND = """
import random, sys
from mlops_nb.core.places import Folder
from mlops_nb.core.shared_store import SharedStore
folder, place, limit, *digests = sys.argv[1:]
store = SharedStore(folder, Folder(place), limit=int(limit), grace=0.0)
for turn in range(40):
    chosen = random.Random(turn * 7 + int(digests[0][:4], 16)).sample(digests, 3)
    with store.holding(chosen):
        store.trim()
        for digest in chosen:
            assert len(store.read(digest)) == 10_000, digest
store.trim()
print("fine", flush=True)
"""
HOLD = """
import sys, time
from mlops_nb.core.places import Folder
from mlops_nb.core.shared_store import SharedStore
with SharedStore(sys.argv[1], Folder(sys.argv[2])).holding([sys.argv[3]]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path):
    return Folder(tmp_path / "shared")


@pytest.fixture
def digests(tmp_path, place):
    store = SharedStore(tmp_path / "maker" / "objects", place)
    made = [store.put_bytes(os.urandom(10_000)) for _ in range(12)]
    store.publish(made)
    return made


def test_eight_processes_fetch_one_object_once(tmp_path, place, digests, start_python, finish):
    here = tmp_path / "here" / "objects"
    processes = [start_python(FETCH, here, place.folder, digests[0]) for _ in range(8)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    printed = finish(*processes)
    assert [text.split()[-1] for text in printed] == ["10000"] * 8
    assert sum(text.count("fetched") for text in printed) == 1
    assert [path.name for path in here.rglob("*") if path.is_file()] == [digests[0]], "nothing is left beside it"


def test_the_bound_holds_while_processes_take_and_take_away(tmp_path, place, digests, start_python, finish):
    here = tmp_path / "here" / "objects"
    order = [digests[n:] + digests[:n] for n in (0, 3, 6, 9)]
    processes = [start_python(BOUND, here, place.folder, 40_000, *names) for names in order]
    assert finish(*processes) == ["fine"] * 4
    assert sum(path.stat().st_size for path in here.glob("??/*")) <= 40_000


def test_a_killed_process_holds_nothing(tmp_path, place, digests, start_python):
    here = tmp_path / "here"
    process = start_python(HOLD, here / "objects", place.folder, digests[0])
    assert process.stdout.readline() == "held\n"
    assert held_digests(here / "cache") == {digests[0]}
    store = SharedStore(here / "objects", place, limit=1, grace=0.0)
    store.trim()
    assert store.is_here(digests[0])
    process.kill()
    process.wait()
    assert held_digests(here / "cache") == set()
    store.trim()
    assert not store.is_here(digests[0]) and not [*(here / "cache" / "pins").iterdir()]


def test_what_was_used_just_now_stays_although_there_is_too_much(tmp_path, place, digests):
    store = SharedStore(tmp_path / "here" / "objects", place, limit=15_000)
    for digest in digests:
        store.path(digest)
    store.trim()
    assert all(map(store.is_here, digests))


def test_what_is_damaged_in_the_place_is_not_taken(tmp_path, place, digests):
    place.put(f"objects/{digests[0][:2]}/{digests[0]}", b"something else")
    store = SharedStore(tmp_path / "here" / "objects", place)
    with pytest.raises(StorageError, match="is damaged"):
        store.path(digests[0])
    assert not store.is_here(digests[0])


def test_what_the_place_has_lost_is_published_again(tmp_path, place):
    store = SharedStore(tmp_path / "here" / "objects", place)
    digest = store.put_bytes(b"content")
    store.publish([digest])
    name = f"objects/{digest[:2]}/{digest}"
    place.delete(name)
    mark = store._mark(digest)
    os.utime(mark, (time.time(), time.time() - FRESH - 1))
    store.publish([digest])
    assert place.read(name) == b"content"


def test_an_object_that_nobody_has_is_missing(tmp_path, place):
    store = SharedStore(tmp_path / "here" / "objects", place)
    assert not store.has("0" * 64)
    with pytest.raises(StorageError, match="is missing from the store"):
        store.path("0" * 64)
    with store.holding(["0" * 64]):
        assert not store.is_here("0" * 64), "the step says which artifact it lacks"
