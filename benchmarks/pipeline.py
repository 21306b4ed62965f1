"""What a pipeline run costs beside its notebooks: `mlops-nb run tabular` against the same six under plain papermill.

    python benchmarks/pipeline.py [--rounds 5]

Each round runs both from an empty workspace, in turn; CPU seconds (user + system) of the whole process tree, kernels,
the W&B writer and its service included. papermill gets the strictest form: one process that executes all six, so that
it imports once. Limit: the median of the rounds' ratios is at most 1.5, W&B, registry and BentoML store included.
Exit code 1 when the limit is missed.
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1.5
PAPERMILL = """
import sys
from contextlib import suppress
from pathlib import Path
import papermill
for notebook in sorted(Path("nbs/pipelines/tabular").glob("[0-9]*.ipynb")):
    papermill.execute_notebook(notebook, Path(sys.argv[1]) / notebook.name, progress_bar=False, kernel_name="python3")
"""


def adopt_orphans() -> bool:
    """Make this process the reaper of orphaned descendants, so that their CPU time is counted (Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER


def reap(wait: bool = True) -> None:
    """Have the system count what adopted descendants have used: of all, or without waiting of those that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, 0 if wait else os.WNOHANG)[0]:
            continue


def cost(
    command: list[str], environment: dict[str, str], folder: Path = ROOT, wait: bool = True
) -> tuple[float, float]:
    """CPU seconds of the command's process tree, and wall seconds until it returned."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    reap(wait)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def one_round(binaries: Path) -> dict[str, tuple[float, float]]:
    """Both contestants once, each from an empty workspace of its own."""
    found = {}
    for name in ("papermill", "mlops-nb", "nothing to do"):
        if name != "nothing to do":
            folder = tempfile.mkdtemp(prefix="mlops-bench-")
        environment = {
            **os.environ,
            "MLOPS_NB_WORKSPACE_PATH": f"{folder}/workspace",
            "BENTOML_HOME": f"{folder}/bentoml",
            "MLOPS_NB_PIPELINE_SERVER": "off",
        }
        environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"
        ours = [str(binaries / "mlops-nb"), "run", "tabular", "--json"]
        theirs = [sys.executable, "-c", PAPERMILL, folder]
        found[name] = cost(theirs if name == "papermill" else ours, environment)
    return found


def main() -> int:
    """Run the rounds, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    adopted = adopt_orphans()
    results = []
    for number in range(1, rounds + 1):
        results.append(one_round(Path(sys.executable).parent))
        shown = "   ".join(f"{name} {cpu:.1f} CPU-s, {wall:.1f} s" for name, (cpu, wall) in results[-1].items())
        print(f"round {number}: {shown}", flush=True)
    ratios = [found["mlops-nb"][0] / found["papermill"][0] for found in results]
    ratio = statistics.median(ratios)
    medians = {name: round(statistics.median(found[name][0] for found in results), 2) for name in results[0]}
    print(
        json.dumps(
            {
                "ratio": round(ratio, 3),
                "limit": LIMIT,
                "cpu_seconds": medians,
                "rounds": rounds,
                "orphans_counted": adopted,
            }
        )
    )
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
