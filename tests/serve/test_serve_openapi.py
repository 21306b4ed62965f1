"""The OpenAPI document says the truth: what it allows is answered, what it forbids is refused, in its shape."""

import re
import subprocess

from serve_support import environment
from support import BIN


def test_schemathesis_finds_nothing(server, tmp_path):
    done = subprocess.run(
        [
            *(str(BIN / "schemathesis"), "run", f"http://127.0.0.1:{server.port}/docs.json"),
            *("--max-examples", "15", "--seed", "1", "--generation-database", "none", "--no-color"),
        ],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    (selected,), (tested,) = re.findall(r"Selected: (\d+)/", done.stdout), re.findall(r"Tested: (\d+)", done.stdout)
    assert int(tested) == int(selected) >= 5
    assert "Traceback" not in server.log.read_text()
