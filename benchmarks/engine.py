"""What the engine costs beside papermill's own and beside the cells alone.

    python benchmarks/engine.py [--rounds 5] [--papermill PYTHON] [--many 64] [--only warm,shell,many] [--json FILE]

Five notebooks: A three small cells; B a fit with cross-validation and a plot; C forty small cells with prints, every
second one with a table; D 20,000 printed lines and 30 plots; E imports a package that no template has seen. Ratios are
taken round by round, in which the contestants take turns, and their median is the figure: no machine is ever quiet.

- `warm`: in one process that has executed each notebook once, papermill's engine against ours, and ours against the
  same cells as a script in a fork of a process that has imported their packages.
- `shell`: whole commands, cold (no server) and with the server; papermill by its own command, of the environment whose
  interpreter --papermill names (default: this one). CPU seconds are those of the whole tree, but for the server, which
  goes on; how long its start takes is printed.
- `many`: B with 64 values of its parameter on all cores: papermill in as many processes as there are cores, ours by
  as many threads, and forked scripts as the limit; once with one thread per library, once with the defaults.

Prints a table; exit code 1 when a limit of `LIMITS` is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import nbformat
from pipeline import adopt_orphans, cost

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {  # name -> (at least or at most, value)
    "warm A": (">=", 30), "warm B": (">=", 6), "warm C": (">=", 14), "script B": ("<=", 1.15), "script D": ("<=", 1.1),
    "cold A": (">=", 2.5), "cold B": (">=", 1), "cold C": (">=", 1), "cold D": (">=", 1), "cold E": (">=", 1),
    "cold script B": ("<=", 1.15), "server A": (">=", 15), "server B": (">=", 6),
    "many, one thread": (">=", 5), "many, of the limit": (">=", 0.9), "two slots of one": (">=", 1),
}  # fmt: skip
IMPORTS = """import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler"""
FIT = """data = load_breast_cancer(as_frame=True)
scores = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(C=C)), data.data, data.target, cv=5)
print(scores.mean())"""
PARAMETERS = "C = 1.0"
NOTEBOOKS = {
    "A": [PARAMETERS, "total = C + 1\nprint(total)", "total * 2"],
    "B": [IMPORTS, PARAMETERS, FIT, "plt.plot(scores)\nplt.show()", "data.data.head()"],
    "C": [
        "import pandas as pd",
        PARAMETERS,
        *(f"print('cell', {n})" + f"\npd.DataFrame({{'n': range({n})}}).head(3)" * (n % 2) for n in range(38)),
    ],
    "D": [
        "import matplotlib.pyplot as plt",
        PARAMETERS,
        "for n in range(20_000):\n    print('line', n)",
        *(f"plt.plot([{n}, 2, 1])\nplt.show()" for n in range(30)),
    ],
    "E": ["import sqlalchemy", PARAMETERS, "print(sqlalchemy.select(sqlalchemy.literal(C)))"],
}
SHOW = """import io
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot
def show():
    matplotlib.pyplot.gcf().savefig(io.BytesIO(), bbox_inches="tight")
    matplotlib.pyplot.close()
matplotlib.pyplot.show = show"""  # a script's figures become PNG images, drawn as those of a notebook
ENGINES = {"ours": "mlops_nb", "papermill": None}


def write_notebooks(folder: Path) -> dict[str, Path]:
    """The notebooks as files."""
    found = {}
    for name, sources in NOTEBOOKS.items():
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        for cell in cells:
            cell.metadata["tags"] = ["parameters"] if cell.source == PARAMETERS else []
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        found[name] = folder / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), found[name])
    return found


def forked_script(name: str, value: float = 1.0) -> int:
    """The cells of a notebook as a script in a fork of this process; the child's number."""
    pid = os.fork()
    if pid == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            names = {"__name__": "__main__"}
            exec(SHOW, names)
            for source in NOTEBOOKS[name]:
                exec(compile(f"C = {value}" if source == PARAMETERS else source, name, "exec"), names)
            os._exit(0)
    return pid


def timed(work) -> float:
    """Wall seconds of some work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def warm(notebooks: dict[str, Path], rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round in one warm process, by notebook and contestant."""
    from mlops_nb.notebook.engine import import_papermill

    papermill = import_papermill()
    exec(IMPORTS, {})

    def run(name: str, engine: str | None) -> None:
        output = folder / f"{name}.out.ipynb"
        papermill.execute_notebook(str(notebooks[name]), str(output), engine_name=engine, progress_bar=False)

    contestants = {who: lambda name, engine=engine: run(name, engine) for who, engine in ENGINES.items()}
    contestants["script"] = lambda name: os.waitpid(forked_script(name), 0)
    found = {}
    for name in NOTEBOOKS:
        for work in contestants.values():
            work(name)
        time.sleep(3)  # templates import what the notebook named
        taken = {who: [] for who in contestants}
        for _ in range(rounds):
            for who, work in contestants.items():
                taken[who].append(timed(partial(work, name)))
        found[name] = taken
    return found


def command(words: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command; a server that it has started goes on, and is not counted."""
    cpu, wall = cost(words, environment, folder, wait=False)
    return wall, cpu


def shell(rounds: int, folder: Path, papermill: str) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Wall and CPU seconds of whole commands in each round, by notebook and contestant."""
    (folder / "settings.ini").write_text("[package]\nname = bench\n[workspace]\n")
    ours = [sys.executable, "-m", "mlops_nb", "papermill", "--no-progress-bar"]
    theirs = [papermill, "-m", "papermill", "--no-progress-bar"]
    off, on = ({**os.environ, "MLOPS_NB_PIPELINE_SERVER": state} for state in ("off", "on"))
    scripts = {name: folder / f"{name}.py" for name in NOTEBOOKS}
    for name, path in scripts.items():
        path.write_text("\n".join([*(SHOW.splitlines() if "plt" in str(NOTEBOOKS[name]) else []), *NOTEBOOKS[name]]))
    found = {}
    for name in NOTEBOOKS:
        tail = [f"{name}.ipynb", f"{name}.out.ipynb"]
        contestants = {
            "papermill": lambda tail=tail: command([*theirs, *tail], folder, off),
            "cold": lambda tail=tail: command([*ours, *tail], folder, off),
            "server": lambda tail=tail: command([*ours, *tail], folder, on),
            "script": lambda name=name: command([sys.executable, str(scripts[name])], folder, off),
        }
        for time_of_it in ("first", "second"):
            print(f"{time_of_it} command with a server, {name}: {contestants['server']()[0]:.2f} s")
            time.sleep(3)
        taken = {who: [] for who in contestants}
        for _ in range(rounds):
            for who, work in contestants.items():
                taken[who].append(work())
        found[name] = taken
    subprocess.run([sys.executable, "-m", "mlops_nb", "server", "stop"], cwd=folder, env=on, check=False)
    return found


def in_threads(work, values: list[float], slots: int) -> None:
    """Do work for each value, some at a time."""
    waiting, lock = list(values), threading.Lock()

    def one() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                value = waiting.pop()
            work(value)

    threads = [threading.Thread(target=one) for _ in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


PAPERMILL_MANY = """
import sys, papermill
for value in sys.argv[2:]:
    papermill.execute_notebook(sys.argv[1], f"{value}.pm.ipynb", {"C": float(value)}, progress_bar=False)
"""


def many(count: int, folder: Path, papermill: str, notebook: Path, threads: str | None) -> dict[str, float]:
    """Seconds for many values of B's parameter."""
    from mlops_nb.notebook.fork.executor import Executor
    from mlops_nb.pipeline.attempt import THREADS

    exec(IMPORTS, {})
    cores = len(os.sched_getaffinity(0))
    values = [round(0.01 * (n + 1), 2) for n in range(count)]
    environment = {**os.environ, **(dict.fromkeys(THREADS, threads) if threads else {})}
    shares = [[str(value) for value in values[n::cores]] for n in range(cores)]

    def by_papermill() -> None:
        words = [papermill, "-c", PAPERMILL_MANY, str(notebook)]
        running = [subprocess.Popen([*words, *share], cwd=folder, env=environment) for share in shares]
        for process in running:
            process.wait()

    with Executor(folder, shared=False) as executor:

        def ours(slots: int) -> None:
            each = {**dict.fromkeys(THREADS, threads or str(max(1, cores // slots))), "OMP_WAIT_POLICY": "PASSIVE"}

            def one(value: float) -> None:
                options = {"cwd": folder, "environment": each}
                result = executor.step(notebook, folder / f"{value}.out.ipynb", {"C": value}, **options)
                assert result["error"] is None, result

            in_threads(one, values, slots)

        ours(cores)
        found = {"ours": timed(lambda: ours(cores)), "one slot": timed(lambda: ours(1))}
    found["papermill"] = timed(by_papermill)
    if threads:
        for name in THREADS:
            os.environ[name] = threads
        found["limit"] = timed(lambda: in_threads(lambda v: os.waitpid(forked_script("B", v), 0), values, cores))
    return found


def times(more: list[float], less: list[float]) -> float:
    """How many times as long, as a median over the rounds."""
    return statistics.median(a / b for a, b in zip(more, less, strict=True))


def ratios(found: dict) -> dict[str, float]:
    """The figures that LIMITS speak of, as far as they were measured."""
    made = {}
    for name, taken in found.get("warm", {}).items():
        made[f"warm {name}"] = times(taken["papermill"], taken["ours"])
        made[f"script {name}"] = times(taken["ours"], taken["script"])
    for name, taken in found.get("shell", {}).items():
        wall = {who: [one[0] for one in runs] for who, runs in taken.items()}
        cpu = {who: [one[1] for one in runs] for who, runs in taken.items()}
        for who in ("cold", "server"):
            made[f"{who} {name}"] = times(wall["papermill"], wall[who])
        made[f"cold script {name}"] = times(wall["cold"], wall["script"])
        made[f"CPU, cold {name}"] = times(cpu["papermill"], cpu["cold"])
    if "many" in found:
        alone, default = found["many"]["1"], found["many"]["default"]
        made["many, one thread"] = alone["papermill"] / alone["ours"]
        made["many, of the limit"] = alone["limit"] / alone["ours"]
        made["two slots of one"] = default["one slot"] / default["ours"]
    return made


def tell(kind: str, taken: dict) -> int:
    """Print the figures of one part, as soon as it is measured; how many limits it missed."""
    missed = 0
    for name, value in ratios({kind: taken}).items():
        sign, limit = LIMITS.get(name, ("", 0))
        good = not sign or (value >= limit if sign == ">=" else value <= limit)
        missed += not good
        print(f"{name:22} {value:7.2f}   {f'{sign} {limit}' if sign else '':8} {'' if good else 'missed'}", flush=True)
    for name, runs in taken.items():
        walls = {who: one if kind == "many" else statistics.median(map(wall_of, one)) for who, one in runs.items()}
        print(kind, name, {who: f"{wall:.3f} s" for who, wall in walls.items()}, flush=True)
    return missed


def wall_of(one: float | tuple[float, float]) -> float:
    """Wall seconds of a measurement, which may have CPU seconds besides."""
    return one[0] if isinstance(one, tuple) else one


def main() -> int:
    """Measure, print, compare with the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--papermill", default=sys.executable)
    parser.add_argument("--many", type=int, default=64)
    parser.add_argument("--only", default="warm,shell,many")
    parser.add_argument("--json")
    asked = parser.parse_args()
    adopt_orphans()
    found, missed = {}, 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        notebooks = write_notebooks(folder)
        parts = {
            "warm": lambda: warm(notebooks, asked.rounds, folder),
            "shell": lambda: shell(asked.rounds, folder, asked.papermill),
            "many": lambda: {
                name: many(asked.many, folder, asked.papermill, notebooks["B"], value)
                for name, value in {"1": "1", "default": None}.items()
            },
        }
        for kind, measure in parts.items():
            if kind in asked.only.split(","):
                found[kind] = measure()
                missed += tell(kind, found[kind])
    if asked.json:
        Path(asked.json).write_text(json.dumps({"ratios": ratios(found), "seconds": found}, indent=1))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
