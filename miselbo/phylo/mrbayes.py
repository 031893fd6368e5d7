"""Independent chains of MrBayes (Ronquist et al. 2012), if its program ``mb`` is on the PATH: JC69 and this prior.

Its files are kept in the user's cache under a hash of alignment, prior and options, so that it runs once.
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pooch

from miselbo.errors import InputError
from miselbo.phylo.alignment import Alignment
from miselbo.runtime.files import atomic

PROGRAM = "mb"
SAMPLES = 2000  # draws of a chain, burn-in included
LETTERS = np.array(list("?ACMGRSVTWYHKDBN"))


def check_program() -> None:
    """Refuse where MrBayes is not installed.

    Raises:
        InputError: ``mb`` is not on the PATH.
    """
    if shutil.which(PROGRAM) is None:
        raise InputError(
            "dataset.evidence.chains=mrbayes: mb is not on the PATH. Install MrBayes (Debian: apt install mrbayes; "
            "conda: conda install -c bioconda mrbayes), or give the tree files of your own runs"
        )


def commands(alignment: Alignment, branch_rate: float, runs: int, generations: int) -> str:
    """A NEXUS file with the alignment and the commands; taxa are t0, t1, ... in the alignment's order.

    A run is one cold and three heated chains, seeds are 1.

    Example:
        >>> alignment = Alignment.from_sequences({"a": "AC", "b": "AG", "c": "AR", "d": "A-"})
        >>> print(commands(alignment, 10.0, 4, 100_000))  # doctest: +ELLIPSIS
        #NEXUS
        begin data;
        dimensions ntax=4 nchar=2;
        format datatype=dna missing=? gap=-;
        matrix
        t0 AC
        t1 AG
        t2 AR
        t3 AN
        ;
        end;
        begin mrbayes;
        set autoclose=yes nowarnings=yes seed=1 swapseed=1;
        lset nst=1 rates=equal;
        prset statefreqpr=fixed(equal) brlenspr=unconstrained:exponential(10.0) topologypr=uniform;
        mcmc nruns=4 nchains=4 ngen=100000 samplefreq=50 printfreq=100000 stoprule=no filename=chain;
        end;
        <BLANKLINE>
    """
    rows = "\n".join(f"t{taxon} {''.join(row)}" for taxon, row in enumerate(LETTERS[alignment.codes]))
    every = max(1, generations // SAMPLES)
    return (
        f"#NEXUS\nbegin data;\ndimensions ntax={alignment.num_taxa} nchar={alignment.num_sites};\n"
        f"format datatype=dna missing=? gap=-;\nmatrix\n{rows}\n;\nend;\nbegin mrbayes;\n"
        "set autoclose=yes nowarnings=yes seed=1 swapseed=1;\nlset nst=1 rates=equal;\n"
        f"prset statefreqpr=fixed(equal) brlenspr=unconstrained:exponential({branch_rate!r}) topologypr=uniform;\n"
        f"mcmc nruns={runs} nchains=4 ngen={generations} samplefreq={every} printfreq={generations} stoprule=no "
        "filename=chain;\nend;\n"
    )


def chain_files(
    alignment: Alignment, branch_rate: float, runs: int, generations: int, cache: Path | None = None
) -> list[Path]:
    """The tree files of so many independent runs, gzipped, from the cache or made now.

    Args:
        alignment: whose taxa are named t0, t1, ... there.
        branch_rate: of the exponential prior of a branch length.
        runs: independent runs, 2 or more.
        generations: of a run.
        cache: folder; default the user's cache.

    Raises:
        InputError: no program, or it fails; its last words are in the message.
    """
    text = commands(alignment, branch_rate, runs, generations)
    digest = hashlib.sha256(json.dumps([1, text]).encode()).hexdigest()[:32]
    folder = cache or Path(pooch.os_cache("miselbo")) / "phylo"
    kept = [folder / f"{digest}.run{run}.t.gz" for run in range(1, runs + 1)]
    if all(path.is_file() for path in kept):
        return kept
    check_program()
    print(f"MrBayes: {runs} runs of {generations:,} generations", flush=True)
    with tempfile.TemporaryDirectory() as place:
        Path(place, "commands.nex").write_text(text)
        done = subprocess.run(
            [PROGRAM, "commands.nex"], cwd=place, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        made = [Path(place, f"chain.run{run}.t") for run in range(1, runs + 1)]
        if done.returncode or not all(path.is_file() for path in made):
            words = " ".join((done.stdout + done.stderr).split())[-300:]
            raise InputError(f"{PROGRAM} failed with status {done.returncode}: {words}")
        for source, path in zip(made, kept, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary:
                temporary.write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    return kept
