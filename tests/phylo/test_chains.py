import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_phylo import data, fitted, posterior_samples

from miselbo.errors import InputError
from miselbo.phylo.chains import Evidence, read_chain, save_evidence
from miselbo.phylo.mrbayes import chain_files, commands
from miselbo.phylo.tree import newick
from miselbo.report import trees

NEXUS = """#NEXUS
begin trees;
   translate 1 e, 2 d, 3 c, 4 b, 5 a;
   tree gen.0 = [&U] (1:9,2:9,(3:9,(4:9,5:9):9):9);
   tree gen.500 = [&U] (1:0.5,2:0.4,(3:0.3,(4:0.2,5:0.1):0.25):0.35);
end;
"""


def test_a_file_of_mrbayes(tmp_path):
    path = tmp_path / "run1.t"
    path.write_text(NEXUS)
    (topology,), x = read_chain(path, "abcde", burn_in=1)
    # by hand: {d, e} and {c, d, e} are the sides without a; edges a, b, c, d, e, then those two
    assert topology == (0b11000, 0b11100)
    assert x[0].exp().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.35, 0.25])
    assert len(read_chain(path, "abcde", burn_in=0.0)[0]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a,b,(c,(d,e)));", "tree 1 of .* without a length"),
        ("(a:1,b:1,(c:1,(d:0,e:1):1):1);", "tree 1 of .* an edge of length 0"),
        ("(a:1,b:1,(c:1,d:1,e:1):1);", "not fully resolved"),
        ("[&W 0.5] (a:1,b:1,(c:1,(d:1,e:1):1):1);", "has a weight"),
        ("(a:1,b:1,(c:1,(d:1,f:1):1):1);", "different taxa"),
    ],
)
def test_what_is_no_chain(tmp_path, text, message):
    path = tmp_path / "bad.nwk"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_chain(path, "abcde", burn_in=0)


def test_options():
    with pytest.raises(InputError, match=r"chains: nowhere.t, elsewhere.t does not exist"):
        Evidence(["nowhere.t", "elsewhere.t"])
    with pytest.raises(InputError, match="claimed needs dataset.evidence.chains"):
        Evidence(claimed=-7108.4)


def test_a_claim_is_put_inside_or_outside(tmp_path):
    """Chains written as files and read again: the file of results, the report and both verdicts."""
    ensemble = fitted(data(five=True), epochs=1, size=2, steps_per_epoch=300)
    truth, topologies, x = posterior_samples(ensemble, 5000, 600, 0)
    for c in range(3):
        lines = [
            newick(t, "abcde", row) for t, row in zip(topologies[c::3], x[c::3].exp().tolist(), strict=True)
        ]
        (tmp_path / f"run{c}.nwk").write_text("\n".join(lines))
    evidence = Evidence([str(tmp_path / f"run{c}.nwk") for c in range(3)], 0, claimed=truth)
    chains = evidence.read("abcde")
    assert [t for t, _ in chains] == [topologies[c::3] for c in range(3)]
    torch.testing.assert_close(chains[1][1], x[1::3], rtol=1e-12, atol=1e-12)
    found = save_evidence(ensemble, evidence, chains, 0, tmp_path)
    assert found == json.loads((tmp_path / "evidence.json").read_text())
    assert found["inside"] and found["chains"] == [200, 200, 200] and found["lower"] < truth < found["upper"]
    far = replace(evidence, claimed=truth + 198.4)  # as far above as one printed for DS1
    wrong = save_evidence(ensemble, far, chains, 0, tmp_path)
    assert not wrong["inside"] and "OUTSIDE" in wrong["sentence"]
    lines = trees.text({**dict.fromkeys(trees.NEEDED, 1), "evidence": wrong})
    assert wrong["sentence"] in lines and math.isfinite(wrong["bridge_se"]) and np.isfinite(wrong["upper"])


def program(folder, script):
    """A program of the name mb in a folder."""
    path = folder / "mb"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(folder)


def test_mrbayes_is_run_once(tmp_path, monkeypatch):
    """A stand-in for mb that keeps what it was given: the commands, taxa in the alignment's order, the cache."""
    alignment = data(five=True).spec.alignment
    tree = "(t0:0.1,t1:0.2,(t2:0.3,(t3:0.4,t4:0.5):0.25):0.35);"
    script = f"cp $1 {tmp_path}/seen; for r in 1 2; do echo '{tree}' > chain.run$r.t; done"
    monkeypatch.setenv("PATH", program(tmp_path, script), prepend=":")
    paths = chain_files(alignment, 10.0, 2, 5000, tmp_path / "cache")
    assert (tmp_path / "seen").read_text() == commands(alignment, 10.0, 2, 5000)
    (topology,), x = read_chain(paths[1], [f"t{taxon}" for taxon in range(5)], 0)
    assert topology == (0b11000, 0b11100) and x[0].exp().tolist()[:5] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5]
    )
    program(tmp_path, "echo out of memory; exit 3")
    assert chain_files(alignment, 10.0, 2, 5000, tmp_path / "cache") == paths  # kept
    with pytest.raises(InputError, match="mb failed with status 3: out of memory"):
        chain_files(alignment, 5.0, 2, 5000, tmp_path / "cache")  # another prior
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="mb is not on the PATH"):
        Evidence("mrbayes")
