"""Dashboards of a run: W&B or TensorBoard on request, ``metrics.csv`` always. No prompt, no network unless asked."""

import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers.logger import Logger

from miselbo.data.grid import grid
from miselbo.errors import InputError, Stopped
from miselbo.runs.curves import TidyMetrics
from miselbo.runs.wandb import Key, WandbCurves, catch_up, on_dashboard
from miselbo.runtime import stopping
from miselbo.runtime.files import write_text


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
        self._known = set[Key]()  # curves that are on the dashboard
        if self.kind not in ("csv", "wandb", "tensorboard"):
            raise InputError(f"unknown logger.name={self.kind}; known are csv, tensorboard, wandb")

    def __enter__(self) -> "Loggers":
        if self.kind == "wandb" and os.environ.get("LOCAL_RANK", "0") == "0":
            self._wandb = start_wandb(self.cfg, self.folder)
            self._known = on_dashboard(self._wandb, self.folder)
            catch_up(self._wandb, self.folder / "metrics.csv", self._known)
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
                epoch = self.cfg.model.objective.get("steps_per_epoch")
                loggers.append(WandbCurves(self._wandb, member, epoch, self._known))
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
        catch_up(run, self.folder / "metrics.csv", self._known)  # of members that other processes trained
        run.summary.update({k: v for k, v in summary["headline"].items() if v is not None})
        figures = sorted((folder / "figures").glob("*.png"))
        run.log(
            {
                "bounds": wandb.Table(dataframe=pd.read_csv(folder / "results" / "bounds.csv")),
                **{f"figures/{path.stem}": wandb.Image(str(path)) for path in figures},
                **{f"samples/{name}": wandb.Image(image) for name, image in samples(folder).items()},
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


def samples(folder: Path) -> dict[str, np.ndarray]:
    """Grids of the run's own images: originals, ``q1`` ... their reconstructions by each member, ``prior`` samples.

    Small images are enlarged by a whole factor, for a dashboard would blur them. Empty for a target without images.
    """
    path = folder / "results" / "images.npz"
    if not path.is_file():
        return {}
    with np.load(path) as arrays:
        shown = {"originals": arrays["originals"], "prior": arrays["samples"]}
        shown |= {f"q{s}": images for s, images in enumerate(arrays["reconstructions"], 1)}
    factor = max(1, 64 // shown["prior"].shape[-1])
    return {
        name: grid(torch.from_numpy(images)).repeat(factor, 0).repeat(factor, 1)
        for name, images in shown.items()
    }


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
        print(f"W&B is offline; send this run later with: wandb sync {folder}/wandb/offline-run-*")
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
