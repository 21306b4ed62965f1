"""The audit of a server stays bounded, and loses no line while it is put aside under the hands of those who write."""

import json
import threading

from mlops_nb.serve import events
from mlops_nb.serve.events import ServingEvents, append_line, files_aside


def test_no_line_is_lost_or_doubled_while_files_are_put_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "KEPT", 10_000)
    path = tmp_path / "serving.jsonl"

    def write(worker):
        for number in range(150):
            append_line(path, json.dumps({"event": "a", "worker": worker, "number": number}).encode(), most=700)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted((one["worker"], one["number"]) for one in ServingEvents(path).read())
    assert found == [(worker, number) for worker in range(4) for number in range(150)]
    assert len(files_aside(path)) > 10 and max(one.stat().st_size for one in files_aside(path)) < 800


def test_the_audit_stays_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "FULL", 2_000)
    audit = ServingEvents(tmp_path / "audit" / "serving.jsonl")
    for number in range(400):
        audit.add("access.refused", "shop", durable=False, status=403, number=number)
    files = [*files_aside(audit.path), audit.path]
    assert len(files) == events.KEPT + 1 and sum(one.stat().st_size for one in files) < 12 * 2_200
    numbers = [one["details"]["number"] for one in audit.read("access")]
    assert numbers == list(range(numbers[0], 400)), "the newest, in their order"
    assert {one.stat().st_mode & 0o777 for one in files} == {0o600}
