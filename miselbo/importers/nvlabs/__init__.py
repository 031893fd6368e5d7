"""Checkpoints of the published NVAE and MISELBO programs, in and out; the names are loaded when they are asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miselbo.importers.nvlabs.export import export_checkpoints as export_checkpoints
    from miselbo.importers.nvlabs.loading import load_checkpoints as load_checkpoints

DECODERS = ("tied", "first", "each")  # target=, of official checkpoints
_PLACES = {"export_checkpoints": "export", "load_checkpoints": "loading"}
__all__ = ["DECODERS", "export_checkpoints", "load_checkpoints"]


def __getattr__(name: str) -> object:
    """A name from the module that defines it (PEP 562)."""
    if name in _PLACES:
        return getattr(import_module(f"miselbo.importers.nvlabs.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'miselbo.importers.nvlabs' has no attribute {name!r}")
