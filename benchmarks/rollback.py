"""How long a rollback takes, from the key press to the released older version.

    python benchmarks/rollback.py [--rounds 9]

Makes a project in a temporary folder with two versions of a forest of 200 trees, packaged by the library, the second
one champion and its package deleted. Then, medians of the rounds, each on the clock:

- `rollback`: seconds of the whole command `mlops-nb rollback forest`, a process of its own; between the rounds the
  alias is moved forward again and released, which is not timed;
- `cpu`: seconds of CPU of that command, which say more than the clock where others work on the machine;
- `bare`: seconds of `python -c pass`, to compare machines and how busy they were, and `ratio` how many of those fit.

Python may keep compiled modules, as it does unless told otherwise.

Prints a line of JSON. Exit code 1 when the limit is missed: 1 s.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlops_nb import Model, ModelPackage
from mlops_nb.core.ledger import Ledger
from mlops_nb.core.settings import Settings, load_settings
from mlops_nb.core.store import Store
from mlops_nb.model.schema import describe_inputs
from mlops_nb.registry.register import Registrar, register, release_champion
from mlops_nb.registry.releases import read_release

LIMIT = 1.0
NAME = "forest"
INI = "[package]\nname = bench\n[registry]\nbento_store = false\n"


def make_package(path: Path, seed: int) -> None:
    """A forest on scikit-learn's breast cancer data, packaged."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier

    table = load_breast_cancer(as_frame=True).frame
    table["target"] = table["target"].map({0: "malignant", 1: "benign"}).astype("str")
    inputs: dict[str, Any] = dict.fromkeys(table.columns[:-1], "number")
    forest = RandomForestClassifier(200, random_state=seed).fit(table[list(inputs)], table["target"].to_numpy("U"))
    schema = describe_inputs(table, inputs, target="target", task="binary")
    model = Model(forest, example=table[list(inputs)].head(2), schema=schema)
    ModelPackage(model, NAME, {"roc_auc": 0.99}, trained_on=table).write(path)


def make_project(folder: Path) -> Settings:
    """A project whose model has two versions, the second one champion and without its package."""
    (folder / "settings.ini").write_text(INI, encoding="utf-8")
    settings = load_settings(folder)
    store = Store(settings.workspace.path / "objects")
    with Ledger.open(settings) as ledger:
        for number in (1, 2):
            make_package(folder / "package", number)
            run = f"20261129-10150{number}-000{number}"
            ledger.begin_run(run, "tabular", {})
            registrar = Registrar({"run": run, "pipeline": "tabular"}, settings, ledger)
            digest = store.put_file(folder / "package")
            register(registrar, digest)
            move(ledger, number)
            release_champion(registrar, NAME)
            ledger.end_run(run, "ok")
        store.path(digest).unlink()
    return settings


def move(ledger: Ledger, version: int) -> None:
    """Make a version champion, without looking at anything."""
    ledger.move_alias(NAME, "champion", version, expected=ledger.alias(NAME, "champion"), reason="benchmark")


def used() -> float:
    """Seconds of CPU of all commands so far."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of a command on the clock, and of CPU."""
    before, before_cpu = time.perf_counter(), used()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - before, used() - before_cpu


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Medians of the command and of a bare Python."""
    settings, back, bare = make_project(folder), [], []
    for _ in range(rounds + 1):
        bare.append(timed([sys.executable, "-c", "pass"], folder))
        back.append(timed([sys.executable, "-m", "mlops_nb", "rollback", NAME], folder))
        assert read_release(settings.workspace.path / "releases", NAME).document.arms[0].version == 1
        with Ledger.open(settings) as ledger:
            move(ledger, 2)
            release_champion(Registrar({"run": "", "pipeline": "tabular"}, settings, ledger), NAME)
    clock, cpu = (statistics.median(values) for values in zip(*back[1:], strict=True))
    found = {
        "rollback_seconds": clock,
        "cpu_seconds": cpu,
        "bare_seconds": statistics.median(seconds for seconds, _ in bare[1:]),
    }
    return found | {"ratio": found["rollback_seconds"] / found["bare_seconds"]}


def main() -> int:
    """Exit code: 0 when the limit is not missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    for name in [name for name in os.environ if name.startswith("MLOPS_NB_") or name == "PYTHONDONTWRITEBYTECODE"]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), rounds)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
    return int(found["rollback_seconds"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
