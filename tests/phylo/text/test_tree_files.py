import pytest

from miselbo.errors import InputError
from miselbo.phylo.text.tree_files import read_topologies, read_tree_files

ONE, OTHER = (0b1100,), (0b1010,)
TRPROBS = """#NEXUS
[ID: 1]
begin trees;
   translate
      1 a,
      2 b,
      3\tc,
      4 'd';
   tree tree_1 [p = 0.600, P = 0.600] = [&W 0.6] (1,2,(3,4));
   tree tree_2 [p = 0.400, P = 1.000] = [&W 4e-1] (1,3,(2,4));
end;
"""
BY_LABELS = """#NEXUS
begin taxa; taxlabels d 'c' b a; end;
begin trees; tree one = (4,3,(2,1)); tree two = ((a,c),b,d); end;
"""
SAMPLES = """#NEXUS
begin taxa; dimensions ntax=4; end;
begin trees;
 tree gen.0 = [&U] (a:1,b:1,(c:1,d:1):1);
 tree gen.1 = [&U] (a:1,b:2,(c:1,d:1):2);
 TREE gen.2 = [&R] ((a:1,c:2):.1,(b:1,d:1):2);
end;
"""


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (TRPROBS, [[0.6], [0.4]]),
        (SAMPLES, [[2], [1]]),
        ("(a,b,(c,d));\n(a,c,(b,d));\n((a,b),c,d);", [[2], [1]]),
        ("  4  2\n\n(a,b,(c,d)$1);\n(a,c,(b,d)#2);", [[1], [1]]),
        ("# a comment\n(a,b,(c,d))\t3\n(a,c,(b,d))\t1.5\n", [[3], [1.5]]),
        ("# x\n(0,1,(2,3))\t1 2 3\t1\n(0,2,(1,3))\t0 0 1\t0\n", [[1, 2, 3], [0, 0, 1]]),
        ("# taxa: d c b a\n(0,1,(2,3))\t2\n(2,0,(1,3))\t1\n", [[2], [1]]),
        ("\t(a:1,b:-.1,(c,d));\r\n[a; b]\r\n((a,\tc),\nb,d);", [[1], [1]]),
        (
            "#NEXUS\n[;] begin [x] trees;\ntree 'x=y;' = [&W1/4] (a,b,(c,d));\nutree * z=(a,c,(b,d))",
            [[0.25], [1]],
        ),
        (BY_LABELS, [[1], [1]]),
    ],
)
def test_tree_files(tmp_path, text, weights):
    (tmp_path / "trees").write_text(text)
    topologies, found = read_topologies(tmp_path / "trees", "abcd")
    assert topologies == [ONE, OTHER] and found.tolist() == weights


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no tree"),
        ("#NEXUS\nbegin trees;\nend;\n", "holds no tree"),
        ("(a,b,c,d);", "tree 1 of .* is not fully resolved: 4 edges"),
        (
            "(a,b,(c,d));(a,b,(c,e));",
            "tree 2 of .* different taxa: e not in the alignment; d not in the tree",
        ),
        (TRPROBS.replace("2 b", "2 x"), "different taxa: x not in the alignment"),
        ("(a,b,(c,d))\tx", "weight that is no number"),
        (TRPROBS.replace("4e-1", "-1"), "weight -1: expected"),
        ("(a,b,(c,d))\t1 2\n(a,c,(b,d))\t1", "1 weights for a tree, 2 for those before"),
    ],
)
def test_bad_tree_files(tmp_path, text, message):
    (tmp_path / "trees").write_text(text)
    with pytest.raises(InputError, match=message):
        read_topologies(tmp_path / "trees", "abcd")


def test_names_that_need_quotes(tmp_path):
    names = ["a, x", "b; y[1]", "c's:z", "d'Urv e"]
    (tmp_path / "nexus").write_text(
        "#NEXUS\nbegin trees;\ntranslate 1 'a, x', 2 'b; y[1]', 3 'c''s:z', 4 \"d'Urv_e\";\n"
        "tree x = (1:1,2:1,(3:1,4:1):1);\ntree y = ('a, x':1,'c''s:z':1,('b; y[1]':1,d'Urv_e:1):1);\nend;\n"
    )
    (tmp_path / "newick").write_text(
        "('a, x':1,'b; y[1]':1,('c''s:z':1,'d''Urv e':1):1);('a, x','c''s:z',('b; y[1]',\"d'Urv e\"));"
    )
    for file in ("nexus", "newick"):
        assert read_topologies(tmp_path / file, names)[0] == [ONE, OTHER]


def test_counts_of_the_bootstrap_file(phylo_root):
    from miselbo.phylo import Alignment

    names = Alignment.from_file(phylo_root / "DS1.fasta").names
    topologies, counts = read_topologies(phylo_root / "DS1_ufboot.tsv.gz", names)
    assert len(topologies) == 6965 and counts.sum(0).tolist() == [10000] * 10


def test_case_08_names_changed_by_iqtree(tmp_path):
    names = ["AY27|wren_1|x", "AY39/owl(2)", "AY5:kite#3", "crow*4"]
    (tmp_path / "trees").write_text("(AY27_wren_1_x:1,AY39_owl_2_:1,(AY5_kite_3:1,crow_4:1):1);")
    assert read_topologies(tmp_path / "trees", names)[0] == [ONE]
    (tmp_path / "trees").write_text("(a_1:1,b:1,(c:1,d:1):1);")
    with pytest.raises(InputError, match=r"IQ-TREE writes .* so a_1 may be any of a\|1, a/1: rename them"):
        read_topologies(tmp_path / "trees", ["a|1", "a/1", "b", "c", "d"])


def test_case_18_tables_of_samples(tmp_path):
    text = "Iteration\tPosterior\tPrior\tpsi\n0\t-12.3\t-2\t((a[&index=3]:1,b:1)[&index=1]:1,c:1,d:1)[&index=0]:0;\n"
    text += "10\t-12\t-2\t[&U]((a:1,c:1):1,b:1,d:1);\n20\t-12\t-2\t((a:1,c:1):1,b:1,d:1);\n"
    (tmp_path / "run.trees").write_text(text)
    topologies, weights = read_topologies(tmp_path / "run.trees", "abcd")
    assert topologies == [ONE, OTHER] and weights.tolist() == [[1], [2]]


def test_burn_in_of_several_files(tmp_path):
    for name, text in (("1", "(a,b,(c,d));" * 4), ("2", "(a,b,(c,d));(a,c,(b,d));" * 2)):
        (tmp_path / name).write_text(text)
    files = [tmp_path / "1", tmp_path / "2"]
    assert read_tree_files(files, "abcd").weights.tolist() == [[6], [2]]
    assert read_tree_files(files, "abcd", burn_in=0.3).weights.tolist() == [[4], [2]]
    found = read_tree_files(files, "abcd", burn_in=3)
    assert found.weights.tolist() == [[1], [1]] and found.num_trees == 2
    with pytest.raises(InputError, match="a burn-in of 4 leaves none of 4 trees"):
        read_tree_files(files, "abcd", burn_in=4)
    (tmp_path / "1").write_text(TRPROBS)
    with pytest.raises(InputError, match="trees with weights, of which no burn-in"):
        read_tree_files(files, "abcd", burn_in=1)


def test_unresolved_trees_are_skipped_and_counted_or_resolved_at_random(tmp_path):
    (tmp_path / "trees").write_text("(a,b,(c,d));" + "(a,b,c,d);" * 30)
    found = read_tree_files([tmp_path / "trees"], "abcd")
    assert (found.topologies, found.num_trees, found.num_unresolved) == ([ONE], 1, 30)
    found = read_tree_files([tmp_path / "trees"], "abcd", unresolved="random")
    assert len(found.topologies) == 3 and found.weights.sum() == 31 and found.weights.min() > 2
    with pytest.raises(InputError, match="tree 2 of .* is not fully resolved"):
        read_tree_files([tmp_path / "trees"], "abcd", unresolved="refuse")


def test_xml_is_named(tmp_path):
    (tmp_path / "trees").write_text('<?xml version="1.0"?><nex:nexml/>')
    with pytest.raises(InputError, match="is XML"):
        read_topologies(tmp_path / "trees", "abcd")
