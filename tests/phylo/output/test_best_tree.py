import torch
from small_phylo import data

from miselbo.phylo.output.best_tree import best_rooted, best_topology
from miselbo.phylo.sbn import Sbn
from miselbo.phylo.support import Support
from miselbo.phylo.tree import all_topologies


def test_the_rooted_optimum_is_that_of_enumeration():
    """Of every topology and rooting, scored by a network that is certain of the root."""
    support = Support.from_topologies(all_topologies(6), "abcdef")
    every = list(all_topologies(6))
    for seed in range(3):
        torch.manual_seed(seed)
        sbn = Sbn(support)
        with torch.no_grad():
            sbn.logits.add_(2 * torch.randn_like(sbn.logits))
            sbn.logits[: support.num_splits] = -40.0
            sbn.logits[seed] = 40.0  # one rooting has all the probability
        log_q = sbn.topology_log_prob(every)
        assert best_rooted(sbn) == every[int(log_q.argmax())]


def test_the_mixture_decides():
    support = data(five=True).spec.support
    every = list(all_topologies(5))
    sbns = [Sbn(support), Sbn(support)]
    with torch.no_grad():
        for seed, sbn in enumerate(sbns):
            torch.manual_seed(seed)
            sbn.logits.add_(torch.randn_like(sbn.logits))
    log_q = torch.stack([sbn.topology_log_prob(every) for sbn in sbns]).exp().mean(0)
    topology, value = best_topology(sbns, every)
    assert topology == every[int(log_q.argmax())] and abs(value - log_q.max().log().item()) < 1e-12
