"""NVAE (Vahdat and Kautz 2020) with the decoder and the encoder as separate modules."""

from miselbo.models.nvae.convs import batch_norms, conv_kernels
from miselbo.models.nvae.decoder import Decoder
from miselbo.models.nvae.distributions import quantise
from miselbo.models.nvae.encoder import Encoder
from miselbo.models.nvae.readjusted import readjusted

__all__ = ["Decoder", "Encoder", "batch_norms", "conv_kernels", "quantise", "readjusted"]
