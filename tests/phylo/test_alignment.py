import gzip

import numpy as np
import pytest
from Bio import SeqIO
from Bio.Align import MultipleSeqAlignment
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from miselbo.errors import InputError
from miselbo.phylo import Alignment

FOUR = {"a": "ACGTACGT", "b": "ACGTACGA", "c": "ACGTAC-A", "d": "ACGTRCGA"}
FASTA = "".join(f">{name} a comment\n{sequence}\n" for name, sequence in FOUR.items())


def write(tmp_path, text, name="alignment"):
    path = tmp_path / name
    path.write_text(text)
    return path


def as_text(name, tmp_path):
    records = [SeqRecord(Seq(s), id=n, annotations={"molecule_type": "DNA"}) for n, s in FOUR.items()]
    path = tmp_path / f"{name}.txt"
    with path.open("w") as file:
        SeqIO.write(MultipleSeqAlignment(records), file, name)
    return path


@pytest.mark.parametrize("name", ["fasta", "nexus", "phylip", "phylip-relaxed", "phylip-sequential"])
def test_formats_agree(tmp_path, name):
    alignment = Alignment.from_file(as_text(name, tmp_path))
    assert alignment.names == tuple("abcd")
    assert np.array_equal(alignment.codes, Alignment.from_sequences(FOUR).codes)


def test_interleaved_phylip_and_gzip(tmp_path):
    text = "4 8\na ACGT\nb ACGT\nc ACGT\nd ACGT\n\nACGT\nACGA\nAC-A\nRCGA\n"
    path = tmp_path / "a.phy.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert np.array_equal(Alignment.from_file(path).codes, Alignment.from_sequences(FOUR).codes)


def test_codes_are_sets_of_states():
    alignment = Alignment.from_sequences({n: "ACGTURYSWKMBDHVN-?.Xacgtu" for n in "abcd"})
    a, c, g, t = 1, 2, 4, 8
    expected = [a, c, g, t, t, a + g, c + t, c + g, a + t, g + t, a + c, 14, 13, 11, 7, 15, 15, 15, 15, 15]
    assert alignment.codes[0].tolist() == [*expected, a, c, g, t, t]


def test_missing_columns_and_duplicates_are_reported():
    alignment = Alignment.from_sequences({"a": "A-C?", "b": "AN-A", "c": "A-C?", "d": "T-GG"})
    assert alignment.num_missing == 1
    assert alignment.patterns.counts.sum() == 3
    assert alignment.duplicates == [("a", "c")]
    assert (
        "1 columns hold no base" in alignment.describe()
        and "identical sequences: a, c" in alignment.describe()
    )


def test_columns_equal_up_to_relabelling_are_merged_with_ambiguity_codes():
    rows = {"a": "AACR", "b": "AACG", "c": "CTAT", "d": "GG-N"}  # 1: xxyz, 2: xxyz, 3: xxy-, 4: a set
    alignment = Alignment.from_sequences(rows)
    assert sorted(alignment.merged_patterns.counts) == [1, 1, 2]
    two_sets = Alignment.from_sequences({"a": "RY", "b": "AC", "c": "GT", "d": "TA"})  # A<->C, G<->T: equal
    assert two_sets.merged_patterns.counts.tolist() == [2]
    different = Alignment.from_sequences({"a": "RR", "b": "AC", "c": "GT", "d": "TA"})
    assert len(different.merged_patterns.counts) == 2


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 15), min_size=4, max_size=4), min_size=1, max_size=8),
    st.permutations(range(4)),
)
def test_a_relabelled_alignment_has_the_same_merged_patterns(columns, order):
    codes = np.array(columns, dtype=np.uint8).T
    relabelled = sum((codes >> i & 1) << order[i] for i in range(4)).astype(np.uint8)
    one, other = (Alignment(tuple("abcd"), c).merged_patterns for c in (codes, relabelled))
    assert np.array_equal(one.codes, other.codes) and np.array_equal(one.counts, other.counts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ">a\nACGT\n>b\nACG\n>c\nACGT\n>d\nACGT\n",
            r"not aligned: most sequences have 4 characters, but not b \(3\)",
        ),
        (">a\nACGT\n>b\nACGT\n>c\nACGT\n", "holds 3 taxa"),
        (">a\nMKVL\n>b\nMKVL\n>c\nMKVL\n>d\nMEVL\n", "looks like protein data: characters E L are"),
        (">a\nAC1T\n>b\nACGT\n>c\nACGT\n>d\nACGT\n", "no nucleotide data: characters 1"),
        (">a\nACGT\n>a\nACGT\n>c\nACGT\n>d\nACGT\n", "more than once: a"),
        (">a\n\n>b\n\n>c\n\n>d\n\n", "no sites"),
        ("hello\n", "expected FASTA"),
        ("", "expected FASTA"),
        ("4 8\na ACGT\n", "cannot be read as an alignment"),
        ("#NEXUS\nbegin trees;\nend;\n", "cannot be read as an alignment"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        Alignment.from_file(write(tmp_path, text))


def test_an_absent_file(tmp_path):
    with pytest.raises(InputError, match="cannot read .*no_file: No such file"):
        Alignment.from_file(tmp_path / "no_file")


TABLE = {  # PHYLO_FACTS.md section 1; the table counts the column without any base as one more pattern
    "DS1": (27, 1949, 934, 753, 9, 0), "DS2": (29, 2520, 1246, 1034, 381, 0), "DS3": (36, 1812, 1020, 936, 0, 0),
    "DS4": (41, 1137, 768, 622, 3, 0), "DS5": (50, 378, 256, 232, 0, 0), "DS6": (50, 1133, 489, 368, 7, 0),
    "DS7": (59, 1824, 1037, 953, 0, 2), "DS8": (64, 1008, 406, 329, 0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_the_benchmark_alignments(phylo_root, name):
    alignment = Alignment.from_file(phylo_root / f"{name}.fasta")
    taxa, sites, patterns, merged, missing, duplicates = TABLE[name]
    empty = int(missing > 0)
    assert (alignment.num_taxa, alignment.num_sites, alignment.num_missing) == (taxa, sites, missing)
    assert (len(alignment.patterns.counts), len(alignment.merged_patterns.counts)) == (
        patterns - empty,
        merged - empty,
    )
    assert sum(len(group) - 1 for group in alignment.duplicates) == duplicates
