"""Dashboards of a run: W&B or TensorBoard on request, ``metrics.csv`` always. No prompt, no network unless asked."""

import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_info

from miselbo.errors import InputError
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
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(kind is not None))

    def of_member(self, member: int) -> list[Logger]:
        """Loggers for the training of q_member; its curves carry the prefix q<member>."""
        loggers: list[Logger] = [TidyMetrics(self.folder / "metrics.csv", member)]
        if self.kind == "wandb":
            from pytorch_lightning.loggers import WandbLogger

            loggers.append(WandbLogger(experiment=self._wandb, prefix=f"q{member}", save_dir=self.folder))
        elif self.kind == "tensorboard":
            from pytorch_lightning.loggers import TensorBoardLogger

            require("tensorboard")
            loggers.append(TensorBoardLogger(self.folder, "tensorboard", f"q{member}"))
        return loggers

    def finish(self, summary: dict[str, Any], folder: Path) -> None:
        """Headline numbers and figures on the dashboard."""
        if self._wandb is None:
            return
        import wandb

        self._wandb.summary.update({k: v for k, v in summary["headline"].items() if v is not None})
        figures = sorted((folder / "figures").glob("*.png"))
        self._wandb.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})


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
