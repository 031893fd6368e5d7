"""Models of one's own that change what is frozen are named at the end of the first epoch; those that do not, train."""

import pytest
import pytorch_lightning as pl
import small
import torch
from trainings import fit

from miselbo.errors import FrozenChangedError
from miselbo.models import vae
from miselbo.protocols import fingerprint
from miselbo.training.member import MemberTraining, Objective

SETTINGS = Objective(warmup_epochs=0, regulariser=0.0)


class Decoder(vae.Decoder):
    """A decoder with state of its own; ``step`` is what it does with it whenever it generates."""

    def __init__(self):
        super().__init__(small.DIGIT, num_latents=2, num_channels=4)
        self.norm = torch.nn.BatchNorm1d(2)
        self.shared = torch.nn.Linear(2, 2)
        self.register_buffer("average", torch.zeros(2), persistent=False)
        self.scale = torch.ones(2)
        self.seen = [torch.zeros(2)]
        self.step = lambda decoder, z: None

    def generate(self, choose, batch):
        def chosen(i, feature, prior_raw, prior):
            z = choose(i, feature, prior_raw, prior)
            with torch.no_grad():
                self.step(self, z)
            return self.scale[:, None, None] * z + 0 * self.norm(z.flatten(1))[..., None, None]

        return super().generate(chosen, batch)


def average(decoder, z):
    """An exponential moving average that runs in evaluation mode too."""
    decoder.average.lerp_(z.mean((0, 2, 3)), 0.1)


def rescale(decoder, z):
    decoder.scale = decoder.scale * 1.001


def cache(decoder, z):
    """The last latents, for a plot: nothing depends on them."""
    decoder.seen[0] = z.clone()


class Holding(vae.Encoder):
    """An encoder that holds the decoder, and may do something with it."""

    def __init__(self, decoder, use=lambda decoder: None):
        super().__init__(decoder, num_channels=4)
        self.decoder, self.use = decoder, use

    def encode(self, x):
        with torch.no_grad():
            self.use(self.decoder)
        return super().encode(x)


def write_shared(decoder):
    decoder.shared.weight.mul_(0.999)


def module(decoder, use=None):
    members = [vae.Encoder(decoder, num_channels=4)]
    members.append(Holding(decoder, use) if use else vae.Encoder(decoder, num_channels=4))
    return MemberTraining(decoder, members, SETTINGS, seed=7)


class Decay(pl.Callback):
    """Another optimiser, with weight decay over everything it finds."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        optimiser = torch.optim.SGD(pl_module.parameters(), lr=0.1, weight_decay=0.1)
        for parameter in pl_module.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimiser.step()


class Averaging(pl.Callback):
    """Stochastic weight averaging of everything, written back as the average."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.target.swa.update_parameters(pl_module.target.shared)


@pytest.mark.parametrize(
    ("step", "use", "callbacks", "named"),
    [
        (average, None, [], "buffer average of the target"),
        (rescale, None, [], "attribute scale of the target"),
        (None, write_shared, [], "parameter shared.weight of the target"),
        (None, None, [Decay()], "parameter lift.weight, parameter lift.bias"),
        (None, None, [Averaging()], "parameter swa.module.weight"),
    ],
    ids=["ema", "plain attribute", "shared submodule", "weight decay", "swa"],
)
def test_what_changes_a_frozen_target_is_named_after_one_epoch(step, use, callbacks, named):
    decoder = Decoder()
    decoder.step = step or decoder.step
    decoder.swa = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2))
    training = module(decoder, use)
    with pytest.raises(FrozenChangedError, match=f"a frozen module changed during training: .*{named}"):
        fit(training, *callbacks)
    assert training.current_epoch == 0


@pytest.mark.parametrize("old_style", [False, True], ids=["parametrised", "old style"])
def test_spectral_norm_a_cache_and_an_encoder_that_holds_the_decoder_change_nothing(old_style):
    decoder = Decoder()
    decoder.step = cache
    norm = torch.nn.utils.spectral_norm if old_style else torch.nn.utils.parametrizations.spectral_norm
    decoder.lift = norm(decoder.lift)
    training = module(decoder, use=lambda decoder: None)
    before = fingerprint(decoder), [part.clone() for part in decoder.norm.buffers()]
    own = training.encoder.head.weight.detach().clone()
    fit(training)
    assert fingerprint(decoder) == before[0]
    assert not any(part.training for part in decoder.modules())
    assert not torch.equal(training.encoder.head.weight, own)


def test_state_outside_of_tensors_is_seen_by_what_is_computed():
    decoder, state = Decoder(), {"factor": 1.0}
    del decoder.scale

    class Factor:
        def __getitem__(self, item):
            return torch.full((2, 1, 1), state["factor"])

    decoder.scale = Factor()
    decoder.step = lambda decoder, z: state.update(factor=state["factor"] * 1.001)
    with pytest.raises(FrozenChangedError, match="no tensor of it"):
        fit(module(decoder))
