"""The files for Prometheus, Grafana and Filebeat, read by the programs that they are for."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
import yaml
from support import debian_program, free_port

from mlops_nb.serve.meter import FAMILIES
from mlops_nb.serve.observe import observation_files, write_observation

RECORD = {"age": 41, "account balance": 120.5, "married": True, "job": "clerk", "since": "2021-03-01"}


@pytest.fixture(scope="module")
def promtool():
    return debian_program("prometheus", "promtool")


def shown(name):
    """Names that a metric is asked for by."""
    family = next(family for family in FAMILIES if family.name == name)
    ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}[family.kind]
    return {name + end for end in ends}


def asked_for():
    """Every expression in the dashboard and the rules, with the metrics that it names."""
    files = observation_files()
    dashboard = json.loads(files["dashboard.json"])
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [rule for group in yaml.safe_load(files["rules.yml"])["groups"] for rule in group["rules"]]
    return targets + [rule["expr"] for rule in rules], {rule["record"] for rule in rules if "record" in rule}


def run(*words, cwd=None):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_configuration_and_rules_and_their_tests_pass(promtool, tmp_path):
    write_observation(tmp_path)
    assert "valid prometheus config file" in run(promtool, "check", "config", tmp_path / "prometheus.yml")
    assert "SUCCESS" in run(promtool, "check", "rules", tmp_path / "rules.yml")
    assert "SUCCESS" in run(promtool, "test", "rules", "rules.test.yml", cwd=tmp_path)


def test_promtool_accepts_what_a_server_says(promtool, server):
    server.ask("/predict", RECORD)
    text = server.ask("/metrics").text
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_dashboard_and_rules_ask_for_what_there_is():
    expressions, recorded = asked_for()
    known = recorded | {name for family in FAMILIES for name in shown(family.name)}
    named = {name for expression in expressions for name in re.findall(r"\bmlops_nb[a-zA-Z0-9_:]+", expression)}
    assert named - {"mlops_nb"} <= known
    alerts = set(re.findall(r"alert: (\w+)", observation_files()["rules.yml"]))
    tested = set(re.findall(r"alertname: (\w+)", observation_files()["rules.test.yml"]))
    assert {*tested, "MlopsNbLoopLags"} == alerts


def test_filebeat_reads_what_the_log_writes():
    import logging

    from mlops_nb.serve.journal import EcsFormatter

    (given,) = yaml.safe_load(observation_files()["filebeat.yml"])["filebeat.inputs"]
    (parser,) = given["parsers"]
    assert (given["type"], parser["ndjson"]["target"], parser["ndjson"]["expand_keys"]) == ("filestream", "", True)
    record = logging.LogRecord("demo", logging.INFO, "", 0, "said", None, None)
    document = json.loads(EcsFormatter("churn").format(record))
    assert document[parser["ndjson"]["message_key"]] == "said"


def test_a_real_prometheus_watches_a_real_service(server, promtool, tmp_path):
    prometheus, port = debian_program("prometheus", "prometheus"), free_port()
    write_observation(tmp_path, [f"127.0.0.1:{server.port}"])
    config = tmp_path / "prometheus.yml"
    config.write_text(config.read_text().replace("15s", "1s"))
    address = f"http://127.0.0.1:{port}"
    log = open(tmp_path / "log", "w")  # noqa: SIM115
    command = [prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)

    def query(expression):
        url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    def until(expression, enough):
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            server.ask("/predict", RECORD)
            try:
                if (found := query(expression)) and enough(float(found[0]["value"][1])):
                    return found[0]["metric"]
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        raise AssertionError(f"{expression}: {query(expression)}\n{(tmp_path / 'log').read_text()[-2000:]}")

    try:
        until("up", lambda value: value == 1)
        seen = until('mlops_nb_requests_total{route="/predict",status="200"}', lambda value: value >= 1)
        assert (seen["model"], seen["version"], seen["arm"], seen["job"]) == ("churn", "1", "champion", "mlops_nb")
        until("mlops_nb_workers", lambda value: value == 1)
        until("mlops_nb:predictions:rate5m", lambda value: value > 0)
        for expression in asked_for()[0]:  # an expression that cannot be read is an HTTP error
            plain = expression.replace("$__rate_interval", "1m").replace("[$", "[").replace('"$job"', '".*"')
            query(plain.replace('"$instance"', '".*"').replace('"$model"', '".*"'))
        assert query('ALERTS{alertstate="firing"}') == []
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def test_the_command_writes_them_and_says_what_for(tmp_path):
    from support import BIN

    said = run(BIN / "mlops-nb", "observe", "-o", tmp_path / "ops", "--target", "10.0.0.5:3000", "--json")
    assert {path.rpartition("/")[2] for path in json.loads(said)["files"]} == {*observation_files()}
    assert "- 10.0.0.5:3000" in (tmp_path / "ops" / "prometheus.yml").read_text()
    done = subprocess.run(
        [str(BIN / "mlops-nb"), "observe", "--target", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "HOST:PORT" in done.stderr and not (tmp_path / "monitoring").exists()
