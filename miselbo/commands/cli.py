"""The command line: bad input ends with one line and exit status 2, a killed run goes on with the same command."""

import sys
from collections.abc import Callable
from multiprocessing import current_process
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from miselbo.commands import sweeps
from miselbo.errors import InputError, MembersFailedError, Stopped, TrainingDivergedError
from miselbo.runs import config
from miselbo.runtime import processes, stopping
from miselbo.training.parallel import ranks
from miselbo.training.parallel import slurm as srun

FROM_FOLDER = ("evaluate", "report", "export", "sample")


def main(hydra_job: Callable[[], None]) -> None:
    """Check the arguments, then run: the tasks in ``FROM_FOLDER`` from a run folder alone, else through Hydra.

    SIGTERM and the end of ``trainer.max_time`` end it with status :data:`miselbo.runtime.stopping.STATUS`.
    """
    try:
        with stopping.watching():
            start(hydra_job)
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


def start(hydra_job: Callable[[], None]) -> None:
    """What :func:`main` runs."""
    plain = overrides(sys.argv[1:])
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
        execute(config.load_folder(Path(str(values["run_dir"])), plain))
    elif values.get("task") in FROM_FOLDER and not values.get("importer"):
        if not values.get("run_dir"):
            raise InputError(f"task={values['task']} needs run_dir=<folder of a finished run>")
        execute(config.load_folder(Path(str(values["run_dir"])), plain))
    else:
        added = official_dataset(values)
        config.check_overrides([*plain, *added])
        if is_sweep(sys.argv[1:]):
            added += sweeps.folder_overrides(config.parse(plain))
        last = max((i for i, word in enumerate(sys.argv) if word in plain), default=len(sys.argv) - 1)
        sys.argv[last + 1 : last + 1] = added  # beside the others: argparse takes them in one piece
        hydra_job()


def alone(values: dict[str, Any]) -> bool:
    """Whether the overrides are a member's job on an existing run folder, and name nothing of the run itself."""
    folder = Path(str(values.get("run_dir")))
    known = config.config_path(folder).is_file() and all(config.is_free(key) for key in values)
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
    found = dataset_choice(first, [path.stem for path in (config.CONF / "dataset").glob("*.yaml")])
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


def job(cfg: DictConfig) -> None:
    """One Hydra job; in a sweep its run folder is the one Hydra made, and a failure is kept for the sweep's report."""
    hydra = HydraConfig.get()
    if srun.number(cfg) > 0:
        follow(cfg, hydra.mode == RunMode.MULTIRUN)
        return
    with srun.leading(cfg):
        lead(cfg, hydra)


def follow(cfg: DictConfig, sweep: bool) -> None:
    """A job of a process that srun has started beside rank 0, which tells what becomes of the job."""
    try:
        if cfg.task == "run":
            ranks.follow(cfg)
    except Exception as error:
        print(f"error in process {srun.number(cfg)}: {sweeps.first_line(error)}", file=sys.stderr)
        if not sweep:
            sys.exit(1)


def lead(cfg: DictConfig, hydra: Any) -> None:
    """A job of the run's own process."""
    if hydra.mode == RunMode.MULTIRUN:
        if current_process().name.startswith("Loky"):  # a worker of the joblib launcher
            processes.follow_parent()
        folder, sweep = (Path(place).absolute() for place in (hydra.runtime.output_dir, hydra.sweep.dir))
        sweeps.run_job(cfg, folder, sweep, list(hydra.overrides.task), execute)
        return
    try:
        named = any(override.startswith("run_dir=") for override in hydra.overrides.task)
        folder = Path(str(cfg.run_dir)).expanduser().absolute()
        if cfg.importer is not None and not named:
            folder = config.import_folder(cfg).absolute()
        with open_dict(cfg):
            cfg.run_dir = str(folder)
        execute(cfg)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        fail(InputError(f"cannot read the configuration: {str(error).splitlines()[0]}"))
    except InputError as error:
        fail(error)
    except (TrainingDivergedError, MembersFailedError) as error:
        fail(error, status=1)


def execute(cfg: DictConfig) -> None:
    """Run the task; processes that srun has started beside this one leave it to this one."""
    if srun.number(cfg) > 0:
        return
    from miselbo.pipeline import run  # torch and Lightning take seconds to import: after the checks

    run(cfg)


def fail(error: Exception, status: int = 2) -> NoReturn:
    """One line on standard error, then the end."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)
