"""A finished run as an object: its configuration, ensemble, result and report."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from miselbo.errors import InputError
from miselbo.runs.folder import config_path, load_folder, stored
from miselbo.runtime import locks

if TYPE_CHECKING:
    from miselbo.data.interface import Data
    from miselbo.ensemble import Ensemble
    from miselbo.evaluation.result import Result


@dataclass(frozen=True)
class Run:
    """The run in a folder; everything is read when it is asked for."""

    folder: Path
    trust: tuple[str, ...] = ()

    @cached_property
    def config(self) -> DictConfig:
        """The resolved configuration it was started with."""
        return load_folder(self.folder, [], self.trust)

    def data(self) -> "Data":
        """Its data module, set up."""
        from miselbo.runs.plan import data_of

        return data_of(self.config)

    def ensemble(self) -> "Ensemble":
        """The trained members with their target, on the CPU, in evaluation mode."""
        from miselbo.runs.plan import source_of
        from miselbo.runs.restore import restore

        return restore(source_of(self.config), self.data())

    @property
    def result(self) -> "Result":
        """Tables, trust and summary of its evaluation."""
        from miselbo.evaluation.result import Result

        return Result.read(self.folder)

    def report(self) -> Path:
        """Write the report anew; returns the page's path."""
        from miselbo import report

        with locks.hold(self.folder, locks.WHOLE, "in use (report)"):
            return report.write(self.folder)


def load_run(path: str | Path, trust: Sequence[str] = ()) -> Run:
    """The run in a folder; opening it runs no code of its author's.

    Args:
        path: run folder.
        trust: your own packages that its configuration may name, as ``trust=[my_package]`` on the command line.

    Raises:
        InputError: the folder holds no run, or its configuration names code or secrets of elsewhere.

    Example:
        >>> load_run("no/such/folder")
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: no/such/folder is no run folder...
    """
    folder = Path(path)
    if not config_path(folder).is_file():
        raise InputError(f"{folder} is no run folder: {config_path(folder)} does not exist")
    run = Run(folder, tuple(trust))
    stored(folder, run.trust)
    return run
