"""How members are trained: the one place where a run's configuration becomes the values that training takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from miselbo.data.interface import Data
from miselbo.errors import InputError, nearest
from miselbo.protocols import TrainableMember, TrainableTarget
from miselbo.runs.building import build, build_model
from miselbo.runs.checks import checkpoint_paths
from miselbo.runs.config import flatten
from miselbo.runs.folder import claim_folder
from miselbo.runs.plain import plain
from miselbo.runs.restore import Source
from miselbo.runs.stored import read_stored

if TYPE_CHECKING:
    from pytorch_lightning.loggers.logger import Logger

F = TypeVar("F", bound=Callable[..., object])
Loggers = Callable[[int], "Sequence[Logger]"]  # of the member of a number; 0: of the joint training
PLAIN_TRAINER: Mapping[str, Any] = {
    "_target_": "pytorch_lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "strategy": "auto",
    "precision": "32-true",
    "num_sanity_val_steps": 0,
}


@dataclass(frozen=True)
class Joint:
    """Fine-tuning of all members together by MISELBO, ``ensemble.objective=mixture``.

    Args:
        estimator: name in :data:`miselbo.bounds.sampled.ESTIMATORS`.
        sampled: components per step; None: as the estimator needs.
        epoch_share: of q_1's epochs.
        learning_rate: of its first step.
    """

    estimator: str = "all_to_all"
    sampled: int | None = None
    epoch_share: float = 0.25
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class TrainingPlan:
    """Everything a training depends on besides the target, the members and the data.

    Args:
        epochs: of q_1.
        member_epoch_share: epochs of q_2..q_S as a share of q_1's.
        objective: hyper-parameters of the family's ``Objective``; what is left out has its default.
        trainer: arguments of ``pytorch_lightning.Trainer``, for the families that use it.
        workers: processes that train members side by side, or "auto"; more than one needs a ``recipe``.
        seed: decides order, noise and initial values.
        joint: how all members are trained together at the end; None: not at all.
        monitor_samples: of the curve of the whole ensemble on validation data.
        resume_interval: seconds between resume points.
        progress: show it.
        num_threads: of one process; None leaves it to torch.
        record: plain JSON types kept beside the target: what model and data it is of.
        recipe: the run's configuration as YAML, from which other processes build what they train.

    Raises:
        InputError: a number out of range.

    Example:
        >>> TrainingPlan(epochs=10, member_epoch_share=0.5).epochs_of(2)
        5
    """

    epochs: int = 50
    member_epoch_share: float = 1.0
    objective: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=lambda: PLAIN_TRAINER)
    workers: int | str = 1
    seed: int = 0
    joint: Joint | None = None
    monitor_samples: int = 10
    resume_interval: float = 300.0
    progress: bool = False
    num_threads: int | None = None
    record: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    recipe: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 1:
            raise InputError(f"epochs must be a whole number of at least 1, got {self.epochs!r}")
        if not self.member_epoch_share > 0:
            raise InputError(f"member_epoch_share must be positive, got {self.member_epoch_share!r}")

    def epochs_of(self, member: int) -> int:
        """Epochs of q_member."""
        return self.epochs if member == 1 else max(1, round(self.member_epoch_share * self.epochs))

    @property
    def name(self) -> str:
        """The model's name, for messages."""
        return str(self.record.get("model", {}).get("name", "this"))


def training_plan(cfg: DictConfig) -> TrainingPlan:
    """The plan of a run's configuration."""
    content = plain(cfg)
    ensemble, model, trainer = content["ensemble"], content["model"], content["trainer"]
    joint = Joint(
        ensemble["estimator"],
        ensemble["sampled"],
        ensemble["joint_epoch_share"],
        ensemble["joint_learning_rate"],
    )
    return TrainingPlan(
        epochs=trainer["max_epochs"],
        member_epoch_share=model.get("member_epoch_share", 1.0),
        objective=built_objective(model["objective"]),
        trainer=trainer,
        workers=ensemble["workers"],
        seed=content["seed"],
        joint=joint if ensemble["objective"] == "mixture" else None,
        monitor_samples=ensemble["monitor_samples"],
        resume_interval=ensemble["resume_interval"],
        progress=trainer["enable_progress_bar"],
        num_threads=content["num_threads"],
        record={"model": model, "dataset": content["dataset"]},
        recipe=OmegaConf.to_yaml(cfg, resolve=True),
    )


def built_objective(values: Mapping[str, object]) -> dict[str, object]:
    """``model.objective`` with its node ``loss``, where there is one, as the function it names."""
    loss = values.get("loss")
    return {**values, "loss": build(loss)} if loss is not None else {**values}


def needs_earlier(plan: TrainingPlan) -> bool:
    """Whether the loss of a member asks for all members before it."""
    loss = plan.objective.get("loss")
    return loss is not None and is_able(loss, "earlier")


def source_of(cfg: DictConfig) -> Source:
    """Where the trained members of a run's configuration are."""
    official = checkpoint_paths(plain(cfg)["checkpoints"]) if cfg.importer == "nvlabs" else None
    return Source(Path(cfg.run_dir), cfg.model, cfg.seed, cfg.ensemble.size, official, cfg.target)


def build_ensemble(cfg: DictConfig, spec: object, size: int) -> tuple[Any, list[Any]]:
    """:func:`miselbo.runs.building.build_model` of a run's configuration."""
    return build_model(cfg.model, cfg.seed, spec, size)


@dataclass(frozen=True)
class Rebuilt:
    """What another process trains, built anew from a recipe."""

    fit: Callable[..., object]
    target: TrainableTarget
    members: list[TrainableMember]
    data: Data
    plan: TrainingPlan
    folder: str


def rebuild(recipe: str | Path, data: Data | None = None) -> Rebuilt:
    """TrainableTarget, members, data and plan of a run, from the text of its configuration.

    Args:
        recipe: YAML of this command's own configuration; or the file where a command stored it, read as values alone.
        data: what is there of them already; None reads them, and fetches them where that is needed.
    """
    # what a stored one builds was checked by the command that started this one
    cfg = read_stored(recipe, None) if isinstance(recipe, Path) else OmegaConf.create(recipe)
    assert isinstance(cfg, DictConfig)
    if data is None:
        data = data_of(cfg)
    target, members = build_ensemble(cfg, data.spec, cfg.ensemble.size)
    return Rebuilt(build(cfg.model.fit), target, members, data, training_plan(cfg), cfg.run_dir)


@dataclass(frozen=True)
class Study:
    """What an experiment of several runs is given of its configuration.

    Args:
        folder: of the whole; each run has a folder of its own below it.
        seed: of every run.
        num_threads: of one process; None leaves it to torch.
        accelerator: of every run.
        progress: show it.
        values: dotted names of all keys with their values.
        written: the same as they are written, interpolations not resolved.
        claim: makes ``folder`` this experiment's.
    """

    folder: Path
    seed: int
    num_threads: int | None
    accelerator: str
    progress: bool
    values: Mapping[str, object]
    written: Mapping[str, object]
    claim: Callable[[], None]


def study_of(cfg: DictConfig) -> Study:
    """An experiment of several runs, from its configuration."""
    folder, trainer = Path(cfg.run_dir), cfg.trainer
    return Study(
        folder=folder,
        seed=cfg.seed,
        num_threads=cfg.num_threads,
        accelerator=trainer.accelerator,
        progress=trainer.enable_progress_bar,
        values=flatten(plain(cfg)),
        written=flatten(cfg),
        claim=partial(claim_folder, cfg, folder),
    )


@dataclass(frozen=True)
class Reopened:
    """What another process evaluates."""

    data: Data
    source: Source
    num_threads: int | None


def reopen(recipe: str) -> Reopened:
    """Data and members of a run, from the text of its configuration; the data are here already."""
    cfg = OmegaConf.create(recipe)
    assert isinstance(cfg, DictConfig)
    data: Data = build(cfg.dataset)
    data.setup()
    return Reopened(data, source_of(cfg), cfg.num_threads)


def data_of(cfg: DictConfig) -> Data:
    """The data module of a run's configuration, fetched and set up."""
    data: Data = build(cfg.dataset)
    data.prepare_data()
    data.setup()
    return data


def able(objective: type | None = None, **abilities: bool) -> Callable[[F], F]:
    """Mark a function with what it can do or needs (see :func:`is_able`).

    Args:
        objective: dataclass of the hyper-parameters that ``model.objective`` may hold for it.
        **abilities: what it can do.
    """

    def mark(fit: F) -> F:
        fit.__dict__.update(abilities, objective=objective)
        return fit

    return mark


def check_objective(fit: Callable[..., object], given: Mapping[str, object]) -> None:
    """Refuse hyper-parameters that a fit function does not know, or whose own checks they do not pass.

    Args:
        fit: as in ``model.fit``; one without a known objective takes anything.
        given: ``model.objective``.

    Raises:
        InputError: naming the key.

    Example:
        >>> from miselbo.training.fit import fit_members
        >>> check_objective(fit_members, {"learning_rat": 0.1})
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: unknown model.objective.learning_rat; did you mean 'learning_rate'? known are ...
    """
    kind = getattr(getattr(fit, "func", fit), "objective", None)
    if kind is None:
        return
    known = [each.name for each in fields(kind)]
    for name in given:
        if name not in known:
            raise InputError(
                f"unknown model.objective.{name}; {nearest(name, known)}known are {', '.join(known)}"
            )
    kind(**given)


def is_able(fit: Callable[..., object], ability: str) -> bool:
    """Whether a function, or the one a partial calls, has an ability.

    ``apart``: trains one member without the others; ``ranks``: in several processes of torch.distributed;
    ``joint``: all members together by MISELBO; ``losses``: by any of :mod:`miselbo.training.objectives`. Of a loss,
    ``earlier``: asks for all members before the one in training.

    Example:
        >>> @able(apart=True)
        ... def fit(): ...
        >>> is_able(fit, "apart"), is_able(fit, "ranks")
        (True, False)
    """
    return bool(getattr(getattr(fit, "func", fit), ability, False))
