"""Secrets planted wherever one may lie are in no file of the workspace, however it is packed."""

import base64
import bz2
import gzip
import io
import lzma
import re
import signal
import subprocess
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as parquet
import pytest
from support import Project
from track_support import new_project, parts, write_step

GIVEN, MOUNTED, FOUND = "c4n4ry/given w0rd", "c4n4ry-m0unted-w0rd", "c4n4ry-f0und-t0ken"
IN_URL = "c4n4ry-url-p4ss"
SECRETS = (GIVEN, MOUNTED, FOUND, IN_URL)
IMPORTS = "from mlops_nb import Secret"
PARAMETERS = """#| parameters
password: Secret = "env:SERVICE_WORD"  # of the service
mounted: Secret = "file:token.txt"  # as a platform mounts it
comment: str = ""  # anything
"""
OUTPUTS = """
import logging, os, subprocess, sys, warnings
from IPython.display import HTML, JSON, display
from mlops_nb import Figure, Metrics, Report, Table, flow, log, note, secret
given, kept = secret(password), secret(mounted)
print(given, kept, os.environ["SOME_API_KEY"], os.environ["SHOP_URL"])
print(given, file=sys.stderr)
print(repr(dict(os.environ)))
print((given + "\\n") * 300_000)
logging.warning("cannot log in with %s", given)
warnings.warn(f"{kept} is old")
subprocess.run(["echo", given])
os.write(1, kept.encode())
os.write(2, given.encode())
display(HTML(f"<b>{given}</b>"), JSON({"token": [kept]}), {"text/latex": given})
log(loss=0.5)
note(f"the service refused {given}", kept)
"""
GIVES = """
flow.metrics = Metrics({"auc": 0.9})
flow.rows = {"a": 1}
"""
WITHIN = """
def connect(word, token):
    try:
        raise ConnectionError(f"401 for {word}")
    except ConnectionError as error:
        raise RuntimeError({"word": word, "token": token}) from error

connect(given, kept)
"""
KILLED = """
import os, signal
print("before the end", given, flush=True)
os.kill(os.getpid(), signal.SIGSEGV)
"""
OWN = """
import wandb
wandb.init()
print(given)
wandb.log({"loss": 0.5})
"""


def forms(secret: str) -> set[bytes]:
    """A secret as it may stand in a file."""
    plain = {secret, quote(secret, safe=""), secret[::-1]}
    coded = {base64.b64encode(secret.encode()[start:])[4:-4].decode() for start in range(3)}
    return {form.encode() for form in plain | {form for form in coded if len(form) > 7}}


def unpacked(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's bytes and what is packed in them."""
    yield name, data
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            for member in packed.namelist():
                yield from unpacked(f"{name}!{member}", packed.read(member))
    for magic, opened in ((b"\x1f\x8b", gzip.decompress), (b"BZh", bz2.decompress), (b"\xfd7zXZ", lzma.decompress)):
        if data.startswith(magic):
            yield from unpacked(f"{name}!", opened(data))
    if data[:4] == b"PAR1":
        yield f"{name}!", repr(parquet.read_table(io.BytesIO(data)).to_pydict()).encode()
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", data[:1_000_000]):
        packed = zlib.decompressobj()
        try:
            yield f"{name}!{match.start()}", packed.decompress(data[match.start() :], 1_000_000)
        except zlib.error:
            continue


def leaks(folder: Path) -> list[str]:
    """Files below a folder in which a planted secret stands."""
    wanted = {form for secret in SECRETS for form in forms(secret)}
    return [
        f"{name}: {form.decode()}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for name, data in unpacked(str(path.relative_to(folder)), path.read_bytes())
        for form in wanted
        if form in data or form.decode().encode("utf-16-le") in data
    ]


def stop_while_it_sleeps(project: Project, number: int, planted: dict[str, str]) -> None:
    """Start a run whose step prints secrets and sleeps, and end its runner by a signal."""
    write_step(project, "stopped", "10_train", IMPORTS, PARAMETERS, OUTPUTS, f"import time\ntime.sleep(60 + {number})")
    known = set(project.workspace.glob("attempts/*/*/points.ndjson"))
    runner = subprocess.Popen(
        [str(project.binaries / "mlops-nb"), "run", "stopped"],
        cwd=project.folder,
        env={**project.environment, **planted},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while known == set(project.workspace.glob("attempts/*/*/points.ndjson")):
        assert runner.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)  # what follows in the cell
    runner.send_signal(number)
    assert runner.wait(60)


def test_the_search_finds_what_is_packed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("member", gzip.compress(GIVEN.encode()))
    (tmp_path / "b.html").write_bytes(b"data:" + base64.b64encode(b"<svg>" + FOUND.encode() + b"</svg>"))
    (tmp_path / "c.bin").write_bytes(b"head" + zlib.compress(MOUNTED.encode()))
    assert {leak.split(":")[0].split("!")[0] for leak in leaks(tmp_path)} == {"a.zip", "b.html", "c.bin"}


@pytest.mark.parametrize("engine", ["fork", "kernel"])
def test_no_file_of_the_workspace_holds_a_secret(tmp_path, engine):
    words = "share = metrics, parameters, reports, tables, models, files"
    project = new_project(tmp_path, f"[tracking]\n{words}\n[pipeline]\nengine = {engine}\n")
    (project.folder / "token.txt").write_text(MOUNTED + "\n")
    planted = {"SERVICE_WORD": GIVEN, "SOME_API_KEY": FOUND, "WANDB_API_KEY": FOUND, "SHOP_URL": f"db://u:{IN_URL}@h/"}
    write_step(project, "good", "10_train", IMPORTS, PARAMETERS, OUTPUTS, GIVES)
    write_step(project, "raise", "10_train", IMPORTS, PARAMETERS, OUTPUTS, WITHIN)
    write_step(project, "killed", "10_train", IMPORTS, PARAMETERS, OUTPUTS, KILLED)
    write_step(project, "own", "10_train", IMPORTS, PARAMETERS, OUTPUTS, OWN)
    argument = f"train.comment=with {FOUND} and db://u:{IN_URL}@host/x"
    ends = {"good": 0, "raise": 1, "killed": 1, "own": 0} if engine == "fork" else {"raise": 1}
    for pipeline, code in ends.items():
        done = project.call("mlops-nb", "run", pipeline, "-p", argument, **planted)
        assert done.returncode == code, done.stderr
        assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
        run = project.json("show", "latest", **planted)["run"]
        assert parts(project, run, "train")
    if engine == "fork":
        project.call("mlops-nb", "run", "good", "--sweep", "train.comment=a,b", "--force", **planted)
    for number in (signal.SIGKILL, signal.SIGINT):
        stop_while_it_sleeps(project, number, planted)
    project.call("mlops-nb", "run", "good", **planted)  # meets what the killed one has left
    found = leaks(project.workspace)
    assert not found, "\n".join(found)
