"""What Hydra's command line may hold here: its flags, its own keys, its places; refused is what would do nothing."""

import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override

from miselbo.errors import InputError
from miselbo.runs import config

MODES = {
    "run": "--run",
    "multirun": "--multirun",
    "cfg": "--cfg",
    "info": "--info",
    "shell_completion": "-sc",
}


def flags(arguments: list[str]) -> Namespace:
    """Hydra's reading of its own flags; arguments that it does not know are left alone."""
    return get_args_parser().parse_known_args(arguments)[0]


def tells(given: Namespace) -> bool:
    """Whether the flags ask for a text of Hydra's own, whatever the task."""
    return bool(given.help or given.hydra_help or given.info or given.shell_completion)


def check_flags(given: Namespace) -> None:
    """Refuse flags that exclude each other or would silently do nothing.

    Raises:
        InputError: for ``--config-path``, ``--config-name``, two modes, or ``--experimental-rerun`` without its file.

    Example:
        >>> check_flags(flags(["--config-name", "mine"]))
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: --config-name mine: ... go into a file experiment/mine.yaml ...
    """
    modes = [flag for name, flag in MODES.items() if getattr(given, name)]
    if len(modes) > 1:
        raise InputError(f"{' and '.join(modes)} exclude each other: give one of them")
    if given.config_path is not None:
        raise InputError(
            f"--config-path {given.config_path}: miselbo keeps its own conf/; --config-dir {given.config_path} adds "
            "the files of a folder of yours"
        )
    if given.config_name not in (None, "config"):
        raise InputError(
            f"--config-name {given.config_name}: there is one configuration, 'config'; your own settings go into a "
            f"file experiment/{given.config_name}.yaml of a folder, and --config-dir DIR experiment={given.config_name}"
        )
    if given.experimental_rerun is not None and not Path(given.experimental_rerun).is_file():
        raise InputError(
            f"--experimental-rerun {given.experimental_rerun}: no such file; expected a config.pickle"
        )


def without_hyphens(arguments: list[str]) -> list[str]:
    """``--key=value``, as ``wandb agent`` writes it, becomes ``key=value``; Hydra's own flags stay.

    Example:
        >>> without_hyphens(["--seed=1", "--cfg=job", "-m", "model=vae"])
        ['seed=1', '--cfg=job', '-m', 'model=vae']
    """
    flags = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    return [
        word[2:]
        if word.startswith("--")
        and "=" in word
        and not any(flag.startswith(word.split("=")[0]) for flag in flags)
        else word
        for word in arguments
    ]


def check_hydra(given: list[Override]) -> None:
    """Refuse Hydra's keys that would silently do nothing, or that Hydra does not know.

    Raises:
        InputError: for ``hydra.run.dir``, and what Hydra cannot compose.
    """
    for override in given:
        if override.key_or_group == "hydra.run.dir":
            value = override.get_value_element_as_str()
            raise InputError(
                f"hydra.run.dir is not used here, set run_dir= (got hydra.run.dir={value}: write run_dir={value})"
            )
    own = [
        o.input_line or ""
        for o in given
        if is_hydra(o) and not o.is_sweep_override() and not is_searchpath(o.input_line or "")
    ]
    if own:
        config.compose_config(own)


def is_hydra(override: Override) -> bool:
    """Whether an override is of Hydra's own settings."""
    return override.key_or_group.split(".")[0].split("/")[0] == "hydra"


def is_searchpath(argument: str) -> bool:
    """Whether an argument is Hydra's ``hydra.searchpath=[...]``."""
    return argument.lstrip("+").startswith("hydra.searchpath=")


def search(arguments: list[str], plain: list[str]) -> list[str]:
    """Tell :mod:`miselbo.runs.config` where Hydra looks: ``--config-dir``, ``hydra.searchpath``, ``./conf``.

    Returns:
        The override that makes Hydra look into ``./conf`` as well, when there is one with a group of miselbo.

    Raises:
        InputError: a folder is not there, or ``hydra.searchpath`` is no list.
    """
    places, added = [], []
    given = flags(arguments).config_dir
    if given is not None:
        if not Path(given).is_dir():
            raise InputError(f"--config-dir {given}: no such folder; expected one with dataset/, model/, ...")
        places.append(f"file://{Path(given).absolute()}")
    given_lists = config.parse([word for word in plain if is_searchpath(word)])
    lists = [override.value() for override in given_lists]
    if lists and not isinstance(lists[-1], list):
        raise InputError(
            f"hydra.searchpath must list places, as in 'hydra.searchpath=[file://DIR]', got {lists[-1]}"
        )
    for place in map(str, lists[-1] if lists and isinstance(lists[-1], list) else []):
        if place.startswith("file://") and not Path(place[7:]).is_dir():
            raise InputError(
                f"hydra.searchpath: no such folder {place[7:]}; expected one with dataset/, model/, ..."
            )
        places.append(place)
    own = own_folder()
    if not lists and own is not None:
        places.append(f"file://{own}")
        added = config.searchpath(places[-1:])
    config.search_in(places)
    see_modules([Path(place[7:]).parent for place in places if place.startswith("file://")])
    return added


def see_modules(folders: list[Path]) -> None:
    """Let this process and those it starts import the Python files beside a folder of yaml files."""
    words = [str(folder.absolute()) for folder in folders]
    sys.path[:0] = [word for word in words if word not in sys.path]
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*words, *(word for word in before if word not in ("", *words))]
    )


def places_to_complete(arguments: list[str]) -> list[str]:
    """For ``-sc query=SHELL``: the flag that shows Hydra ``./conf`` or the ``--config-dir`` of the line typed."""
    if "query=" not in " ".join(arguments):
        return []
    try:
        typed = shlex.split(os.environ.get("COMP_LINE", ""))
    except ValueError:  # an open quote
        typed = []
    folder = flags([word for word in typed if word not in ("-m", "--multirun")]).config_dir or own_folder()
    return ["--config-dir", str(folder)] if folder is not None and Path(folder).is_dir() else []


def own_folder() -> Path | None:
    """The folder ``conf/`` where the command is called, when it has a group of miselbo and is not miselbo's."""
    own = Path("conf").absolute()
    if not own.is_dir() or own.samefile(config.CONF):
        return None
    groups = {folder.name for folder in config.CONF.iterdir() if folder.is_dir()}
    return own if any((own / group).is_dir() for group in groups) else None


def is_sweep(arguments: list[str]) -> bool:
    """Whether the arguments ask for a sweep.

    Example:
        >>> is_sweep(["-m", "seed=0,1"]), is_sweep(["seed=0"])
        (True, False)
    """
    return bool(flags(arguments).multirun) or "hydra.mode=MULTIRUN" in arguments


def overrides(arguments: list[str]) -> list[str]:
    """The arguments that are neither Hydra's flags nor their values.

    Example:
        >>> overrides(["-m", "seed=0,1", "--cfg", "job", "ensemble.size=3"])
        ['seed=0,1', 'ensemble.size=3']
    """
    known, rest = get_args_parser().parse_known_args(arguments)
    return [*known.overrides, *(argument for argument in rest if not argument.startswith("-"))]
