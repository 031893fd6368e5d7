"""Data modules, which need no Lightning; the names are loaded when they are asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miselbo.data.images import ImageData as ImageData
    from miselbo.data.images import Images as Images
    from miselbo.data.levels import quantise as quantise
    from miselbo.data.loading import Batch as Batch
    from miselbo.data.loading import ImageSplit as ImageSplit
    from miselbo.data.readers.celeba import celeba64 as celeba64
    from miselbo.data.readers.cifar import cifar10 as cifar10
    from miselbo.data.readers.folders import image_folder as image_folder
    from miselbo.data.readers.idx import read_idx_images as read_idx_images
    from miselbo.data.readers.omniglot import omniglot as omniglot
    from miselbo.data.sources import digits as digits
    from miselbo.data.sources import fashion_mnist as fashion_mnist
    from miselbo.data.sources import idx_images as idx_images
    from miselbo.data.sources import mnist as mnist
    from miselbo.data.spec import ImageSpec as ImageSpec

_PLACES = {
    "Batch": "loading",
    "ImageData": "images",
    "ImageSpec": "spec",
    "ImageSplit": "loading",
    "Images": "images",
    "celeba64": "readers.celeba",
    "cifar10": "readers.cifar",
    "digits": "sources",
    "fashion_mnist": "sources",
    "idx_images": "sources",
    "image_folder": "readers.folders",
    "mnist": "sources",
    "omniglot": "readers.omniglot",
    "quantise": "levels",
    "read_idx_images": "readers.idx",
}
__all__ = [*_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    """A name from the module that defines it (PEP 562)."""
    if name in _PLACES:
        return getattr(import_module(f"miselbo.data.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'miselbo.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
