"""In what two runs were measured differently, and which of these differences change what their numbers mean."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from miselbo.errors import InputError, nearest
from miselbo.report.folder import RunFolder

# key of the protocol -> what its difference does to the difference of two bounds
DECIDES = {
    "dataset": "they score other examples",
    "split": "they score other examples",
    "split_rule": "the same number may stand for another example",
    "data": "examples of the same number have other bits",
    "binarisation": "log p(x) of other pixels, or of another kind of pixel",
    "binarisation_seed": "log p(x) of other pixels",
    "likelihood": "a density and a probability are not on one scale",
    "num_x_bits": "log p(x) of other pixels",
    "image": "log p(x) of other pixels",
    "alignment": "log p of other sequences",
    "replicates": "their examples are of another kind",
    "normaliser_rule": "log Z of another domain",
    "log_normaliser": "log Z of another density",
    "source": "their examples are from another file",
    "L": "a bound of more draws is another, tighter bound",
    "remark": "numbers with a remark are no bounds of one model",
}
NEVER = ("dataset", "split")  # index n is another example: nothing can be paired
NAMED = (
    "model", "S", "seed", "evaluation_seed", "dtype", "compile", "refine_steps", "num_data", "target_fingerprint",
    "fingerprint", "device", "decoder", "checkpoints", "support", "substitution_model", "data_sha256", "versions",
    "commit",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One entry of two protocols that differs; ``blocks`` says what it does to the numbers, empty where nothing."""

    key: str
    first: str
    other: str
    blocks: str = ""


def differences(first: RunFolder, other: RunFolder) -> list[Difference]:
    """What the protocols of two runs say differently, those that change the numbers' meaning first.

    A key that one of them lacks (a folder of an older version) is no difference.
    """
    found = []
    for key in (*DECIDES, *NAMED):
        one, two = (_value(run, key) for run in (first, other))
        if key == "data" and (count := _changed_bits(first, other)):
            found.append(Difference(key, "", f"{count} examples of the same number differ", DECIDES[key]))
        elif one is not None and two is not None and one != two:
            found.append(Difference(key, _short(one), _short(two), DECIDES.get(key, "")))
    return found


def check(found: Sequence[Difference], names: tuple[str, str], allow: Iterable[str]) -> None:
    """Refuse two runs whose numbers do not mean the same.

    Args:
        found: of :func:`differences`.
        names: of the two runs.
        allow: keys of :data:`DECIDES` that may differ.

    Raises:
        InputError: naming each difference, with both values.
    """
    allowed = {*allow}
    for key in allowed - (DECIDES.keys() - {*NEVER}):
        can = ", ".join(name for name in DECIDES if name not in NEVER)
        raise InputError(f"allow={key}: {nearest(key, DECIDES)}what can be allowed to differ is {can}")
    causes = allowed & {*DECIDES} - {"L", "data"}
    blocking = [d for d in found if d.blocks and d.key not in allowed and not (d.key == "data" and causes)]
    if not blocking:
        return
    told = "; ".join(
        f"{d.key} is {d.first or 'as it is'} in {names[0]}, {d.other} in {names[1]} ({d.blocks})"
        for d in blocking
    )
    keys = [d.key for d in blocking]
    fix = f"or allow=[{','.join(keys)}]" if not {*keys} & {*NEVER} else "no allow= helps here"
    raise InputError(
        f"{names[0]} and {names[1]} cannot be compared, their numbers do not mean the same: {told}. "
        f"Evaluate them alike (task=evaluate run_dir=...), {fix}"
    )


def _value(run: RunFolder, key: str) -> object:
    if key == "L":
        return run.num_samples
    if key == "S":
        return run.size
    if key in ("compile", "refine_steps"):  # absent where not asked for
        return run.protocol.get(key, 0)
    if key == "remark":
        return run.protocol.get(key, "")
    return run.protocol.get(key)


def _changed_bits(first: RunFolder, other: RunFolder) -> int:
    """How many examples of the same number have other bits; 0 where they are not known."""
    if not all("data_hash" in run.per_example.columns for run in (first, other)):
        return 0
    one, two = (run.per_example.set_index("index")["data_hash"] for run in (first, other))
    common = one.index.intersection(two.index)
    return int(np.count_nonzero(one[common].to_numpy() != two[common].to_numpy()))


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {content}" for name, content in value.items())
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else text or "nothing"
