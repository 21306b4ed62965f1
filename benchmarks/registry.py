"""What trust costs: parts that are measured on their own, each against what it is compared with in the same process.

    python benchmarks/registry.py [--only verification,signing] [--rounds 9]

- `verification`: how much of the throughput of plain SHA-256 over the same files is left when a signed folder is
  verified: signature, names and contents. `large` is a folder of 256 MB in one large and many small files, `many` one
  of four large files; `version` one of the size of the default model's (0.4 MB), where the elliptic curve, a constant
  of less than a millisecond, weighs as much as the contents: it has no limit;
- `signing`: by how much signing lengthens the registration of a model package (CPU seconds of `run_completing`, with
  the BentoML store), as a share of what it takes with `signatures = off`.

Prints a line of JSON for each part when it was measured. Exit code 1 when a limit is missed.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Limit(NamedTuple):
    """What a figure may be."""

    low: float = float("-inf")
    high: float = float("inf")


def median(rounds: int, clock: Callable[[], float], *works: Callable[[], Any]) -> list[float]:
    """Median of the rounds of each work, which take turns, after one round that warms up."""
    found: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, times in zip(works, found, strict=True):
            before = clock()
            work()
            if number:
                times.append(clock() - before)
    return [statistics.median(times) for times in found]


# ---- verification


def plain(folder: Path) -> list[str]:
    """SHA-256 of the files of a folder, one after the other."""
    found = []
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


def signed_folder(folder: Path, sizes: list[int], private: Any) -> Path:
    """A signed folder of files of such sizes."""
    from mlops_nb.registry.signature import SIGNATURE, files_in, hash_files, sign_files

    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number}.bin").write_bytes(os.urandom(size))
    (folder / SIGNATURE).write_bytes(sign_files("bench:1", hash_files(folder, files_in(folder)), private))
    return folder


def measure_verification(place: Path, rounds: int) -> dict[str, float]:
    """Throughput of verification as a share of plain hashing."""
    from mlops_nb.registry.keyring import make_private, public_text
    from mlops_nb.registry.keys import TrustedKey
    from mlops_nb.registry.verify import verify_folder

    private, _ = make_private(b"bench")
    key = TrustedKey("bench", public_text(private))
    kinds = {"large": [240 << 20, *[1 << 17] * 128], "many": [32 << 20] * 4, "version": [390_000, 4_000, 4_000, 2_000]}
    found = {}
    for kind, sizes in kinds.items():
        folder = signed_folder(place / kind, sizes, private)
        repeat = 100 if sum(sizes) < 1 << 20 else 1
        hashed, verified = median(
            rounds,
            time.perf_counter,
            lambda folder=folder, repeat=repeat: [plain(folder) for _ in range(repeat)],
            lambda folder=folder, repeat=repeat: [verify_folder(folder, [key]) for _ in range(repeat)],
        )
        found |= {f"{kind}_share": hashed / verified, f"{kind}_mb_per_second": sum(sizes) * repeat / 1e6 / verified}
    return found


# ---- signing


def packages(count: int) -> list[bytes]:
    """The bytes of model packages that differ: forests of the size of a usual model."""
    import pandas as pd
    from sklearn.datasets import load_breast_cancer

    from mlops_nb.model.artifact import Model
    from mlops_nb.model.package import ModelPackage
    from mlops_nb.model.schema import describe_inputs
    from mlops_nb.model.train import fit

    frame = load_breast_cancer(as_frame=True).frame
    frame["target"] = pd.array(frame["target"].map({0: "malignant", 1: "benign"}), dtype="str")
    kinds: dict[str, Any] = {name: "number" for name in frame.columns if name != "target"}
    profile: dict[str, Any] = {"task": "binary", "target": "target", "features": list(kinds)}
    profile["columns"] = {name: {"kind": kind} for name, kind in kinds.items()}
    schema = describe_inputs(frame, kinds, "target", "binary")
    model = Model(fit(frame, profile, "forest"), example=frame.head(3), schema=schema)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package"
        found = []
        for number in range(count):
            ModelPackage(model, "bench", {"roc_auc": 0.5 + number / 1000}, frame).write(path)
            found.append(path.read_bytes())
    return found


def measure_signing(place: Path, rounds: int) -> dict[str, float]:
    """CPU seconds of registering with and without a signature."""
    from mlops_nb.core.ledger import Ledger
    from mlops_nb.core.settings import load_settings
    from mlops_nb.core.store import Store
    from mlops_nb.registry.register import run_completing

    contents = iter([content for content in packages(rounds + 1) for _ in range(2)])
    works = []
    for signatures in ("off", "required"):
        project = place / signatures
        project.mkdir()
        (project / "settings.ini").write_text(f"[package]\nname = bench\n[registry]\nsignatures = {signatures}\n")
        settings = load_settings(project)
        works.append((settings, Ledger.open(settings), Store(settings.workspace.path / "objects")))
    times: dict[str, list[float]] = {"off": [], "required": []}
    for number in range(rounds + 1):
        for settings, ledger, store in works:
            run = f"20261123-{number:06d}-0001"
            ledger.begin_run(run, "tabular", {})
            gives = {
                "package": {"type": "ModelPackage", "sha256": store.put_bytes(next(contents)), "size": 1, "meta": {}}
            }
            ledger.commit_step(run, "package", key=run, parts={}, manifest={"gives": gives, "metrics": {}})
            before = time.process_time()
            run_completing({"run": run, "pipeline": "tabular"}, settings, ledger)
            if number:
                times[settings.registry.signatures].append(time.process_time() - before)
    without, with_it = (statistics.median(times[name]) for name in ("off", "required"))
    return {"without_ms": 1000 * without, "with_ms": 1000 * with_it, "signing_share": with_it / without - 1}


PARTS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "verification": measure_verification,
    "signing": measure_signing,
}
LIMITS = {
    "large_share": Limit(low=0.5),
    "many_share": Limit(low=0.5),
    "signing_share": Limit(high=0.1),
}


def main() -> int:
    """Exit code: 0 when no limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--rounds", type=int, default=9)
    words = parser.parse_args()
    chosen = words.only.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}: {', '.join(PARTS)}")
    for name in [name for name in os.environ if name.startswith("MLOPS_NB_")]:
        del os.environ[name]
    missed = []
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"XDG_CONFIG_HOME": f"{folder}/config", "BENTOML_HOME": f"{folder}/bentoml"}
            found = PARTS[name](Path(folder), words.rounds)
        print(json.dumps({"part": name, **{key: round(value, 3) for key, value in found.items()}}), flush=True)
        limits = {key: LIMITS[key] for key in found if key in LIMITS}
        missed += [key for key, limit in limits.items() if not limit.low <= found[key] <= limit.high]
    for key in missed:
        print(f"missed: {key}, {LIMITS[key]}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
