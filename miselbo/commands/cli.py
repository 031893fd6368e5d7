"""The command line: bad input ends with one line and exit status 2, a killed run goes on with the same command."""

import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from multiprocessing import current_process
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from miselbo.commands import arguments, compare, index, new, output, sweeps
from miselbo.errors import InputError, MembersFailedError, Stopped, TrainingDivergedError
from miselbo.runs import config
from miselbo.runs.folder import config_path, import_folder, is_free, load_folder
from miselbo.runs.plain import plain as plain_values
from miselbo.runs.schema import SCHEMA
from miselbo.runs.together import assemble
from miselbo.runtime import faults, processes, stopping
from miselbo.training.parallel import ranks
from miselbo.training.parallel import slurm as srun

FROM_FOLDER = ("evaluate", "report", "export", "sample", "sandwich", "log", "check")


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
    except HydraException as error:
        fail(InputError(f"cannot compose the configuration: {str(error).splitlines()[0]}"))
    except TrainingDivergedError as error:
        fail(error, status=1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Stopped as stop:
        print(f"stopped: {stop}; what is done is saved, the same command goes on from here", file=sys.stderr)
        sys.exit(stopping.STATUS)
    except Exception as error:
        fail_unforeseen(error)


def start() -> None:
    """What :func:`main` runs."""
    sys.argv[1:] = arguments.without_hyphens(output.take(sys.argv[1:]))
    flags = arguments.flags(sys.argv[1:])
    arguments.check_flags(flags)
    if flags.shell_completion or flags.experimental_rerun:
        sys.argv[1:1] = arguments.places_to_complete(sys.argv[1:])
        hydra_job()
        return
    plain = arguments.overrides(sys.argv[1:])
    trust, plain = config.split_trust(plain)
    sys.argv[1:] = config.split_trust(sys.argv[1:])[1]
    given = config.parse(plain)
    added = arguments.search(sys.argv[1:], plain)
    arguments.check_hydra(given)
    plain = [word for word in plain if not arguments.is_searchpath(word)]
    values = {o.key_or_group: o.value() for o in config.parse(plain) if not o.is_sweep_override()}
    sweep = arguments.is_sweep(sys.argv[1:])
    if values.get("json") and sweep:
        raise InputError("--json is for one run; the tables of a sweep are its sweep.csv and summary.csv")
    if values.get("task") == "fit_member" and sweep:
        raise InputError(
            "task=fit_member takes one member: several jobs have one command each (docs/cluster.md)"
        )
    if arguments.tells(flags):
        sys.argv[1:1] = added
        hydra_job()
    elif values.get("task") == "new":
        if more := sorted(values.keys() - {"task", "name"}):
            raise InputError(f"task=new name=<word> takes nothing else, got {', '.join(more)}")
        print(new.told(new.create(values.get("name"), Path.cwd()), Path.cwd()))
    elif values.get("task") == "compare":
        if sweep:
            raise InputError("task=compare takes several runs at once, without --multirun")
        with output.quiet(bool(values.get("json"))):
            found = compare.compare(values)
        if values.get("json"):
            print(output.told("compare", str(Path(str(found["report"])).parent), found))
    elif values.get("task") == "index":
        index.index(values)
    elif values.get("task") == "sweep_report":
        if not values.get("sweep_dir"):
            raise InputError("task=sweep_report needs sweep_dir=<folder of a sweep>")
        sweeps.conclude(Path(str(values["sweep_dir"])))
    elif values.get("members"):
        if sweep or values.get("task") != "evaluate" or not values.get("run_dir"):
            raise InputError(
                "members= puts members of several runs together: it needs task=evaluate and run_dir=<a new folder>"
            )
        listed = compare.listed(values, "members")
        rest = [word for word in plain if not word.startswith(("members=", "run_dir="))]
        execute(assemble(listed, Path(str(values["run_dir"])).expanduser(), rest, trust))
    elif alone(values) or values.get("task") in FROM_FOLDER and not values.get("importer"):
        if sweep:
            raise InputError(f"task={values['task']} takes one run folder at a time, without --multirun")
        if not values.get("run_dir"):
            raise InputError(f"task={values['task']} needs run_dir=<folder of a finished run>")
        if any(map(arguments.is_hydra, config.parse(plain))):
            raise InputError(f"task={values['task']} starts no Hydra job: leave out what begins with hydra")
        cfg = load_folder(Path(str(values["run_dir"])), plain, trust)
        if flags.cfg:
            print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        else:
            execute(cfg)
    else:
        official = official_dataset(values)
        added += official
        config.check_overrides([*plain, *official])
        if sweep:
            added += sweeps.folder_overrides(config.parse(plain))
        last = max((i for i, word in enumerate(sys.argv) if word in plain), default=len(sys.argv) - 1)
        sys.argv[last + 1 : last + 1] = added  # beside the others: argparse takes them in one piece
        hydra_job()


@hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")
def hydra_job(cfg: DictConfig) -> float | None:
    """Hydra's job: the configuration is composed."""
    return job(cfg)


def alone(values: Mapping[str, object]) -> bool:
    """Whether the overrides are a member's job on an existing run folder, and name nothing of the run itself."""
    folder = Path(str(values.get("run_dir")))
    known = config_path(folder).is_file() and all(is_free(key) for key in values)
    return values.get("task") == "fit_member" and known


def official_dataset(values: Mapping[str, object]) -> list[str]:
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
            ranks.follow(plain_values(cfg.trainer))
    except Exception as error:
        print(f"error in process {srun.number(cfg.trainer)}: {sweeps.first_line(error)}", file=sys.stderr)
        if not sweep:
            sys.exit(1)


def lead(cfg: DictConfig, settings: HydraConf) -> float | None:
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
        SCHEMA["run_dir"].check("run_dir", cfg.run_dir)
        folder = Path(str(cfg.run_dir)).expanduser().absolute()
        if cfg.importer is not None and not named:
            folder = import_folder(
                cfg.importer, cfg.dataset.name, cfg.scores, plain_values(cfg)["checkpoints"], cfg.target
            ).absolute()
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
        fail_unforeseen(error)
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

    with open_dict(cfg):
        wanted = bool(cfg.pop("json", False))  # of this command, not of the run
    with output.quiet(wanted):
        result = run(cfg)
    if wanted:
        print(output.told(cfg.task, str(cfg.run_dir), result))
    if result.get("confirmed") is False:
        sys.exit(1)


def fail_unforeseen(error: Exception) -> NoReturn:
    """One line for an error of the machine (no space, no memory, ...), or for one that nothing has foreseen.

    The stack trace of the latter is in a file; HYDRA_FULL_ERROR=1 prints it.
    """
    if (sentence := faults.explain(error)) is not None:
        fail(RuntimeError(sentence), faults.STATUS)
    if os.environ.get("HYDRA_FULL_ERROR"):
        raise error
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", errors="replace", prefix="miselbo-", suffix="-trace.txt", delete=False
    ) as file:
        file.write(f"{' '.join(sys.argv)}\n\n{text}")
    line = sweeps.first_line(error)[:300]
    fail(
        RuntimeError(f"{line} (not foreseen; the stack trace is in {file.name}, please report it)"), status=1
    )


def fail(error: Exception, status: int = 2) -> NoReturn:
    """One line on standard error, then the end."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)
