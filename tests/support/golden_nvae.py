"""The golden NVAE checkpoints and recorded numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from miselbo.importers.nvlabs import load_checkpoints
from miselbo.importers.nvlabs.names import DUPLICATE, official_names
from miselbo.models.nvae import Decoder, Encoder

GOLDEN = Path(__file__).resolve().parents[2] / "../shared/golden/nvae"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden data at {GOLDEN}")


def renamed(state: dict[str, Tensor], module: torch.nn.Module) -> dict[str, Tensor]:
    """Recorded tensors of a whole network's side, or of a layer, under our names; all of them must be known."""
    names = official_names(module)
    unknown = [key for key in state if key not in names and not key.endswith(DUPLICATE)]
    assert not unknown, unknown
    return {names[key]: value for key, value in state.items() if key in names}


def split_state(
    state: dict[str, Tensor], modules: dict[str, torch.nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """An official state_dict as {"decoder": ..., "encoder": ...} under our names."""
    mine = {side: set(official_names(module)) for side, module in modules.items()}
    assert all(any(key in keys for keys in mine.values()) or key.endswith(DUPLICATE) for key in state)
    return {
        side: renamed({key: value for key, value in state.items() if key in mine[side]}, module)
        for side, module in modules.items()
    }


def paths(name: str) -> list[Path]:
    """The checkpoints of golden model ``name``."""
    return sorted((GOLDEN / name).glob("p_and_q*.pt"))


def load_members(name: str) -> tuple[list[Decoder], list[Encoder]]:
    """All members of golden model ``name`` in float64 and eval mode, each with its own decoder."""
    ensemble = load_checkpoints(paths(name), "each", dtype=torch.float64)
    return list(ensemble.targets), list(ensemble.members)


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """Recorded numbers of golden model ``name``, or ``units``."""
    file = GOLDEN / name / ("units.npz" if name == "units" else "golden.npz")
    with np.load(file) as arrays:
        return dict(arrays)


def load_tables() -> dict:
    """Recorded tables (units.json)."""
    return json.loads((GOLDEN / "units/units.json").read_text())
