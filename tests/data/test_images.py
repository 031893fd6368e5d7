"""The data module: splits, draws, batches, protocol, bad input, and what Lightning makes of it."""

import hashlib
import json
from pathlib import Path

import hydra
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from miselbo.data import ImageData, Images, digits, fashion_mnist, mnist
from miselbo.data.loading import BatchSampler, ImageSplit
from miselbo.data.sources import FASHION_MNIST, load_digits
from miselbo.errors import InputError
from miselbo.training.trainer import Loaders

PROJECT = Path(__file__).resolve().parents[2]
MNIST_FOLDER = PROJECT / "../shared/data/mnist"


def ramp(num_train: int = 23, num_test: int = 9, channels: int = 1) -> Images:
    shape = (channels, 3, 4)
    train = torch.linspace(0, 1, num_train * channels * 12).view(num_train, *shape)
    test = torch.rand(num_test, *shape, generator=torch.Generator().manual_seed(0))
    return Images(train, test, 1.0, "a ramp", "in order")


def whole_grey(data: ImageData, name: str) -> torch.Tensor:
    split = data.split(name)
    return split.grey(torch.arange(len(split)))


def small(**options) -> ImageData:
    return ImageData(ramp, **{"name": "ramp", "num_validation": 6, "batch_size": 4, **options})


def by_index(batches) -> dict[int, torch.Tensor]:
    pairs = (zip(batch["index"].tolist(), batch["image"], strict=True) for batch in batches)
    return {index: image for batch in pairs for index, image in batch}


def epoch_of(data: ImageData, epoch: int) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


# splits


def test_splits_are_disjoint_and_complete():
    everything = ramp()
    data = small()
    grey = [whole_grey(data, name) for name in ("train", "validation", "test")]
    assert torch.equal(torch.cat(grey[:2]), everything.train)
    assert torch.equal(grey[2], everything.test)
    limited = small(num_train=5, num_test=2)
    assert torch.equal(whole_grey(limited, "train"), everything.train[:5])
    assert [len(limited.split(name)) for name in ("train", "validation", "test")] == [5, 6, 2]


def test_digits_hold_every_image_once():
    from sklearn.datasets import load_digits as embedded

    images = load_digits()
    together = torch.cat([images.train, images.test])[:, 0]
    original = torch.as_tensor(embedded().images, dtype=torch.uint8)
    assert sorted(together.flatten(1).tolist()) == sorted(original.flatten(1).tolist())
    assert not torch.equal(together, original)
    # golden: the split may never change, or results are no longer comparable
    digest = hashlib.md5(bytes(images.test.flatten().tolist())).hexdigest()
    assert digest == "a7988d2e5476d07397cf93ccc08dbcc5"


def test_digits_data_module():
    data = digits()
    assert data.image.num_dims == 64 and data.image.likelihood == "bernoulli"
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [1297, 200, 300]
    assert torch.equal((whole_grey(data, "test") * 16).unique(), torch.arange(17.0))


# evaluation: binarised once


def test_evaluation_goes_through_each_example_once_with_the_short_last_batch():
    data = small()
    batches = list(data.evaluation_batches("test", 4))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert batches[0]["image"].dtype == torch.float32 and batches[0]["index"].dtype == torch.int64
    assert [batch["index"].tolist() for batch in data.evaluation_batches("test", 4, start=7)] == [[7, 8]]
    chosen = data.evaluation_batches("test", 2, indices=[5, 0, 3])
    assert [batch["index"].tolist() for batch in chosen] == [[5, 0], [3]]
    assert list(data.evaluation_batches("test", 4, start=9)) == []
    assert [batch["index"].tolist() for batch in data.val_dataloader()] == [[0, 1, 2, 3, 4, 5]]
    assert sum(len(batch["index"]) for batch in data.test_dataloader()) == 9


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(9)), st.integers(1, 10), st.integers(0, 9))
def test_binarisation_does_not_depend_on_order_subset_or_batch_size(order, batch_size, size):
    data = small(binarisation_seed=3)
    whole = next(data.evaluation_batches("test", 9))["image"]
    for i, image in by_index(data.evaluation_batches("test", batch_size, indices=order[:size])).items():
        assert torch.equal(image, whole[i])
        assert torch.equal(image, data.split("test")[i]["image"])


def test_binarisation_depends_on_seed_and_split_and_on_nothing_in_training():
    whole = next(small().evaluation_batches("test", 9))["image"]
    assert not torch.equal(whole, next(small(binarisation_seed=1).evaluation_batches("test", 9))["image"])
    other = small(stream_seed=5, num_train=3)
    epoch_of(other, 2)
    assert torch.equal(whole, next(other.evaluation_batches("test", 9))["image"])
    half = torch.full((8, 1, 3, 4), 0.5)
    data = ImageData(lambda: Images(half, half[:4], 1.0, "", ""), name="half", num_validation=4)
    pictures = [data.split(name).batch(torch.arange(4))["image"] for name in ("train", "validation", "test")]
    assert not any(torch.equal(pictures[i], pictures[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_binarised_pixels_have_the_grey_level_as_mean():
    level = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).view(1, 1, 1, 5).expand(6000, 1, 1, 5)
    data = ImageData(lambda: Images(level, level, 1.0, "", ""), name="levels", num_validation=1)
    pixels = next(data.evaluation_batches("test", 6000))["image"]
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(pixels.mean((0, 1, 2)), level[0, 0, 0], atol=0.03, rtol=0)  # >= 4.6 errors
    assert pixels[..., 0].sum() == 0


# training: fresh at every access


def test_training_pixels_are_fresh_in_every_epoch_and_average_to_grey():
    data = small()
    epochs = [by_index(epoch_of(data, epoch)) for epoch in range(300)]
    assert all(set(epoch) == set(range(17)) for epoch in epochs)
    mean = torch.stack([torch.stack([epoch[i] for i in range(17)]) for epoch in epochs]).mean(0)
    assert (mean - whole_grey(data, "train")).abs().max() < 5 * 0.5 / 300**0.5
    assert not torch.equal(epochs[0][16], epochs[1][16])


def test_training_is_a_function_of_stream_seed_and_epoch():
    data = small(stream_seed=1)
    first = epoch_of(data, 3)
    epoch_of(data, 0)
    for one, two in zip(first, epoch_of(small(stream_seed=1), 3), strict=True):
        assert torch.equal(one["index"], two["index"]) and torch.equal(one["image"], two["image"])
    orders = [torch.cat([batch["index"] for batch in epoch_of(data, epoch)]).tolist() for epoch in (3, 4)]
    data.stream_seed = 2  # the next member
    orders.append(torch.cat([batch["index"] for batch in epoch_of(data, 3)]).tolist())
    assert len({tuple(order) for order in orders}) == 3
    assert not torch.equal(by_index(first)[16], by_index(epoch_of(data, 3))[16])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.booleans())
def test_sampler_cuts_over_processes(size, batch_size, replicas, shuffle):
    split = ImageSplit(torch.zeros(size, 1, 1, 1), white=1)
    if shuffle and size < replicas:
        with pytest.raises(InputError, match="each needs at least one"):
            BatchSampler(split, batch_size, shuffle=True, num_replicas=replicas)
        return
    samplers = [
        BatchSampler(split, batch_size, shuffle=shuffle, num_replicas=replicas, rank=rank)
        for rank in range(replicas)
    ]
    keys = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(rank) for rank in keys]
    seen = [i for rank in keys for key in rank for i in key.index.tolist()]
    if shuffle:
        assert len({len(rank) for rank in keys}) == 1 and sorted(seen) == list(range(size))
        steps = [[i for key in step for i in key.index.tolist()] for step in zip(*keys, strict=True)]
        for step in zip(*keys, strict=True):
            counts = [len(key.index) for key in step]
            assert max(counts) - min(counts) <= 1 <= min(counts) and max(counts) <= batch_size + 1
        one = list(BatchSampler(split, batch_size * replicas, shuffle=True))
        if (last := len(one[-1].index)) >= replicas:  # else it has joined the batch before it
            assert [sorted(step) for step in steps] == [sorted(key.index.tolist()) for key in one]
        else:
            assert len(steps) == len(one) - 1 and len(steps[-1]) == batch_size * replicas + last
    else:
        assert sorted(seen) == list(range(size))
        assert all(1 <= len(key.index) <= batch_size for rank in keys for key in rank)


def test_single_leftover_joins_the_batch_before():
    assert [len(batch["index"]) for batch in small().train_dataloader()] == [4, 4, 4, 5]
    assert [len(batch["index"]) for batch in small(num_train=15).train_dataloader()] == [4, 4, 4, 3]
    assert len(small(batch_size=1).train_dataloader()) == 17


# colour


def test_colour_is_not_binarised_and_flips_are_counter_based():
    data = ImageData(
        lambda: ramp(channels=3), name="colour", num_validation=3, likelihood="logistic_mixture", flip=True
    )
    assert (data.image.channels, data.image.likelihood) == (3, "logistic_mixture")
    grey = whole_grey(data, "train")
    assert torch.equal(data.split("train").batch(torch.arange(20))["image"], grey)
    flips = []
    for epoch in range(200):
        images = by_index(epoch_of(data, epoch))
        flips.append([torch.equal(images[i], grey[i].flip(-1)) for i in range(20)])
        assert all(torch.equal(images[i], grey[i]) != flipped for i, flipped in enumerate(flips[-1]))
    assert 0.45 < torch.tensor(flips).float().mean() < 0.55
    assert data.protocol()["binarisation"] == "none: intensities in [0, 1]"


# protocol and configuration


def test_protocol_states_everything_in_plain_json_types():
    protocol = small(binarisation_seed=7).protocol("test")
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol["dataset"] == "ramp" and protocol["split"] == "test" and protocol["num_examples"] == 9
    assert "binarised once from seed 7" in protocol["binarisation"] and protocol["binarisation_seed"] == 7
    assert protocol["image"] == "1 x 3 x 4"
    assert "the last 6 of the 23" in small().protocol("validation")["split_rule"]
    assert small(num_train=5).protocol("train")["num_examples"] == 5


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist"])
def test_configuration_builds_the_data_module(name):
    config = OmegaConf.load(PROJECT / "conf" / "dataset" / f"{name}.yaml")
    data = hydra.utils.instantiate(config, num_train=10)
    assert isinstance(data, ImageData) and data.name == name == config.name
    if name == "digits":
        assert len(data.split("train")) == 10


# bad input


@pytest.mark.parametrize(
    "key", ["batch_size", "evaluation_batch_size", "num_train", "num_validation", "num_test"]
)
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "ten"])
def test_numbers_that_are_no_sizes(key, value):
    with pytest.raises(InputError, match=rf"dataset\.{key}=.*whole number, at least 1"):
        small(**{key: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_validation": 23}, "num_validation=23 leaves no training image.*from 1 to 22"),
        ({"num_train": 18}, "num_train=18: there are only 17"),
        ({"num_test": 10}, "num_test=10: there are only 9"),
    ],
)
def test_splits_that_cannot_be(options, message):
    data = small(**options)
    with pytest.raises(InputError, match=message):
        data.setup()


def test_other_bad_input():
    with pytest.raises(InputError, match="likelihood='poisson': expected one of bernoulli"):
        small(likelihood="poisson")
    with pytest.raises(InputError, match="binarisation_seed=-1"):
        small(binarisation_seed=-1)
    with pytest.raises(InputError, match="split 'tset': expected one of train, validation, test"):
        small().split("tset")
    with pytest.raises(InputError, match=r"0 \.\. 8"):
        list(small().evaluation_batches("test", indices=[9]))
    with pytest.raises(IndexError):
        small().split("test")[9]


# Lightning


class Recorder(pl.LightningModule):
    """Trains nothing of use and keeps what it was fed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []

    def training_step(self, batch):
        pixels = batch["image"].sum((1, 2, 3)).tolist()
        self.seen.append((self.current_epoch, batch["index"].tolist(), pixels))
        return self.weight * batch["image"].mean()

    def validation_step(self, batch):
        self.validated.append(batch["index"].tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, epochs, workers=0, **options) -> Recorder:
    data, module = small(num_workers=workers), Recorder()
    checkpoint = pl.callbacks.ModelCheckpoint(folder, "last", save_top_k=1)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=Loaders(data), **options)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_resume_at_an_epoch_boundary_repeats_and_loses_nothing(tmp_path, workers):
    whole = fit(tmp_path / "whole", 4)
    start = fit(tmp_path / "parts", 2)
    rest = fit(tmp_path / "parts", 4, workers, ckpt_path=tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert [epoch for epoch, *_ in whole.seen] == [epoch for epoch in range(4) for _ in range(4)]
    assert start.seen + rest.seen == whole.seen
    assert len({str(pictures) for _, _, pictures in whole.seen}) == len(whole.seen)
    assert whole.validated == [[0, 1, 2, 3, 4, 5]] * 4


# real data


@pytest.mark.skipif(not MNIST_FOLDER.is_dir(), reason="../shared/data/mnist is not here")
def test_mnist():
    data = mnist(root=MNIST_FOLDER, num_train=100)
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [100, 5000, 10000]
    assert (data.image.height, data.image.width, data.image.num_dims) == (28, 28, 784)
    batch = next(data.evaluation_batches("test", 200))
    assert batch["image"].shape == (200, 1, 28, 28)
    assert abs(whole_grey(data, "test").mean() - 0.1325) < 1e-4
    assert "MD5 as published" in data.protocol()["source"]


@pytest.mark.skipif(
    not Path(FASHION_MNIST.folders[0]).is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion_mnist():
    data = fashion_mnist(root=FASHION_MNIST.folders[0])
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [55000, 5000, 10000]
