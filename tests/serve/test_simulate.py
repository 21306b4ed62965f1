"""A simulation draws what the service would draw, asks real models, and says what would have changed."""

import json

import pytest
from serve_support import KINDS, people, release

from mlops_nb.core.errors import UsageError
from mlops_nb.registry.releases import read_release
from mlops_nb.serve.predictor import load_model
from mlops_nb.serve.requests import RequestReader
from mlops_nb.serve.simulate import SEGMENTS, simulate
from mlops_nb.serve.slots import Slot, Table


class Line:
    """A model of one number: yes above a threshold; fails where it is told to."""

    model, generation, digest = "churn", 2, "5d" * 32

    def __init__(self, version, threshold=0.5, name="x", fails=None, nullable=False):
        self.version, self.threshold, self.fails, self.most = version, threshold, fails, 0
        field = {"name": name, "kind": "number", "nullable": nullable}
        self.reader = RequestReader({"features": [field]}, max_rows=1000)

    def predict(self, records):
        (values,) = records.columns.values()
        self.most = max(self.most, len(values))
        if self.fails in values:
            raise ValueError(f"{self.fails} is not for me")
        return [{"prediction": "yes" if value > self.threshold else "no"} for value in values]


def past(rows=2_000, users=300):
    return [(f"u{row % users}", "", {"x": row % 100 / 100, "y": row % 7}) for row in range(rows)]


def plain(found):
    """A simulation without its times."""
    text = json.dumps(found.document(), default=str)
    document = json.loads(text)
    for part in [*document["steps"], *document["arms"].values()]:
        part.pop("seconds_per_record")
    return document


def test_users_get_the_arm_that_the_service_would_give_them():
    arms, steps = {"champion": Line(7), "b": Line(8, 0.3), "c": Line(9, 0.8)}, [{"b": 0.1, "c": 0.2}, {"b": 0.5}]
    found = simulate(past(), steps, arms, salt="spring")
    for step, sums in zip(found.steps, found.by_step, strict=True):
        slots = [Slot("churn", one.version, "", 2, arm, step[arm], one) for arm, one in arms.items()]
        table = Table(slots, salt="spring")
        drawn = [table.pick(user).arm for user, _, _ in past()]
        assert {arm: one.records for arm, one in sums.items()} == {arm: drawn.count(arm) for arm in arms}
        changed = sum(
            (values["x"] > 0.5) != (values["x"] > arms[arm].threshold)
            for (_, _, values), arm in zip(past(), drawn, strict=True)
        )
        assert sum(one.differing for one in sums.values()) == changed
    assert found.steps[1] == {"champion": 0.5, "b": 0.5, "c": 0.0}
    assert sum(one.users for one in found.by_step[0].values()) == 300


def test_the_size_of_a_batch_changes_nothing_and_bounds_what_is_held():
    first, second, ahead, answered = Line(7), Line(8, 0.3), [], []

    def stream():
        for number, record in enumerate(past()):
            ahead.append(number - sum(answered))
            yield record

    ask = first.predict
    first.predict = lambda records: (answered.append(records.rows), ask(records))[1]
    one = simulate(stream(), [{"b": 0.3}], {"champion": first, "b": second}, batch=64)
    assert max(ahead) < 64
    assert second.most == 64
    many = simulate(past(), [{"b": 0.3}], {"champion": Line(7), "b": Line(8, 0.3)}, batch=10**6)
    assert plain(one) == plain(many)


def test_a_record_that_cannot_be_answered_costs_no_other():
    records = [*past(500), ("u1", "", {"x": None}), ("u2", "", {})]
    found = simulate(records, [{"b": 1.0}], {"champion": Line(7), "b": Line(8, fails=0.25)})
    assert (found.asked["champion"].failed, found.asked["b"].failed) == (2, 2 + 5)
    assert found.by_step[0]["b"].compared == 495
    assert "'b' could not answer 5 records: ValueError." in found.words
    assert "is not for me" not in repr(found)
    assert any("needs x (a number" in sentence for sentence in found.words)


def test_versions_may_have_other_features():
    found = simulate(past(), [{"b": 0.5}], {"champion": Line(7), "b": Line(8, 3, name="y")})
    assert found.asked["b"].failed == 0
    missing = simulate(past(), [{"b": 0.5}], {"champion": Line(7), "b": Line(8, name="z")})
    assert missing.asked["b"].failed == 2_000
    assert missing.changed(0) == 0
    assert missing.seconds(0) is not None


def test_segments_come_from_the_record_or_from_a_field():
    arms = {"champion": Line(7), "b": Line(8, 0.3)}
    found = simulate(past(), [{}], arms, segments={"3": "b"}, by="y")
    threes = [values["x"] for _, _, values in past() if values["y"] == 3]
    assert found.by_step[0]["b"].records == len(threes)
    assert found.changed(0) == sum(0.3 < x <= 0.5 for x in threes)
    assert set(found.by_segment) == set("0123456")
    assert "Segment '3' is answered by 'b' at every step." in found.words


def test_endless_segments_do_not_fill_the_memory():
    records = ((f"u{row}", f"s{row}", {"x": 0.4}) for row in range(300))
    found = simulate(records, [{"b": 0.5}], {"champion": Line(7), "b": Line(8, 0.3)})
    assert len(found.by_segment) == SEGMENTS + 1
    assert sum(arms["b"].records for arms in found.by_segment.values()) == 300


@pytest.mark.parametrize(
    ("steps", "segments", "words"),
    [
        ([{"bb": 0.5}], {}, "Did you mean 'b'"),
        ([{"b": 1.5}], {}, "cannot have the share 1.5"),
        ([{"champion": 0.6, "b": 0.5}], {}, r"add up to 1\.1"),
        ([{"b": 0.5}], {"south": "bb"}, "Did you mean 'b'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_read(steps, segments, words):
    def never():
        raise AssertionError("read")
        yield

    with pytest.raises(UsageError, match=words):
        simulate(never(), steps, {"champion": Line(7), "b": Line(8)}, segments=segments)


def test_a_released_model_is_simulated(tmp_path):
    (tmp_path / "project").mkdir()
    release(tmp_path / "project")
    model = load_model(read_release(tmp_path / "project" / ".mlops" / "releases", "churn"))
    sent = json.loads(people(600)[list(KINDS)].to_json(orient="records", date_format="iso"))
    records = [(f"u{row}", record["job"] or "", record) for row, record in enumerate(sent)]
    found = simulate(records, [{"again": 0.5}], {"champion": model, "again": model})
    assert (found.records, found.users, found.changed(0)) == (600, 600, 0)
    assert found.asked["again"].answered == 600
    assert 0 < found.seconds(0) < 0.1
    assert "no " in found.asked["again"].said
    assert set(found.by_segment) == {"clerk", "nurse", "cook", ""}
    page = found._repr_html_()
    assert "By segment" in page
    assert "µs per record" in page
    assert json.loads(json.dumps(found.document()))["steps"][0]["shares"] == {"champion": 0.5, "again": 0.5}


class Price(Line):
    """A model of one number that answers with a number."""

    def __init__(self, version, factor):
        super().__init__(version)
        self.factor = factor

    def predict(self, records):
        return [{"prediction": self.factor * value} for value in records.columns["x"]]


def test_flips_and_relative_errors_are_told_by_name():
    moved = simulate(past(), [{"b": 1.0}], {"champion": Line(7), "b": Line(8, 0.3)})
    step = moved.document()["steps"][0]
    assert step["label_flips"] == step["arms"]["b"]["label_flips"] == moved.changed(0) == 400
    assert "400 of 2,000 (20.0 %) answers would be other ones; label flips 400 of 2,000 (20.0 %)." in moved.words[1]
    prices = simulate(past(), [{"b": 1.0}], {"champion": Price(7, 1.0), "b": Price(8, 0.9)})
    step = prices.document()["steps"][0]
    assert "label_flips" not in step
    assert step["relative_error"]["p95"] == pytest.approx(0.1, rel=0.1)
    assert "relative error p50" in prices.words[1] and "relative error p50" in repr(prices)
