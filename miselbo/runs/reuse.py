"""Members that another run folder has trained already: the same configuration but for S, so the same bits.

A member depends on its number and the settings alone, so a run of S = 5 beside one of S = 2 trains three members.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from miselbo.errors import InputError
from miselbo.runs import checkpoints
from miselbo.runs.folder import ADDED, config_path, identity, stored
from miselbo.runtime.files import atomic


def reusable(
    from_run: str | None, now: Mapping[str, object], size: int, folder: Path
) -> tuple[Path, list[int]] | None:
    """Where finished members are that ``folder`` lacks, and their numbers; None where there are none.

    Args:
        from_run: names the other one; "auto" looks beside ``folder`` for runs that differ from it in S, and None
            takes nothing over.
        now: what decides the members here (:func:`miselbo.runs.folder.identity`).
        size: S.
        folder: this run's.

    Raises:
        InputError: ``from_run`` is no run folder, is trained jointly, or has other settings; the keys are named.
    """
    if from_run is None or now["ensemble.objective"] == "mixture":
        return None
    if from_run == "auto":
        offers = [(place, beside(now, size, place, folder)) for place in siblings(folder)]
        source, taken = max(offers, key=lambda offer: len(offer[1]), default=(folder, []))
    else:
        source = Path(str(from_run)).expanduser()
        if not config_path(source).is_file():
            raise InputError(f"from_run={source} is no run folder: {config_path(source)} does not exist")
        if wrong := differences(now, source):
            listed = "; ".join(wrong[:5])
            raise InputError(
                f"from_run={source} has other settings, so its members are not this run's: {listed}"
            )
        taken = available(size, source, folder)
    return (source, taken) if taken else None


def beside(now: Mapping[str, object], size: int, place: Path, folder: Path) -> list[int]:
    """What a run that nobody named has to offer; nothing where its settings differ or a file of it cannot be read."""
    try:
        return [] if differences(now, place) else available(size, place, folder)
    except InputError:
        return []


def siblings(folder: Path) -> list[Path]:
    """Run folders beside one whose names differ from its in S alone.

    Example:
        >>> siblings(Path("nowhere/vae-digits-S3-seed0"))
        []
    """
    parts = re.split(r"-S\d+-", folder.name)
    if len(parts) != 2 or not folder.parent.is_dir():
        return []
    same = re.compile(rf"{re.escape(parts[0])}-S\d+-{re.escape(parts[1])}")
    places = sorted(place for place in folder.parent.iterdir() if same.fullmatch(place.name))
    return [place for place in places if place != folder and config_path(place).is_file()]


def differences(now: Mapping[str, object], place: Path) -> list[str]:
    """In what another run's members differ: one line for each key that decides them."""
    before, now = ADDED | identity(stored(place)), ADDED | dict(now)
    keys = sorted(before.keys() | now.keys())
    return [
        f"{k} is {before.get(k)!r} there, {now.get(k)!r} here" for k in keys if before.get(k) != now.get(k)
    ]


def available(size: int, source: Path, folder: Path) -> list[int]:
    """Members that ``source`` has and ``folder`` lacks, in a row from the first lacking one on."""
    have, numbers = set(checkpoints.finished_members(folder, size)), []
    finished = checkpoints.finished_members(source, size)
    for s in range(1, size + 1):
        if s in have:
            continue
        if s not in finished or "trained_with" in members_info(source, s):
            break
        numbers.append(s)
    if have and numbers:  # the target here must be the one they were trained against
        stamps = [members_info(source, numbers[0]), members_info(folder, min(have))]
        if stamps[0]["target_fingerprint"] != stamps[1]["target_fingerprint"]:
            return []
    return numbers


def members_info(folder: Path, member: int) -> dict[str, object]:
    """What is kept beside a member's tensors; ``trained_with`` is there for joint training alone."""
    content = checkpoints.read(checkpoints.member_path(folder, member), "member")
    kept = {key: value for key, value in content.items() if key != "state"}
    return {k: v for k, v in kept.items() if k != "trained_with" or kept.get("objective") == "mixture"}


def copy(source: Path, members: list[int], folder: Path) -> None:
    """Target, members and their curves, the target first."""
    paths = [(checkpoints.target_path(source), checkpoints.target_path(folder))]
    paths += [
        (checkpoints.member_path(source, s), checkpoints.member_path(folder, s)) for s in sorted(members)
    ]
    for there, here in paths:
        if not here.exists():
            with atomic(here) as temporary:
                temporary.write_bytes(there.read_bytes())
    copy_curves(source, {s: s for s in members}, folder)
    for s in members:
        checkpoints.resume_path(folder, s).unlink(missing_ok=True)
    print(f"taken from {source}, where they were trained: {', '.join(f'q{s}' for s in members)}")


def copy_curves(source: Path, numbers: Mapping[int, int], folder: Path) -> None:
    """Curves of members of another run into this one's ``metrics.csv``; ``numbers``: here by those there."""
    from miselbo.runs.tidy import TidyMetrics  # these import Lightning
    from miselbo.runs.wandb import tidy_rows

    rows = tidy_rows(source / "metrics.csv")
    for there, here in numbers.items():
        logger, steps = TidyMetrics(folder / "metrics.csv", here), dict[int, dict[str, float]]()
        for (member, step, name), value in rows.items():
            if member == there:
                steps.setdefault(step, {})[name] = value
        for step, values in sorted(steps.items()):
            logger.log_metrics(values, step)
