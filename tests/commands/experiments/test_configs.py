"""Every experiment composes, and the paper's recipes run end to end in seconds with a small budget."""

import csv
import gzip
import json

import pandas as pd
import pytest
import runs
import torch
from omegaconf import OmegaConf

from miselbo.pipeline import run
from miselbo.runs import config

EXPERIMENTS = sorted(path.stem for path in (config.CONF / "experiment").glob("*.yaml"))
# what makes an experiment's network and budget small; its data, groups and keys stay
NETWORK = [
    "model.target.num_groups_per_scale=2",
    "model.target.num_latent_per_group=2",
    "model.target.num_channels=4",
    "model.target.num_postprocess_cells=1",
    "model.target.num_cells_per_group=1",
    "model.approximation.num_channels=4",
    "model.approximation.num_preprocess_cells=1",
    "model.approximation.num_cells_per_group=1",
]
BUDGET = [
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
    "ensemble.size=2",
    "evaluation.num_samples=3",
    "evaluation.batch_size=4",
    "evaluation.num_pictures=2",
    "dataset.num_validation=8",
    "dataset.num_test=6",
    "dataset.batch_size=16",
]
ONE_CPU = [
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.strategy=auto",
    "trainer.sync_batchnorm=false",
]
SMALL = {"table3": [*ONE_CPU, *NETWORK, *BUDGET], "table3_small": [*NETWORK, *BUDGET]}


def write_mnist(folder) -> None:
    """MNIST's files with 40 and 10 random images."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train-images-idx3-ubyte", 40), ("t10k-images-idx3-ubyte", 10)):
        header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (count, 28, 28))
        pixels = torch.randint(256, (count * 784,), dtype=torch.uint8, generator=generator)
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + bytes(pixels.tolist())))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_takes_overrides(name):
    arguments = [f"experiment={name}", "seed=7", "evaluation.num_samples=9", "run_dir=anywhere"]
    config.check_overrides(arguments)
    cfg = config.compose_config(arguments)
    assert (cfg.seed, cfg.evaluation.num_samples) == (7, 9)
    OmegaConf.to_container(cfg, resolve=True)


def test_table3_is_the_papers_recipe():
    cfg = config.compose_config(["experiment=table3", "run_dir=x"])
    assert (cfg.model.name, cfg.dataset.name) == ("nvae_mnist", "mnist")
    assert (cfg.ensemble.size, cfg.evaluation.num_samples) == (5, 1000)
    assert (cfg.trainer.strategy, cfg.trainer.accelerator, cfg.trainer.max_epochs) == ("ddp", "gpu", 400)
    assert cfg.dataset.batch_size * cfg.trainer.devices == 400
    assert cfg.model.member_epoch_share == 1.0
    changed = config.compose_config(
        ["experiment=table3", "trainer.max_epochs=1", "ensemble.size=2", "run_dir=x"]
    )
    assert (changed.trainer.max_epochs, changed.ensemble.size) == (1, 2)
    assert config.compose_config(["experiment=table3", "model=vae", "run_dir=x"]).model.name == "vae"


def test_the_run_folder_is_named_after_the_experiment(tmp_path):
    def folder(*arguments: str) -> str:
        status, out, err = runs.command(tmp_path, "--cfg", "job", "--resolve", *arguments)
        assert status == 0, err
        (line,) = (line for line in out.splitlines() if line.startswith("run_dir: "))
        return line.removeprefix("run_dir: ")

    assert folder("experiment=table3", "seed=3") == "outputs/table3-nvae_mnist-mnist-S5-seed3"
    assert folder() == "outputs/nvae-digits-S5-seed0"
    tailed = folder("experiment=table3", "trainer.max_epochs=1")
    assert tailed == f"outputs/table3-nvae_mnist-mnist-S5-seed0{config.name_tail('trainer.max_epochs=1')}"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_an_experiment_runs_end_to_end(name, tmp_path, monkeypatch):
    import miselbo.data.sources as sources
    from miselbo.data.readers.idx_files import IdxCollection, IdxFile

    files = IdxCollection("mnist", *(IdxFile(f"{part}-images-idx3-ubyte") for part in ("train", "t10k")))
    monkeypatch.setattr(sources, "MNIST", files)  # without the MD5 of the real ones
    write_mnist(tmp_path / "mnist")
    folder = tmp_path / "run"
    place = [f"run_dir={folder}", f"dataset.root={tmp_path / 'mnist'}"]
    cfg = config.compose_config([f"experiment={name}", *SMALL[name], *place])
    summary = run(cfg)
    assert summary["protocol"]["dataset"] == "mnist" and summary["protocol"]["num_examples"] == 6
    bounds = pd.read_csv(folder / "results" / "bounds.csv").set_index(["S", "L"])
    assert set(bounds.index) == {(s, samples) for s in (1, 2) for samples in (1, 2, 3)}
    assert bounds["miselbo"].between(-2000, 0).all()  # nats of 784 random bits, an untrained network
    stamps = {
        torch.load(path, weights_only=True)["target_fingerprint"]
        for path in sorted((folder / "members").glob("*.ckpt"))
    }
    assert len(stamps) == 1 and (folder / "report.html").stat().st_size > 0
    assert json.loads((folder / "results" / "summary.json").read_text()) == summary


def test_numbers_of_the_paper_carry_their_source():
    for path in sorted((runs.PROJECT / "experiments").glob("*/paper.csv")):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        assert rows, path
        for row in rows:
            assert row["source"].strip(), (path, row)
            if "status" in row:  # single facts; the other files are tables of recomputed values
                known = ("read", "recomputed", "secondary", "from memory", "not available")
                assert row["status"] in known, (path, row)
                assert (row["value"] == "") == (row["status"] == "not available"), (path, row)
