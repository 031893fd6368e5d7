"""A batch that does not fit into memory becomes parts; no GPU needed: the error is made for more than some images."""

import pytest
import runs
import torch

from miselbo.training.member import MemberTraining

SETTINGS = ["ensemble.size=2", "dataset.num_train=70", "report=false", "evaluation.num_pictures=0"]


class Breaks(torch.autograd.Function):
    """The identity, whose gradient does not fit."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory (made by a test)")


def limit(monkeypatch, most: int, where: str) -> list[int]:
    """Let the loss of more than ``most`` images run out of memory; gives the sizes that went through."""
    loss_of, sizes = MemberTraining._loss, []

    def loss(self, batch):
        size = len(batch["index"])
        if size <= most:
            sizes.append(size)
            return loss_of(self, batch)
        if where == "forward":
            loss_of(self, batch)  # moves statistics and counts
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return Breaks.apply(loss_of(self, batch))

    monkeypatch.setattr(MemberTraining, "_loss", loss)
    return sizes


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_parts_give_the_same_training(tmp_path, monkeypatch, capsys, where):
    runs.fit(tmp_path / "whole", *SETTINGS)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        sizes = limit(patch, 8, where)
        runs.fit(tmp_path / "run", *SETTINGS)
    assert sizes[:11] == [8] * 8 + [2] * 3  # of batches of 32, 32 and 6
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("out of memory")]
    expected = "out of memory: from here on batches of 32 images go in {} parts of at most {}, "
    for n, line in zip((2, 4) * 2, lines, strict=True):
        assert line.startswith(expected.format(n, 32 // n))
    for name in ("target", "q1", "q2"):
        one, other = runs.state(tmp_path / "run", name), runs.state(tmp_path / "whole", name)
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-4)
    content = torch.load(tmp_path / "run" / "members" / "q1.ckpt", weights_only=True)
    assert content["decoder_passes"] == 2 * 70 and content["skipped_steps"] == 0


def test_statistics_of_a_failed_part_are_forgotten(tmp_path, monkeypatch):
    """NVAE: one step in two parts equals that step without the failed attempt before it."""
    settings = ["ensemble.size=1", "dataset.num_train=32", "trainer.max_epochs=1", "report=false"]
    with monkeypatch.context() as patch:
        patch.setattr(MemberTraining, "parts", 2)
        runs.fit(tmp_path / "parts", *settings, "model.objective.regulariser=0", model=runs.NVAE)
    with monkeypatch.context() as patch:
        limit(patch, 16, "forward")
        runs.fit(tmp_path / "failed", *settings, "model.objective.regulariser=0", model=runs.NVAE)
    for name in ("target", "q1"):
        one, other = (runs.state(tmp_path / folder, name) for folder in ("failed", "parts"))
        used = [key for key in one if not key.endswith("num_batches_tracked")]
        assert [key for key in used if not torch.equal(one[key], other[key])] == []


def test_another_error_and_a_batch_that_never_fits(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="can't allocate"):
        limit(patch, 1, "forward")
        runs.fit(tmp_path / "run", *SETTINGS)
    monkeypatch.setattr(MemberTraining, "_loss", lambda self, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runs.fit(tmp_path / "run", *SETTINGS)


def test_accumulation_takes_whole_batches(tmp_path, monkeypatch):
    limit(monkeypatch, 16, "forward")
    with pytest.raises(RuntimeError, match="can't allocate"):
        runs.fit(tmp_path / "run", *SETTINGS, "trainer.accumulate_grad_batches=2")
