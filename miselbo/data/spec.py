"""What a model must know of the images it is given; models never see a dataset's name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageSpec:
    """Size, channels and likelihood of the images of a data module.

    Args:
        channels: 1 (grey) or 3 (colour).
        height: rows of an image as the data module gives it (before any padding by a model).
        width: columns.
        likelihood: ``"bernoulli"`` (binary pixels), ``"logistic_mixture"`` (discretised mixture of
            logistics) or ``"normal"``.
        num_bits: bits per colour of non-binary images.

    Example:
        >>> ImageSpec(channels=1, height=28, width=28, likelihood="bernoulli").num_dims
        784
    """

    channels: int
    height: int
    width: int
    likelihood: str
    num_bits: int = 8

    @property
    def num_dims(self) -> int:
        """Number of scalar observations per image (the D of bits/dim)."""
        return self.channels * self.height * self.width
