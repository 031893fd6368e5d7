"""A run's dashboard on W&B: one run per run folder, the same one again when the run goes on. Nothing asks or waits."""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from miselbo.data.grid import grid
from miselbo.errors import InputError, Stopped
from miselbo.report.summary import Summary
from miselbo.runs.wandb import Key, WandbCurves, catch_up, on_dashboard
from miselbo.runtime import stopping
from miselbo.runtime.files import write_text
from miselbo.runtime.reading import check_archive

if TYPE_CHECKING:
    from wandb import Run


class WandbRun:
    """The dashboard, for all members of an ensemble.

    Args:
        folder: run folder.
        config: of the run, plain types.
        project: of W&B.
        entity: of W&B.
        group: of runs, such as those of a sweep.
        mode: "auto" is online where a key is configured; "online"; "offline".
        checkpoints: the members' checkpoints as an artifact.
        tags: beside the model, the dataset and S.
        notes: free text.
        job_type: of W&B.

    Raises:
        InputError: W&B is not installed.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        project: str,
        entity: str | None = None,
        group: str | None = None,
        mode: str = "auto",
        checkpoints: bool = False,
        tags: Sequence[str] = (),
        notes: str | None = None,
        job_type: str | None = None,
    ):
        self.folder, self.config, self.checkpoints = folder, config, checkpoints
        content = (config["model"]["name"], config["dataset"]["name"], f"S={config['ensemble']['size']}")
        self.run: Run | None = None
        if os.environ.get("LOCAL_RANK", "0") == "0":
            own = {"project": project, "entity": entity, "group": group, "notes": notes, "job_type": job_type}
            self.run = start(folder, mode, config=dict(config), tags=[*content, *tags], **own)
        self.known = set[Key]() if self.run is None else on_dashboard(self.run, folder)
        self.catch_up()

    def catch_up(self) -> None:
        """Send what of ``metrics.csv`` is not there yet."""
        if self.run is not None:
            catch_up(self.run, self.folder / "metrics.csv", self.known)

    def of_member(self, member: int) -> list[WandbCurves]:
        """The logger of q_member's curves, which carry the prefix q<member>; none in another process than the first."""
        if self.run is None:
            return []
        epoch = self.config["model"]["objective"].get("steps_per_epoch")
        return [WandbCurves(self.run, member, epoch, self.known)]

    def finish(self, summary: Summary) -> None:
        """Headline numbers, the S x L grid, figures and report; checkpoints where asked for."""
        if self.run is None:
            return
        import pandas as pd
        import wandb

        folder, run = self.folder, self.run
        self.catch_up()  # of members that other processes trained
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
        if self.checkpoints:
            self._attach("model", sorted((folder / "members").glob("*.ckpt")))

    def close(self, error: BaseException | None) -> None:
        """End the run: finished, failed, or preempted by a request to stop."""
        if self.run is None:
            return
        if isinstance(error, Stopped):
            self.run.mark_preempting()  # with a status other than 0 the run is then preempted, not failed
            self.run.finish(exit_code=stopping.STATUS)
        else:
            self.run.finish(exit_code=int(error is not None))

    def _attach(self, kind: str, files: list[Path]) -> None:
        """The files that exist as one artifact of the run."""
        import wandb

        present = [path for path in files if path.is_file()]
        if present and self.run is not None:
            artifact = wandb.Artifact(f"{kind}-{self.run.id}", type=kind)
            for path in present:
                artifact.add_file(str(path), name=path.name)
            self.run.log_artifact(artifact)


def start(folder: Path, mode: Any, **arguments: Any) -> "Run":
    """A W&B run in the run folder; the same run again when the folder has one already."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it looks up a host name even offline otherwise
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError:
        raise InputError("logger=wandb needs the package wandb: pip install wandb") from None
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE")
        mode = asked or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    if mode == "offline":
        print(f"W&B is offline; send this run later with: wandb sync {folder}/wandb/offline-run-*")
    stored = folder / "wandb_run_id"
    run_id = stored.read_text().strip() if stored.exists() else uuid.uuid4().hex[:8]
    write_text(stored, run_id + "\n")
    return wandb.init(name=folder.name, id=run_id, resume="allow", dir=str(folder), mode=mode, **arguments)


def samples(folder: Path) -> dict[str, np.ndarray]:
    """Grids of the run's own images: originals, ``q1`` ... their reconstructions by each member, ``prior`` samples.

    Small images are enlarged by a whole factor, for a dashboard would blur them. Empty for a target without images.
    """
    path = folder / "results" / "images.npz"
    if not path.is_file():
        return {}
    check_archive(path)
    with np.load(path, allow_pickle=False) as arrays:
        shown = {"originals": arrays["originals"], "prior": arrays["samples"]}
        shown |= {f"q{s}": images for s, images in enumerate(arrays["reconstructions"], 1)}
    factor = max(1, 64 // shown["prior"].shape[-1])
    return {
        name: grid(torch.from_numpy(images)).repeat(factor, 0).repeat(factor, 1)
        for name, images in shown.items()
    }
