"""Small models with parameters and batch-norm statistics that are not the initial ones."""

import torch

from miselbo.data import ImageSpec
from miselbo.ensemble import Ensemble
from miselbo.models import nvae, vae

DIGIT = ImageSpec(1, 8, 8, "bernoulli")


def perturb(module: torch.nn.Module, seed: int) -> None:
    """Move every parameter and buffer away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            change = 0.2 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.add_(change.abs() if "running_var" in name else change)


def nvae_ensemble(
    size: int = 3, dtype: torch.dtype = torch.float64, image: ImageSpec = DIGIT, **encoder
) -> Ensemble:
    torch.manual_seed(0)
    decoder = nvae.Decoder(
        image,
        num_latent_scales=2,
        num_groups_per_scale=2,
        num_latent_per_group=2,
        ada_groups=True,
        min_groups_per_scale=1,
        num_channels=4,
        num_preprocess_blocks="auto",
        num_postprocess_cells=1,
        num_cells_per_group=1,
    )
    encoders = [
        nvae.Encoder(decoder, num_channels=4, num_preprocess_cells=1, num_cells_per_group=1, **encoder)
        for _ in range(size)
    ]
    return prepared(decoder, encoders, dtype)


def vae_ensemble(size: int = 3, dtype: torch.dtype = torch.float64) -> Ensemble:
    torch.manual_seed(0)
    decoder = vae.Decoder(DIGIT, num_latents=3, num_channels=4)
    return prepared(decoder, [vae.Encoder(decoder, num_channels=4) for _ in range(size)], dtype)


def prepared(decoder, encoders, dtype) -> Ensemble:
    for seed, module in enumerate([decoder, *encoders]):
        perturb(module, seed)
    return Ensemble(decoder, encoders).to(dtype).eval()


def images(
    count: int = 4, seed: int = 1, dtype: torch.dtype = torch.float64, image: ImageSpec = DIGIT
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, image.channels, image.height, image.width)
    return torch.rand(shape, generator=generator).round().to(dtype)
