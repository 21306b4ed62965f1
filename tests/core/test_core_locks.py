"""Processes are told apart, and locks die with them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mlops_nb.core import locks
from mlops_nb.core.errors import Busy, StorageError
from mlops_nb.core.locks import FileLock, ProcessIdentity, process_start, wait_until

HOLD = """
import sys
from mlops_nb.core.locks import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""

COUNT = """
import sys, time
from pathlib import Path
from mlops_nb.core.locks import FileLock
counter = Path(sys.argv[1])
for _ in range(20):
    with FileLock(str(counter) + ".lock"):
        number = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(number + 1))
"""

IDENTITY = """
from mlops_nb.core.locks import ProcessIdentity
print(*ProcessIdentity.current(), sep="|", flush=True)
input()
"""


def test_the_process_that_asks_lives():
    me = ProcessIdentity.current()
    assert me.pid == os.getpid()
    assert me.state() == "alive"
    assert me == ProcessIdentity.current()


def test_another_process_lives_until_it_is_killed(start_python):
    process = start_python(IDENTITY)
    pid, *rest = process.stdout.readline().strip().split("|")
    other = ProcessIdentity(int(pid), *rest)
    assert other.state() == "alive"
    process.send_signal(signal.SIGKILL)
    assert wait_until(lambda: other.state() == "dead", 5), "a zombie counts as dead"
    process.wait()
    assert other.state() == "dead"


def test_a_number_that_was_given_again_is_another_process():
    me = ProcessIdentity.current()
    assert me._replace(started="0").state() == "dead"
    assert process_start(2**22 + 1) is None


def test_psutil_tells_the_same_where_there_is_no_proc():
    start = locks._other_start(os.getpid())
    assert start == locks._other_start(os.getpid())
    assert float(start) < time.time()
    assert locks._other_start(2**22 + 1) is None
    child = subprocess.Popen([sys.executable, "-c", ""])
    assert wait_until(lambda: locks._other_start(child.pid) is None, 10), "a zombie counts as dead"
    child.wait()


def test_processes_elsewhere_are_unknown():
    me = ProcessIdentity.current()
    boot = me.boot.split()[0]
    assert me._replace(boot=f"{boot} pid:[1]").state() == "unknown"
    assert me._replace(boot="other pid:[1]", host="elsewhere").state() == "unknown"
    assert me._replace(boot="other pid:[1]").state() == "dead"


def test_only_one_holds_a_lock(tmp_path, start_python):
    path = tmp_path / "folder" / "x.lock"
    holder = start_python(HOLD, path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=f"held by process {holder.pid}") as caught, FileLock(path, timeout=0.1):
        pass
    assert caught.value.exit_code == 4
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with FileLock(path, timeout=5):
        assert path.read_text() == str(os.getpid())


def test_locked_counting_loses_nothing(tmp_path, start_python, finish):
    counter = tmp_path / "counter"
    counter.write_text("0")
    finish(*(start_python(COUNT, counter) for _ in range(3)))
    assert counter.read_text() == "60"


def test_a_lock_on_a_read_only_disk_says_so(small_disk):
    small_disk.read_only()
    with pytest.raises(StorageError, match="read-only"), FileLock(small_disk.path / "x.lock"):
        pass


def test_fcntl_is_imported_only_when_a_lock_is_taken(start_python, finish):
    code = "import sys, mlops_nb.core.locks, mlops_nb.core.ledger; print('fcntl' in sys.modules)"
    assert finish(start_python(code)) == ["False"]
