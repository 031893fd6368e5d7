"""Lightning data modules."""

from miselbo.data.images import ImageData, Images
from miselbo.data.levels import quantise
from miselbo.data.loading import Batch, ImageSplit
from miselbo.data.readers.celeba import celeba64
from miselbo.data.readers.cifar import cifar10
from miselbo.data.readers.folders import image_folder
from miselbo.data.readers.idx import read_idx_images
from miselbo.data.readers.omniglot import omniglot
from miselbo.data.sources import digits, fashion_mnist, idx_images, mnist
from miselbo.data.spec import ImageSpec

__all__ = [
    "Batch",
    "ImageData",
    "ImageSpec",
    "ImageSplit",
    "Images",
    "celeba64",
    "cifar10",
    "digits",
    "fashion_mnist",
    "idx_images",
    "image_folder",
    "mnist",
    "omniglot",
    "quantise",
    "read_idx_images",
]
