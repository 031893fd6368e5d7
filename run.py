"""Train and measure an ensemble: python run.py model=nvae ensemble.size=5 (README.md lists the commands)."""

import hydra
from omegaconf import DictConfig

from miselbo.commands import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def job(cfg: DictConfig) -> None:
    """Hydra's job: the configuration is composed, everything else is in the package."""
    cli.job(cfg)


if __name__ == "__main__":
    cli.main(job)
