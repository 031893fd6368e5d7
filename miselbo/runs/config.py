"""Composing a configuration from ``conf/`` and the user's places; unknown keys and choices are refused by name."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from miselbo.errors import InputError, nearest

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "conf").is_dir()  # a wheel carries the top-level conf/ as miselbo.conf
CONF = PACKAGE / "conf" if INSTALLED else PACKAGE.parent / "conf"
SEARCHED: list[str] = []  # where Hydra looks beside CONF, set by search_in


def name_tail(overrides: str) -> str:
    """Tail of a run folder's name: a short hash of the overrides its readable part does not name, empty without any.

    Example:
        >>> name_tail(""), name_tail("trainer.max_epochs=3")
        ('', '-d05055')
    """
    return f"-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}" if overrides else ""


def name_head(experiment: object) -> str:
    """Head of a run folder's name: the experiment, empty without one.

    Example:
        >>> name_head(None), name_head("table3")
        ('', 'table3-')
    """
    return f"{experiment}-" if experiment not in (None, "null") else ""


def folder_name(root: object) -> str:
    """Name of the dataset in a folder of images: two folders never share a run folder.

    Example:
        >>> folder_name(None), folder_name("/data/birds/")
        ('image_folder', 'birds-4422d5')
    """
    if root is None:
        return "image_folder"
    place = Path(str(root)).expanduser().absolute()
    return f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:6]}"


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("run_name_tail", name_tail, replace=True)
OmegaConf.register_new_resolver("run_name_head", name_head, replace=True)


def parse(arguments: list[str]) -> list[Override]:
    """Hydra's reading of command-line overrides; InputError when an argument is not one."""
    try:
        return OverridesParser.create().parse_overrides(arguments)
    except (HydraException, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0][:300]
        raise InputError(
            f"cannot read the command line: {first} (expected key=value, such as ensemble.size=3)"
        ) from None


def searchpath(places: Iterable[str]) -> list[str]:
    """Hydra's override that makes it look into more folders than ``conf/``; none without places.

    Example:
        >>> searchpath(["file:///data/conf"]), searchpath([])
        (["hydra.searchpath=['file:///data/conf']"], [])
    """
    quoted = ["'" + place.replace("'", "\\'") + "'" for place in places]
    return [f"hydra.searchpath=[{','.join(quoted)}]"] if quoted else []


def search_in(places: Iterable[str]) -> None:
    """From here on this process composes configurations with these places too, as Hydra writes them (``file://DIR``)."""
    SEARCHED[:] = places


def known_choices(group: str = "") -> list[str]:
    """Files of a group in ``conf/`` and in all places of :func:`search_in`; of the empty group, the groups."""
    kind = ObjectType.CONFIG if group else ObjectType.GROUP
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            return list(loader.get_group_options(group, kind, "config", searchpath(SEARCHED)))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"cannot read the folders of configurations: {str(error).splitlines()[0]}") from None
    finally:
        GlobalHydra.instance().clear()


def split_trust(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The packages of ``trust=[package]``, and the arguments without it: it holds for one command and is never stored.

    Raises:
        InputError: it does not list names of packages.

    Example:
        >>> split_trust(["seed=1", "trust=[my_model,my_data.readers]"])
        (['my_model', 'my_data.readers'], ['seed=1'])
    """
    words = [word for word in arguments if word.lstrip("+").startswith("trust=")]
    packages = list[str]()
    for override in parse(words):
        value = None if override.is_sweep_override() else override.value()
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) and all(map(str.isidentifier, name.split("."))) for name in names):
            raise InputError(
                f"trust must list packages, as in 'trust=[my_package]', got {override.input_line}"
            )
        packages += map(str, names)
    return packages, [word for word in arguments if word not in words]


def check_overrides(arguments: list[str]) -> None:
    """Refuse unknown keys and groups, naming the nearest known one, before Hydra starts.

    Raises:
        InputError: an unknown key or an unknown choice of a group.
    """
    groups = set(known_choices()) - {"hydra"}
    overrides = [o for o in parse(arguments) if o.key_or_group.split(".")[0].split("/")[0] != "hydra"]
    chosen = [o for o in overrides if o.key_or_group in groups]
    for override in chosen:
        check_choices(override)
    known = compose_config([f"{choice_prefix(o)}{o.key_or_group}={first_choice(o)}" for o in chosen])
    names = flatten(known)
    for override in overrides:
        if override.key_or_group in groups:
            continue
        if override.key_or_group not in names:
            raise unknown_key(override.key_or_group, [*names, *groups, "trust"])
        check_sign(override)
        check_kind(override, names[override.key_or_group])


def choice_prefix(override: Override) -> str:
    """The plus of ``+group=choice``, for a group that ``conf/`` lacks."""
    return "+" if override.is_add() and not (CONF / override.key_or_group).is_dir() else ""


def check_sign(override: Override) -> None:
    """Refuse ``+key=value`` of a key that is there already, and ``~key``, which a run would miss.

    Raises:
        InputError: the sentence says what to write.
    """
    key = override.key_or_group
    if override.is_add():
        raise InputError(f"+{key}: {key} is there already; write {key}=<value> without the plus")
    if override.is_delete():
        raise InputError(f"~{key}: {key} cannot be left out; write {key}=<value> instead")


def check_kind(override: Override, default: object) -> None:
    """Refuse a word where ``conf/`` has a number, and a plain value where it has several keys.

    Raises:
        InputError: the value cannot take the place of ``default``.
    """
    key = override.key_or_group
    if override.is_sweep_override() or override.is_delete():
        return
    value = override.value()
    if isinstance(default, dict) and not isinstance(value, dict):
        raise InputError(
            f"{key} holds the keys {', '.join(map(str, default))}: set one of them, as {key}.<key>=<value>"
        )
    if value is None or isinstance(value, str) and "${" in value or key.startswith("trainer."):
        return
    if isinstance(default, bool) and not isinstance(value, bool):
        raise InputError(f"{key} must be true or false, got {plain_value(value)!r}")
    numeric = isinstance(default, int | float) and not isinstance(default, bool)
    if numeric and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{key} must be a number, got {plain_value(value)!r}")


def plain_value(value: object) -> object:
    """A value as the user wrote it, without Hydra's notes on quotes."""
    return str(value) if isinstance(value, QuotedString) else value


def choices(override: Override) -> list[str]:
    """The values an override gives a group, several in a sweep."""
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    value = override.value()
    return [str(one) for one in value] if isinstance(value, list) else [str(override.get_value_string())]


def first_choice(override: Override) -> str:
    """The first value an override gives a group in a sweep, its only one otherwise; a list stays whole."""
    return choices(override)[0] if override.is_sweep_override() else str(override.get_value_string())


def check_choices(override: Override) -> None:
    """Every choice of a group must be a file in its folder, and a group cannot be left out."""
    group = override.key_or_group
    known = known_choices(group)
    if override.is_delete():
        hint = "logger=csv writes local files only" if group == "logger" else f"known are {', '.join(known)}"
        raise InputError(f"~{group}: {group} cannot be left out; write {group}=<name> instead ({hint})")
    if override.is_add() and (CONF / group).is_dir():
        raise InputError(f"+{group}: {group} is there already; write {group}=<name> without the plus")
    for choice in choices(override):
        if choice not in known and not (choice == "null" and group in ("experiment", "objective")):
            raise InputError(
                f"unknown {group}={choice}; {nearest(choice, known)}known are {', '.join(known)}"
            )


def compose_config(overrides: list[str]) -> DictConfig:
    """The configuration for the given overrides, for tests and notebooks.

    Raises:
        InputError: Hydra cannot compose it.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            own = any(word.startswith("hydra.searchpath=") for word in overrides)
            return compose("config", overrides=[*overrides, *([] if own else searchpath(SEARCHED))])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"cannot compose the configuration: {str(error).splitlines()[0]}") from None
    finally:
        GlobalHydra.instance().clear()


def flatten(node: object, prefix: str = "") -> dict[str, object]:
    """Dotted names of all nodes, inner ones included, with the values of the leaves.

    Example:
        >>> flatten({"a": {"b": 1}, "c": 2})
        {'a': {'b': 1}, 'a.b': 1, 'c': 2}
    """
    content = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    result: dict[str, object] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        result[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            result |= flatten(value, f"{prefix}{key}.")
    return result


def unknown_key(key: str, names: Iterable[str]) -> InputError:
    """An error that names the nearest known key."""
    return InputError(f"unknown key '{key}'; {nearest(key, names)}see conf/ for all keys")
