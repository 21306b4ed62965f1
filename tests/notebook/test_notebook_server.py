"""The server that commands share: who may use it, when it ends, and what it survives."""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from step_files import write_notebook

from mlops_nb.notebook.fork import executor as fork_executor
from mlops_nb.notebook.fork import server as fork_server
from mlops_nb.notebook.fork.executor import Executor, WorkerGone, ask_server, socket_folder, start_shared
from mlops_nb.notebook.fork.server import peer_is_us

COMMAND = Path(sys.executable).parent / "mlops-nb"


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
    return answer


@pytest.fixture
def runtime(monkeypatch):
    """A folder with a short name for sockets; servers in it are ended."""
    folder = Path(tempfile.mkdtemp(prefix="rt-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("MLOPS_NB_PIPELINE_SERVER", "on")
    monkeypatch.delenv("CI", raising=False)
    yield folder
    for path in folder.glob("mlops-nb-*/*.sock"):
        ask_server(path, b"S")
    wait_for(lambda: not list(folder.glob("mlops-nb-*/*.sock")))
    shutil.rmtree(folder)


@pytest.fixture
def shared(runtime, tmp_path):
    return Executor(tmp_path, shared=True, idle=60)


def step(executor, folder, *cells, name="out", **environment):
    """Execute cells; the error, or None, and the outputs as text."""
    notebook = write_notebook(folder / f"{name}-in.ipynb", *cells)
    result = executor.step(notebook, folder / f"{name}.ipynb", {}, cwd=folder, environment=environment)
    return result["error"], (folder / f"{name}.ipynb").read_text()


def gone(*pids):
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def start_long(shared, folder):
    """A step in a thread that waits for the file `go`; the thread, its end, and two processes."""
    ended = []
    source = "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '300'])\n"
    source += "open('made', 'w').write(f'{os.getpid()} {child.pid}')\nos.rename('made', 'pids')\n"
    source += "while not os.path.exists('go'):\n    time.sleep(0.02)"

    def run():
        try:
            ended.append(step(shared, folder, source, name="long")[0])
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for((folder / "pids").exists)
    return thread, ended, [int(pid) for pid in (folder / "pids").read_text().split()]


def test_socket_and_folder_are_of_this_user_alone(shared, tmp_path):
    assert step(shared, tmp_path, "1")[0] is None
    assert stat.S_IMODE(shared.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(shared.path.stat().st_mode) == 0o600


AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    try:
        connection.sendall(b"F")
        print(connection.recv(100))
    except OSError:
        print(b"")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused_even_when_the_folder_is_open(shared, runtime, tmp_path):
    start_shared(shared.path, 60)
    assert ask_server(shared.path, b"F")
    for path, mode in ((runtime, 0o755), (shared.path.parent, 0o755), (shared.path, 0o666)):
        path.chmod(mode)
    done = subprocess.run(["python3", "-c", AS_NOBODY, str(shared.path)], capture_output=True, text=True, check=False)
    assert done.stdout == "b''\n", done
    shared.path.parent.chmod(0o700)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_is_us(ours)


@pytest.mark.parametrize("mode", [0o777, 0o750])
def test_a_folder_that_others_can_enter_is_not_used(runtime, tmp_path, mode):
    folder = socket_folder()
    folder.chmod(mode)
    assert socket_folder() is None
    with Executor(tmp_path) as executor:
        assert executor.path is None and step(executor, tmp_path, "1")[0] is None


def test_folders_that_cannot_hold_a_socket_are_not_used(runtime, tmp_path, monkeypatch):
    folder = socket_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert socket_folder() is None, "a link"
    folder.unlink()
    if os.getuid() == 0:
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
        assert socket_folder() is None, "somebody else's"
    for name in ("nowhere/at/all", "x" * 120):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / name))
        assert socket_folder() is None
    (runtime / ("x" * 120)).mkdir()
    assert socket_folder() is None, "too long a path"


def test_commands_at_the_same_time_share_one_server(runtime, tmp_path):
    program = "import sys, runpy; sys.path[:0] = sys.argv[2:4]\nfrom pathlib import Path\n"
    program += "from test_notebook_server import Executor, step\n"
    program += "print(step(Executor(sys.argv[4]), Path(sys.argv[4]), '1', name=sys.argv[1])[0])"
    here = Path(__file__).parent
    words = [str(here), str(here.parents[1]), str(tmp_path)]
    started = [subprocess.Popen([sys.executable, "-c", program, name, *words], stdout=-1) for name in "abc"]
    assert [process.communicate(timeout=90)[0] for process in started] == [b"None\n"] * 3
    (path,) = runtime.glob("*/*.sock")
    assert ask_server(path, b"F")["served"] == 3


def test_the_command_tells_starts_and_stops(runtime, tmp_path):
    (tmp_path / "settings.ini").write_text("[pipeline]\n")

    def server(action, **environment):
        words, known = [COMMAND, "server", action, "--json"], {**os.environ, **environment}
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True, env=known)
        return json.loads(done.stdout)

    assert server("status")["server"] is None
    pid = server("start")["server"]["pid"]
    assert server("start")["server"]["pid"] == server("status")["server"]["pid"] == pid
    assert server("stop")["stopped"] is True
    wait_for(lambda: gone(pid))
    assert server("status")["server"] is None and server("stop")["stopped"] is False
    pids = [server("start", PATH=path)["server"]["pid"] for path in (os.environ["PATH"], "/bin")]
    assert [facts["pid"] for facts in server("status")["servers"]] == pids
    assert server("stop", PATH="/usr/bin")["stopped"] is True, "also from a third shell"
    wait_for(lambda: gone(*pids))


def test_it_ends_after_idleness_with_its_templates(runtime, shared):
    start_shared(shared.path, 1)
    pid = ask_server(shared.path, b"F")["pid"]
    family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    assert len(family) > 1
    wait_for(lambda: gone(*family))
    assert not shared.path.exists()


def test_a_changed_installation_retires_it_and_lets_it_finish(shared, tmp_path, monkeypatch):
    installed = tmp_path / "site-packages"
    installed.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(installed))
    executor = Executor(tmp_path)
    thread, ended, _ = start_long(executor, tmp_path)
    first = ask_server(executor.path, b"F")["pid"]
    (installed / "new.py").write_text("")
    assert step(executor, tmp_path, "1")[0] is None, "the next command does not wait for the one that runs"
    second = ask_server(executor.path, b"F")["pid"]
    assert second != first and not gone(first)
    (tmp_path / "go").touch()
    thread.join(30)
    assert ended == [None]
    wait_for(lambda: gone(first))
    assert ask_server(executor.path, b"F")["pid"] == second, "the old one left the socket of the new one alone"


def test_the_state_of_code_is_that_of_packages_and_of_this_one(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages"
    installed.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(installed), str(tmp_path)])
    paths = fork_server.code_paths()
    before = fork_server.code_state(paths)
    (tmp_path / "notes.txt").touch()
    assert fork_server.code_state(paths) == before, "a project's folder may change"
    (installed / "new.py").touch()
    assert fork_server.code_state(paths) != before
    (installed / "new.py").unlink()
    installed.rmdir()
    assert 0 in fork_server.code_state(paths), "what was removed has changed, too"


def test_what_runs_survives_the_end_of_the_server(shared, tmp_path):
    thread, ended, pids = start_long(shared, tmp_path)
    os.kill(ask_server(shared.path, b"F")["pid"], signal.SIGKILL)
    assert step(shared, tmp_path, "1")[0] is None, "a socket that a dead server left is replaced"
    (tmp_path / "go").touch()
    thread.join(30)
    assert ended == [None]
    wait_for(lambda: gone(*pids))


def test_stop_lets_what_runs_finish(shared, tmp_path):
    thread, ended, _ = start_long(shared, tmp_path)
    facts = ask_server(shared.path, b"S")
    assert facts["running"] == 1 and not shared.path.exists()
    (tmp_path / "go").touch()
    thread.join(30)
    assert ended == [None]
    wait_for(lambda: gone(facts["pid"]))


def test_a_killed_worker_is_told_and_leaves_nothing(shared, tmp_path):
    thread, ended, pids = start_long(shared, tmp_path)
    server = psutil.Process(ask_server(shared.path, b"F")["pid"])
    forks = [child for child in server.children() if "fork.server" in " ".join(child.cmdline())]
    (worker,) = (child for child in forks if child.num_threads() > 1)  # the others wait for work
    wait_for((tmp_path / "long.ipynb").exists)  # the first save
    worker.kill()
    thread.join(30)
    assert isinstance(ended[0], WorkerGone) and ended[0].hint
    wait_for(lambda: gone(*pids))
    assert json.loads((tmp_path / "long.ipynb").read_text())["cells"]
    assert step(shared, tmp_path, "1")[0] is None


CLIENT = """
import sys; sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from test_notebook_server import Executor, start_long
start_long(Executor(sys.argv[3]), Path(sys.argv[3]))
"""


def test_a_killed_client_leaves_nothing(runtime, tmp_path):
    here = Path(__file__).parent
    client = subprocess.Popen([sys.executable, "-c", CLIENT, str(here), str(here.parents[1]), str(tmp_path)])
    wait_for((tmp_path / "pids").exists, 60)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    client.kill()
    client.wait()
    wait_for(lambda: gone(*pids))
    (path,) = runtime.glob("*/*.sock")
    wait_for(lambda: ask_server(path, b"F")["running"] == 0)
    executed = json.loads((tmp_path / "long.ipynb").read_text())
    assert executed["cells"][0]["outputs"][-1]["ename"] == "KeyboardInterrupt"


def connected(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def test_noise_silence_and_crowds_keep_nobody_waiting(shared, tmp_path):
    assert step(shared, tmp_path, "1")[0] is None
    silent = [connected(shared.path) for _ in range(50)]
    for noise in (b"\0", b"GET / HTTP/1.1\r\n\r\n", b"W", b"W" * 5000):
        with connected(shared.path) as connection:
            connection.sendall(noise)
    results = []
    patient = threading.Thread(target=lambda: results.append(step(shared, tmp_path, "2")[0]), daemon=True)
    patient.start()
    patient.join(2 * fork_server.PATIENCE * 12)  # one after the other, the silent would take twice that
    assert results == [None]
    for connection in silent:  # hung up on
        connection.settimeout(30)
        assert connection.recv(1) == b""
        connection.close()
    results.clear()
    crowd = [
        threading.Thread(target=lambda n=n: results.append(step(shared, tmp_path, f"{n}", name=f"n{n}")[0]))
        for n in range(20)
    ]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(120)
    assert results == [None] * 20


def test_another_environment_has_another_server(runtime, tmp_path, monkeypatch):
    first = Executor(tmp_path).path
    for name, value in (("PYTHONHASHSEED", "7"), ("PATH", f"/opt/bin:{os.environ['PATH']}")):
        monkeypatch.setenv(name, value)
        assert Executor(tmp_path).path not in (first, None)
        monkeypatch.undo()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert Executor(tmp_path / "other").path != first


def test_its_log_tells_no_secrets(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", "hunter-22-tiger")
    executor = Executor(tmp_path)
    error, executed = step(executor, tmp_path, "import os\nprint(os.environ['SHOP_PASSWORD'])\n1 / 0")
    assert error["type"] == "ZeroDivisionError" and "hunter-22-tiger" not in executed
    pid = ask_server(executor.path, b"F")["pid"]
    children = psutil.Process(pid).children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended with one that was killed before
            child.kill()
    psutil.wait_procs(children, timeout=10)
    step(executor, tmp_path, "1")
    logs = [*runtime.rglob("*.log"), *Path(tempfile.gettempdir()).glob("mlops-nb-*/template.log")]
    assert logs and not [log for log in logs if "hunter-22-tiger" in log.read_text(errors="replace")]


def test_what_is_forked_ahead_says_nothing(tmp_path, capfd):
    with Executor(tmp_path, shared=False) as executor:
        for _ in range(2):
            assert step(executor, tmp_path, "1")[0] is None
            time.sleep(0.5)  # the next worker and the next kernel practise
    assert capfd.readouterr() == ("", "")


PRACTISE = """
import sys
from mlops_nb.notebook.fork.worker import practise
for _ in range(40):
    practise(sys.argv[1])
"""


def test_workers_that_practise_at_the_same_time_do_not_meet(tmp_path):
    """The next one is forked as soon as one has begun, which may be before that one has done practising."""
    both = [subprocess.Popen([sys.executable, "-c", PRACTISE, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in both] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_handed_over_after_an_interrupt(tmp_path):
    with Executor(tmp_path, shared=False) as executor:
        assert step(executor, tmp_path, "1")[0] is None
        executor.interrupt()
        with pytest.raises(KeyboardInterrupt):
            step(executor, tmp_path, "open('ran', 'w')")
        assert not (tmp_path / "ran").exists()
        again = Executor(tmp_path, shared=False, own=executor.own)
        assert step(again, tmp_path, "2")[0] is None, "the server itself goes on"


def test_an_interrupted_cell_leaves_nothing_half_done(tmp_path):
    """A temporary file that a cell was about to give its name is taken away again."""
    code = "import time\nfile = open('half', 'w')\ntry:\n    open('begun', 'w').close()\n    time.sleep(60)\n"
    code += "finally:\n    import os\n    time.sleep(0.1)\n    os.unlink('half')"
    with Executor(tmp_path, shared=False) as executor, ThreadPoolExecutor(1) as pool:
        going = pool.submit(step, executor, tmp_path, code)
        wait_for((tmp_path / "begun").exists, 60)
        executor.interrupt()
        with pytest.raises(KeyboardInterrupt):
            going.result(30)
        assert not (tmp_path / "half").exists()


def test_keys_of_an_own_server_are_those_of_the_interpreter(tmp_path, monkeypatch):
    one, same = (fork_executor.executor_for(tmp_path, False, 1) for _ in range(2))
    assert one is not same and one.own is same.own
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert fork_executor.executor_for(tmp_path, False, 1).own is not one.own


def papermill(folder, *words, **options):
    return subprocess.run([COMMAND, "papermill", *words], cwd=folder, capture_output=True, text=True, **options)


def test_what_belongs_to_a_command_is_its_notebooks(shared, tmp_path, monkeypatch):
    """Its mask for new files, and folders of modules as seen from where it is run."""
    (tmp_path / "settings.ini").write_text("[package]\nname = demo\n[workspace]\npath = work\n")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/near.py").write_text("word = 'found'\n")
    look = "import near, os\nopen('made', 'w').close()\nprint(near.word, os.environ['PYTHONPATH'])"
    write_notebook(tmp_path / "in.ipynb", look)
    monkeypatch.setenv("PYTHONPATH", "modules")
    done = papermill(tmp_path, "in.ipynb", "out.ipynb", umask=0o077)
    assert done.returncode == 0, done.stderr
    assert "found modules" in (tmp_path / "out.ipynb").read_text()
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out.ipynb", "made")} == {0o600}


def test_only_files_are_replaced(shared, tmp_path):
    write_notebook(tmp_path / "in.ipynb", "print('through the pipe')")
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        assert papermill(tmp_path, "in.ipynb", "pipe").returncode == 0
        assert "through the pipe" in reader.communicate(timeout=30)[0]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    for place in (".", "no/such/folder.ipynb"):
        done = papermill(tmp_path, "in.ipynb", place)
        assert done.returncode == 1 and ("Is a directory" in done.stderr or "doesn't exist" in done.stderr)
    assert not (tmp_path / "no").exists()
