"""Batch norm over all processes and means over them, here in one (two: tests/training/parallel/test_ranks.py)."""

import pytest
import torch
from torch import nn

from miselbo.training.parallel import collectives
from miselbo.training.parallel.norms import SyncBatchNorm, synchronised


@pytest.mark.parametrize("momentum", [0.05, None])
@pytest.mark.parametrize("affine", [True, False])
def test_synchronised_batch_norm_is_batch_norm(momentum, affine):
    """Outputs, gradients and statistics, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = 5 + torch.randn(6, 3, 4, 2, generator=generator, dtype=torch.float64)
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    plain = nn.BatchNorm2d(3, momentum=momentum, affine=affine).double()
    ours = SyncBatchNorm(3, momentum=momentum, affine=affine).double()
    ours.load_state_dict(plain.state_dict())
    found = []
    for norm in (plain, ours):
        own = x.clone().requires_grad_()
        for _ in range(2):
            y = norm(own)
        (y.square() * weights).sum().backward()
        found.append([y, own.grad, *(p.grad for p in norm.parameters()), *norm.buffers(), norm.eval()(own)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_batch_norms_stay_the_same_objects():
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(3)), nn.Linear(1, 1))
    before, kinds = module.state_dict().keys(), [type(part) for part in module.modules()]
    with pytest.raises(RuntimeError), synchronised(module, gpu=False):
        assert type(module[0]) is type(module[1][0]) is SyncBatchNorm
        assert module[1](torch.randn(4, 3)).shape == (4, 3)
        raise RuntimeError
    assert [type(part) for part in module.modules()] == kinds and module.state_dict().keys() == before
    with synchronised(module, gpu=True):
        assert type(module[0]) is nn.SyncBatchNorm
        module[0].eval()(torch.randn(1, 2, 2, 2))
    assert type(module[0]) is nn.BatchNorm2d and not hasattr(module[0], "process_group")


def test_in_one_process_nothing_is_communicated():
    values = torch.randn(5, 2, requires_grad=True)
    torch.testing.assert_close(collectives.mean(values), values.detach().mean(0), rtol=0, atol=0)
    assert not collectives.summed(values).requires_grad
    assert collectives.total(5, values.device) == 5 and collectives.share(5, 5) == 1
    collectives.barrier()
