"""Reading a configuration that the user has not composed now: small, plain and resolved, or refused by its key.

A run folder may come from anybody. Its ``.hydra/config.yaml`` is read as values alone: no tags, no anchors, no
interpolation (``${oc.env:TOKEN}`` would put the reader's secrets into a report), bounded in size and depth; what its
nodes may build is in :mod:`miselbo.runs.targets`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from miselbo.errors import InputError
from miselbo.runs.targets import RENAMED, check_target, short

LARGEST, DEEPEST, LONGEST = 2**18, 24, 2**12  # bytes of the file, levels, letters of one value
NEEDED = {"task", "model", "dataset", "ensemble", "evaluation"}
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_stored(path: Path, trust: Iterable[str] | None = ()) -> DictConfig:
    """The configuration in a file, which holds values only and builds nothing that is not allowed.

    Args:
        path: of the YAML file.
        trust: packages whose classes and functions it may name, beside those of :data:`miselbo.runs.targets.PLACES`;
            None where nothing is built from it.

    Raises:
        InputError: naming the key; or the file is damaged, or not of this project.
    """
    text = read_text(path, LARGEST)
    check_text(text, path)
    try:
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict) or not set(content) >= NEEDED:
        raise InputError(f"{path} is no configuration of miselbo: use another run_dir")
    for key in ("hydra", "trust"):
        if key in content:
            raise InputError(f"{path}: the key '{key}' is for the command line and is not taken from a file")
    for key in ("model", "dataset", "ensemble", "evaluation"):
        if not isinstance(content[key], dict):
            raise InputError(f"{path}: {key} must hold several keys, got {short(content[key])}")
    try:
        check_values(content, "", None if trust is None else tuple(trust))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return OmegaConf.create(content)


def read_text(path: Path, largest: int) -> str:
    """A text file of at most ``largest`` bytes.

    Raises:
        InputError: larger, no text, or not to be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise InputError(f"{path} has more than {largest:,} bytes: damaged, or not of this project")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def check_text(text: str, path: Path) -> None:
    """Refuse YAML that is more than nested plain values, before any object is made of it.

    Raises:
        InputError: naming the key: a tag, an anchor or alias, a key twice, too deep or too long; or it is no YAML.
    """
    keys: list[str | int] = []  # per open collection: the key or index at which it stands
    seen: list[set[str] | None] = []  # per open collection: keys of a mapping, None for a list
    waiting = False  # a mapping's key has been read, its value comes

    def refuse(what: str) -> InputError:
        return InputError(f"{path}: {dotted(keys) or 'the file'} {what}: nothing is read from it")

    try:
        for event in yaml.parse(text, Loader=Loader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise refuse("has a YAML anchor or alias (& or *), which a stored configuration never has")
            if isinstance(event, yaml.CollectionEndEvent):
                seen.pop()
                keys.pop()
                waiting = False
                continue
            if not isinstance(event, yaml.NodeEvent):
                continue
            is_key = bool(seen) and seen[-1] is not None and not waiting
            if is_key:
                keys[-1] = event.value if isinstance(event, yaml.ScalarEvent) else ""
                if keys[-1] in ("", "<<") or len(str(keys[-1])) > LONGEST:
                    raise refuse("has a key that is no plain word")
                if event.value in seen[-1]:  # type: ignore[operator]
                    raise refuse("stands there twice")
                seen[-1].add(event.value)  # type: ignore[union-attr]
            elif seen and seen[-1] is None:
                keys[-1] = int(keys[-1]) + 1
            if event.tag is not None and event.tag != "!":
                raise refuse(f"has the YAML tag {short(event.tag)}, which could build any object")
            waiting = is_key
            if isinstance(event, yaml.CollectionStartEvent):
                if len(seen) == DEEPEST:
                    raise refuse(f"is nested more than {DEEPEST} deep")
                mapping = isinstance(event, yaml.MappingStartEvent)
                seen.append(set() if mapping else None)
                keys.append("" if mapping else -1)
            elif len(event.value) > LONGEST:
                raise refuse(f"has a value of {len(event.value):,} letters")
    except yaml.YAMLError as error:
        where = f" at {dotted(keys)}" if dotted(keys) else ""
        raise InputError(f"{path} cannot be read{where}: {' '.join(str(error).split())[:200]}") from None


def check_values(node: object, key: str, trust: tuple[str, ...] | None) -> None:
    """Refuse what would be evaluated or built; names of earlier versions become those of today.

    Raises:
        InputError: naming the key.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            name = node["_target_"]
            node["_target_"] = name = RENAMED.get(name, name) if isinstance(name, str) else name
            if trust is not None and not (isinstance(name, str) and "${" in name):
                check_target(key or "the configuration", name, trust)
        for inner, value in node.items():
            if "${" in str(inner):
                raise InputError(f"{key}.{short(inner)} has an interpolation in its name")
            check_values(value, f"{key}.{inner}" if key else str(inner), trust)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            check_values(value, f"{key}[{number}]", trust)
    elif isinstance(node, str) and "${" in node:
        raise InputError(
            f"{key} is {short(node)}, an interpolation: stored values are final, and none is evaluated from a file. "
            "Write the value itself"
        )
    elif node == "???":
        raise InputError(f"{key} has no value (???)")


def dotted(keys: Sequence[str | int]) -> str:
    """A key as OmegaConf writes it.

    Example:
        >>> dotted(["model", "members", 0, "scale"])
        'model.members[0].scale'
    """
    text = "".join(
        f"[{key}]" if isinstance(key, int) else f".{short(key)}" for key in keys if key not in ("", -1)
    )
    return text.removeprefix(".")
