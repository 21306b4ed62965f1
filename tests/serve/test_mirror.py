"""Shadows are asked behind the back of the requests: nobody waits, nothing is lost count of, no input is kept."""

import asyncio
import json
import math
import multiprocessing
import threading
import time
from statistics import median
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_nb.core.errors import StorageError
from mlops_nb.serve.answers import Effects, compare_answers
from mlops_nb.serve.app import App
from mlops_nb.serve.differences import Counts, Difference, DifferenceStore, read_differences
from mlops_nb.serve.meter import Meter
from mlops_nb.serve.mirror import ShadowMirror
from mlops_nb.serve.requests import RequestReader
from mlops_nb.serve.slots import Slot, Slots, Table


class Chance:
    """A model of one or more numbers: the probability of yes is the mean of its inputs, raised by a share."""

    def __init__(self, *names, shift=0.0, hold=None):
        features = [{"name": name, "kind": "number", "nullable": False, "example": 0.5} for name in names]
        self.schema = {"task": "binary", "target": "churned", "features": features}
        self.reader, self.shift, self.hold = RequestReader(self.schema, max_rows=50_000), shift, hold
        self.model, self.version, self.generation, self.digest = "churn", 7, 2, "5d" * 32
        self.example = dict.fromkeys(names, 0.5)

    def predict(self, records):
        if self.hold:
            self.hold.wait(10)
        chances = [(1 + self.shift) * sum(row) / len(row) for row in zip(*records.columns.values(), strict=True)]
        return [
            {"prediction": "yes" if chance > 0.5 else "no", "probabilities": {"no": 1 - chance, "yes": chance}}
            for chance in chances
        ]

    def explain(self, records, most):
        return [{**answer, "reasons": [{"text": "0.123456789 is small"}]} for answer in self.predict(records)]


def slot(version, predictor, arm="champion"):
    return Slot("churn", version, "5d" * 32, 2, arm, 1.0, predictor)


def table(shadow, base=None):
    return Table([slot(7, base or Chance("x"))], [slot(8, shadow, "shadow")])


def offer(mirror, to, *chances, name="r1"):
    records = to.base.predictor.reader.read(json.dumps([{"x": chance} for chance in chances]).encode())
    mirror.offer(to, SimpleNamespace(name=name), records, to.base.predictor.predict(records))


def counted(meter):
    lines = [line for line in meter.text().decode().splitlines() if line.startswith("mlops_nb_shadow_total")]
    return {line.split('outcome="')[1].split('"')[0]: int(float(line.rsplit(" ", 1)[1])) for line in lines}


def test_a_request_does_not_wait_for_a_slow_shadow(tmp_path):
    hold, meter = threading.Event(), Meter()
    mirror, to = ShadowMirror(meter, tmp_path, queue=8), table(Chance("x", hold=hold))
    started = time.perf_counter()
    for number in range(100):
        offer(mirror, to, 0.3, name=f"r{number}")
    assert time.perf_counter() - started < 1
    hold.set()
    mirror.close()
    outcomes = counted(meter)
    assert outcomes["same"] in (8, 9)
    assert outcomes["same"] + outcomes["dropped"] == 100
    counts = read_differences(tmp_path, "churn").pairs[0].counts
    assert (counts.same, counts.dropped) == (outcomes["same"], outcomes["dropped"])


def test_an_offer_costs_microseconds(tmp_path):
    hold = threading.Event()
    mirror, to = ShadowMirror(Meter(), tmp_path, queue=5000), table(Chance("x", hold=hold))
    records = to.base.predictor.reader.read(b'{"x": 0.3}')
    call, answers, seconds = SimpleNamespace(name="r"), to.base.predictor.predict(records), []
    for _ in range(2000):
        started = time.perf_counter()
        mirror.offer(to, call, records, answers)
        seconds.append(time.perf_counter() - started)
    hold.set()
    mirror.close()
    assert median(seconds) < 20e-6  # 1.5 on a quiet machine


def test_large_batches_wait_only_one_at_a_time(tmp_path):
    hold, meter = threading.Event(), Meter()
    mirror, to = ShadowMirror(meter, tmp_path, records=1000), table(Chance("x", hold=hold))
    for _ in range(10):
        offer(mirror, to, *[0.3] * 800)
    hold.set()
    mirror.close()
    assert counted(meter)["dropped"] >= 8
    assert counted(meter)["same"] >= 1


def test_differences_name_the_request_and_both_answers_but_no_input_and_no_reason(tmp_path):
    base, to = Chance("x"), table(Chance("x", shift=0.5))
    mirror = ShadowMirror(Meter(), tmp_path)
    records = base.reader.read(b'[{"x": 0.123456789}, {"x": 0.4}]')
    mirror.offer(to, SimpleNamespace(name="order-17"), records, base.explain(records, 1))
    mirror.close()
    pair = read_differences(tmp_path, "churn", 8).pairs[0]
    assert (pair.against, pair.counts.differs, pair.counts.records, pair.counts.records_differing) == (7, 1, 2, 2)
    assert (pair.mean, pair.counts.largest) == (pytest.approx(0.1308642), pytest.approx(0.2))
    (one,) = pair.examples
    assert (one.request_id, one.row, one.rows) == ("order-17", 1, 2)
    assert (one.answer["prediction"], one.shadow["prediction"]) == ("no", "yes")
    text = "".join(path.read_text() for path in tmp_path.glob("*.json*"))
    assert "0.123456" not in text
    assert "reasons" not in (tmp_path / "churn-8.jsonl").read_text()


def test_a_shadow_with_other_features_gets_those_it_knows(tmp_path):
    base = Chance("x", "y")
    to = Table([slot(7, base)], [slot(8, Chance("y"), "a"), slot(9, Chance("y", "z"), "b")])
    mirror = ShadowMirror(Meter(), tmp_path)
    records = base.reader.read(b'{"x": 0.25, "y": 0.75}')
    mirror.offer(to, SimpleNamespace(name="r1"), records, base.predict(records))
    mirror.close()
    nine, eight = read_differences(tmp_path, "churn").pairs
    assert (eight.version, eight.counts.differs) == (8, 1)
    assert nine.counts.reasons == {"needs z (a number; the field is missing)": 1}


@pytest.mark.parametrize("answers", [lambda records: [], lambda records: [{}], lambda records: 1 / 0])
def test_a_broken_shadow_is_counted_and_the_next_request_is_asked(tmp_path, answers, caplog):
    broken = Chance("x")
    broken.predict = answers
    mirror, to = ShadowMirror(Meter(), tmp_path), table(broken)
    for _ in range(20):
        offer(mirror, to, 0.3)
    mirror.close()
    counts = read_differences(tmp_path, "churn").pairs[0].counts
    assert (counts.failed, sum(counts.reasons.values())) == (20, 20)
    assert len([record for record in caplog.records if "shadow churn" in record.getMessage()]) == 1


def test_counts_survive_a_disk_that_cannot_be_written(tmp_path, caplog):
    folder, to = tmp_path / "shadows", table(Chance("x"))
    folder.write_text("a file is in the way")
    mirror = ShadowMirror(Meter(), folder)
    offer(mirror, to, 0.3)
    mirror.close()
    assert "not stored" in caplog.text
    folder.unlink()
    mirror.close()
    assert read_differences(folder, "churn").pairs[0].counts.same == 1


def add_often(folder, times):
    store = DifferenceStore(folder, "churn", 8)
    for _ in range(times):
        store.add({7: Counts(differs=1)}, [Difference("now", "r", 7, 1, 1, 1, 0, 0.5, {}, {})], patience=30)


def test_workers_add_up(tmp_path):
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=add_often, args=(tmp_path, 15)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    store = DifferenceStore(tmp_path, "churn", 8)
    assert store.read()["7"].differs == 60
    assert len(list(store.examples())) == 60


def test_damaged_files_stop_nobody(tmp_path):
    store = DifferenceStore(tmp_path, "churn", 8)
    store.add({7: Counts(same=1)}, [Difference("now", "r1", 7, 1, 1, 1, 0, 0.5, {}, {})])
    with store.lines.open("ab") as file:
        file.write(b'{"at":"now","requ')
    store.counts.write_bytes(b"\xff{")
    with pytest.raises(StorageError, match=r"churn-8\.json cannot be read"):
        read_differences(tmp_path, "churn")
    store.add({7: Counts(same=1)}, [])
    assert store.read()["7"].same == 1
    assert [one.request_id for one in store.examples()] == ["r1"]


def test_names_with_hyphens_are_told_apart(tmp_path):
    for model in ("churn", "churn-eu", "churn-8"):
        DifferenceStore(tmp_path, model, 8).add({7: Counts(same=len(model))})
    assert [pair.counts.same for pair in read_differences(tmp_path, "churn-8").pairs] == [7]
    assert [pair.counts.same for pair in read_differences(tmp_path, "churn").pairs] == [5]


def test_a_summary_can_be_shown(tmp_path):
    mirror, to = ShadowMirror(Meter(), tmp_path), table(Chance("x", shift=0.5))
    for number in range(10):
        offer(mirror, to, number / 20, name=f"<r{number}>")
    mirror.close()
    found = read_differences(tmp_path, "churn")
    assert "9 of 10 (90.0 %) requests differ" in repr(found)
    assert "&lt;r9&gt;" in found._repr_html_()
    assert len(found.pairs[0].examples) == 5


async def post(app, body):
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"order-1")]
    await app({**scope, "headers": headers}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_the_application_offers_what_it_answered(tmp_path):
    app = App(None, Slots(table(Chance("x", shift=0.5))))
    app.mirror = ShadowMirror(app.meter, tmp_path)
    status, answer = asyncio.run(post(app, b'{"x": 0.4}'))
    app.mirror.close()
    assert (status, answer["prediction"], answer["version"]) == (200, "no", 7)
    (one,) = read_differences(tmp_path, "churn").pairs[0].examples
    assert (one.request_id, one.shadow["prediction"]) == ("order-1", "yes")
    assert counted(app.meter) == {"differs": 1}


def test_flipped_labels_are_told_beside_what_differs(tmp_path):
    """A probability that moved beyond the tolerance is another answer; few of them tell anybody something else."""
    mirror, to = ShadowMirror(Meter(), tmp_path), table(Chance("x", shift=0.1))
    for number in range(8):
        offer(mirror, to, number / 10 + 0.16, name=f"r{number}")
    mirror.close()
    (pair,) = read_differences(tmp_path, "churn", 8).pairs
    assert (pair.counts.differs, pair.counts.effects.classes, pair.counts.effects.flips) == (8, 8, 1)
    assert "8 of 8 (100.0 %) requests differ; label flips 1 of 8 (12.5 %)" in pair.words
    assert pair.document()["label_flips"] == 1 and "relative_error" not in pair.document()


def test_counts_of_an_earlier_version_are_read(tmp_path):
    (tmp_path / "churn-8.json").write_text('{"7": {"same": 3, "differs": 1, "records": 4, "records_differing": 1}}')
    (pair,) = read_differences(tmp_path, "churn").pairs
    assert "label flips" not in pair.words and pair.counts.effects.classes == 0, "that was not counted then"


@given(st.lists(st.floats(0, 3), min_size=1, max_size=60), st.lists(st.floats(0, 3), max_size=60))
def test_quantiles_of_relative_errors_are_right_to_a_tenth(here, there):
    """Counted by two workers, added up, and written down in between."""
    parts = [Effects(), Effects()]
    for part, errors in zip(parts, (here, there), strict=True):
        for error in errors:
            part.note(compare_answers({"prediction": 1000.0}, {"prediction": 1000.0 * (1 - error)}))
    whole = msgspec.json.decode(msgspec.json.encode(parts[0]), type=Effects)
    whole.add(parts[1])
    known = sorted(
        compare_answers({"prediction": 1000.0}, {"prediction": 1000.0 * (1 - error)}).distance
        for error in [*here, *there]
    )
    for share in (0.5, 0.95, 0.99):
        exact = known[max(0, math.ceil(share * len(known)) - 1)]
        assert exact - 2e-6 <= whole.quantile(share) <= exact * 1.1001 + 2e-6
