"""Execution of steps with real kernels: ends, saves, secrets, orphans."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from step_files import text_of, write_notebook

from mlops_nb.core.errors import StorageError
from mlops_nb.notebook import client, saving
from mlops_nb.notebook.engine import execute_step
from mlops_nb.notebook.fork import client as fork_client
from mlops_nb.notebook.fork.execution import own_templates
from mlops_nb.notebook.spares import spares

RUNNER = """
import sys
from mlops_nb.notebook.engine import execute_step
try:
    execute_step(sys.argv[1], sys.argv[2], {}, cwd=".")
except KeyboardInterrupt:
    sys.exit(130)
"""

RUNNER_OF = {name: RUNNER.replace('cwd="."', f'cwd=".", engine="{name}"') for name in ("fork", "kernel")}


@pytest.fixture(autouse=True)
def private_jupyter(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))


@pytest.fixture(params=["fork", "kernel"])
def engine(request):
    """Every test that runs a step does so in a forked kernel and in an ordinary one."""
    return request.param


@pytest.fixture
def run(tmp_path, engine):
    """Execute cells as a step; result and executed notebook."""

    def execute(*cells, parameters=None, **options):
        options = {"engine": engine, **options}
        path = write_notebook(tmp_path / "40_train.ipynb", *cells)
        before = path.read_bytes()
        result = execute_step(path, tmp_path / "out.ipynb", parameters or {}, cwd=tmp_path, **options)
        assert path.read_bytes() == before
        return result, json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))

    return execute


def left_kernels(seconds=10):
    """Commands of kernels below this process that do not end soon; each leads a session, as no template does."""
    spares.close()
    below = [child for child in psutil.Process().children(recursive=True) if leads_a_session(child)]
    commands = {child: " ".join(child.cmdline()) for child in below}  # others are servers of models
    kernels = [
        child for child, words in commands.items() if "mlops_nb.notebook" in words and "fork.server" not in words
    ]
    return [child.cmdline() for child in psutil.wait_procs(kernels, timeout=seconds)[1]]


def leads_a_session(process):
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def untagged(source):
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}


PRINTS = """
import os, sys
from mlops_nb.notebook.redact import secret
print(rows, os.environ["SHOP_PASSWORD"], "postgresql://shop:tiger-99@db/x", secret(token))
print(os.environ["ADDED"], "GONE" in os.environ, "JPY_SESSION_NAME" in os.environ, "spoiled" in globals())
"""


def test_a_step_gets_its_parameters_and_tells_no_secrets(run, tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[package]\nname = demo\n")
    (tmp_path / "token").write_text("swordfish-7\n")
    (tmp_path / "ipython/profile_default/startup").mkdir(parents=True)
    (tmp_path / "ipython/profile_default/startup/00.py").write_text("spoiled = True\n")
    environment = {"SHOP_PASSWORD": "hunter22", "GONE": "1", "JPY_SESSION_NAME": "x.ipynb"}
    for name, value in {**environment, "IPYTHONDIR": str(tmp_path / "ipython")}.items():
        monkeypatch.setenv(name, value)
    places = []
    result, executed = run(
        "# Fit",
        "from mlops_nb import Secret",
        untagged("#| parameters\nrows: int = 3  # how many\ntoken: Secret = 'env:NONE'  # of the shop"),
        PRINTS,
        "for i in range(1000): print(end=f'\\rrow {i}')",
        {**untagged("1 / 0"), "metadata": {"tags": ["skip-execution"]}},
        "print('\\udcff')",
        parameters={"rows": 7, "token": "file:token"},
        environment={"ADDED": "yes", "GONE": None},
        on_progress=lambda *place: places.append(place),
    )
    assert result["error"] is None
    shown = text_of(executed).splitlines()
    assert shown[0] == "7 [redacted] postgresql://shop:[redacted]@db/x [redacted]"
    assert shown[1:3] == ["yes False False False", "row 999\ufffd"]
    assert places == [(number, 7, "Fit") for number in range(1, 8)]
    metadata = executed["metadata"]["papermill"]
    assert (metadata["input_path"], metadata["output_path"]) == ("40_train.ipynb", "out.ipynb")
    assert metadata["parameters"] == {"rows": 7, "token": "file:token"}
    whole = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert not [word for word in ("hunter22", "swordfish", str(tmp_path)) if word in whole]


ENDS = {
    "import ctypes\nctypes.string_at(0)": ("KernelDied", "killed by SIGSEGV", 2),
    "import os\nos._exit(7)": ("KernelDied", "exit status 7", None),
    "import os\nos.kill(os.getpid(), 9)": ("KernelDied", "killed by SIGKILL", None),
    "x = 1\ninput('name?')": ("StdinNotImplementedError", "input requests", 2),
    "x = 1\nraise UsageError('no column x.', 'Add it.')": ("UsageError", "no column x.", 2),
    "def f():\n    return 1 / 0\nf()": ("ZeroDivisionError", "division by zero", 3),
    "raise ValueError('half \\ud800')": ("ValueError", "half ?", 1),
    "raise ExceptionGroup('many', [ValueError(1)])": ("ExceptionGroup", "many (1 sub-exception)", None),
    "x = (1": ("SyntaxError", "incomplete input", 1),
}


@pytest.mark.parametrize("source", ENDS)
def test_every_end_is_told_with_cell_section_and_line(run, source):
    kind, message, line = ENDS[source]
    imports = "from mlops_nb.core.errors import UsageError"
    started = time.monotonic()
    result, executed = run("# Title", imports, "## Fit", source, "print('after')")
    error = result["error"]
    assert (error["type"], error["cell"], error["heading"], error["line"]) == (kind, 4, "Fit", line)
    assert message in error["message"]
    assert error["hint"] or kind in ("ZeroDivisionError", "ValueError", "ExceptionGroup", "SyntaxError")
    assert error["source"] == (source.split("\n")[line - 1] if line else "")
    assert error["notebook"] == "40_train.ipynb"
    assert time.monotonic() - started < 30
    failed = next(cell for cell in executed["cells"] if "".join(cell["source"]) == source)
    assert failed["metadata"]["papermill"]["status"] == "failed"
    assert executed["cells"][0]["metadata"]["tags"] == ["papermill-error-cell-tag"]
    assert "after" not in text_of(executed)
    assert left_kernels() == []


@pytest.mark.parametrize("source", ["import sys\nsys.exit()", "raise SystemExit(0)", "raise ValueError"])
def test_leaving_early_is_a_failure(run, source):
    result, executed = run("# Title", source, "print('after')")
    name = "ValueError" if "Value" in source else "SystemExit"
    assert (result["error"]["type"], result["error"]["cell"]) == (name, 2)
    assert "without a text" in result["error"]["message"] or result["error"]["message"] == "0"
    assert "after" not in text_of(executed)


def test_announced_errors_are_no_failure(run):
    announced = {**untagged("1 / 0"), "metadata": {"tags": ["raises-exception"]}}
    result, executed = run("# Title", announced, "print('after')")
    assert result["error"] is None
    assert [cell["cell_type"] for cell in executed["cells"]] == ["markdown", "code", "code"]
    assert "ZeroDivisionError" in text_of(executed) and "after" in text_of(executed)


def test_a_step_may_take_only_so_long(run):
    result, _ = run("import time", "time.sleep(60)", timeout=1)
    assert result["error"]["type"] == "StepTimeout"
    assert result["error"]["message"] == "The step took longer than 1 seconds."
    assert "timeout under [pipeline]" in result["error"]["hint"]
    assert result["seconds"] < 30
    assert left_kernels() == []


def test_a_secret_that_leads_nowhere_stops_before_the_kernel(run):
    from mlops_nb.core.errors import UsageError

    with pytest.raises(UsageError, match="environment variable NOWHERE_AT_ALL is not set"):
        run("from mlops_nb.notebook.redact import secret", "x = secret('env:NOWHERE_AT_ALL')")


def test_a_full_disk_stops_the_step_and_its_kernel(run, monkeypatch):
    calls = []

    def full(*arguments, **options):
        calls.append(arguments)
        raise StorageError("out.ipynb cannot be written: the disk is full.", "Free some space.")

    monkeypatch.setattr(saving, "write_notebook", full)
    with pytest.raises(StorageError, match="disk is full"):
        run("x = 1", "import time; time.sleep(60)")
    assert calls
    assert left_kernels() == []


LONG = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "300"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
"""
NOISY = "for i in range(100_000):\n    print('x' * 200)\n    time.sleep(0.001)"


@pytest.fixture
def runner(tmp_path):
    """A runner in a process of its own, in the middle of a long cell; it, kernel and output."""
    step, output = write_notebook(tmp_path / "10_long.ipynb", LONG, NOISY), tmp_path / "out.ipynb"
    process = subprocess.Popen([sys.executable, "-c", RUNNER, str(step), str(output)], cwd=tmp_path)
    end = time.monotonic() + 60
    while not output.exists() or not json.loads(output.read_text(encoding="utf-8"))["cells"][1]["outputs"]:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    yield process, [psutil.Process(pid) for pid in pids], output
    process.kill()
    process.wait()


def test_a_killed_runner_leaves_no_kernel_and_a_readable_notebook(runner):
    process, (kernel, child), output = runner
    end = time.monotonic() + 3
    sizes = set()
    while time.monotonic() < end:
        sizes.add(len(json.loads(output.read_text(encoding="utf-8"))["cells"][1]["outputs"]))
    process.kill()
    process.wait()
    psutil.wait_procs([kernel], timeout=5)
    assert not kernel.is_running()
    assert json.loads(output.read_text(encoding="utf-8"))["cells"]
    assert max(sizes) > 0
    assert not list(output.parent.glob(".*.tmp"))
    with contextlib.suppress(psutil.NoSuchProcess):  # a forked kernel takes its children along
        child.kill()


def test_an_interrupt_ends_the_kernel_with_all_its_children(runner):
    process, processes, output = runner
    started = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(20) == 130
    assert time.monotonic() - started < 10
    psutil.wait_procs(processes, timeout=5)
    assert not [process for process in processes if process.is_running()]
    executed = json.loads(output.read_text(encoding="utf-8"))
    assert executed["cells"][1]["outputs"][-1]["ename"] == "KeyboardInterrupt"
    assert executed["cells"][1]["metadata"]["papermill"]["status"] == "failed"


RICH = """
import matplotlib.pyplot as plt
from IPython.display import HTML, display
figure, axes = plt.subplots(figsize=(1, 1))
axes.plot([1, 2])
plt.show()
display(HTML("<b>größer</b>\\n<i>x</i>"))
print("one", flush=True)
print("two")
{"a": 1}
"""


def test_jupyters_server_writes_the_same_bytes(run, tmp_path):
    """What JupyterLab saves when nothing was touched, by way of its server's own manager."""
    from jupyter_server.services.contents.filemanager import FileContentsManager

    run("# Größe\ntext", RICH, {"cell_type": "raw", "metadata": {}, "source": "raw\n"})
    before = (tmp_path / "out.ipynb").read_bytes()
    manager = FileContentsManager(root_dir=str(tmp_path))
    model = manager.get("out.ipynb")
    assert [cell["metadata"]["trusted"] for cell in model["content"]["cells"] if cell["cell_type"] == "code"] == [True]
    manager.save({"type": "notebook", "format": "json", "content": model["content"]}, "out.ipynb")
    assert (tmp_path / "out.ipynb").read_bytes() == before


def test_plain_papermill_with_our_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", "hunter22")
    step = write_notebook(
        tmp_path / "10_sum.ipynb",
        "#| parameters\nrows: int = 3",
        "import os\nprint(rows, os.environ['SHOP_PASSWORD'])",
        kernelspec={"name": "gone-env", "display_name": "Gone", "language": "python"},
    )
    command = [sys.executable, "-m", "papermill", "--engine", "mlops_nb", str(step), "out.ipynb", "-p", "rows", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    executed = json.loads(Path(tmp_path, "out.ipynb").read_text(encoding="utf-8"))
    assert text_of(executed) == "5 [redacted]\n"
    assert "hunter22" not in Path(tmp_path, "out.ipynb").read_text(encoding="utf-8")


def test_saving_takes_a_small_share_of_the_time(monkeypatch):
    clock, writes = [0.0], []

    def slow_write(*arguments, **options):
        writes.append(clock[0])
        clock[0] += 0.5

    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(saving, "write_notebook", slow_write)
    saver = saving.Saver("out.ipynb")
    while clock[0] < 100:
        saver.save({})
        clock[0] += 0.1
    assert 5 <= len(writes) <= 11
    saver.save({}, force=True)
    assert writes[-1] == clock[0] - 0.5


def test_what_a_silent_cell_has_said_is_saved_while_it_works(tmp_path, engine):
    """A runner that is killed in the tenth hour of a cell leaves what the cell printed in the first minute."""
    said = "import time\nprint('a', flush=True)\ntime.sleep(0.5)\nprint('b', flush=True)\ntime.sleep(60)"
    step, output = write_notebook(tmp_path / "10_long.ipynb", said), tmp_path / "out.ipynb"
    process = subprocess.Popen([sys.executable, "-c", RUNNER_OF[engine], str(step), str(output)], cwd=tmp_path)
    try:
        end, text = time.monotonic() + 30, ""
        while text != "a\nb\n":
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
            text = text_of(json.loads(output.read_text(encoding="utf-8"))) if output.exists() else ""
    finally:
        process.kill()
        process.wait()


def test_a_kernel_that_does_not_start_is_told(run, monkeypatch, engine):
    own_templates.close()
    spares.close()
    place = fork_client if engine == "fork" else client
    monkeypatch.setattr(place, "BOOT", "raise SystemExit('no module named mlops_nb')  # {!r}")
    result, _ = run("x = 1")
    error = result["error"]
    assert error["type"] == "KernelDied" and error["message"].startswith("The kernel did not start: ")
    assert "no module named" in error["message"] and ("doctor" in error["hint"] or "engine = kernel" in error["hint"])
    assert (error["cell"], error["line"]) == (None, None)
    own_templates.close()


WHO = """
import os
print(os.getpid(), os.getcwd(), os.environ["ADDED"], "GONE" in os.environ, os.environ["MPLBACKEND"], os.environ["TERM"])
print([name for name in dir() if name not in ("In", "Out", "exit", "get_ipython", "open", "os", "quit")], len(In))
"""


@pytest.mark.parametrize("engine", ["kernel"])
def test_an_ordinary_kernel_is_started_while_the_notebook_before_runs(run, tmp_path, monkeypatch):
    spares.close()
    monkeypatch.setenv("GONE", "1")
    expected, shown = None, []
    for turn in range(4):
        environment = {"ADDED": str(turn), "GONE": None}
        result, executed = run(WHO, environment=environment)
        assert result["error"] is None
        pid, said = text_of(executed).split(" ", 1)
        assert expected in (None, int(pid))
        (ready,) = list(spares.waiting.values()) or [None]
        expected = ready and ready.manager.provisioner.pid
        shown.append(said.replace(f" {turn} ", " TURN ", 1))
    assert expected and len(set(shown)) == 1
    assert shown[0].startswith(f"{tmp_path} TURN False module://matplotlib_inline.backend_inline")
    result, _ = run("x = 1", "import ctypes\nctypes.string_at(0)")
    assert (result["error"]["line"], "SIGSEGV" in result["error"]["message"]) == (2, True)
    assert left_kernels() == []
