"""A long run of the fault tests: `python benchmarks/faults.py --cases 1000 --seed 0`.

Random pipelines, each disturbed once and then run in peace; what must hold afterwards is in tests/pipeline/faults.py.
Prints a line per failure, with the seed that repeats it (`--only "kill a kernel" --seed 17 --cases 1`), and a summary.
"""

import argparse
import contextlib
import multiprocessing
import sys
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "pipeline")]


def play(number: int, cases: list[tuple[int, str]], small: bool, told) -> None:
    """Play cases on one bench, and tell how each ended."""
    import faults
    from support import memory_disk

    mounted = (lambda place: memory_disk(place, "3m")) if small else None
    with contextlib.ExitStack() as stack:
        bench = stack.enter_context(faults.bench(mounted))
        for seed, injector in cases:
            began, error = time.monotonic(), ""
            try:
                faults.run_case(bench, seed, injector)
            except AssertionError as found:
                error = str(found)
            told.put((injector, time.monotonic() - began, error))
    told.put((None, number, ""))


def shares(cases: int, seed: int, only: str | None, jobs: int) -> list[tuple[list[tuple[int, str]], bool]]:
    """The cases of each process, and whether it needs a small disk."""
    import faults

    names = [only] if only else list(faults.EVERY)
    every = [(seed + number // len(names), names[number % len(names)]) for number in range(cases)]
    usual = [case for case in every if case[1] not in faults.DISKS]
    disks = [case for case in every if case[1] in faults.DISKS]
    return [(part, False) for number in range(jobs) if (part := usual[number::jobs])] + ([(disks, True)] * bool(disks))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one misfortune")
    parser.add_argument("--jobs", type=int, default=2)
    words = parser.parse_args()
    told, began = multiprocessing.Queue(), time.monotonic()
    parts = shares(words.cases, words.seed, words.only, words.jobs)
    players = [multiprocessing.Process(target=play, args=(number, *part, told)) for number, part in enumerate(parts)]
    for player in players:
        player.start()
    played, failed, seconds = Counter(), Counter(), Counter()
    left = len(players)
    while left:
        injector, value, error = told.get()
        if injector is None:
            left -= 1
            continue
        played[injector] += 1
        seconds[injector] += value
        if error:
            failed[injector] += 1
            print(f"FAILED {error[:2000]}", flush=True)
    for injector, number in sorted(played.items()):
        print(f"{injector:26} {number:5} cases  {failed[injector]:3} failed  {seconds[injector] / number:5.1f} s each")
    total = sum(played.values())
    print(f"{total} cases, {sum(failed.values())} failed, {time.monotonic() - began:.0f} s, seed {words.seed}")
    return 1 if failed or total < words.cases else 0


if __name__ == "__main__":
    sys.exit(main())
