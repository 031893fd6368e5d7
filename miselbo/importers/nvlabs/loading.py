"""Official checkpoints -> an ensemble."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from miselbo.data.spec import ImageSpec
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError, nearest
from miselbo.importers.nvlabs import DECODERS, args, ties
from miselbo.importers.nvlabs.each import SeparateTargets
from miselbo.importers.nvlabs.names import CONSTANT, DUPLICATE, official_names, renamed
from miselbo.importers.nvlabs.reading import Official, read
from miselbo.models.nvae import Decoder


def load_checkpoints(
    paths: str | Path | Sequence[str | Path],
    target: str = "tied",
    *,
    dtype: torch.dtype = torch.float32,
    image: ImageSpec | None = None,
) -> Ensemble:
    """Read checkpoints of NVlabs/NVAE, or MISELBO's p_and_q pairs, each a theta with one encoder.

    Args:
        paths: one file per member.
        target: ``"tied"``: all files must hold one and the same theta, statistics of batch norms included.
            ``"first"``: the first file's theta for all members, a bound on its log p(x). ``"each"``: every
            member under its own theta, as the published programs do, see
            :class:`miselbo.importers.nvlabs.each.SeparateTargets`; not a bound on one log p(x).
        dtype: of the parameters, which land exactly if it is not narrower than the file's (float32).
        image: the images, for a dataset the published programs do not know.

    Returns:
        The ensemble in evaluation mode, with :class:`miselbo.models.nvae.Decoder` and
        :class:`miselbo.models.nvae.Encoder`, on the CPU.

    Raises:
        InputError: a file is missing, damaged, hostile or of another kind; tensors are missing, unknown or of another
            shape (all are listed); the files are of two models, or their thetas differ and ``target`` is ``"tied"``.

    Example:
        >>> load_checkpoints("no/such/checkpoint.pt")
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: checkpoint no/such/checkpoint.pt does not exist...
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise InputError("no checkpoint given; expected the path of at least one checkpoint.pt")
    if target not in DECODERS:
        raise InputError(
            f"target={target!r}; {nearest(str(target), DECODERS)}expected one of {', '.join(DECODERS)}"
        )
    officials = [read(path) for path in files]
    arguments = [args.parse(official) for official in officials]
    args.check_same([official.path for official in officials], arguments)
    found = args.find_image(officials[0], arguments[0], image)
    decoders, encoders = [], []
    for official in officials:
        decoder, encoder = args.build(official.path, arguments[0], found)
        fill(official, decoder, encoder, dtype)
        decoders.append(decoder)
        encoders.append(encoder)
    if target == "tied":
        check_tied(officials, decoders[0])
    if target == "each":
        return SeparateTargets(decoders, encoders).eval()
    return Ensemble(decoders[0], encoders).eval()


def fill(official: Official, decoder: nn.Module, encoder: nn.Module, dtype: torch.dtype) -> None:
    """Put a file's tensors into the networks it describes.

    Raises:
        InputError: tensors missing, unknown, or of another shape: all of them are listed.
    """
    sides = [(module.to(dtype), official_names(module)) for module in (decoder, encoder)]
    wanted = {
        name: tuple(state[ours].shape)
        for module, names in sides
        for state in [module.state_dict()]
        for name, ours in names.items()
    }
    held = {
        name: tuple(value.shape)
        for name, value in official.state.items()
        if name.rpartition(".")[2] != DUPLICATE and (name in wanted or name != CONSTANT)
    }
    report_misfits(official.path, wanted, held)
    for module, names in sides:
        module.load_state_dict(renamed(official.state, names))  # copies: storages may be shared in the file


def report_misfits(path: Path, wanted: dict[str, tuple], held: dict[str, tuple]) -> None:
    """Raise InputError with every name or shape in which the two differ."""
    missing = [f"{name} {shape}" for name, shape in wanted.items() if name not in held]
    unknown = [f"{name} {shape}" for name, shape in held.items() if name not in wanted]
    other = [
        f"{name} {held[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in held and held[name] != shape
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", other))
    parts = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds if names]
    if parts:
        raise InputError(
            f"{path}: the tensors in 'state_dict' are not those of the network that 'args' describes; "
            + "; ".join(parts)
        )


def check_tied(officials: Sequence[Official], decoder: Decoder) -> None:
    """All files must hold one theta.

    Raises:
        InputError: with a table of what differs.
    """
    first, *others = (_theta(official, decoder) for official in officials)
    tables = [ties.differences(first, other) for other in others]
    if any(row.differing for table in tables for row in table):
        raise InputError(ties.refusal([official.path for official in officials], tables))


def _theta(official: Official, decoder: Decoder) -> dict[str, Tensor]:
    return {name: official.state[name] for name in official_names(decoder)}
