"""The command line: bad input ends with one line and exit status 2, a killed run goes on with the same command."""

import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from miselbo import config
from miselbo.errors import InputError

FROM_FOLDER = ("evaluate", "report")


def main(hydra_job: Callable[[], None]) -> None:
    """Check the arguments, then run: from a run folder alone for ``task=evaluate|report``, else through Hydra."""
    arguments = sys.argv[1:]
    try:
        if any(argument.startswith("-") for argument in arguments):
            plain = [argument for argument in arguments if not argument.startswith("-")]
        else:
            plain = arguments
        values = {o.key_or_group: o.value() for o in config.parse(plain) if not o.is_sweep_override()}
        if values.get("task") in FROM_FOLDER:
            if not values.get("run_dir"):
                raise InputError(f"task={values['task']} needs run_dir=<folder of a finished run>")
            execute(config.load_folder(Path(str(values["run_dir"])), plain))
        else:
            config.check_overrides(plain)
            hydra_job()
    except InputError as error:
        fail(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def job(cfg: DictConfig) -> None:
    """One Hydra job; its run folder is the one Hydra made."""
    with open_dict(cfg):
        cfg.run_dir = HydraConfig.get().runtime.output_dir
    try:
        execute(cfg)
    except InputError as error:
        fail(error)


def execute(cfg: DictConfig) -> None:
    """Run the task."""
    from miselbo.pipeline import run  # torch and Lightning take seconds to import: after the checks

    run(cfg)


def fail(error: InputError) -> None:
    """One line, exit status 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
