"""Random pipelines, disturbed at random moments, and what must hold afterwards; a seed repeats a case.

A case writes a small project, runs it in a process of its own while something bad happens, and then runs it once more
in peace. All runs of a `Bench` share one server, as the commands of one workspace do.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_support import FLOW, wait_for, write_notebook
from support import fill

from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import load_settings
from mlops_nb.notebook.fork.ahead import WAITS
from mlops_nb.notebook.fork.executor import ask_server

PIPELINE = "churn"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["mlops_nb.pipeline.run", "mlops_nb.core.ledger"])
LONGEST = 90.0  # seconds after which a run counts as hanging
SOON = 20.0  # seconds in which whatever a run left must be gone
SETTINGS = "[package]\nname = churn\n[tracking]\nmode = off\n[registry]\nbento_store = false\n[pipeline]\n"


# ---- random pipelines


@dataclass
class Step:
    """A step that adds up what it reads, and notes in a file that it ran."""

    name: str
    number: int
    needs: list[str]
    base: int
    naps: list[float]

    def cells(self) -> list[str]:
        total = " + ".join([str(self.base), *(f"flow.{need}.total" for need in self.needs)])
        naps = [f"import time\ntime.sleep({nap})\nprint('slept', {nap})" for nap in self.naps]
        note = f"with open('ran', 'a') as ran:\n    ran.write('{self.name}\\n')"
        return [f"# {self.name}", note, *naps, f"total = {total}\nflow.total = total", f"flow.word = 'w{self.base}'"]


@dataclass
class Sketch:
    """A pipeline and what it must give."""

    steps: list[Step]

    def write(self, folder: Path) -> None:
        for step in self.steps:
            write_notebook(folder / f"{step.number}_{step.name}.ipynb", FLOW, *step.cells())

    def expected(self) -> dict[str, str]:
        totals: dict[str, int] = {}
        found = {}
        for step in self.steps:
            totals[step.name] = step.base + sum(totals[need] for need in step.needs)
            found[f"{step.name}.total"] = _digest(totals[step.name])
            found[f"{step.name}.word"] = _digest(f"w{step.base}")
        return found

    def seconds(self) -> float:
        """About how long a run takes."""
        return 0.2 + sum(0.2 + sum(step.naps) for step in self.steps) / 2


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


SIZES = (2, 2, 3, 3, 3, 4, 4, 5, 6, 8)  # small ones more often, because they are quick


def random_sketch(chance: random.Random) -> Sketch:
    """2 to 8 steps, each of which reads some of those before it."""
    steps: list[Step] = []
    for number in range(chance.choice(SIZES)):
        before = [step.name for step in steps]
        needs = chance.sample(before, min(len(before), chance.choice([0, 1, 1, 2, 3])))
        naps = [round(chance.uniform(0, 0.06), 3) for _ in range(chance.randint(0, 3))]
        steps.append(Step(f"s{number}", 10 + number, sorted(needs), chance.randrange(1000), naps))
    return Sketch(steps)


# ---- processes


@dataclass
class Found:
    """A process of the engine."""

    pid: int
    kind: str  # 'server', 'worker', 'template', 'prepared', 'kernel', or 'waiting' to be one


def _process(entry: Path) -> tuple[int, int, bytes, bytes, bool, int] | None:
    try:
        name, _, rest = (entry / "stat").read_text().rpartition(")")
        state, parent, _, session = rest.split()[:4]
        if state in "ZX":
            return None
        command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        return int(entry.name), int(parent), command, environment, name.endswith(f"({WAITS}"), int(session)
    except (OSError, ValueError):  # gone meanwhile, or not ours
        return None


def engine_processes(runtime: Path) -> list[Found]:
    """Processes of the engine that were started for a bench."""
    mark = f"XDG_RUNTIME_DIR={runtime}\0".encode()
    seen = [found for entry in Path("/proc").iterdir() if entry.name.isdigit() and (found := _process(entry))]
    ours = [one for one in seen if mark in one[3] + b"\0" and b"mlops_nb.notebook.fork" in one[2]]
    servers = {one[0] for one in ours if b"fork.server" in one[2]}
    templates = {one[0] for one in ours if b"fork.template" in one[2]}
    found = []
    for pid, parent, _, _, waiting, session in ours:
        if waiting:
            found.append(Found(pid, "waiting"))
        elif pid in servers:
            found.append(Found(pid, "server" if session == pid else "worker"))
        elif session == pid:
            found.append(Found(pid, "kernel"))
        else:
            found.append(Found(pid, "prepared" if parent in templates else "template"))
    return found


# ---- runs


def run_in_process(folder: str, environment: dict[str, str], options: dict[str, Any], answer: str) -> None:
    """Run the pipeline; the body of a runner's process."""
    from mlops_nb.core.errors import MlopsError
    from mlops_nb.core.registry import hooks
    from mlops_nb.pipeline.run import run_pipeline

    os.setsid()
    os.chdir(folder)
    os.environ.pop("CI", None)
    os.environ.update(environment)
    hooks._listeners.clear()
    try:
        Path(answer).write_text("{}", encoding="utf-8")
        result = run_pipeline(load_settings(folder), PIPELINE, **options)
        code, document = result.exit_code, result.document
        if result.defect:
            document["defect"] = "".join(traceback.format_exception(result.defect))
    except MlopsError as error:
        code, document = error.exit_code, {"error": error.document()}
    except KeyboardInterrupt:
        code, document = 130, {"error": {"type": "KeyboardInterrupt", "message": "before it began"}}
    except BaseException:
        code, document = 70, {"defect": traceback.format_exc()}
    whole = Path(f"{answer}.whole")
    whole.write_text(json.dumps(document), encoding="utf-8")
    whole.replace(answer)  # a kill between emptying a file and filling it would leave no document at all
    os._exit(code)


class Runner:
    """A run in a process of its own."""

    def __init__(self, folder: Path, environment: dict[str, str], options: dict[str, Any]):
        self.answer = Path(tempfile.mkstemp(prefix="answer-", dir=folder.parent)[1])
        arguments = (str(folder), environment, options, str(self.answer))
        self.process = FORKS.Process(target=run_in_process, args=arguments, daemon=True)
        self.process.start()
        wait_for(lambda: self.answer.stat().st_size or not self.process.is_alive())

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, number)

    def running(self) -> bool:
        return self.process.is_alive()

    def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code and document, when it has ended."""
        self.process.join(LONGEST)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the run hangs: not over after {LONGEST:g} seconds")
        text = self.answer.read_text(encoding="utf-8")
        self.answer.unlink()
        return self.process.exitcode, json.loads(text)


class Reader:
    """Reads all executed notebooks again and again, as a person with an open browser does."""

    def __init__(self, folder: Path):
        self.folder, self.broken, self.read = folder, [], 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._read_on, daemon=True)

    def _read_on(self) -> None:
        while not self.stopped.wait(0.01):
            for path in self.folder.glob("runs/*/*.ipynb"):
                try:
                    json.loads(path.read_bytes())
                    self.read += 1
                except FileNotFoundError:
                    continue
                except ValueError as error:
                    self.broken.append(f"{path.name}: {error}")

    def __enter__(self) -> "Reader":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.thread.join()


# ---- a bench and its cases


@dataclass
class Bench:
    """A project's folder, used by one case after the other, whose runs share a server."""

    place: Path
    empty: Path  # a ledger with nothing in it
    counts: Counter = field(default_factory=Counter)

    @property
    def folder(self) -> Path:
        return self.place / "project"

    @property
    def workspace(self) -> Path:
        return self.folder / ".mlops"

    @property
    def environment(self) -> dict[str, str]:
        return {"XDG_RUNTIME_DIR": str(self.place), "MLOPS_NB_PIPELINE_SERVER": "on", "MLOPS_NB_PIPELINE_IDLE": "60"}

    def clear(self) -> None:
        """A project with nothing in it but an empty ledger."""
        for path in [*self.workspace.glob("*"), self.folder / "nbs"]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        self.workspace.mkdir(parents=True, exist_ok=True)
        (self.folder / "ran").unlink(missing_ok=True)
        (self.folder / "settings.ini").write_text(SETTINGS)
        shutil.copytree(self.empty, self.workspace, dirs_exist_ok=True)

    def processes(self, *kinds: str) -> list[int]:
        """Processes of these kinds, of any when none is named."""
        return [found.pid for found in engine_processes(self.place) if not kinds or found.kind in kinds]

    def templates(self) -> set[int]:
        """Templates that stay: what was just forked, or is about to be a kernel, looks like one for a moment."""
        first = set(self.processes("template", "prepared"))
        time.sleep(0.02)
        return first & set(self.processes("template", "prepared"))

    def stop(self) -> None:
        """End the server; nothing may be left."""
        for path in self.place.glob("mlops-nb-*/*.sock"):
            ask_server(path, b"S")
        wait_for(lambda: not self.processes(), SOON)


@contextlib.contextmanager
def bench(mounted: Callable[[Path], Any] | None = None) -> Iterator[Bench]:
    """A bench in a folder with a short name, because a socket's path must be short."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # flushing to a disk takes most of the time
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory) as made, contextlib.ExitStack() as stack:
        place = Path(made).resolve()
        blank = place / "blank"
        blank.mkdir()
        (blank / "settings.ini").write_text(SETTINGS)
        Ledger.open(load_settings(blank, environ={})).close()
        one = Bench(place, blank / ".mlops")
        one.folder.mkdir()
        if mounted:
            stack.enter_context(mounted(one.workspace))
        try:
            yield one
        finally:
            one.stop()


@dataclass
class Case:
    """One pipeline, one misfortune."""

    bench: Bench
    seed: int
    chance: random.Random
    sketch: Sketch
    killed: bool = False  # whether some process was killed, so that work may have been done twice
    edited: bool = False  # whether sources or objects were changed
    known: int = 0  # the last result of runs before

    def start(self, environment: dict[str, str] | None = None, **options: Any) -> Runner:
        return Runner(self.bench.folder, self.bench.environment | (environment or {}), options)

    def wait_a_moment(self) -> None:
        """Some moment of a run."""
        time.sleep(self.chance.uniform(0, self.sketch.seconds()))

    def write(self) -> None:
        """Write the sources."""
        self.sketch.write(self.bench.folder / "nbs/pipelines" / PIPELINE)

    def sources(self) -> dict[str, bytes]:
        """The sources as they are."""
        return {path.name: path.read_bytes() for path in (self.bench.folder / "nbs").rglob("*.ipynb")}

    def ran(self) -> Counter:
        """How often each step has begun."""
        notes = self.bench.folder / "ran"
        return Counter(notes.read_text().split()) if notes.exists() else Counter()


# ---- misfortunes: each starts one run or more, does something bad, and waits for their end

Injector = Callable[[Case], None]


def _one_run(case: Case, disturb: Callable[[Runner], None], codes: set[int], **environment: str) -> dict[str, Any]:
    runner = case.start(environment)
    disturb(runner)
    code, document = runner.end()
    assert "defect" not in document, document["defect"]
    assert code in codes, f"exit {code}, expected one of {sorted(codes)}: {document.get('error') or document}"
    return document


def nothing(case: Case) -> None:
    _one_run(case, lambda runner: None, {0})


def kill_runner(case: Case) -> None:
    case.killed = True
    _one_run(case, lambda runner: (case.wait_a_moment(), runner.signal(signal.SIGKILL)), {0, -9})


def kill_at_point(case: Case) -> None:
    case.killed = True
    name = case.chance.choice(["after-object-write", "before-commit", "after-commit"])
    fault = f"{name}:{case.chance.randint(1, len(case.sketch.steps))}"
    _one_run(case, lambda runner: None, {0, -9}, MLOPS_NB_FAULT=fault)  # 0: fewer steps had to run


def _kill_some(*kinds: str) -> Injector:
    def kill(case: Case) -> None:
        case.killed = True

        def disturb(runner: Runner) -> None:
            case.wait_a_moment()
            while runner.running():
                if case.bench.processes(*kinds):
                    before.update(case.bench.templates())
                    if not (found := case.bench.processes(*kinds)):
                        continue
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(case.chance.choice(found), signal.SIGKILL)
                    case.bench.counts[f"killed {kinds[0]}"] += 1
                    return
                time.sleep(0.005)

        before: set[int] = set()
        document = _one_run(case, disturb, {0, 1})
        if kinds[0] in ("worker", "kernel"):
            time.sleep(0.1)
            assert before <= set(case.bench.processes("template", "prepared")), "a template died, too"
        if document["status"] == "failed":
            error = next(step["error"] for step in document["steps"] if step["state"] == "failed")
            assert error["message"] and error["hint"], error

    return kill


def _send(number: int, twice: bool = False) -> Injector:
    def send(case: Case) -> None:
        def disturb(runner: Runner) -> None:
            case.wait_a_moment()
            runner.signal(number)
            if twice:
                time.sleep(case.chance.uniform(0, 0.2))
                runner.signal(number)

        # before the run has begun a signal ends the process as the system does
        document = _one_run(case, disturb, {0, 130, -number})
        assert document.get("status", "interrupted") in ("ok", "interrupted"), document

    return send


def _several(number: int, kill: bool = False) -> Injector:
    def several(case: Case) -> None:
        case.killed = kill
        runners = [case.start() for _ in range(number)]
        if kill:
            case.wait_a_moment()
            runners[0].signal(signal.SIGKILL)
        ended = [runner.end() for runner in runners]
        for code, document in ended[kill:]:
            assert code == 0, document
            assert gives(document) == case.sketch.expected()

    return several


def edit_meanwhile(case: Case) -> None:
    case.edited = True

    def disturb(runner: Runner) -> None:
        case.wait_a_moment()
        case.chance.choice(case.sketch.steps).base += 1000
        case.write()

    _one_run(case, disturb, {0})


def _damaged(data: bytes, chance: random.Random) -> bytes:
    how = chance.choice(["torn", "flipped", "empty", "noise"])
    if how == "torn":
        return data[: chance.randrange(max(len(data), 1))]
    if how == "empty":
        return b""
    if how == "noise" or not data:
        return chance.randbytes(chance.randrange(1, 200))
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(7)]) + data[place + 1 :]


def _damage(pattern: str) -> Injector:
    def damage(case: Case) -> None:
        case.edited = True
        nothing(case)
        found = sorted(path for path in case.bench.workspace.glob(pattern) if path.is_file())
        for path in case.chance.sample(found, min(len(found), case.chance.randint(1, 3))):
            path.chmod(0o644)
            path.write_bytes(_damaged(path.read_bytes(), case.chance))
            if case.chance.random() < 0.2:
                path.unlink()

    return damage


def too_much_memory(case: Case) -> None:
    case.killed = True
    (case.bench.folder / "settings.ini").write_text(f"{SETTINGS}memory = 300\n")
    greedy = case.chance.choice(case.sketch.steps)
    sources = case.sources()
    path = case.bench.folder / "nbs/pipelines" / PIPELINE / f"{greedy.number}_{greedy.name}.ipynb"
    much = "import os\nif not os.path.exists('enough'):\n    much = bytearray(b'x') * 400_000_000\n    time.sleep(30)"
    write_notebook(path, FLOW, "import time", much, *greedy.cells())
    document = _one_run(case, lambda runner: None, {1})
    error = next(step["error"] for step in document["steps"] if step["state"] == "failed")
    assert error["type"] == "StepMemory", error
    path.write_bytes(sources[path.name])


def clock_goes_back(case: Case) -> None:
    """Files from the future are what a clock that was set back leaves."""
    case.edited = True
    nothing(case)
    later = time.time() + case.chance.choice([60, 86_400, 10**8])
    for path in [*(case.bench.folder / "nbs").rglob("*.ipynb"), *case.bench.workspace.rglob("*")]:
        if path.is_file() and "ledger" not in path.name and case.chance.random() < 0.7:
            os.utime(path, (later, later))
    changed = case.chance.choice(case.sketch.steps)
    path = case.bench.folder / "nbs/pipelines" / PIPELINE / f"{changed.number}_{changed.name}.ipynb"
    before = path.stat()
    changed.base = (changed.base + 1) if changed.base % 10 < 9 else changed.base - 1
    path.write_bytes(path.read_bytes())
    case.write()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time: only its bytes are new


def full_disk(case: Case) -> None:
    def disturb(runner: Runner) -> None:
        case.wait_a_moment()
        fill(case.bench.workspace)

    try:
        document = _one_run(case, disturb, {0, 1, 2})
    finally:
        (case.bench.workspace / "filler").unlink(missing_ok=True)
    if document.get("status") == "failed":
        failed = [step["error"] for step in document["steps"] if step["state"] == "failed"]
        told = document["error"] or failed[0]
        assert "full" in told["message"] and told["hint"], told


def read_only(case: Case) -> None:
    """The folder of objects cannot be written from some moment on."""
    objects = case.bench.workspace / "objects"
    objects.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(objects), str(objects)], check=True)

    def disturb(runner: Runner) -> None:
        case.wait_a_moment()
        command = ["mount", "-o", "remount,bind,ro", str(objects)]
        while runner.running() and subprocess.run(command, capture_output=True, check=False).returncode:
            time.sleep(0.002)

    try:
        document = _one_run(case, disturb, {0, 1, 2})
    finally:
        subprocess.run(["umount", "--lazy", str(objects)], check=True)
    if document.get("status") == "failed":
        failed = [step["error"] for step in document["steps"] if step["state"] == "failed"]
        told = document["error"] or failed[0]
        assert "read-only" in told["message"] and told["hint"], told


KILLS: dict[str, Injector] = {
    "kill the runner": kill_runner,
    "kill at a point": kill_at_point,
    "kill the server": _kill_some("server"),
    "kill a worker": _kill_some("worker"),
    "kill a kernel": _kill_some("kernel"),
    "kill what was forked ahead": _kill_some("waiting"),
    "kill the template": _kill_some("template"),
    "kill a prepared template": _kill_some("prepared", "template"),
    "kill one of two runs": _several(2, kill=True),
}
STOPS: dict[str, Injector] = {
    "nothing": nothing,
    "SIGTERM": _send(signal.SIGTERM),
    "Ctrl-C": _send(signal.SIGINT),
    "Ctrl-C twice": _send(signal.SIGINT, twice=True),
    "two runs": _several(2),
    "five runs": _several(5),
    "too much memory": too_much_memory,
}
CHANGES: dict[str, Injector] = {
    "edit meanwhile": edit_meanwhile,
    "damaged objects": _damage("objects/*/*"),
    "damaged caches": _damage("cache/*"),
    "clock goes back": clock_goes_back,
}
DISKS: dict[str, Injector] = {"full disk": full_disk, "read-only objects": read_only}
EVERY = {**KILLS, **STOPS, **CHANGES, **DISKS}


# ---- what must hold


def gives(document: dict[str, Any]) -> dict[str, str]:
    """`step.artifact` -> sha256."""
    return {f"{s['step']}.{n}": a["sha256"] for s in document["steps"] for n, a in s["artifacts"].items()}


def _committed(case: Case) -> dict[str, int]:
    """Steps with a result that was made since the case began; the number of the result."""
    with contextlib.closing(sqlite3.connect(case.bench.workspace / "ledger.sqlite")) as database:
        reusable = "SELECT step, id FROM results WHERE cache_key IS NOT NULL AND id > ?"
        return dict(database.execute(reusable, [case.known]))


def check_ledger(case: Case) -> None:
    """It is whole, nobody is said to be running, and what it refers to is there."""
    with contextlib.closing(sqlite3.connect(case.bench.workspace / "ledger.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("SELECT id FROM runs WHERE status = 'running'").fetchall() == []
        assert database.execute("SELECT run_id, step FROM run_steps WHERE state = 'running'").fetchall() == []
        assert database.execute("SELECT key, run_id FROM leases").fetchall() == []
        doubled = "SELECT step FROM results WHERE cache_key IS NOT NULL GROUP BY key HAVING count(*) > 1"
        assert database.execute(doubled).fetchall() == []
        for step, digest in database.execute(
            "SELECT step, sha256 FROM artifacts JOIN run_steps USING (result_id) WHERE run_id = ("
            "SELECT id FROM runs WHERE status = 'ok' ORDER BY started DESC, rowid DESC LIMIT 1)"
        ):
            content = (case.bench.workspace / "objects" / digest[:2] / digest).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest, f"{step}: {digest}"


def check_processes(case: Case) -> None:
    """Nobody works any more, and there is one server at most, with one template."""
    bench = case.bench

    def quiet() -> bool:
        kinds = Counter(found.kind for found in engine_processes(bench.place))
        return not (kinds["worker"] or kinds["kernel"] or kinds["server"] > 1 or kinds["template"] > 1)

    try:
        wait_for(quiet, SOON)
    except AssertionError as error:
        raise AssertionError(f"left behind: {engine_processes(bench.place)}") from error


def leftovers(case: Case) -> list[str]:
    """Hidden files and folders that a save leaves only when it is cut short."""
    found = [path for path in case.bench.workspace.rglob(".*") if path.name not in (".gitignore",)]
    return sorted(str(path.relative_to(case.bench.workspace)) for path in found)


def check_again(case: Case) -> None:
    """A plain run ends as if nothing had happened, and reuses what was finished."""
    finished, sources, before = _committed(case), case.sources(), case.ran()
    code, document = case.start().end()
    assert "defect" not in document, document["defect"]
    assert code == 0, f"exit {code}: {document.get('error') or document}"
    assert gives(document) == case.sketch.expected()
    assert case.sources() == sources
    states = {step["step"]: step["state"] for step in document["steps"]}
    assert set(states.values()) <= {"done", "cached"}
    if not case.edited:
        assert all(states[step] == "cached" for step in finished), (finished, states)
    again = case.ran() - before
    assert set(again.values()) <= {1}
    assert {step for step, state in states.items() if state == "done"} == set(again)


def run_case(bench: Bench, seed: int, injector: str) -> None:
    """Play one case; an `AssertionError` says what does not hold, and the seed."""
    chance = random.Random(f"{seed} {injector}")
    case = Case(bench, seed, chance, random_sketch(chance))
    try:
        bench.clear()
        case.write()
        if chance.random() < 0.3:  # not the first run of the project
            nothing(case)
            case.known = max(_committed(case).values())
            (bench.folder / "ran").unlink()
            chance.choice(case.sketch.steps).base += 1000
            case.write()
        sources = case.sources()
        with Reader(bench.workspace) as reader:
            EVERY[injector](case)
            check_processes(case)
            if not case.edited:
                assert case.sources() == sources
            if not (case.killed or case.edited):
                assert leftovers(case) == [], leftovers(case)
                assert injector not in STOPS or set(case.ran().values()) <= {1} or "Ctrl" in injector
            (bench.folder / "enough").write_text("")
            check_again(case)
        assert reader.broken == []
        check_ledger(case)
        check_processes(case)
        assert all(name.endswith(".tmp") for name in leftovers(case)), leftovers(case)
    except BaseException as error:
        raise AssertionError(f"'{injector}', seed {seed}: {error}") from error
    finally:
        (bench.folder / "enough").unlink(missing_ok=True)
        bench.counts[injector] += 1


def run_batch(
    bench: Bench,
    injector: str,
    batch: int,
    cases: int = 3,  # in a batch
) -> None:
    """Play the cases of one batch of a misfortune."""
    for seed in range(batch * cases, (batch + 1) * cases):
        run_case(bench, seed, injector)
