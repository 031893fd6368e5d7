"""Lightning data modules."""

from miselbo.data.idx import read_idx_images
from miselbo.data.images import ImageData, Images
from miselbo.data.loading import Batch, ImageSplit
from miselbo.data.sources import digits, fashion_mnist, idx_images, mnist
from miselbo.data.spec import ImageSpec

__all__ = [
    "Batch",
    "ImageData",
    "ImageSpec",
    "ImageSplit",
    "Images",
    "digits",
    "fashion_mnist",
    "idx_images",
    "mnist",
    "read_idx_images",
]
