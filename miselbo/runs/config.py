"""Checks of the configuration before any work starts, and the run folder's own copy of it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from miselbo.errors import InputError, nearest
from miselbo.importers.nvlabs.names import DECODERS
from miselbo.runtime import stopping
from miselbo.runtime.files import write_text

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "conf").is_dir()  # a wheel carries the top-level conf/ as miselbo.conf
CONF = PACKAGE / "conf" if INSTALLED else PACKAGE.parent / "conf"
SEARCHED: list[str] = []  # where Hydra looks beside CONF, set by search_in
IMPORTERS = ("arrays", "nvlabs")
TASKS = ("run", "fit_member", "evaluate", "report", "cost", "export", "sample", "sweep_report")
# what may differ between two commands on one run folder: it changes neither the members nor the data they see
FREE = (
    "task", "member", "run_dir", "sweep_dir", "num_threads", "evaluation", "sampling", "logger", "report", "model.cost",
    "ensemble.size", "ensemble.resume_interval", "ensemble.workers",
    "dataset.root", "dataset.evaluation_batch_size", "dataset.num_workers", "dataset.download", "dataset.cache",
    "dataset.replicates",
    "trainer.accelerator", "trainer.enable_progress_bar", "trainer.max_time", "trainer.log_every_n_steps",
)  # fmt: skip
# keys that run folders of older versions lack, and what they stood for there
ADDED = {
    "dataset.likelihood": "bernoulli", "dataset.num_bits": 8, "model.target.num_mixtures": 10,
    "model.approximation.num_flows": 0, "model.objective.regulariser_initial": None,
    "trainer.sync_batchnorm": False, "ensemble.objective": "independent", "ensemble.estimator": "all_to_all",
    "ensemble.sampled": None, "ensemble.joint_epoch_share": 0.25, "ensemble.joint_learning_rate": 1e-3,
    "model.target.substitution.model": "jc69", "model.target.substitution.num_categories": 4,
}  # fmt: skip


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
    except HydraException as error:
        first = str(error).splitlines()[0]
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
    known = compose_config([f"{choice_prefix(o)}{o.key_or_group}={choices(o)[0]}" for o in chosen])
    names = flatten(known)
    for override in overrides:
        if override.key_or_group in groups:
            continue
        if override.key_or_group not in names:
            raise unknown_key(override.key_or_group, [*names, *groups])
        check_kind(override, names[override.key_or_group])


def choice_prefix(override: Override) -> str:
    """The plus of ``+group=choice``, for a group that ``conf/`` lacks."""
    return "+" if override.is_add() and not (CONF / override.key_or_group).is_dir() else ""


def check_kind(override: Override, default: Any) -> None:
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


def plain_value(value: Any) -> Any:
    """A value as the user wrote it, without Hydra's notes on quotes."""
    return str(value) if isinstance(value, QuotedString) else value


def choices(override: Override) -> list[str]:
    """The values an override gives a group, several in a sweep."""
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    return [str(override.get_value_string())]


def check_choices(override: Override) -> None:
    """Every choice of a group must be a file in its folder, and a group cannot be left out."""
    group = override.key_or_group
    known = known_choices(group)
    if override.is_delete():
        hint = "logger=csv writes local files only" if group == "logger" else f"known are {', '.join(known)}"
        raise InputError(f"~{group}: {group} cannot be left out; write {group}=<name> instead ({hint})")
    for choice in choices(override):
        if choice not in known and not (choice == "null" and group == "experiment"):
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


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all nodes, inner ones included, with the values of the leaves.

    Example:
        >>> flatten({"a": {"b": 1}, "c": 2})
        {'a': {'b': 1}, 'a.b': 1, 'c': 2}
    """
    content: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    result: dict[str, Any] = {}
    for key, value in content.items():
        result[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            result |= flatten(value, f"{prefix}{key}.")
    return result


def unknown_key(key: str, names: Iterable[str]) -> InputError:
    """An error that names the nearest known key."""
    return InputError(f"unknown key '{key}'; {nearest(key, names)}see conf/ for all keys")


def check_values(cfg: DictConfig) -> None:
    """Refuse values no run can have.

    Raises:
        InputError: for ensemble.size, seed or task.
    """
    if cfg.task not in TASKS:
        raise InputError(
            f"unknown task={cfg.task}; {nearest(str(cfg.task), TASKS)}known are {', '.join(TASKS)}"
        )
    if cfg.importer not in (None, *IMPORTERS):
        raise InputError(f"unknown importer={cfg.importer}; known are {', '.join(IMPORTERS)}")
    check_importer(cfg)
    for key, least in (("ensemble.size", 1), ("ensemble.monitor_samples", 1), ("seed", 0)):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{key} must be a whole number of at least {least}, got {value!r}")
    if cfg.num_threads is not None and (type(cfg.num_threads) is not int or cfg.num_threads < 1):
        raise InputError(f"num_threads must be a whole number of at least 1 or null, got {cfg.num_threads!r}")
    check_joint(cfg.ensemble)
    check_member(cfg)
    workers = cfg.ensemble.workers
    if workers != "auto" and (type(workers) is not int or workers < 1):
        raise InputError(f"ensemble.workers must be 'auto' or a whole number of at least 1, got {workers!r}")
    stopping.seconds(cfg.trainer.max_time)
    epochs = cfg.trainer.max_epochs
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise InputError(f"trainer.max_epochs must be a whole number of at least 1, got {epochs!r}")


def check_member(cfg: DictConfig) -> None:
    """``task=fit_member`` and ``member`` go together.

    Raises:
        InputError: one without the other, no such member, or members that cannot be trained apart.
    """
    member, size = cfg.member, cfg.ensemble.size
    if cfg.task != "fit_member":
        if member is not None:
            raise InputError(f"member={member} needs task=fit_member, got task={cfg.task}")
        return
    if type(member) is not int or not 1 <= member <= size:
        raise InputError(
            f"task=fit_member needs member=<number from 1 to ensemble.size={size}>, got member={member}"
        )
    if cfg.study is not None:
        raise InputError(
            "task=fit_member is for single runs: a study trains the members of all its runs itself"
        )
    if cfg.ensemble.objective == "mixture":
        raise InputError(
            "task=fit_member: ensemble.objective=mixture trains all members together at the end; use "
            "ensemble.workers in one job, or ensemble.objective=independent"
        )


def is_free(key: str) -> bool:
    """Whether a key may differ between two commands on one run folder.

    Example:
        >>> is_free("evaluation.num_samples"), is_free("seed")
        (True, False)
    """
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def check_importer(cfg: DictConfig) -> None:
    """What is to be imported must be named, and by nothing but an importer.

    Raises:
        InputError: importer, task, scores, checkpoints and target do not go together.
    """
    if cfg.importer == "arrays" and (cfg.task not in ("evaluate", "report") or cfg.scores is None):
        raise InputError("importer=arrays needs task=evaluate and scores=<an .npz or a folder of .npy files>")
    if cfg.target not in DECODERS:
        raise InputError(
            f"unknown target={cfg.target}; {nearest(str(cfg.target), DECODERS)}known are {', '.join(DECODERS)}"
        )
    if cfg.importer == "nvlabs":
        if cfg.task not in ("evaluate", "report", "export") or not checkpoint_paths(cfg):
            raise InputError(
                "importer=nvlabs needs task=evaluate and 'checkpoints=[a.pt,b.pt]', one per member"
            )
    elif cfg.checkpoints is not None and cfg.importer is None:
        raise InputError("checkpoints= needs importer=nvlabs and task=evaluate")


def checkpoint_paths(cfg: DictConfig) -> list[Path]:
    """``checkpoints`` as a list, one file or several.

    Raises:
        InputError: it lists something else than paths.
    """
    given = cfg.checkpoints
    paths = [given] if isinstance(given, str) else list(given or [])
    if not all(isinstance(path, str) and path for path in paths):
        raise InputError(f"checkpoints must list files, as in 'checkpoints=[a.pt,b.pt]', got {given}")
    return [Path(path) for path in paths]


def import_folder(cfg: DictConfig) -> Path:
    """Run folder of an import when none is named; for checkpoints, other files or settings give another one.

    Example:
        >>> values = {"importer": "nvlabs", "checkpoints": ["a/checkpoint.pt"], "target": "tied"}
        >>> import_folder(OmegaConf.create({**values, "dataset": {"name": "mnist"}})).as_posix()
        'outputs/nvlabs-a-mnist-...'
    """
    if cfg.importer == "arrays":
        return Path("outputs", f"arrays-{Path(str(cfg.scores)).stem}")
    first, *_ = paths = [path.expanduser().absolute() for path in checkpoint_paths(cfg)] or [Path("none")]
    name = first.parent.name if first.stem == "checkpoint" else first.stem
    tail = name_tail(f"{' '.join(map(str, paths))} {cfg.target}")
    return Path("outputs", f"nvlabs-{name}-{cfg.dataset.name}{tail}")


def check_joint(ensemble: Any) -> None:
    """Refuse impossible settings of joint training.

    Raises:
        InputError: for one of the keys.
    """
    known = {
        "objective": ("independent", "mixture"),
        "estimator": ("all_to_all", "some_to_all", "some_to_some"),
    }
    for key, values in known.items():
        if ensemble[key] not in values:
            hint = nearest(str(ensemble[key]), values)
            raise InputError(f"unknown ensemble.{key}={ensemble[key]}; {hint}known are {', '.join(values)}")
    sampled = ensemble.sampled
    if sampled is not None and (type(sampled) is not int or not 1 <= sampled <= ensemble.size):
        raise InputError(
            f"ensemble.sampled is how many of the {ensemble.size} components are sampled per step: a whole number from "
            f"1 to ensemble.size, or null; got {sampled!r}"
        )
    for key in ("joint_epoch_share", "joint_learning_rate"):
        value = ensemble[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"ensemble.{key} must be a positive number, got {value!r}")


def config_path(folder: Path) -> Path:
    """Where a run keeps its resolved configuration."""
    return folder / ".hydra" / "config.yaml"


def stored(folder: Path) -> DictConfig:
    """The configuration in a run folder.

    Raises:
        InputError: the file is damaged or not of this project.
    """
    try:
        cfg = OmegaConf.load(config_path(folder))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{config_path(folder)} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(cfg, DictConfig) or not {"task", "model", "dataset", "ensemble", "evaluation"} <= set(
        cfg
    ):
        raise InputError(f"{config_path(folder)} is no configuration of miselbo: use another run_dir")
    return cfg


def check_folder(cfg: DictConfig, folder: Path) -> None:
    """Check that ``folder`` is this configuration's run folder or can become it.

    Raises:
        InputError: the folder holds something else, or a run of another configuration.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: use another run_dir")
    if config_path(folder).exists():
        before, now = ADDED | identity(stored(folder)), ADDED | identity(cfg)
        differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        trained = any((folder / "members").glob("*.ckpt"))  # before that, settings may still be corrected
        if differing and trained:
            listed = "; ".join(
                f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in differing[:5]
            )
            raise InputError(
                f"{folder} is the run folder of another configuration: {listed}. "
                "Use another run_dir, or the same settings to go on with this run."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and is no run folder of miselbo (no .hydra/config.yaml): use another run_dir"
        )


def claim_folder(cfg: DictConfig, folder: Path) -> None:
    """Make ``folder`` this configuration's run folder.

    Raises:
        InputError: as :func:`check_folder`, nothing is written then; or the folder cannot be written to.
    """
    check_folder(cfg, folder)
    try:
        write_text(config_path(folder), OmegaConf.to_yaml(cfg, resolve=True))
    except OSError as error:
        raise InputError(f"cannot write to run_dir={folder}: {error.strerror}") from None


def identity(cfg: DictConfig) -> dict[str, Any]:
    """What decides the members: all leaves but those in ``FREE``."""
    resolved = flatten(OmegaConf.to_container(cfg, resolve=True))
    return {key: value for key, value in resolved.items() if not isinstance(value, dict) and not is_free(key)}


def load_folder(folder: Path, arguments: list[str]) -> DictConfig:
    """The configuration of an existing run with overrides for its evaluation.

    Args:
        folder: run folder.
        arguments: command-line overrides; ``task`` and ``run_dir`` among them are taken as they are.

    Raises:
        InputError: no run folder, an unknown key, or one that decides what the members are.
    """
    if not config_path(folder).is_file():
        raise InputError(f"{folder} is no run folder: {config_path(folder)} does not exist")
    fresh = compose_config([])  # a folder written by an older version lacks newer keys
    defaults = {key: fresh[key] for key in fresh if key not in ("model", "dataset", "run_dir")}
    cfg: Any = OmegaConf.merge(defaults, stored(folder))
    names = flatten(cfg)
    for override in parse(arguments):
        key = override.key_or_group
        if override.is_sweep_override():
            raise InputError(
                f"{key} has several values: a command on an existing run folder takes one run at a time"
            )
        if key not in names:
            raise unknown_key(key, names)
        if not is_free(key):
            raise InputError(
                f"{key} decides what the members of {folder} are and cannot be changed for a trained run"
            )
        if key != "logger":  # no dashboard without training
            check_kind(override, names[key])
            OmegaConf.update(cfg, key, plain_value(override.value()))
    cfg.run_dir = str(folder)
    return cfg
