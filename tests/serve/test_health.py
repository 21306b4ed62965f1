"""What a service counted becomes go, wait or stop, with sentences that a person can check."""

import http.server
import math
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import StorageError, UsageError
from mlops_nb.serve.conditions import KINDS, USUAL, USUAL_SHADOW, parse_conditions
from mlops_nb.serve.health import Health, Who, read_health
from mlops_nb.serve.meter import BUCKETS, Meter
from mlops_nb.serve.sequential import Tally
from mlops_nb.serve.verdict import SURE, evidence_above, judge

SEVEN, EIGHT = Who("churn", 7, "champion"), Who("churn", 8, "challenger")


def slot(who, model="churn"):
    return SimpleNamespace(model=model, version=who.version, arm=who.arm, generation=2, digest="5d" * 32, weight=0.5)


class Service:
    """The metrics of a service that answers as it is told."""

    def __init__(self):
        self.meter = Meter()

    def answer(self, who, times=1, seconds=0.002, status=200, stood_in=0):
        for _ in range(times):
            self.meter.answered("/predict", status, seconds, slot(who))
        for _ in range(stood_in):
            self.meter.stood_in(slot(who))
        return self

    def shadow(self, who, **outcomes):
        for outcome, times in outcomes.items():
            for _ in range(times):
                self.meter.mirrored(slot(who), outcome)
        return self

    def read(self):
        return Health.parse(self.meter.text().decode())


def verdict(service, conditions="", since=None, age=60.0, measures=None, arm=EIGHT):
    return judge(conditions, since, service.read(), arm, SEVEN, age, measures)


# reading


class Handler(http.server.BaseHTTPRequestHandler):
    """A service that misbehaves as the path says."""

    seen: list = []  # noqa: RUF012

    def do_GET(self):
        self.seen.append((self.path, self.headers.get("authorization")))
        word = self.path.removesuffix("/metrics").strip("/")
        status = int(word) if word.isdigit() else 200
        self.send_response(status)
        if status == 302:
            self.send_header("location", "/elsewhere/metrics")
        self.end_headers()
        if word == "slow":
            time.sleep(1)
        self.wfile.write(b"<html>" if word == "page" else Service().answer(SEVEN, 3).meter.text())

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_service_is_read_with_a_key_and_without(address):
    for url in (address, f"{address}/", f"{address}/metrics", address.removeprefix("http://")):
        assert read_health(url).arm("churn", 7).requests == 3
    assert Handler.seen[-1] == ("/metrics", None)
    read_health(address, "secret")
    assert Handler.seen[-1] == ("/metrics", "Bearer secret")


@pytest.mark.parametrize(
    ("path", "key", "kind", "words"),
    [
        ("401", "", UsageError, "asks for a key"),
        ("401", "k", UsageError, "does not know this key"),
        ("403", "k", UsageError, "does not show its metrics to this key"),
        ("429", "k", UsageError, "asked too often"),
        ("503", "", StorageError, "has no model to tell of yet"),
        ("404", "", UsageError, "answers with status 404"),
        ("302", "k", UsageError, "answers with status 302"),
        ("page", "", UsageError, "is not the beginning of our metrics"),
        ("slow", "", UsageError, "does not answer: timed out"),
    ],
)
def test_what_is_wrong_with_a_service_is_said(address, path, key, kind, words):
    with pytest.raises(kind, match=words) as caught:
        read_health(f"{address}/{path}", key, timeout=0.5)
    assert caught.value.hint
    assert not any("elsewhere" in seen for seen, _ in Handler.seen)


def test_a_password_in_the_address_is_not_repeated():
    with pytest.raises(UsageError) as caught:
        read_health("http://me:hunter2@localhost")
    assert "hunter2" not in str(caught.value)


# numbers


def test_percentiles_are_those_of_the_answers_to_within_a_bucket():
    service, random = Service(), np.random.default_rng(0)
    seconds = random.lognormal(-5, 1, 2_000)
    for one in seconds:
        service.answer(EIGHT, seconds=float(one))
    numbers = service.read().arm(*EIGHT)
    for share in (0.5, 0.9, 0.95, 0.99):
        exact = float(np.quantile(seconds, share))
        low, high = next(pair for pair in pairwise((0.0, *BUCKETS)) if pair[0] <= exact <= pair[1])
        assert low <= numbers.quantile(share) <= high
    for limit in (0.003, 0.008, 0.05):
        assert numbers.surely_slower(limit) <= (seconds > limit).sum()


def test_a_stand_in_is_a_failure_of_the_arm_and_not_of_the_base():
    health = Service().answer(SEVEN, 10).answer(EIGHT, 8, stood_in=2).answer(EIGHT, 1, status=500).read()
    assert (health.arm(*EIGHT).asked, health.arm(*EIGHT).failures) == (11, 3)
    assert health.arm(*SEVEN).failures == 0
    assert health.versions == [SEVEN, EIGHT]


def test_errors_without_a_version_are_told_apart():
    service = Service().answer(SEVEN, 3)
    service.meter.answered("/predict", 500, 0.1)
    service.meter.answered("other", 404, 0.1)
    assert service.read().unowned == 1


def test_models_of_one_service_are_told_apart():
    service = Service().answer(EIGHT, 3)
    service.meter.answered("/models/{model}/predict", 200, 0.1, slot(EIGHT, "price"))
    assert service.read().arm("churn", 8).requests == 3
    assert service.read().arm("price", 8).requests == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.booleans()), min_size=1, max_size=6))
def test_a_restart_never_gives_negative_or_invented_numbers(periods):
    service, first, true = Service().answer(SEVEN, 5), None, 0
    first = service.read()
    for answers, failures, restart in periods:
        if restart:
            service, true = Service(), 0
        service.answer(EIGHT, answers, stood_in=failures)
        true += answers + failures
        numbers = service.read().since(first).arm(*EIGHT)
        assert numbers.asked == true
        assert numbers.timed >= 0


def test_only_sums_that_shrink_mean_a_restart():
    busy = (
        '# TYPE mlops_nb_in_flight gauge\nmlops_nb_in_flight 5.0\nmlops_nb_worker_cpu_seconds_total{worker="2"} 9.0\n'
    )
    service = Service().answer(EIGHT, 50)
    before = Health.parse(busy + service.meter.text().decode())
    assert service.answer(EIGHT, 7).read().since(before).arm(*EIGHT).requests == 7


def test_a_difference_leaves_out_what_was_before():
    service = Service().answer(EIGHT, 50, seconds=1.0)
    before = service.read()
    assert math.isnan(service.read().since(before).arm(*EIGHT).quantile(0.5))
    assert service.answer(EIGHT, 50).read().since(before).arm(*EIGHT).quantile(0.99) < 0.01


def test_a_reading_can_be_shown():
    health = (
        Service().answer(SEVEN, 3).answer(EIGHT, 3, seconds=100.0).shadow(Who("churn", 9), same=3, differs=1).read()
    )
    assert "> 16,384" in repr(health)
    assert "1 of 4" in repr(health)
    assert "<table" in health._repr_html_()


# conditions


@given(st.text(max_size=40) | st.from_regex(r"(errors|p99|after) *[<>]=? *[0-9.%ms*+ base-]{0,15}", fullmatch=True))
@settings(max_examples=80, deadline=None)
def test_any_text_is_conditions_or_a_sentence(text):
    try:
        found = parse_conditions(text)
    except UsageError as error:
        assert error.message
        assert error.hint
    else:
        assert all(math.isfinite(one.constant) and one.name in {*KINDS, "accuracy"} for one in found)


@pytest.mark.parametrize(
    ("text", "factor", "constant"),
    [
        ("p99 <= 1.5 * base + 20ms", 1.5, 0.02),
        ("p99<=20ms+base*2", 2.0, 0.02),
        ("p99 <= base - 1s", 1.0, -1.0),
        ("errors <= .5%", 0.0, 0.005),
        ("after >= 2h", 0.0, 7200.0),
        ("requests >= 500", 0.0, 500.0),
    ],
)
def test_limits_are_read(text, factor, constant):
    (condition,) = parse_conditions(text)
    assert (condition.factor, condition.constant) == (factor, pytest.approx(constant))


# verdicts


@pytest.mark.parametrize(
    ("bad", "conditions", "word", "reason"),
    [
        ({"times": 200}, USUAL, "go", "errors 0 of 200"),
        ({"times": 20}, USUAL, "wait", "20 requests so far of the 100 that are wanted"),
        ({"times": 0}, USUAL, "wait", "errors: nothing was counted yet"),
        ({"times": 98, "stood_in": 2}, USUAL, "wait", "2 of 100 (2.0 %), limit 1 %: beyond it, but so few"),
        ({"times": 90, "stood_in": 10}, USUAL, "stop", "10 of 100 (10.0 %), limit 1 %: beyond it, and not by chance"),
        ({"times": 3, "status": 500}, USUAL, "stop", "errors 3 of 3"),
        ({"times": 300, "seconds": 0.2}, USUAL, "stop", "slower, and not by chance"),
        ({"times": 300, "seconds": 0.02}, "p50 <= 10ms", "stop", "p50"),
        ({"times": 3, "seconds": 0.02}, "p50 <= 10ms", "wait", "slower, but so few may be chance"),
        ({"times": 200}, "after >= 10min", "wait", "60 s since the step began, 10 min are wanted"),
        ({"times": 200}, "stand_ins <= 1%, after >= 1min", "go", "stand ins 0 of 200"),
    ],
)
def test_verdicts(bad, conditions, word, reason):
    found = verdict(Service().answer(SEVEN, 500).answer(EIGHT, **bad), conditions)
    assert found.word == word
    assert any(reason in sentence for sentence in found.reasons), found.reasons
    assert found.details()["verdict"] == word
    assert word in repr(found)
    assert "<li>" in found._repr_html_()


def test_a_base_without_traffic_is_remembered():
    service = Service().answer(SEVEN, 500)
    step = service.read()
    found = verdict(service.answer(EIGHT, 200), "p99 <= 2 * base", step)
    assert found.word == "go"
    assert "since the service was started" in found.reasons[0]
    lonely = verdict(Service().answer(EIGHT, 200), "p99 <= 2 * base, errors <= base + 1%")
    assert lonely.word == "wait"
    assert "the base has only 0 of the 100" in lonely.reasons[0]


def test_a_shadow_is_judged_by_what_it_would_have_said():
    nine = Who("churn", 9)
    good = Service().answer(SEVEN, 300).shadow(nine, same=295, differs=5, dropped=50)
    assert verdict(good, USUAL_SHADOW, arm=nine).word == "go"
    other = Service().answer(SEVEN, 300).shadow(nine, same=150, differs=50)
    assert verdict(other, USUAL_SHADOW, arm=nine).reasons == [
        "shadow differs 50 of 200 (25.0 %), limit 5 %: beyond it, and not by chance."
    ]


@pytest.mark.parametrize(
    ("mine", "word"),
    [
        (0.95, "go"),
        (0.80, "stop"),
        (math.nan, "wait"),
        (Tally(400, 372), "go"),
        (Tally(400, 300), "stop"),
        (Tally(400, 355), "wait"),
        (Tally(30, 20), "wait"),
        (Tally(), "wait"),
    ],
)
def test_measures_from_feedback(mine, word):
    known = {8: {"accuracy": mine}, 7: {"accuracy": Tally(4_000, 3_640)}}
    found = verdict(Service(), "accuracy >= base - 0.01", measures=lambda who: known[who.version])
    assert (found.word, found.reasons[0].startswith("accuracy")) == (word, True)


def test_unknown_measures_wait():
    assert verdict(Service(), "accuracy >= 0.9").reasons == ["accuracy of version 8 (challenger) is not known yet."]


def test_a_good_version_is_rarely_stopped_however_often_it_is_looked_at():
    random, stopped = np.random.default_rng(0), 0
    for _ in range(200):
        failed = np.flatnonzero(random.random(5_000) < 0.01)
        stopped += any(evidence_above(k + 1, place + 1, 0.01) >= SURE for k, place in enumerate(failed))
    assert stopped / 200 <= 0.02


def test_evidence_has_no_overflow_and_no_surprise_at_the_ends():
    assert evidence_above(1e6, 1e6, 0.01) > SURE
    assert evidence_above(0, 1e6, 0.01) == 0
    assert evidence_above(1, 1e6, 0.0) == math.inf
    assert evidence_above(10, 10, 1.0) == 0
    assert evidence_above(100, 1e6, 0.01) < 1
