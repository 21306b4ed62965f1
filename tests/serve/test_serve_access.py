"""A service that asks everybody who it is: keys, tokens, limits, audit, TLS and headers, on one real server."""

import base64
import hmac
import http.client
import json
import socket
import ssl
import subprocess
import time

import pytest
from access_support import AUDIENCE, MAKERS, Issuer, certificate, ring_of
from joserfc import jws
from serve_support import environment, make_project, release, serving
from support import debian_program

from mlops_nb import Client, ServiceError

RECORD = {"age": 41, "account balance": 120.5, "married": True, "job": "clerk", "since": "2021-03-01"}
pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
PROMISE = 5.0  # seconds within which a server knows of another key


@pytest.fixture(scope="module")
def issuer():
    issuer = Issuer()
    yield issuer
    issuer.stop()


@pytest.fixture(scope="module")
def project(tmp_path_factory, issuer):
    """A project whose service has two workers, speaks TLS, and lets in keys and the issuer's tokens."""
    project = make_project(tmp_path_factory.mktemp("access") / "project")
    release(project)
    certificate(project)
    with open(project / "settings.ini", "a") as settings:
        settings.write(
            f"[serving]\nworkers = 2\ntls_certificate = server.pem\ntls_key = server.key\n"
            f"[access]\nmode = on\nissuer = {issuer.address}\naudience = {AUDIENCE}\nfailures = 600\nleeway = 5\n"
        )
    return project


@pytest.fixture(scope="module")
def keys(project):
    """Keys by what they are for."""
    ring = ring_of(project)
    scopes = {
        "predictor": ("predict", "explain"),
        "plain": ("predict",),
        "watcher": ("metrics",),
        "admin": ("predict", "explain", "feedback", "metrics", "release", "admin"),
    }
    made = {name: ring.create(name, its)[0] for name, its in scopes.items()}
    return {**made, "eager": ring.create("eager", ("predict",), rate="8/m")[0]}


@pytest.fixture(scope="module")
def server(project, keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    trusted = ssl.create_default_context(cafile=project / "server.pem")
    with serving(project, folder / "server.log", environment(folder / "home"), tls=trusted) as running:
        yield running


def ask(server, credential, path="/predict", body=RECORD, method=None, **headers):
    """One request; on a connection of its own, so that any worker may answer."""
    sent = {**server.headers, **({"authorization": f"Bearer {credential}"} if credential else {}), **headers}
    return server.ask(path, body, method, headers=sent)


def refused(answer, status, *words):
    """The problem that refuses; it says these words, and nothing of the model."""
    assert answer.status == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json) == {"title", "status", "detail", "errors", "request_id"}
    for word in words:
        assert word in answer.json["detail"]
    assert "churn" not in answer.text and "age" not in answer.json["detail"].split()
    return answer


def audited(project, request):
    """What the audit says about a request."""
    found = [one for one in ring_of(project).events.read("access") if one["details"].get("request") == request]
    assert len(found) == 1, found
    return {"who": found[0]["who"], **found[0]["details"]}


def test_tokens_of_the_issuer(server, issuer):
    for algorithm in MAKERS:
        assert ask(server, issuer.token(algorithm)).status == 200
    refused(ask(server, issuer.token(), "/metrics", None), 403, "'metrics'", "token:mia")
    assert ask(server, issuer.token(scope="metrics openid"), "/metrics", None).status == 200
    assert ask(server, issuer.token(aud=["other", AUDIENCE])).status == 200
    assert ask(server, issuer.token(header={"typ": "at+jwt"})).status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", RECORD),
        ("/models/churn/predict", RECORD),
        ("/predict", None),
        ("/schema", None),
        ("/models", None),
        ("/docs.json", None),
        ("/metrics", None),
        ("/schema.json", None),
        ("/static_content/index.css", None),
        ("/nothing", None),
        ("/models/other/predict", RECORD),
    ],
)
def test_nothing_without_a_key_not_even_what_there_is(server, path, body):
    answer = refused(ask(server, "", path, body), 401, "Authorization: Bearer KEY", "X-API-Key")
    assert answer.headers["www-authenticate"] == 'Bearer realm="mlops_nb"'


def test_health_is_open_and_says_nothing_else(server):
    assert [server.ask(path).status for path in ("/livez", "/healthz", "/readyz")] == [200] * 3
    assert server.ask("/readyz").json == {"status": "ready"}


def test_the_python_client_brings_its_key_over_tls(server, keys, project, monkeypatch):
    url, ca = f"https://127.0.0.1:{server.port}", project / "server.pem"
    monkeypatch.setenv("CHURN_KEY", keys["plain"])
    with Client(url, "env:CHURN_KEY", ca=ca) as client:
        assert client.predict(RECORD).prediction in ("no", "yes")
        with pytest.raises(ServiceError, match="explain") as refused:
            client.predict(RECORD, explain=1)
    assert (refused.value.status, refused.value.attempts) == (403, 1)
    with Client(url, ca=ca) as stranger, pytest.raises(ServiceError, match="→ Give the client a key") as refused:
        stranger.predict(RECORD)
    assert refused.value.status == 401


def test_a_key_in_either_header(server, keys):
    assert ask(server, keys["plain"]).json["prediction"] in ("no", "yes")
    assert ask(server, "", **{"x-api-key": keys["plain"]}).status == 200
    assert ask(server, "", authorization=f"bearer   {keys['plain']} ").status == 200
    assert ask(server, "", authorization="Basic bWlhOjE=").status == 401
    assert ask(server, keys["plain"], "/nothing").status == 404


def test_a_key_opens_its_scopes_and_no_others(server, project, keys):
    answer = refused(ask(server, keys["watcher"], **{"x-request-id": "scope-1"}), 403, "'predict'", "watcher")
    assert 'error="insufficient_scope", scope="predict"' in answer.headers["www-authenticate"]
    facts = audited(project, "scope-1")
    assert (facts["who"], facts["status"], facts["scope"], facts["client"]) == ("watcher", 403, "predict", "127.0.0.1")
    assert ask(server, keys["watcher"], "/metrics", None).status == 200
    refused(ask(server, keys["plain"], "/metrics", None), 403, "'metrics'")
    refused(ask(server, keys["plain"], "/predict?explain=2"), 403, "'explain'")
    assert ask(server, keys["predictor"], "/predict?explain=2").status == 200


def test_servers_follow_the_file_of_keys(server, project, keys):
    ring = ring_of(project)
    time.sleep(0.3)
    text, _ = ring.create("late", ("predict",))
    assert [ask(server, text).status for _ in range(8)] == [200] * 8, "a key that was just made is looked for at once"
    ring.revoke("late", "laptop stolen")
    until(lambda: ask(server, text).status, 401)
    refused(ask(server, text, **{"x-request-id": "late-1"}), 401)
    assert (audited(project, "late-1")["who"], audited(project, "late-1")["kind"]) == ("late", "a key that is revoked")
    assert ask(server, keys["plain"]).status == 200


def until(what, wanted):
    """Wait until every worker says so, eight times in a row, and no longer than is promised."""
    end, row = time.monotonic() + PROMISE, 0
    while row < 8:
        assert time.monotonic() < end + 1
        time.sleep(0.05)
        row = row + 1 if what() == wanted else 0


def test_a_caller_who_asks_too_often_is_told_when_to_come_back(server, keys):
    statuses = [ask(server, keys["eager"]).status for _ in range(30)]
    assert 4 <= statuses.count(200) <= 10 and set(statuses) == {
        200,
        429,
    }  # four for each worker, and what comes meanwhile
    answer = refused(ask(server, keys["eager"]), 429, "eager asked more often than 8/m")
    assert 1 <= int(answer.headers["retry-after"]) <= 15
    assert answer.headers["ratelimit-policy"] == '"caller";q=4;w=60'
    assert answer.headers["ratelimit"].startswith('"caller";r=0;t=')


def test_an_issuer_that_changes_its_keys(server, issuer):
    kid = issuer.rotate("ES256", "spring")
    token = issuer.token(header={"kid": kid})
    end = time.monotonic() + 11  # the keys were fetched with the first token: at most once in ten seconds
    while (status := ask(server, token).status) == 401 and time.monotonic() < end:
        time.sleep(0.5)
    assert status == 200
    asked = issuer.asked
    for number in range(30):
        assert (
            ask(server, issuer.token(header={"kid": f"invented-{number}"}, key=issuer.keys["ES256", kid])).status == 401
        )
    assert issuer.asked - asked <= 8  # two documents, two workers, at most once in ten seconds


def encoded(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def by_public_key(issuer):
    """HS256, signed with the text of the issuer's public RSA key: a check that lets the token choose takes it."""
    claims = {**issuer.claims, "exp": int(time.time()) + 300}
    text = f"{encoded({'alg': 'HS256', 'kid': 'rs256'})}.{encoded(claims)}"
    mac = hmac.digest(issuer.keys["RS256", "rs256"].as_pem(private=False), text.encode(), "sha256")
    return f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def good_key(issuer):
    return issuer.keys["ES256", "es256"]


def named(issuer, kid, **header):
    """Signed with a good key that the token calls otherwise."""
    head, claims = {"kid": kid, **header}, {**issuer.claims, "exp": int(time.time()) + 300}
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    payload = json.dumps(claims)
    return jws.serialize_compact({"alg": "ES256", **head}, payload, good_key(issuer), registry=registry)


HOSTILE = {
    "expired": lambda issuer: issuer.token(exp=int(time.time()) - 60),
    "without an end": lambda issuer: issuer.token(exp=None),
    "an end that is no number": lambda issuer: issuer.token(exp="tomorrow"),
    "an endless end": lambda issuer: issuer.token(exp=float("inf")),
    "not yet": lambda issuer: issuer.token(nbf=int(time.time()) + 600),
    "from the future": lambda issuer: issuer.token(iat=int(time.time()) + 600),
    "another audience": lambda issuer: issuer.token(aud="other"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "another issuer": lambda issuer: issuer.token(iss="https://login.example.com"),
    "nobody": lambda issuer: issuer.token(sub=None),
    "a foreign key": lambda issuer: issuer.token(key=MAKERS["ES256"]("es256")),
    "no algorithm": lambda issuer: f"{encoded({'alg': 'none'})}.{encoded({**issuer.claims, 'exp': 2**40})}.",
    "HS256 by the public key": by_public_key,
    "another algorithm than the key's": lambda issuer: issuer.token(
        "ES256", {"kid": "rs256"}, issuer.keys["ES256", "es256"]
    ),
    "a key by its path": lambda issuer: issuer.token(
        header={"kid": "../../../../etc/passwd"}, key=issuer.keys["ES256", "es256"]
    ),
    "a key by its address": lambda issuer: issuer.token(
        header={
            "kid": "evil",
            "jku": f"{issuer.address}/keys",
            "jwk": issuer.keys["ES256", "es256"].as_dict(private=False),
        },
        key=issuer.keys["ES256", "es256"],
    ),
    "a token for logging out": lambda issuer: issuer.token(header={"typ": "logout+jwt"}),
    "a deep header": lambda issuer: f"{base64.urlsafe_b64encode(b'[' * 3000).decode()}.e30.x",
    "no JSON": lambda issuer: "a.b.c",
    "five parts": lambda issuer: "a.b.c.d.e",
    "a key of ours that is none": lambda issuer: "mnb_00000000_" + "0" * 43,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_tokens_are_all_told_the_same(server, project, issuer, what):
    name = what.replace(" ", "-").replace("'", "")
    answer = refused(ask(server, HOSTILE[what](issuer), **{"x-request-id": name}), 401)
    assert answer.json["detail"] == "The key or token is not valid. Ask whoever runs this service for one."
    assert answer.headers["www-authenticate"] == 'Bearer realm="mlops_nb", error="invalid_token"'
    assert audited(project, name)["kind"]


@pytest.mark.parametrize("size", [9_000, 60_000, 100_000, 1_000_000])
def test_a_header_of_any_length(server, keys, size):
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=server.tls)
    try:
        connection.request("GET", "/schema", headers={"authorization": f"Bearer {'x' * size}"})
        status = connection.getresponse().status
    except (ConnectionError, http.client.RemoteDisconnected, ssl.SSLError):
        status = 400  # the server hung up in the middle of it
    finally:
        connection.close()
    assert status in (400, 431)
    assert ask(server, keys["plain"]).status == 200


def test_who_is_refused_hears_it_whatever_is_still_to_be_sent(server, keys):
    answer = refused(ask(server, "", body=b"x" * 900_000), 401)
    assert answer.headers["www-authenticate"]
    refused(ask(server, keys["watcher"], body=b"x" * 900_000), 403)
    assert (
        ask(server, keys["plain"], "//predict").status
        == ask(server, keys["plain"], "/static_content/../metrics", None).status
        == 404
    )
    refused(ask(server, keys["watcher"], "/%70redict"), 403, "'predict'")
    refused(ask(server, keys["watcher"], "/schema.json", None), 403, "'predict'")


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/predict", "plain", 200),
        ("/predict", "", 401),
        ("/predict", "watcher", 403),
        ("/nothing", "plain", 404),
        ("/schema", "plain", 405),
        ("/schema.json", "plain", 405),
    ],
)
def test_every_answer_carries_the_headers(server, keys, path, key, status):
    answer = ask(server, keys.get(key, ""), path)
    assert answer.status == status
    headers = {name.lower(): value for name, value in answer.headers.items()}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["strict-transport-security"] == "max-age=31536000"
    assert "server" not in headers


def test_the_document_says_what_to_send(server, keys):
    document = ask(server, keys["plain"], "/docs.json", None).json
    assert set(document["components"]["securitySchemes"]) == {"key", "bearer"}
    assert {"401", "403", "429"} <= set(document["paths"]["/predict"]["post"]["responses"])
    assert "security" not in document["paths"]["/livez"]["get"]


def typed(server, *lines):
    """The status line that answers what no client library would send."""
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    with plain, server.tls.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
        secure.sendall("\r\n".join([*lines, "host: x", "", ""]).encode("latin-1"))
        return secure.recv(4000).partition(b"\r\n")[0].decode()


def test_no_websocket(server):
    upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13")
    key = base64.b64encode(b"0" * 16).decode()
    assert typed(server, "GET /predict HTTP/1.1", *upgrade, f"sec-websocket-key: {key}").endswith("401 Unauthorized")


def test_what_no_client_library_would_send(server, keys):
    get, good = "GET /schema HTTP/1.1", f"Bearer {keys['plain']}"
    assert typed(server, get, f"authorization: {good}").endswith("200 OK")
    for lines in (
        (f"authorization: {good}", "authorization: Bearer x"),  # one in front of us may look at the other
        ("authorization: Bearer x", f"authorization: {good}"),
        (f"authorization: {good}, {good}",),
        (f"authorization: Bearer\t{keys['plain']}",),
        ("authorization: Bearer \xff\xfe",),
        tuple(f"x-{number}: y" for number in range(5000)),
        ("x-api-key: a",) * 3000,
    ):
        assert typed(server, get, *lines).endswith(("401 Unauthorized", "431 Request Header Fields Too Large"))
    assert typed(server, f"GET /schema?api_key={keys['plain']} HTTP/1.1").endswith("401 Unauthorized")
    assert typed(server, "GET https://evil.example/schema HTTP/1.1").endswith("401 Unauthorized")
    assert typed(server, "GET /metrics%00 HTTP/1.1").endswith("401 Unauthorized")


def agreed(server, project, **wanted):
    """Version and suite that a client and the server agree on; empty when there is none."""
    client = ssl.create_default_context(cafile=project / "server.pem")
    client.minimum_version = ssl.TLSVersion.TLSv1_2 if "ciphers" in wanted else ssl.TLSVersion.MINIMUM_SUPPORTED
    client.maximum_version = wanted.get("version", ssl.TLSVersion.MAXIMUM_SUPPORTED)
    client.set_ciphers(f"{wanted.get('ciphers', 'ALL')}:@SECLEVEL=0")
    try:
        plain = socket.create_connection(("127.0.0.1", server.port))
        with plain, client.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            return f"{secure.version()} {secure.cipher()[0]}"
    except (ssl.SSLError, ConnectionError):
        return ""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_only_strong_tls(server, project):
    assert agreed(server, project).startswith("TLSv1.3 ")
    assert agreed(server, project, version=ssl.TLSVersion.TLSv1_2).startswith("TLSv1.2 ECDHE-")
    assert agreed(server, project, version=ssl.TLSVersion.TLSv1_1) == ""
    for weak in ("ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "AES128-SHA", "NULL"):
        assert agreed(server, project, version=ssl.TLSVersion.TLSv1_2, ciphers=weak) == ""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain:
        plain.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP/1.1 200")


def test_openssl_agrees(server, project):
    program = debian_program("openssl", "openssl")
    for words, good in (
        (["-tls1_3"], True),
        (["-tls1_2"], True),
        (["-tls1_1"], False),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384:AES256-SHA:@SECLEVEL=0"], False),
    ):
        command = [
            program,
            "s_client",
            "-connect",
            f"127.0.0.1:{server.port}",
            "-CAfile",
            str(project / "server.pem"),
        ]
        done = subprocess.run([*command, *words], input="", capture_output=True, text=True, timeout=20, check=False)
        assert ("Verify return code: 0 (ok)" in done.stdout and "Cipher is (NONE)" not in done.stdout) is good, words


def test_no_secret_is_written_anywhere(server, project, keys, issuer):
    token = issuer.token(sub="nobody")
    ask(server, keys["plain"], "/metrics", None)
    ask(server, token)
    files = [path for path in project.rglob("*") if path.is_file()] + [server.log]
    for secret in (*keys.values(), token):
        assert not [path for path in files if secret.rpartition("_")[2].encode() in path.read_bytes()]
    modes = {path.name: path.stat().st_mode & 0o777 for path in files}
    assert (modes["keys.json"], modes["serving.jsonl"]) == (0o600, 0o600)
    assert "Traceback" not in server.log.read_text()
