"""An NVAE ensemble -> checkpoints that the published programs can read."""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from miselbo.data.spec import ImageSpec
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.importers.nvlabs.args import Arguments, image_of
from miselbo.importers.nvlabs.names import CONSTANT, duplicate_names, official_names
from miselbo.models.nvae import Decoder, Encoder
from miselbo.models.nvae.cells import ARCHITECTURES, architecture
from miselbo.runtime.files import write_tensors

LOADERS = {  # what the published programs' data loaders and start-up read besides; all can be given there anew
    "batch_size": 200,
    "data": "data",
    "root": "exp",
    "save": "exp",
    "distributed": False,
    "num_proc_node": 1,
    "num_process_per_node": 1,
    "node_rank": 0,
    "local_rank": 0,
    "global_rank": 0,
    "master_address": "127.0.0.1",
    "seed": 0,
}
CELLS = {  # official cell type -> part of our architecture table
    **{f"{kind}_enc": "enc" for kind in ("normal", "down")},
    **{f"{kind}_dec": "dec" for kind in ("normal", "up")},
    **{f"{kind}_pre": "pre" for kind in ("normal", "down")},
    **{f"{kind}_post": "post" for kind in ("normal", "up")},
}


def export_checkpoints(
    ensemble: Ensemble, folder: str | Path, *, dataset: str | None = None, **training: object
) -> list[Path]:
    """Write each member, with its target, as ``<folder>/q<s>/checkpoint.pt`` in the official format.

    :func:`miselbo.importers.nvlabs.load_checkpoints` reads them back bit for bit. The file has no optimizer: it is to
    be evaluated or sampled from, not trained on. For images that no official dataset has (another size, grey levels in
    one channel), ``args.dataset`` is their own name and their description is stored beside it.

    Args:
        ensemble: of NVAE decoders and encoders.
        folder: to write to; existing files are replaced.
        dataset: its name, kept if the published programs have images like these under it, or under no other name.
        **training: further official arguments to store, such as ``seed`` or ``batch_size``.

    Returns:
        The files.

    Raises:
        InputError: another kind of model, or one that the official arguments cannot describe.
    """
    members = list(ensemble.members)
    arguments = []
    for s, member in enumerate(members):
        decoder = ensemble.target_of(s)
        if not isinstance(decoder, Decoder) or not isinstance(member, Encoder):
            raise InputError(
                "only NVAE ensembles can be written as official NVAE checkpoints, got "
                f"{type(decoder).__module__}.{type(decoder).__name__} with {type(member).__module__}."
                f"{type(member).__name__}"
            )
        arguments.append(describe(decoder, member, dataset))
    paths = []
    for s, (member, described) in enumerate(zip(members, arguments, strict=True)):
        decoder = ensemble.target_of(s)
        path = Path(folder) / f"q{s + 1}" / "checkpoint.pt"
        write_tensors(path, content(decoder, member, described, training))
        paths.append(path)
    return paths


def describe(decoder: Decoder, encoder: Encoder, dataset: str | None = None) -> Arguments:
    """The official arguments of a pair.

    Raises:
        InputError: there are none, as both sides differ where the published programs have one setting.
    """
    ours, theirs = decoder.arguments, encoder.arguments
    if ours["use_se"] != theirs["use_se"]:
        raise InputError(
            f"use_se is {ours['use_se']} in the decoder and {theirs['use_se']} in the encoder; the published programs "
            "have one setting for both"
        )
    image = decoder.image
    mixtures = ours["num_mixtures"] if image.likelihood == "logistic_mixture" else 10
    if image.likelihood == "normal":
        mixtures = 1  # how the published programs ask for it
    elif image.likelihood == "logistic_mixture" and mixtures == 1 and image.channels == 3:
        raise InputError(
            "a mixture of one logistic cannot be exported: there, one component stands for a normal"
        )
    return Arguments(
        dataset=dataset_name(image, mixtures, dataset),
        arch_instance=common_architecture(ours["arch"], theirs["arch"]),
        use_se=ours["use_se"],
        res_dist=theirs["res_dist"],
        num_x_bits=image.num_bits,
        num_latent_scales=ours["num_latent_scales"],
        num_groups_per_scale=ours["num_groups_per_scale"],
        num_latent_per_group=ours["num_latent_per_group"],
        ada_groups=ours["ada_groups"],
        min_groups_per_scale=ours["min_groups_per_scale"],
        num_channels_enc=theirs["num_channels"],
        num_channels_dec=ours["num_channels"],
        num_preprocess_blocks=decoder.topology.num_blocks,
        num_preprocess_cells=theirs["num_preprocess_cells"],
        num_postprocess_blocks=decoder.topology.num_blocks,
        num_postprocess_cells=ours["num_postprocess_cells"],
        num_cell_per_cond_enc=theirs["num_cells_per_group"],
        num_cell_per_cond_dec=ours["num_cells_per_group"],
        num_nf=theirs["num_flows"],
        num_mixture_dec=mixtures,
    )


def dataset_name(image: ImageSpec, num_mixtures: int, own: str | None = None) -> str:
    """An official dataset of such images, ``own`` if that is one; else ``own``, or "custom" without.

    Example:
        >>> dataset_name(ImageSpec(3, 64, 64, "logistic_mixture", 5), 10)
        'celeba_64'
    """
    for name in (own or "mnist", "mnist", "cifar10", "stacked_mnist", f"celeba_{image.height}"):
        if image_of(name, image.num_bits, num_mixtures) == image:
            return name
    return own or "custom"


def common_architecture(decoder: str, encoder: str) -> str:
    """The row of the table whose decoder side is that of ``decoder`` and whose encoder side that of ``encoder``.

    Raises:
        InputError: there is none.

    Example:
        >>> common_architecture("res_mbconv", "res55_mbconv")
        'res55_mbconv'
    """
    wanted = {
        **{part: architecture(encoder)[part] for part in ("pre", "enc")},
        **{part: architecture(decoder)[part] for part in ("dec", "post")},
    }
    names = [encoder, decoder, *ARCHITECTURES]
    for name in names:
        if ARCHITECTURES[name] == wanted:
            return name
    raise InputError(
        f"the decoder has arch={decoder} and the encoder arch={encoder}; no official architecture has both"
    )


def cells(arch: str) -> dict[str, list[str]]:
    """The official table of an architecture: operations by cell type.

    Example:
        >>> cells("res_mbconv")["up_dec"], cells("res_mbconv")["down_pre"]
        (['mconv_e6k5g0'], ['res_bnswish', 'res_bnswish'])
    """
    table = architecture(arch)
    rows = {
        cell: [f"{'mconv' if kind[:2] in ('e3', 'e6') else 'res'}_{kind}" for kind in table[part]]
        for cell, part in CELLS.items()
    }
    return {**rows, "ar_nn": [""]}


def content(
    decoder: Decoder, encoder: Encoder, arguments: Arguments, training: dict[str, object]
) -> dict[str, object]:
    """What an official file holds."""
    image = decoder.image
    known = image_of(arguments.dataset, arguments.num_x_bits, arguments.num_mixture_dec) == image
    return {
        "epoch": 0,
        "state_dict": official_state(decoder, encoder),
        "global_step": 0,
        "args": argparse.Namespace(**{**LOADERS, **asdict(arguments), **training}),
        "arch_instance": cells(arguments.arch_instance),
        "scheduler": {},
        "grad_scalar": {},
        **({} if known else {"image": asdict(image)}),
    }


def official_state(decoder: Decoder, encoder: Encoder) -> dict[str, Tensor]:
    """The official state dict of a pair, copies of the tensors on the CPU, duplicates included."""
    state: dict[str, Tensor] = {}
    if decoder.topology.is_vanilla:  # the published programs store a constant there that nothing reads
        width = decoder.num_channels * decoder.topology.reduction
        weight = decoder.image_head.weight
        state[CONSTANT] = torch.zeros((width, *decoder.latent_shapes[0][1:]), dtype=weight.dtype)
    for module in (decoder, encoder):
        held = module.state_dict()
        for official, ours in {**official_names(module), **duplicate_names(module)}.items():
            state[official] = held[ours].detach().cpu().clone(memory_format=torch.contiguous_format)
    return state
