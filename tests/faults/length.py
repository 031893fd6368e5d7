"""The faults at length: ``make faults``. Prints one line per kind; exit status 1 when one of them failed.

Kills come at moments drawn evenly over the time that the whole run took (earlier ones where a run had ended before);
every killed run goes on with the same command and is compared with the whole one, byte for byte (tables but for their
seconds).
"""

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import killing


def kills(place: Path, whole: Path, seconds: float, count: int, group: bool, draw: random.Random) -> int:
    """How many killed runs went on to the same."""
    same = 0
    for number in range(count):
        folder = place / f"{'all' if group else 'main'}{number}"
        workers = f"ensemble.workers={1 + number % 2}"
        moment = draw.uniform(0, seconds)
        while not killing.killed(folder, moment, group, *killing.SMALL, workers):
            shutil.rmtree(folder)
            moment = draw.uniform(0, moment)
        try:
            killing.finish(folder, *killing.SMALL, workers)
            found = killing.differences(folder, whole, 3)
        except AssertionError as error:
            found = [str(error)]
        if found:
            print(f"  killed after {moment:.2f} s, {workers}: {found}", flush=True)
        same += not found
        print(f"  {same} of {number + 1}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return same


def main() -> None:
    """All kinds, in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=40, help="kills of all processes")
    parser.add_argument("--mains", type=int, default=20, help="kills of the main process alone")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    passed = True
    with tempfile.TemporaryDirectory(prefix="miselbo-faults-") as name:
        place = Path(name)
        whole, began = place / "whole", time.monotonic()
        killing.finish(whole, *killing.SMALL)
        seconds = time.monotonic() - began
        print(f"the whole run: {seconds:.1f} s", flush=True)
        pairs = list(itertools.product(("run", "evaluate", "report"), repeat=2))
        right = 0
        for first, second in pairs:
            try:
                print(
                    f"  {first} beside {second}: {killing.pair(place / 'pair', whole, first, second)}",
                    flush=True,
                )
                right += 1
            except AssertionError as error:
                print(f"  {first} beside {second}: {error}", flush=True)
        passed &= right == len(pairs)
        print(
            f"two commands at once: {right} of {len(pairs)} pairs refused by a sentence or both right",
            flush=True,
        )
        for what, count, group in (
            ("all processes", given.groups, True),
            ("main process", given.mains, False),
        ):
            same = kills(place, whole, seconds, count, group, draw)
            passed &= same == count
            print(f"kill -9 of the {what}: {same} of {count} went on to the same bytes", flush=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
