"""Files are written whole or not at all, whatever happens."""

import errno
import os
import signal
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st

from mlops_nb.core.errors import StorageError
from mlops_nb.core.files import atomic_write, make_folder, storage_errors


@given(data=st.one_of(st.binary(), st.text()))
@options(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_is_read(tmp_path, data):
    path = atomic_write(tmp_path / "any", data)
    assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())


def test_text_keeps_its_line_ends(tmp_path):
    assert atomic_write(tmp_path / "a.txt", "one\r\ntwo\n").read_bytes() == b"one\r\ntwo\n"


def test_link_and_mode_stay(tmp_path):
    target = tmp_path / "target.sh"
    target.write_text("old")
    target.chmod(0o750)
    (tmp_path / "link").symlink_to(target)
    atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o750


def test_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_long_names_have_room_for_the_temporary_one(tmp_path):
    name = "n" * 255
    assert atomic_write(tmp_path / name, "x").read_text() == "x"


def test_full_disk_leaves_the_old_content(small_disk):
    path = atomic_write(small_disk.path / "runs" / "a.ipynb", "old")
    small_disk.fill()
    with pytest.raises(StorageError, match=r"a\.ipynb cannot be written: the disk is full") as caught:
        atomic_write(path, "new" * 10_000)
    assert "MLOPS_NB_WORKSPACE_PATH" in caught.value.hint
    assert path.read_text() == "old"
    assert [item.name for item in path.parent.iterdir()] == ["a.ipynb"]


def test_read_only_disk_says_so(small_disk):
    small_disk.read_only()
    with pytest.raises(StorageError, match="the file system is read-only"):
        atomic_write(small_disk.path / "runs" / "a.ipynb", "new")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS])
def test_refusals_have_words(number):
    with pytest.raises(StorageError) as caught, storage_errors("place"):
        raise OSError(number, "the system's words")
    assert caught.value.message.startswith("place cannot be written")
    assert caught.value.exit_code == 2


def test_other_errors_pass():
    with pytest.raises(FileNotFoundError), storage_errors("place"):
        raise FileNotFoundError(errno.ENOENT, "No such file")


def test_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match=r"a part of the path is a file|a file is in the place"):
        make_folder(tmp_path / "runs" / "one")
    with pytest.raises(StorageError, match="a file is in the place of the folder"):
        make_folder(tmp_path / "runs")


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="only where there is /proc can no folder be made, also by root")
def test_a_place_where_no_folder_can_be_made():
    with pytest.raises(StorageError, match="/proc/workspace/runs cannot be written: no folder can be made"):
        make_folder("/proc/workspace/runs")


WRITER = """
import sys
from mlops_nb.core.files import atomic_write
while True:
    for letter in "ab":
        atomic_write(sys.argv[1], letter * 200_000)
        print(letter, flush=True)
"""


def test_killed_writer_leaves_old_or_new(tmp_path, start_python):
    path = tmp_path / "note.txt"
    writer = start_python(WRITER, path)
    writer.stdout.readline()
    for _ in range(200):
        text = path.read_text()
        assert text in ("a" * 200_000, "b" * 200_000)
    time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.read_text() in ("a" * 200_000, "b" * 200_000)


def test_only_a_file_is_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(StorageError, match="no file can take its place"):
            atomic_write(place, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
