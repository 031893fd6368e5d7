"""The command line: bad input ends with one line and exit status 2, a killed run goes on with the same command."""

import sys
from multiprocessing import current_process
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from miselbo.commands import sweeps
from miselbo.errors import InputError, MembersFailedError, Stopped, TrainingDivergedError
from miselbo.runs import config
from miselbo.runs.folder import config_path, import_folder, is_free, load_folder
from miselbo.runs.plan import trainer_arguments
from miselbo.runtime import faults, processes, stopping
from miselbo.training.parallel import ranks
from miselbo.training.parallel import slurm as srun

FROM_FOLDER = ("evaluate", "report", "export", "sample", "log")


def main() -> None:
    """The command ``miselbo``, also ``python -m miselbo`` and ``python run.py``.

    Check the arguments, then run: the tasks in ``FROM_FOLDER`` from a run folder alone, else through Hydra.

    SIGTERM and the end of ``trainer.max_time`` end it with status :data:`miselbo.runtime.stopping.STATUS`.
    """
    try:
        with stopping.watching():
            start()
    except InputError as error:
        fail(error)
    except TrainingDivergedError as error:
        fail(error, status=1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Stopped as stop:
        print(f"stopped: {stop}; what is done is saved, the same command goes on from here", file=sys.stderr)
        sys.exit(stopping.STATUS)
    except Exception as error:
        fail_of_machine(error)


def start() -> None:
    """What :func:`main` runs."""
    sys.argv[1:] = without_hyphens(sys.argv[1:])
    plain = overrides(sys.argv[1:])
    check_hydra(config.parse(plain))
    added = search(sys.argv[1:], plain)
    plain = [word for word in plain if not is_searchpath(word)]
    values = {o.key_or_group: o.value() for o in config.parse(plain) if not o.is_sweep_override()}
    if values.get("task") == "fit_member" and is_sweep(sys.argv[1:]):
        raise InputError(
            "task=fit_member takes one member: several jobs have one command each (docs/cluster.md)"
        )
    if values.get("task") == "sweep_report":
        if not values.get("sweep_dir"):
            raise InputError("task=sweep_report needs sweep_dir=<folder of a sweep>")
        sweeps.conclude(Path(str(values["sweep_dir"])))
    elif alone(values):
        execute(load_folder(Path(str(values["run_dir"])), plain))
    elif values.get("task") in FROM_FOLDER and not values.get("importer"):
        if not values.get("run_dir"):
            raise InputError(f"task={values['task']} needs run_dir=<folder of a finished run>")
        execute(load_folder(Path(str(values["run_dir"])), plain))
    else:
        official = official_dataset(values)
        added += official
        config.check_overrides([*plain, *official])
        if is_sweep(sys.argv[1:]):
            added += sweeps.folder_overrides(config.parse(plain))
        last = max((i for i, word in enumerate(sys.argv) if word in plain), default=len(sys.argv) - 1)
        sys.argv[last + 1 : last + 1] = added  # beside the others: argparse takes them in one piece
        hydra_job()


@hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")
def hydra_job(cfg: DictConfig) -> float | None:
    """Hydra's job: the configuration is composed."""
    return job(cfg)


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
    """Refuse Hydra's keys that would silently do nothing.

    Raises:
        InputError: for ``hydra.run.dir``.
    """
    for override in given:
        if override.key_or_group == "hydra.run.dir":
            value = override.get_value_element_as_str()
            raise InputError(
                f"hydra.run.dir is not used here, set run_dir= (got hydra.run.dir={value}: write run_dir={value})"
            )


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
    given = get_args_parser().parse_known_args(arguments)[0].config_dir
    if given is not None:
        if not Path(given).is_dir():
            raise InputError(f"--config-dir {given}: no such folder; expected one with dataset/, model/, ...")
        places.append(f"file://{Path(given).absolute()}")
    own = Path("conf").absolute()
    lists: list[Any] = [
        override.value() for override in config.parse([word for word in plain if is_searchpath(word)])
    ]
    if lists and not isinstance(lists[-1], list):
        raise InputError(
            f"hydra.searchpath must list places, as in 'hydra.searchpath=[file://DIR]', got {lists[-1]}"
        )
    for place in map(str, lists[-1] if lists else []):
        if place.startswith("file://") and not Path(place[7:]).is_dir():
            raise InputError(
                f"hydra.searchpath: no such folder {place[7:]}; expected one with dataset/, model/, ..."
            )
        places.append(place)
    if not lists and own.is_dir() and not own.samefile(config.CONF):
        groups = {folder.name for folder in config.CONF.iterdir() if folder.is_dir()}
        if any((own / group).is_dir() for group in groups):
            places.append(f"file://{own}")
            added = config.searchpath(places[-1:])
    config.search_in(places)
    return added


def alone(values: dict[str, Any]) -> bool:
    """Whether the overrides are a member's job on an existing run folder, and name nothing of the run itself."""
    folder = Path(str(values.get("run_dir")))
    known = config_path(folder).is_file() and all(is_free(key) for key in values)
    return values.get("task") == "fit_member" and known


def official_dataset(values: dict[str, Any]) -> list[str]:
    """For official checkpoints without ``dataset=``: the override that names the dataset they were trained on.

    Raises:
        InputError: the first file cannot be read.
    """
    given = values.get("checkpoints")
    if values.get("importer") != "nvlabs" or "dataset" in values or not given:
        return []
    from miselbo.importers.nvlabs.args import dataset_choice  # imports torch

    first = str(given[0] if isinstance(given, list) else given)
    found = dataset_choice(first, config.known_choices("dataset"))
    return [f"dataset={found}"] if found else []


def is_sweep(arguments: list[str]) -> bool:
    """Whether the arguments ask for a sweep.

    Example:
        >>> is_sweep(["-m", "seed=0,1"]), is_sweep(["seed=0"])
        (True, False)
    """
    known, _ = get_args_parser().parse_known_args(arguments)
    return bool(known.multirun) or "hydra.mode=MULTIRUN" in arguments


def overrides(arguments: list[str]) -> list[str]:
    """The arguments that are neither Hydra's flags nor their values.

    Example:
        >>> overrides(["-m", "seed=0,1", "--cfg", "job", "ensemble.size=3"])
        ['seed=0,1', 'ensemble.size=3']
    """
    known, rest = get_args_parser().parse_known_args(arguments)
    return [*known.overrides, *(argument for argument in rest if not argument.startswith("-"))]


def job(cfg: DictConfig) -> float | None:
    """One Hydra job; in a sweep its run folder is the one Hydra made, and a failure is kept for the sweep's report.

    Returns:
        What a tuning sweeper maximises; None for any other.
    """
    settings = HydraConfig.get()
    if srun.number(cfg.trainer) > 0:
        follow(cfg, settings.mode == RunMode.MULTIRUN)
        return None
    with srun.leading(cfg.trainer, cfg.task):
        return lead(cfg, settings)


def follow(cfg: DictConfig, sweep: bool) -> None:
    """A job of a process that srun has started beside rank 0, which tells what becomes of the job."""
    try:
        if cfg.task == "run":
            ranks.follow(trainer_arguments(cfg))
    except Exception as error:
        print(f"error in process {srun.number(cfg.trainer)}: {sweeps.first_line(error)}", file=sys.stderr)
        if not sweep:
            sys.exit(1)


def lead(cfg: DictConfig, settings: Any) -> float | None:
    """A job of the run's own process."""
    if settings.mode == RunMode.MULTIRUN:
        if current_process().name.startswith("Loky"):  # a worker of the joblib launcher
            processes.follow_parent()
        folder, sweep = (
            Path(place).absolute() for place in (settings.runtime.output_dir, settings.sweep.dir)
        )
        value = optimized if sweeps.tunes(settings.sweeper) else None
        return sweeps.run_job(cfg, folder, sweep, list(settings.overrides.task), execute, value)
    try:
        named = any(override.startswith("run_dir=") for override in settings.overrides.task)
        folder = Path(str(cfg.run_dir)).expanduser().absolute()
        if cfg.importer is not None and not named:
            folder = import_folder(cfg).absolute()
        with open_dict(cfg):
            cfg.run_dir = str(folder)
        execute(cfg)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        fail(InputError(f"cannot read the configuration: {str(error).splitlines()[0]}"))
    except InputError as error:
        fail(error)
    except (TrainingDivergedError, MembersFailedError) as error:
        fail(error, status=1)
    except Exception as error:
        fail_of_machine(error)
    return None


def optimized(cfg: DictConfig) -> float:
    """Value of a finished run for a tuning sweeper."""
    from miselbo.pipeline import optimized as value_of

    return value_of(cfg)


def execute(cfg: DictConfig) -> None:
    """Run the task; processes that srun has started beside this one leave it to this one."""
    if srun.number(cfg.trainer) > 0:
        return
    from miselbo.pipeline import run  # torch and Lightning take seconds to import: after the checks

    run(cfg)


def fail_of_machine(error: Exception) -> NoReturn:
    """One line about an error that is the machine's (no space, no memory, ...); any other goes on."""
    sentence = faults.explain(error)
    if sentence is None:
        raise error
    fail(RuntimeError(sentence), faults.STATUS)


def fail(error: Exception, status: int = 2) -> NoReturn:
    """One line on standard error, then the end."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)
