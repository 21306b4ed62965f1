"""Limits, headers, keys and tokens hold for whatever is thrown at them; and who may be reached by whom."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from access_support import AUDIENCE, MAKERS, Issuer, certificate, ring_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_support import environment, make_project, release
from support import free_port

from mlops_nb.core.errors import MlopsError, UsageError
from mlops_nb.core.settings import load_settings
from mlops_nb.serve.access import MOST, Access, access_of, credential_of
from mlops_nb.serve.app import App
from mlops_nb.serve.call import Caller
from mlops_nb.serve.events import BoundedEvents, ServingEvents
from mlops_nb.serve.keys import KeyFile, keys_path, make_key, read_keys, write_keys
from mlops_nb.serve.limits import Bucket, Buckets, Rate, network, read_rate
from mlops_nb.serve.problem import Problem
from mlops_nb.serve.slots import Slots
from mlops_nb.serve.tokens import Unavailable, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(
    st.integers(1, 50),
    st.sampled_from([1, 60, 3600]),
    st.integers(1, 8),
    st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
)
@QUICK
def test_no_window_lets_through_more_than_was_agreed(count, seconds, workers, pauses):
    bucket, now, passed = Bucket(Rate(count, seconds), workers), 0.0, []
    for pause in pauses:
        now += pause
        wait = bucket.take(now)
        if not wait:
            passed.append(now)
        else:
            assert bucket.wait(now + wait * 1.000001 + 1e-9) == pytest.approx(0, abs=1e-6)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            window = passed[last] - passed[first]
            assert last - first + 1 <= max(1, count / workers) + window * count / seconds / workers + 1e-6


@given(st.integers(1, 100), st.integers(1, 8))
@QUICK
def test_workers_share_a_rate(count, workers):
    buckets = [Bucket(Rate(count, 60), workers) for _ in range(workers)]
    passed = sum(bucket.take(0.0) == 0 for bucket in buckets for _ in range(200))
    assert passed <= max(count, workers)


@given(st.text(max_size=20))
@QUICK
def test_a_rate_is_read_or_refused(text):
    try:
        rate = read_rate(text)
    except UsageError:
        return
    assert rate is None or read_rate(str(rate)) == rate


@given(st.text(max_size=60) | st.ip_addresses().map(str))
@QUICK
def test_any_address_has_a_network(client):
    assert isinstance(network(client), str)


def test_strangers_cannot_fill_the_memory():
    buckets = Buckets(Rate(1, 60), most=50)
    for number in range(1000):
        buckets.of(str(number), 0.0)
    assert len(buckets) == 50


@pytest.fixture(scope="module")
def issuer():
    issuer = Issuer()
    yield issuer
    issuer.stop()


@pytest.fixture
def project(tmp_path, issuer):
    """A project where access is on; nothing is released in it."""
    (tmp_path / "settings.ini").write_text(
        f"[access]\nmode = on\nissuer = {issuer.address}\naudience = {AUDIENCE}\nfailures = 5\n"
    )
    return tmp_path


def admit(access: Access, headers: dict, scope: str = "predict", client: str = "192.0.2.1"):
    """What a request is told: the caller, or the problem."""
    try:
        return asyncio.run(access.admit(headers, scope, client))
    except Problem as problem:
        return problem


HEADER = st.sampled_from([b"", b"Bearer", b"bearer ", b"Bearer  ", b"Basic ", b"Bearer mnb_", b"Bearer eyJ"])
SENT = st.builds(lambda head, tail: head + tail, HEADER, st.binary(max_size=80))


@given(st.dictionaries(st.sampled_from([b"authorization", b"x-api-key"]), SENT))
@QUICK
def test_whatever_is_sent_is_refused_in_words(headers):
    assert isinstance(credential_of(headers), bytes)
    told = admit(shared_access(), headers)
    assert isinstance(told, Problem) and told.status in (401, 429)


def shared_access(cache: dict = {}) -> Access:  # noqa: B006
    """One for all examples, whose issuer nobody reaches."""
    if not cache:
        settings = load_settings(os.devnull, {})
        access = settings.access._replace(mode="on", issuer="http://127.0.0.1:9", audience="x")
        bounded = BoundedEvents(ServingEvents(settings.project / "nowhere"))
        cache["it"] = Access(KeyFile(settings.project / "no-keys"), tokens_of(access), bounded, failures=3)
    return cache["it"]


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(deadline=None, max_examples=150)
def test_no_changed_token_is_taken_for_another(place, byte):
    tokens, good = changed_tokens()
    at = place % len(good)
    changed = good[:at] + bytes([byte]) + good[at + 1 :]
    try:
        bearer = asyncio.run(tokens.check(changed))
    except Exception as error:
        assert type(error).__name__ in ("Rejected", "Unavailable")
        return
    assert (bearer.name, bearer.scopes) == ("token:mia", {"predict"})  # bits of base64 that mean nothing


def changed_tokens(cache: dict = {}):  # noqa: B006
    if not cache:
        issuer = Issuer()
        access = load_settings(os.devnull, {}).access
        cache["it"] = tokens_of(access._replace(mode="on", issuer=issuer.address, audience=AUDIENCE))
        cache["good"] = issuer.token("RS256", exp=int(time.time()) + 10**6).encode()
        asyncio.run(cache["it"].issuer.fetch())
        issuer.stop()
    return cache["it"], cache["good"]


def test_an_address_that_was_wrong_too_often_waits_and_known_ones_beside_it_do_not(project, issuer):
    text, _ = ring_of(project).create("shop", ("predict",))
    access = access_of(load_settings(project, {}))
    known = {b"authorization": f"Bearer {issuer.token()}".encode()}
    assert isinstance(admit(access, known), Caller)
    wrong = {b"authorization": b"Bearer a.b.c"}
    told = [admit(access, wrong) for _ in range(9)]
    assert [problem.status for problem in told] == [401] * 5 + [429] * 4
    assert dict(told[-1].headers)[b"ratelimit-policy"] == b'"failures";q=5;w=60'
    assert 1 <= int(dict(told[-1].headers)[b"retry-after"]) <= 12
    assert admit(access, {b"x-api-key": text.encode()}).name == "shop"
    assert admit(access, known).name == "token:mia"
    fresh = {b"authorization": f"Bearer {issuer.token(sub='eve')}".encode()}
    assert admit(access, fresh).status == 429
    assert admit(access, fresh, client="192.0.2.2").name == "token:eve"


def test_a_worker_that_ends_tells_what_it_counted(project):
    access = access_of(load_settings(project, {}))

    async def lifespan(scope, receive, send):
        assert scope["type"] == "lifespan"

    for _ in range(500):
        assert admit(access, {}).status == 401
    asyncio.run(App(lifespan, Slots(), access=access)({"type": "lifespan"}, None, None))
    single = access.events.events.read("access.refused")
    counted = [one["details"]["total"] for one in single if one["event"].endswith(".more")]
    assert len(single) - len(counted) == 60 and sum(counted) == 440


def test_nobody_is_let_in_by_a_token_that_expired_since(project, issuer):
    access = access_of(load_settings(project, {"MLOPS_NB_ACCESS_LEEWAY": "0"}))
    headers = {b"authorization": f"Bearer {issuer.token(exp=int(time.time()) + 2)}".encode()}
    assert admit(access, headers).name == "token:mia"
    time.sleep(2.1)
    assert admit(access, headers).status == 401


def test_remembered_tokens_are_bounded_and_go_with_their_key(project, issuer):
    access = access_of(load_settings(project, {}))
    kid = issuer.rotate("ES256", "withdrawn")
    headers = {b"authorization": f"Bearer {issuer.token(header={'kid': kid})}".encode()}
    assert admit(access, headers).name == "token:mia"
    (remembered,) = access._tokens.values()
    for number in range(MOST + 10):
        access._tokens[b"%d" % number] = remembered
        access._remember(
            b"%d" % number, asyncio.run(access.tokens.check(headers[b"authorization"][7:]))
        ) if number > MOST else None
    assert len(access._tokens) <= MOST + 1
    del issuer.keys["ES256", kid]
    access.tokens.issuer._tried = -1e9
    asyncio.run(access.tokens.issuer.fetch())
    assert access._tokens == {}
    assert admit(access, headers).status == 401


def test_many_requests_wait_for_one_fetch(project, issuer):
    tokens = tokens_of(load_settings(project, {}).access)
    text, asked = issuer.token().encode(), issuer.asked

    async def many():
        return await asyncio.gather(*(tokens.check(text) for _ in range(50)))

    assert {bearer.name for bearer in asyncio.run(many())} == {"token:mia"}
    assert issuer.asked - asked == 2  # discovery, keys


def test_an_issuer_that_is_down_then_up(project):
    late = Issuer()
    late.stop()
    access = load_settings(project, {"MLOPS_NB_ACCESS_ISSUER": late.address}).access
    tokens = tokens_of(access)
    with pytest.raises(Unavailable):
        asyncio.run(tokens.check(late.token().encode()))
    with pytest.raises(UsageError, match="no audience"):
        tokens_of(access._replace(audience=""))


def test_keys_made_at_once_are_all_there(project):
    ring = ring_of(project)
    threads = [threading.Thread(target=ring.create, args=(f"key-{n}", ("predict",))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = keys_path(load_settings(project, {}))
    assert len(read_keys(path)) == len({key.prefix for key in read_keys(path)}) == 12
    assert [entry.name for entry in path.parent.iterdir() if entry.name.endswith(".tmp")] == []


def test_a_key_that_cannot_be_audited_is_not_made(project):
    (project / ".mlops").mkdir()
    (project / ".mlops/audit").write_text("in the way")
    with pytest.raises(MlopsError, match="cannot be written"):
        ring_of(project).create("shop", ("predict",))
    assert not keys_path(load_settings(project, {})).exists()


DAMAGE = {
    "no JSON": lambda path: path.write_text("{"),
    "a hash that is none": lambda path: path.write_text(path.read_text().replace('"sha256": "', '"sha256": "z')),
    "a scope that is none": lambda path: path.write_text(path.read_text().replace('"predict"', '"root"')),
    "a moment that is none": lambda path: path.write_text(path.read_text().replace('"expires": null', '"expires": 7')),
    "for all to write": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_of_keys(project, what):
    text, _ = ring_of(project).create("shop", ("predict",))
    settings = load_settings(project, {})
    access = access_of(settings)
    DAMAGE[what](keys_path(settings))
    with pytest.raises(MlopsError, match="API keys"):
        access_of(settings)
    access._due = 0.0
    assert admit(access, {b"x-api-key": text.encode()}).name == "shop", "a running server keeps the keys it knew"
    kinds = [one["details"]["kind"] for one in access.events.events.read("access.keys")]
    assert kinds == ["damaged", "followed"]


SETTINGS = {
    "rate = fast": "rate is 'fast'",
    "issuer = http://login.example.com": "issuer is 'http://login",
    "issuer = https://login.example.com": "no audience",
    "roles = ml-team = operater\nissuer = https://a.example\naudience = x": "Did you mean 'operator'",
    "algorithms =\nissuer = https://a.example\naudience = x": "algorithms is empty",
    "algorithms = HS256": "algorithms is 'HS256'",
}


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_that_cannot_work_are_said_at_the_start(tmp_path, text):
    (tmp_path / "settings.ini").write_text(f"[access]\nmode = on\n{text}\n")
    with pytest.raises(MlopsError) as told:
        access_of(load_settings(tmp_path, {}))
    assert SETTINGS[text] in str(told.value)


def run(project, home, *words, **extra):
    """A command of BentoML, to its end; what it printed, and its exit code."""
    command = [sys.executable, *words]
    env = environment(home, **extra)
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("--host", "0.0.0.0"), {}),
        ((), {"BENTOML_HOST": "::"}),
        ((), {"BENTOML_CONTAINERIZED": "true"}),
        ((), {"BENTOML_CONFIG_OPTIONS": 'services.churn.http.host="0.0.0.0"'}),
    ],
)
def test_it_does_not_start_where_others_reach_it(tmp_path, served_project, words, extra):
    serve = ("-m", "bentoml", "serve", "--port", str(free_port()), *words)
    code, text = run(served_project, tmp_path / "home", *serve, **extra)
    assert code == 1 and "asks nobody for a key" in text and "[access] open = true" in text


BY_PROGRAM = """
import sys
from mlops_nb.serve.service import Service
Service.serve_http(host="0.0.0.0", port=int(sys.argv[1]))
"""


def test_a_worker_asks_its_own_socket(tmp_path, served_project):
    code, text = run(served_project, tmp_path / "home", "-c", BY_PROGRAM, str(free_port()))
    assert code == 1 and "asks nobody for a key" in text


def test_a_key_that_somebody_wrote_into_the_file_is_audited(project):
    access = access_of(load_settings(project, {}))
    text, key = make_key("mallory", ("admin",))
    write_keys(access.keys.path, [key])
    access._due = 0.0
    assert admit(access, {b"x-api-key": text.encode()}, "admin").name == "mallory"
    told = access.events.events.read("access.keys")[-1]["details"]
    assert (told["added"], told["ended"]) == (["mallory"], [])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tls_certificate = nowhere.pem", "cannot be read"),
        ("tls_key = server.key", "no certificate"),
        ("tls_certificate = server.pem\ntls_key = settings.ini", "cannot be used"),
    ],
)
def test_tls_that_cannot_work_is_said_at_the_start(tmp_path, monkeypatch, line, words):
    from mlops_nb.serve.service import StartError, make_service

    project = make_project(tmp_path / "project")
    release(project)
    certificate(project)
    with open(project / "settings.ini", "a") as settings:
        settings.write(f"[serving]\n{line}\n")
    monkeypatch.chdir(project)
    with pytest.raises(StartError, match=words):
        make_service().inject_config()


def test_the_command_line_and_the_server_agree(project, issuer):
    env = environment(project / "home")
    say = [sys.executable, "-m", "mlops_nb", "access"]

    def call(*words, given=None):
        done = subprocess.run(
            [*say, *words, "--json"], cwd=project, env=env, input=given, capture_output=True, text=True, timeout=60
        )
        return done.returncode, json.loads(done.stdout)

    code, made = call("create", "shop", "--role", "predictor", "--expires", "90d", "--rate", "100/s")
    access = access_of(load_settings(project, {}))
    assert (code, admit(access, {b"x-api-key": made["key"].encode()}).name) == (0, "shop")
    code, checked = call("check", "-", given=issuer.token() + "\n")
    assert (code, checked["name"], checked["scopes"]) == (0, "token:mia", ["predict"])
    code, checked = call("check", issuer.token(aud="other"))
    assert (code, checked["valid"]) == (3, False) and "aud" in checked["reason"]
    told = [(one["event"], one["details"]["name"]) for one in access.events.events.read("access")]
    assert told == [("access.key.created", "shop"), ("access.checked", "token:mia"), ("access.checked", "")]


def test_every_algorithm_is_tried_by_a_test():
    assert set(MAKERS) == set(load_settings(os.devnull, {}).access.algorithms)
