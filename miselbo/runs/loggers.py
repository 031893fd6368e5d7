"""Where a run's curves go: ``metrics.csv`` always, and what ``conf/logger`` names by ``_target_``, several at once.

A node is either a dashboard of the whole run (a class with ``of_member``, :class:`miselbo.runs.wandb_run.WandbRun`) or
one of Lightning's loggers, which is built for each member: ``{member}`` in its strings becomes q1, q2, ..., ``joint``;
``ensemble`` for the headline at the end.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from pytorch_lightning.loggers.logger import Logger

from miselbo.errors import InputError
from miselbo.report.summary import Summary
from miselbo.runs.tidy import TidyMetrics
from miselbo.runs.wandb import tidy_rows

# MLflow 3 refuses its own file store otherwise, and reports its use to its makers
QUIET = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


Node = Mapping[str, object]


class Dashboard(Protocol):
    """What shows a whole run: made of its folder and configuration."""

    def of_member(self, member: int) -> Sequence[Logger]:
        """Loggers of one member's curves."""

    def finish(self, summary: Summary) -> None:
        """Headline numbers, tables, figures and report."""

    def close(self, error: BaseException | None) -> None:
        """End, also after an error."""


class Loggers:
    """Makes the loggers of each member and closes the dashboards, also after an error.

    Args:
        config: of the run, plain types, for dashboards that show it; ``logger`` in it names the loggers.
        folder: run folder.

    Raises:
        InputError: a node of ``logger`` cannot be built, such as one whose package is not installed.
    """

    def __init__(self, config: Mapping[str, Mapping[str, object]], folder: Path):
        self.config, self.folder = config, folder
        nodes = logger_nodes(config["logger"])
        self.per_run = {name: node for name, node in nodes.items() if is_dashboard(name, node)}
        self.per_member = {name: node for name, node in nodes.items() if name not in self.per_run}
        self.dashboards: list[Dashboard] = []

    def __enter__(self) -> "Loggers":
        for name, node in self.per_run.items():
            self.dashboards.append(make(name, node, self.folder, self.config))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for dashboard in self.dashboards:
            dashboard.close(error if error is not None or kind is None else kind())

    def of_member(self, member: int) -> list[Logger]:
        """Loggers for the training of q_member; 0 is the joint training."""
        name = f"q{member}" if member else "joint"
        return [TidyMetrics(self.folder / "metrics.csv", member), *self.elsewhere(member, name)]

    def elsewhere(self, member: int, name: str) -> list[Logger]:
        """The same without ``metrics.csv``."""
        own = [make(kind, filled(node, name)) for kind, node in self.per_member.items()]
        return [*own, *(logger for dashboard in self.dashboards for logger in dashboard.of_member(member))]

    def finish(self, summary: Summary) -> None:
        """Headline numbers to all of them; dashboards take tables, figures and report too."""
        numbers = {k: float(v) for k, v in summary["headline"].items() if isinstance(v, int | float)}
        for kind, node in self.per_member.items():
            logger = make(kind, filled(node, "ensemble"))
            logger.log_metrics(numbers, 0)
            logger.finalize("success")
        for dashboard in self.dashboards:
            dashboard.finish(summary)

    def replay(self) -> None:
        """Send all rows of ``metrics.csv`` to the loggers of members; dashboards take what they lack by themselves."""
        curves: dict[int, dict[int, dict[str, float]]] = {}
        for (member, step, name), value in tidy_rows(self.folder / "metrics.csv").items():
            curves.setdefault(member, {}).setdefault(step, {})[name] = value
        for member, steps in sorted(curves.items()):
            for kind, node in self.per_member.items():
                logger = make(kind, filled(node, f"q{member}" if member else "joint"))
                for step, values in sorted(steps.items()):
                    logger.log_metrics(values, step)
                logger.finalize("success")


def logger_nodes(logger: Mapping[str, object]) -> dict[str, Node]:
    """The nodes of ``logger`` that name something to build.

    Example:
        >>> logger_nodes({"mode": "auto", "wandb": {"_target_": "miselbo.runs.wandb_run.WandbRun"}})
        {'wandb': {'_target_': 'miselbo.runs.wandb_run.WandbRun'}}
    """
    return {k: node for k, node in logger.items() if isinstance(node, Mapping) and "_target_" in node}


def is_dashboard(name: str, node: Node) -> bool:
    """Whether a node is built once for the whole run.

    Raises:
        InputError: there is no such class.
    """
    try:
        return hasattr(get_object(str(node["_target_"])), "of_member")
    except Exception as error:
        raise InputError(f"logger.{name}: there is no {node['_target_']} here ({first(error)})") from None


def make(name: str, node: Node, *positional: object) -> Any:
    """Build a node; InputError with the reason when it cannot be."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        return instantiate(dict(node), *positional, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from None
        if isinstance(cause, ModuleNotFoundError):
            raise InputError(
                f"logger={name} needs a package that is not installed ({first(cause)}): pip install 'miselbo[{name}]'"
            ) from None
        raise InputError(f"logger.{name} cannot be built: {first(cause or error)}") from None


def first(error: BaseException) -> str:
    """First line of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def filled(node: Node, member: str) -> Node:
    """A node with the member's name in its strings.

    Example:
        >>> filled({"version": "{member}", "tags": {"of": "run-{member}"}}, "q2")
        {'version': 'q2', 'tags': {'of': 'run-q2'}}
    """

    def fill(value: object) -> object:
        if isinstance(value, str):
            return value.replace("{member}", member)
        return {k: fill(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    return {key: fill(value) for key, value in node.items()}
