"""Dashboards of a run: W&B or TensorBoard on request, ``metrics.csv`` always. No prompt, no network unless asked."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from miselbo import stopping
from miselbo.errors import InputError, Stopped
from miselbo.files import write_text
from miselbo.training.callbacks import TidyMetrics


class Loggers:
    """Makes the loggers of each member and closes the dashboard's run, also after an error.

    Args:
        cfg: the whole configuration; ``logger.name`` is csv, wandb or tensorboard.
        folder: run folder.

    Raises:
        InputError: an unknown logger, or its package is not installed.
    """

    def __init__(self, cfg: DictConfig, folder: Path):
        self.cfg = cfg
        self.folder = folder
        self.kind = cfg.logger.name
        self._wandb: Any = None
        if self.kind not in ("csv", "wandb", "tensorboard"):
            raise InputError(f"unknown logger.name={self.kind}; known are csv, tensorboard, wandb")

    def __enter__(self) -> "Loggers":
        if self.kind == "wandb" and os.environ.get("LOCAL_RANK", "0") == "0":
            self._wandb = start_wandb(self.cfg, self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wandb is None:
            return
        if isinstance(error, Stopped):
            self._wandb.mark_preempting()  # with a status other than 0 the run is then preempted, not failed
            self._wandb.finish(exit_code=stopping.STATUS)
        else:
            self._wandb.finish(exit_code=int(kind is not None))

    def of_member(self, member: int) -> list[Logger]:
        """Loggers for the training of q_member; its curves carry the prefix q<member>."""
        loggers: list[Logger] = [TidyMetrics(self.folder / "metrics.csv", member)]
        if self.kind == "wandb":
            if self._wandb is not None:  # rank 0
                loggers.append(
                    WandbCurves(self._wandb, member, self.cfg.model.objective.get("steps_per_epoch"))
                )
        elif self.kind == "tensorboard":
            from pytorch_lightning.loggers import TensorBoardLogger

            require("tensorboard")
            loggers.append(TensorBoardLogger(self.folder, "tensorboard", f"q{member}"))
        return loggers

    def finish(self, summary: dict[str, Any], folder: Path) -> None:
        """Headline numbers, the S x L grid, figures and report on the dashboard; checkpoints where asked for."""
        if self._wandb is None:
            return
        import pandas as pd
        import wandb

        run = self._wandb
        run.summary.update({k: v for k, v in summary["headline"].items() if v is not None})
        figures = sorted((folder / "figures").glob("*.png"))
        run.log(
            {
                "bounds": wandb.Table(dataframe=pd.read_csv(folder / "results" / "bounds.csv")),
                **{f"figures/{path.stem}": wandb.Image(str(path)) for path in figures},
            }
        )
        self._attach("report", [folder / "report.html"])
        if self.cfg.logger.get("checkpoints"):
            self._attach("model", sorted((folder / "members").glob("*.ckpt")))

    def _attach(self, kind: str, files: list[Path]) -> None:
        """The files that exist as one artifact of the run."""
        import wandb

        present = [path for path in files if path.is_file()]
        if present:
            artifact = wandb.Artifact(f"{kind}-{self._wandb.id}", type=kind)
            for path in present:
                artifact.add_file(str(path), name=path.name)
            self._wandb.log_artifact(artifact)


class WandbCurves(Logger):
    """A member's curves in the one W&B run of its ensemble: its number is the prefix, the epoch the x-axis.

    Args:
        run: of W&B.
        member: s; 0 for joint training.
        steps_per_epoch: gives the epoch where a trainer logs steps alone.
    """

    def __init__(self, run: Any, member: int, steps_per_epoch: int | None = None):
        super().__init__()
        self.run, self.member, self.steps_per_epoch = run, member, steps_per_epoch
        run.define_metric("epoch", hidden=True)
        run.define_metric(f"q{member}/*", step_metric="epoch")

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "wandb"

    @property
    def version(self) -> str:
        """The run's id."""
        return str(self.run.id)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run holds the whole configuration already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row: the values under the member's prefix, and the epoch, counted from 0."""
        values = dict(metrics)
        epoch = values.pop("epoch", None)
        if epoch is None:
            epoch = max(0, -(-(step or 0) // (self.steps_per_epoch or 1)) - 1)
        row = {f"q{self.member}/{name}": float(value) for name, value in values.items()}
        self.run.log({**row, "epoch": int(epoch), f"q{self.member}/step": step or 0})


def require(package: str) -> None:
    """InputError with the install command when an optional package is missing."""
    try:
        __import__(package)
    except ImportError:
        raise InputError(
            f"logger={package} needs the package {package}: pip install '.[{package}]'"
        ) from None


def start_wandb(cfg: DictConfig, folder: Path) -> Any:
    """A W&B run in the run folder; the same run again when the folder has one already."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it looks up a host name even offline otherwise
    os.environ.setdefault("WANDB_SILENT", "true")
    require("wandb")
    import wandb

    mode = cfg.logger.mode
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE")
        mode = asked or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    if mode == "offline":
        rank_zero_info(f"W&B is offline; send this run later with: wandb sync {folder}/wandb/offline-run-*")
    stored = folder / "wandb_run_id"
    run_id = stored.read_text().strip() if stored.exists() else uuid.uuid4().hex[:8]
    write_text(stored, run_id + "\n")
    return wandb.init(
        project=cfg.logger.project,
        entity=cfg.logger.entity,
        group=cfg.logger.group,
        name=folder.name,
        id=run_id,
        resume="allow",
        dir=str(folder),
        mode=mode,
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        tags=[cfg.model.name, cfg.dataset.name, f"S={cfg.ensemble.size}"],
    )
