"""Members of several runs as one ensemble: ``members=[run_a:q1,run_b:q3]``, where all have one target, bit for bit.

Runs share a target when q1 was trained alike in both: with other settings of the later members, or grown from another
run. A bound of members with different targets is a bound of no model, so they are refused, with a table.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from miselbo.errors import InputError
from miselbo.runs import checkpoints
from miselbo.runs.building import own_arguments
from miselbo.runs.folder import ADDED, check_folder, claim_folder, identity, load_folder
from miselbo.runs.reuse import copy_curves
from miselbo.runtime.files import atomic, write_tensors

SHARED = ("dataset.", "model.target.", "model.name")  # what the runs must have in common


@dataclass(frozen=True)
class Part:
    """A member of another run: ``name`` is how the user wrote it."""

    name: str
    folder: Path
    number: int


def parse(given: Sequence[str]) -> list[Part]:
    """The members that a user names, as ``folder:q3``.

    Raises:
        InputError: not of that form, or one stands there twice.

    Example:
        >>> parse(["outputs/a:q1", "outputs/b:q3"])[1].number
        3
        >>> parse(["outputs/a"])
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: members must list run folders with a member each, as in ... got 'outputs/a'
    """
    parts = []
    for word in given:
        found = re.fullmatch(r"(.+):q([1-9]\d{0,4})", str(word).strip())
        if found is None:
            raise InputError(
                "members must list run folders with a member each, as in 'members=[outputs/a:q1,outputs/b:q3]', "
                f"got {str(word)!r}"
            )
        parts.append(Part(str(word).strip(), Path(found[1]).expanduser(), int(found[2])))
    places = [(part.folder.absolute(), part.number) for part in parts]
    for part, place in zip(parts, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"members: {part.name} stands there twice, and would count one member twice")
    return parts


def assemble(
    given: Sequence[str], folder: Path, arguments: list[str], trust: Sequence[str] = ()
) -> DictConfig:
    """Make ``folder`` the run folder of these members, copied and renumbered, and return its configuration.

    Args:
        given: of :func:`parse`; the first one's run gives the configuration.
        folder: run folder to make; the same members in it already are left as they are.
        arguments: command-line overrides for the evaluation.
        trust: packages that the stored configurations may name.

    Raises:
        InputError: other targets or data (with a table on standard error), joint training, one member twice, or the
            folder is another run's; nothing is written then.
    """
    parts = parse(given)
    contents = [
        checkpoints.read(checkpoints.member_path(part.folder, part.number), "member") for part in parts
    ]
    configs = [load_folder(part.folder, [], trust) for part in parts]
    refuse_different(parts, contents, [ADDED | identity(own) for own in configs])
    stamps = [content.get("fingerprint") for content in contents]
    for stamp in stamps:
        if stamp is not None and stamps.count(stamp) > 1:
            twice = " and ".join(p.name for p, s in zip(parts, stamps, strict=True) if s == stamp)
            raise InputError(f"members: {twice} are one and the same member, which would count twice")
    cfg = load_folder(parts[0].folder, arguments, trust)
    cfg.run_dir, cfg.ensemble.size, cfg.from_run = str(folder), len(parts), None
    cfg.ensemble.objective, cfg.members = "independent", [part.name for part in parts]
    nodes = [
        own_arguments(own.model, part.number)[-1] or own.model.approximation
        for part, own in zip(parts, configs, strict=True)
    ]
    plain = [OmegaConf.to_container(node, resolve=True) for node in nodes]
    own_keys = plain if any(node != plain[0] for node in plain) else None
    cfg.model.approximation = plain[0]
    cfg.model = OmegaConf.merge(cfg.model, {"members": own_keys})
    check_folder(cfg, folder)
    claim_folder(cfg, folder)
    copy_members(parts, contents, folder)
    return cfg


def refuse_different(
    parts: Sequence[Part], contents: Sequence[Mapping[str, object]], decisive: Sequence[Mapping[str, object]]
) -> None:
    """Refuse members of other targets or data; the table of what differs goes to standard error.

    Args:
        parts: the members.
        contents: of their checkpoints.
        decisive: what decides the members of their runs (:func:`miselbo.runs.folder.identity`).

    Raises:
        InputError: naming what differs.
    """
    columns: dict[str, list[str]] = {
        "target": [str(content["target_fingerprint"])[:16] for content in contents]
    }
    settings = [{k: v for k, v in own.items() if k.startswith(SHARED)} for own in decisive]
    for key in sorted({key for own in settings for key in own}):
        values = [str(own.get(key)) for own in settings]
        if len({*values}) > 1:
            columns[key] = values
    joint = [
        part.name
        for part, content in zip(parts, contents, strict=True)
        if content.get("objective") == "mixture"
    ]
    if joint:
        raise InputError(
            f"members: {', '.join(joint)} was trained jointly with the others of its run and is none alone"
        )
    if all(len({*values}) == 1 for values in columns.values()):
        return
    rows = [
        ["member", *columns],
        *([part.name, *row] for part, *row in zip(parts, *columns.values(), strict=True)),
    ]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip(), file=sys.stderr)
    differing = ", ".join(name for name, values in columns.items() if len({*values}) > 1)
    raise InputError(
        f"members: {', '.join(part.name for part in parts)} have no common model and data, see the table above: "
        f"{differing} differ, so a bound of them together would be one of no model"
    )


def copy_members(parts: Sequence[Part], contents: Sequence[Mapping[str, object]], folder: Path) -> None:
    """Target, members under their new numbers, and their curves; what is there already stays."""
    here = checkpoints.target_path(folder)
    if not here.exists():
        with atomic(here) as temporary:
            temporary.write_bytes(checkpoints.target_path(parts[0].folder).read_bytes())
    for s, (part, content) in enumerate(zip(parts, contents, strict=True), start=1):
        path = checkpoints.member_path(folder, s)
        if not path.exists():
            copy_curves(part.folder, {part.number: s}, folder)
            stage = f"train {part.name}"
            write_tensors(path, {**content, "member": s, "stage": stage, "taken_from": part.name})
