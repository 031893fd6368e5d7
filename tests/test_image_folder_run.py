"""A run on a folder of colour images: fewer bits, flows, and the images moved afterwards."""

import pandas as pd
import pictures
import pytest
import runs

from miselbo.errors import InputError
from miselbo.pipeline import run
from miselbo.runs import config
from miselbo.runs.folder import check_folder


def test_a_folder_of_images_end_to_end(tmp_path):
    images = pictures.folder(tmp_path / "birds", 40, height=6, width=10)
    arguments = [
        "dataset=image_folder",
        f"dataset.root={images}",
        "dataset.num_bits=5",
        "dataset.flip=true",
        "model.approximation.num_flows=1",
        "report=false",
        "ensemble.size=2",
    ]
    small = [
        argument
        for argument in runs.TINY
        if not argument.startswith(("dataset.num_", "evaluation.num_pictures"))
    ]
    folder = tmp_path / "run"
    cfg = config.compose_config([*runs.NVAE, *small, *arguments, f"run_dir={folder}"])
    assert cfg.dataset.name == config.folder_name(images)
    protocol = run(cfg)["protocol"]
    assert protocol["image"] == "3 x 6 x 10" and protocol["num_examples"] == 4
    assert protocol["binarisation"] == "none: intensities in [0, 1], 5 bits"
    table = pd.read_parquet(folder / "results" / "per_example.parquet")
    moved = tmp_path / "elsewhere"
    images.rename(moved)
    with pytest.raises(InputError, match="no such folder of images"):
        runs.from_folder("evaluate", folder)
    runs.from_folder("evaluate", folder, f"dataset.root={moved}", "evaluation.batch_size=3", "report=false")
    again = pd.read_parquet(folder / "results" / "per_example.parquet")
    pd.testing.assert_frame_equal(again, table, rtol=1e-4)
    with pytest.raises(InputError, match="dataset.name was 'birds-.*', now 'elsewhere-"):
        check_folder(
            config.compose_config(
                [*runs.NVAE, *small, *arguments, f"dataset.root={moved}", f"run_dir={folder}"]
            ),
            folder,
        )
