"""Do the tests notice? Random one-token changes of the core modules, each against the tests of its module.

    python benchmarks/mutants.py --count 60 --seed 0

A change is one operator, comparison, number, ``not``, ``min``/``max`` or the like. Each is written into a copy of the
checkout, and the tests named for its module run there in a process forked from one that has torch loaded. Survivors are
printed as a line of before and after; read each: equivalent, or a test is missing. Not part of the tests: hours.
"""

import argparse
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "bounds/equations.py": ["tests/bounds/test_equations.py"],
    "bounds/running.py": ["tests/bounds/test_running.py"],
    "bounds/sums.py": ["tests/bounds/test_running.py", "tests/bounds/test_jackknife.py"],
    "bounds/jackknife.py": ["tests/bounds/test_jackknife.py"],
    "bounds/diagnostics.py": ["tests/bounds/test_diagnostics.py", "tests/evaluation/test_tables.py"],
    "bounds/subsets.py": ["tests/bounds/test_subsets.py", "tests/evaluation/test_subset_tables.py"],
    "bounds/weights.py": ["tests/bounds/test_weights.py", "tests/evaluation/test_subset_tables.py"],
    "bounds/checks.py": ["tests/evaluation/test_trust.py"],
    "bounds/worth.py": ["tests/bounds/test_worth.py"],
    "bounds/sandwich.py": ["tests/bounds/test_sandwich.py"],
    "noise.py": ["tests/test_noise.py"],
    "ensemble.py": ["tests/test_ensemble.py"],
    "training/objective.py": ["tests/training/test_objective.py"],
    "training/regularisers.py": ["tests/training/test_regularisers.py"],
    "evaluation/tables.py": ["tests/evaluation/test_tables.py"],
    "evaluation/evidence.py": ["tests/evaluation/test_trust.py"],
    "evaluation/verdicts.py": ["tests/evaluation/test_trust.py"],
    "evaluation/member_verdicts.py": ["tests/evaluation/test_trust.py"],
    "evaluation/subset_tables.py": ["tests/evaluation/test_subset_tables.py"],
    "evaluation/settings.py": ["tests/evaluation/test_scoring.py"],
}
SWAPS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "**": "*", "//": "*", "%": "*", "&": "|", "|": "&", "+=": "-=", "-=": "+=", "and": "or", "or": "and",
    "True": "False", "False": "True", "min": "max", "max": "min", "amax": "amin", "amin": "amax",
    "log": "exp", "exp": "log",
    "mean": "sum", "sum": "mean", "sqrt": "square", "square": "sqrt", "argmax": "argmin", "isfinite": "isnan",
}  # fmt: skip
LIMIT = 900  # seconds for the tests of one mutant; an endless loop counts as noticed


def places(text: str) -> list[tuple[tokenize.TokenInfo, str]]:
    """Tokens of the code that can be changed, with what they become; annotations, imports and defaults of `def` too."""
    found, skip = [], 0
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = lines[token.start[0] - 1].lstrip() if token.start[0] <= len(lines) else ""
        if (
            line.startswith(("import ", "from ", "def ", "@", "class ", "raise ", 'f"', '"'))
            or "->" in line
            or skip
        ):
            continue
        if token.type == tokenize.NUMBER and token.string.isdigit():
            found.append((token, str(int(token.string) + 1)))
        elif token.type in (tokenize.OP, tokenize.NAME) and token.string in SWAPS:
            unary_or_type = token.string in "-*|" and (
                "*" in token.line and "=" not in token.line and "(" in token.line
            )
            if not unary_or_type:
                found.append((token, SWAPS[token.string]))
    return found


def mutated(text: str, token: tokenize.TokenInfo, new: str) -> str:
    """The text with one token replaced."""
    lines = text.splitlines(keepends=True)
    row, start, end = token.start[0] - 1, token.start[1], token.end[1]
    lines[row] = lines[row][:start] + new + lines[row][end:]
    return "".join(lines)


def passes(copy: Path, module: str, tests: list[str]) -> bool:
    """Whether the tests and doctests of a module pass in the copy; in a child that has torch loaded already."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(copy)
        sys.path[:0] = [str(copy)]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import pytest

        arguments = ["-x", "-q", "-p", "no:cacheprovider", "--doctest-modules", f"miselbo/{module}", *tests]
        try:
            os._exit(int(pytest.main(arguments)) != 0)
        except BaseException:
            os._exit(1)
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    """Try ``--count`` mutants and print those that live."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a module's path")
    options = parser.parse_args()
    import hypothesis  # noqa: F401  loaded once, for all children
    import pandas  # noqa: F401
    import pytorch_lightning  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch

    torch.set_num_threads(1)
    chooser = random.Random(options.seed)
    every = [
        (module, token, new)
        for module in TESTS
        if options.only in module
        for token, new in places((ROOT / "miselbo" / module).read_text())
    ]
    chosen = chooser.sample(every, min(options.count, len(every)))
    alive = 0
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for name in ("miselbo", "tests", "conf"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "old"))
        for name in ("pyproject.toml", "setup.cfg"):
            shutil.copy(ROOT / name, copy)
        for number, (module, token, new) in enumerate(chosen, 1):
            path = copy / "miselbo" / module
            text = path.read_text()
            path.write_text(mutated(text, token, new))
            lived = passes(copy, module, TESTS[module])
            path.write_text(text)
            alive += lived
            line = token.line.strip().splitlines()[0]
            word = "ALIVE" if lived else "dead "
            print(
                f"{number:3d} {word} {module}:{token.start[0]}  {token.string} -> {new}   {line}", flush=True
            )
    print(f"{len(chosen) - alive} of {len(chosen)} noticed")


if __name__ == "__main__":
    main()
