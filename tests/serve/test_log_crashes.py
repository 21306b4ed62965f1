"""No acknowledged prediction is lost and none doubled: torn and altered files, kills, full disks, several writers."""

import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import duckdb
import polars as pl
import pytest
from log_support import definition, logged, said
from support import ROOT

from mlops_nb.core.errors import Busy
from mlops_nb.core.faults import VARIABLE
from mlops_nb.serve.compaction import compact, compaction_lock
from mlops_nb.serve.prediction_log import FOLDER, SEGMENTS, PredictionLog
from mlops_nb.serve.problem import Problem
from mlops_nb.serve.replay import replay
from mlops_nb.serve.segments import HEADER, Answered, SegmentReader, SegmentWriter, segments_of

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]), "OMP_NUM_THREADS": "1"}
WRITER = """
import sys, time
from pathlib import Path
from log_support import definition, said
from mlops_nb.serve.segments import SegmentWriter

writer = SegmentWriter(Path(sys.argv[1]), "off", size=20_000)
for number in range(1_000_000):
    name = f"{sys.argv[2]}-{number}"
    writer.append(said(name, [(number, "clerk")] * (1 + number % 3)), lambda place: definition(), ("churn", 7))
    sys.stdout.write(name + "\\n")  # acknowledged
    sys.stdout.flush()
    time.sleep(0.0005)
"""


def counted(workspace):
    """How often each row is in the log."""
    return Counter((one.request_id, one.row) for one in replay(workspace, "churn"))


def fill(workspace, requests, size=1 << 20):
    """Log some requests of two rows, in a closed segment; the rows."""
    writer = SegmentWriter(workspace / FOLDER / SEGMENTS, "off", size)
    for number in range(requests):
        writer.append(said(f"r{number}", [(number, "clerk"), (None, None)]), lambda place: definition(), ("churn", 7))
    writer.close()
    return Counter((f"r{number}", row) for number in range(requests) for row in range(2))


def in_parquet(workspace):
    """How often each row is in the Parquet files, as two third parties read them."""
    found = duckdb.sql(f"SELECT request_id, row FROM read_parquet('{workspace / FOLDER}/model=churn/**/*.parquet')")
    frames = [pl.read_parquet(path) for path in (workspace / FOLDER).glob("model=churn/*/*.parquet")]
    rows = Counter(found.fetchall())
    assert Counter(pl.concat(frames).select("request_id", "row").rows()) == rows
    return rows


def test_a_segment_cut_at_any_byte_holds_all_that_was_whole(tmp_path):
    fill(tmp_path, 6)
    whole = segments_of(tmp_path / FOLDER / SEGMENTS)[0].read_bytes()
    reader, ends = SegmentReader(segments_of(tmp_path / FOLDER / SEGMENTS)[0]), []
    for message in reader:
        ends += [reader.end] if isinstance(message, Answered) else []
    assert len(ends) == 6
    cut = tmp_path / "cut.seg"
    for length in range(len(whole) + 1):
        cut.write_bytes(whole[:length])
        reader = SegmentReader(cut)
        names = [one.request_id for one in reader if isinstance(one, Answered)]
        assert names == [f"r{number}" for number, end in enumerate(ends) if end <= length]
        assert reader.damaged == (length if length < HEADER.size else 0)


def test_what_a_cut_segment_holds_is_compacted_once(tmp_path):
    fill(tmp_path, 3)
    segment = segments_of(tmp_path / FOLDER / SEGMENTS)[0]
    whole = segment.read_bytes()
    for length in random.Random(0).sample(range(HEADER.size, len(whole)), 12):
        workspace = tmp_path / str(length)
        (workspace / FOLDER / SEGMENTS).mkdir(parents=True)
        (workspace / FOLDER / SEGMENTS / segment.name).write_bytes(whole[:length])
        before = counted(workspace)
        assert compact(workspace / FOLDER).damaged == 0
        assert counted(workspace) == before and set(before.values()) <= {1}
        assert not segments_of(workspace / FOLDER / SEGMENTS)


def test_an_altered_byte_costs_no_other_record(tmp_path):
    fill(tmp_path, 4)
    whole = segments_of(tmp_path / FOLDER / SEGMENTS)[0].read_bytes()
    altered = tmp_path / "altered.seg"
    for place in range(HEADER.size, len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        altered.write_bytes(content)
        reader = SegmentReader(altered)
        assert len(list(reader)) == 4
        assert reader.damaged or reader.torn


def test_a_damaged_segment_is_put_aside(tmp_path):
    rows = fill(tmp_path, 4)
    segment = segments_of(tmp_path / FOLDER / SEGMENTS)[0]
    content = bytearray(segment.read_bytes())
    content[content.index(b"r2")] ^= 1
    segment.write_bytes(content)
    report = compact(tmp_path / FOLDER)
    assert report.damaged > 0 and (tmp_path / FOLDER / "damaged" / segment.name).read_bytes() == content
    assert in_parquet(tmp_path) == Counter({row: 1 for row in rows if row[0] != "r2"})


def test_two_killed_writers_lose_nothing_that_was_acknowledged(tmp_path):
    folder, chance = tmp_path / FOLDER, random.Random(1)
    acknowledged, started = [], []
    for turn in range(3):
        for worker in range(2):
            out = tmp_path / f"{turn}-{worker}.txt"
            command = [sys.executable, "-c", textwrap.dedent(WRITER), str(folder / SEGMENTS), f"{turn}-{worker}"]
            with open(out, "wb") as file:
                started.append((subprocess.Popen(command, stdout=file, env=ENVIRONMENT), out))
        while not all(out.stat().st_size for _, out in started):
            time.sleep(0.01)
        end = time.monotonic() + chance.uniform(0.05, 0.4)
        while time.monotonic() < end:  # while it is written
            compact(folder)
        for process, _ in started:
            process.send_signal(signal.SIGKILL)
            process.wait()
        acknowledged += [line for _, out in started for line in out.read_text().split("\n")[:-1]]
        started.clear()
    rows = counted(tmp_path)
    assert set(rows.values()) == {1}
    assert len(acknowledged) > 100 and {(name, 0) for name in acknowledged} <= set(rows)
    report = compact(folder)
    assert report.writing == 0 and not segments_of(folder / SEGMENTS)
    assert in_parquet(tmp_path) == rows == counted(tmp_path)


@pytest.mark.parametrize("fault", ["before-parts", "after-part", "after-part:2", "after-part:4", "after-parts"])
def test_a_killed_compaction_is_done_again(tmp_path, fault):
    rows = fill(tmp_path, 300, size=15_000)
    code = "import sys, pathlib, mlops_nb.serve.compaction as made; made.compact(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / FOLDER)]
    killed = subprocess.run(command, env={**ENVIRONMENT, VARIABLE: fault}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert counted(tmp_path) == rows
    assert compact(tmp_path / FOLDER).segments > 0
    assert in_parquet(tmp_path) == rows == counted(tmp_path)
    assert not list((tmp_path / FOLDER).rglob(".*"))


def test_readers_see_each_row_once_while_segments_become_parquet(tmp_path):
    writer = SegmentWriter(tmp_path / FOLDER / SEGMENTS, "off", size=4_000)
    stopped, wrong, done = threading.Event(), [], [0]

    def compact_again_and_again():
        while not stopped.is_set():
            compact(tmp_path / FOLDER)

    def look():
        while not stopped.is_set():
            least = done[0]
            rows = counted(tmp_path)
            if len(rows) < least or set(rows.values()) > {1}:
                wrong.append((least, rows.most_common(3)))

    threads = [threading.Thread(target=target) for target in (compact_again_and_again, look, look)]
    for thread in threads:
        thread.start()
    for number in range(400):
        writer.append(said(f"r{number}", [(number, None)]), lambda place: definition(), ("churn", 7))
        done[0] = number + 1
        time.sleep(0.002)
    stopped.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_compaction_at_a_time(tmp_path):
    fill(tmp_path, 3)
    with compaction_lock(tmp_path / FOLDER):
        with pytest.raises(Busy):
            compact(tmp_path / FOLDER)
        code = "import sys; from mlops_nb.serve.compaction import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, str(tmp_path / FOLDER), "0"]
        assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == 0  # a worker's: another one does it
    assert len(segments_of(tmp_path / FOLDER / SEGMENTS)) == 1


FEATURES = {"age": "integer", "job": "category"}


@pytest.fixture
def small_disk():
    """A limit on the size of files: a write beyond it is cut short, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_records_but_no_answer(tmp_path, small_disk):
    events = []
    log = PredictionLog(tmp_path / FOLDER, told=lambda event, **details: events.append((event, details["lost"])))
    small_disk(3000)
    for number in range(100):
        log.add(logged(f"r{number}", [(number, "clerk")], FEATURES))
    stored = set(counted(tmp_path))
    assert log.lost == 100 - len(stored) > 0 and ("r0", 0) in stored
    small_disk(None)
    log.add(logged("later", [(1, None)], FEATURES))
    assert events == [("log.failed", 1), ("log.recovered", log.lost)]
    assert set(counted(tmp_path)) == stored | {("later", 0)}
    assert next(iter([SegmentReader(path) for path in segments_of(tmp_path / FOLDER / SEGMENTS)])).damaged == 0


def test_a_full_disk_refuses_answers_where_each_has_to_be_on_record(tmp_path, small_disk):
    log, given, refused = PredictionLog(tmp_path / FOLDER, required=True), set(), 0
    small_disk(3000)
    for number in range(60):
        try:
            log.add(logged(f"r{number}", [(number, "clerk")], FEATURES))
            given.add((f"r{number}", 0))
        except Problem as problem:
            refused += 1
            assert problem.status == 503 and "could not be stored" in problem.detail
    assert refused and set(counted(tmp_path)) == given
