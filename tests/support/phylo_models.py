"""Trees, flows, members and the trained reference models that several tests of trees need."""

import functools

import numpy as np
import torch
from small_phylo import data

from miselbo.ensemble import Ensemble
from miselbo.phylo import Alignment
from miselbo.phylo.branches import Branches
from miselbo.phylo.flows import Identity, Planar, RealNvp
from miselbo.phylo.sbn import Sbn
from miselbo.phylo.tree import nodes
from miselbo.phylo.vbpi import Posterior, Vbpi

FLOWS = {
    "identity": Identity,
    "planar": functools.partial(Planar, layers=4),
    "realnvp3": functools.partial(RealNvp, layers=3, hidden=8),
    "realnvp4": functools.partial(RealNvp, layers=4, hidden=8),
}


KINDS = {
    "identity": None,
    "planar": functools.partial(Planar, layers=3),
    "realnvp": functools.partial(RealNvp, layers=2, hidden=5),
}


def golden_model(golden, support, emb, tag, member):
    """A trained reference model with its parameters in this project's order."""
    part = {k.split("/", 2)[2]: v for k, v in golden.items() if k.startswith(f"{tag}/model{member}/")}
    branches = Branches(support, FLOWS[tag]).double()
    sbn = Sbn(support)

    def put(table, values, width=1):
        table.weight[emb] = torch.from_numpy(values.reshape(len(emb), -1)).double()

    with torch.no_grad():
        put(branches.table, part["sx"])
        if tag.startswith("realnvp"):
            for layer in range(len(branches.flow.first)):
                put(branches.flow.first[layer], part[f"W1.{layer}"])
                branches.flow.shift[layer].copy_(torch.from_numpy(part[f"b1.{layer}"]))
                put(branches.flow.second[layer], np.concatenate(np.split(part[f"W2.{layer}"], 2), 1))
                put(branches.flow.bias[layer], np.stack(np.split(part[f"b2.{layer}"], 2), 1))
        if tag == "planar":
            put(branches.flow.w, part["w"])
            put(branches.flow.g, part["g"])
            branches.flow.b.copy_(torch.from_numpy(part["b"]))
        params = golden["support/pair_param_index"]
        cpd = torch.from_numpy(part["cpd"]).double()
        for i, split in enumerate(golden["support/rootsplit_mask"].tolist()):
            sbn.logits[support.rank[split]] = cpd[i]
        for pair, param in zip(golden_pairs(golden), params.tolist(), strict=True):
            if param >= 0:
                sbn.logits[support.pair_params[pair]] = cpd[param]
    return sbn, branches


def golden_pairs(golden):
    columns = [golden[f"support/pair_{name}"].tolist() for name in ("sister", "clade", "child")]
    return list(zip(*columns, strict=True))


def ensemble(kind="identity", size=3, spread=0.2):
    target = Posterior(data().spec)
    members = []
    for seed in range(size):
        torch.manual_seed(seed)
        member = Vbpi(target, KINDS[kind], start=0.08)
        with torch.no_grad():
            member.sbn.logits.add_(torch.randn_like(member.sbn.logits))
            member.branches.table.weight[:-1] += spread * torch.randn_like(member.branches.table.weight[:-1])
        members.append(member)
    return Ensemble(target, members)


def empty(count):
    return torch.zeros(count, 0)


def random_alignment(num_taxa, sites, generator, letters="ACGT-RYN"):
    rows = generator.choice(list(letters), size=(num_taxa, sites))
    return Alignment.from_sequences({f"t{i}": "".join(row) for i, row in enumerate(rows)})


def batch(topologies, num_taxa):
    return torch.from_numpy(np.stack([nodes(topology, num_taxa) for topology in topologies]))
