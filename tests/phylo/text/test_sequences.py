import tempfile
from pathlib import Path

import pytest
import ugly
from hypothesis import given, settings
from hypothesis import strategies as st

from miselbo.errors import InputError
from miselbo.phylo import Alignment

FOUR = {"a": "ACGTACGTAC", "b": "ACGTACGTAA", "c": "ACGTACNTAC", "d": "ACGTRC-TAC"}
LONG = {f"a_name_of_more_than_ten_characters_{name}": row for name, row in FOUR.items()}
BLANKS = {f"Homo sap {name}": row for name, row in FOUR.items()}
HALVES = [(name, row[:4], row[4:]) for name, row in FOUR.items()]


def lines(rows):
    return "\n".join(rows) + "\n"


def nexus(form, rows, head="dimensions ntax=4 nchar=10;"):
    matrix = lines(f"{name} {row}" for name, row in rows.items())
    return f"#NEXUS\n[a comment; (one)]\nbegin data;\n{head}\nformat {form};\nmatrix\n{matrix};\nend;\n"


def replaced(one, other):
    return {name: row.replace(one, other) for name, row in FOUR.items()}


def read(tmp_path, text):
    (tmp_path / "file").write_text(text)
    return Alignment.from_file(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("4 10\n" + lines(f"{name} {row}" for name, row in LONG.items()), LONG),
        ("4 10\n" + lines(f"{name} {row[:4]}\n{row[4:]}" for name, row in LONG.items()), LONG),
        ("4 10\n" + lines(f"{name}\n  {row[:4]} {row[4:6]}\n{row[6:]}" for name, row in LONG.items()), LONG),
        (" 4 10 I\n" + lines(f"{name:10s}{row}" for name, row in BLANKS.items()), BLANKS),
        ("4 10\n" + lines(f"{name:10s}{row[:4]}\n{row[4:]}" for name, row in BLANKS.items()), BLANKS),
        ("4\t10\n" + lines(f"{n}\t{one}" for n, one, _ in HALVES) + lines(two for *_, two in HALVES), FOUR),
        ("4 10\n" + lines(f"{n} {one}" for n, one, _ in HALVES) + lines(f"\n{n} {two}" for n, _, two in HALVES), FOUR),
        ("4 10\r\n" + "".join(f"{name:10s}{row.lower()}\r\n" for name, row in FOUR.items()), FOUR),
        ("\ufeff" + "".join(f"> {name}\r{row[:5]} {row[5:]}\r\r" for name, row in FOUR.items()), FOUR),
        ("".join(f">{name} x\n{row}\n" for name, row in replaced("T", "u").items()), FOUR),
        (nexus("datatype=dna gap=- missing=?", FOUR), FOUR),
        (nexus("datatype=RNA gap=- missing=?", replaced("T", "U")), FOUR),
        (nexus("datatype=dna gap=- missing=*", replaced("N", "*")), FOUR),
        (nexus("datatype=dna gap=! missing=?", replaced("-", "!")), FOUR),
        (nexus("datatype=dna gap=- missing=?", replaced("R", "{ga}")), FOUR),
        (nexus("datatype=dna gap=- missing=?", replaced("R", "(AG)")), FOUR),
        (nexus("datatype=dna gap=- missing=?", {f"'{n}''s, x'": f"[1] {r}" for n, r in FOUR.items()}),
         {f"{n}'s, x": r for n, r in FOUR.items()}),
        (nexus("datatype=dna gap=- missing=? interleave", {f"{n} {one}": "" for n, one, _ in HALVES}
               | {f"{n} {two}": "" for n, _, two in HALVES}), FOUR),
    ],
)  # fmt: skip
def test_layouts(tmp_path, text, rows):
    found = read(tmp_path, text)
    assert found.names == tuple(rows)
    assert (found.codes == Alignment.from_sequences(rows).codes).all()


def test_match_characters_of_nexus(tmp_path):
    dots = {name: "".join("." if x == y and i else x for x, y in zip(row, FOUR["a"], strict=True))
            for i, (name, row) in enumerate(FOUR.items())}  # fmt: skip
    found = read(tmp_path, nexus("datatype=dna gap=- missing=? matchchar=.", dots))
    assert (found.codes == Alignment.from_sequences(FOUR).codes).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "4 10\n" + lines(f"{name} {row}" for name, row in replaced("AC", "..").items()),
            "dots in its first sequence",
        ),
        (
            "5 10\n" + lines(f"{name} {row}" for name, row in FOUR.items()),
            "announces 5 sequences of 10 characters",
        ),
        (
            "4 12\n" + lines(f"{name} {row}" for name, row in FOUR.items()),
            "announces 4 sequences of 12 characters",
        ),
        ("0 0\n", "holds 0 taxa"),
        (nexus("datatype=protein gap=-", FOUR), "holds protein data, expected datatype=dna"),
        (nexus("datatype=dna gap=-", FOUR, "dimensions ntax=5 nchar=10;"), "cannot be read as an alignment"),
        (
            "".join(f">{name}\n{row}\u2013\n" for name, row in FOUR.items()),
            "characters \u2013 are no nucleotide",
        ),
        (nexus("datatype=dna", FOUR).replace("\nb ", "\na "), "the matrix has 4|more than once: a"),
        (nexus("datatype=standard", FOUR), "holds datatype=standard"),
        (nexus("datatype=dna transpose", FOUR), "format transpose or tokens"),
        (
            nexus("datatype=dna", {f"Homo {n}": r for n, r in FOUR.items()}),
            "a name with a blank needs quotes",
        ),
        (nexus("datatype=dna", FOUR) + nexus("datatype=dna", FOUR)[6:], "holds 2 matrices"),
        (nexus("datatype=dna matchchar=.", replaced("AC", "..")), "matchchar . in the first row"),
        (">a\nA\n>\nC\n>c\nG\n>d\nT\n", "no name for its sequence 2"),
        (">P1;a\ntitle\nACGT*\n", "no alignment known here"),
        ("CLUSTAL\n\na AC GT 3 x\n", "Clustal: the line 'a AC GT"),
        ("(a,b,(c,d));", "holds trees"),
        ("\0\1\2", "is no text"),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_other_encodings(tmp_path):
    text = "".join(f">{n}\u00e9\n{row}\n" for n, row in FOUR.items())
    for encoding in ("latin-1", "utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "file").write_bytes(text.encode(encoding))
        assert Alignment.from_file(tmp_path / "file").names == tuple(f"{name}\u00e9" for name in FOUR)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(ugly.FORMATS)).flatmap(ugly.files))
def test_ugly_files_hold_what_was_written(found):
    content, rows = found
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(content)
        alignment = Alignment.from_file(path)
    assert alignment.names == tuple(rows), content
    assert (alignment.codes == Alignment.from_sequences(rows).codes).all(), content


def test_whole_titles_where_first_words_clash(tmp_path):
    found = read(tmp_path, "".join(f">Homo  {name} x\n{row}\n" for name, row in FOUR.items()))
    assert found.names == tuple(f"Homo {name} x" for name in FOUR)


# the cases; the files are in shared/cases

DOTS = ">wren\nACGTACGTAC\n>owl\n....G.....\n>kite\n.....T....\n>crow\n....G....T\n"
LETTERS = ">wren\nACGTACGTAC\n>owl\nACGTGCGTAC\n>kite\nACGTATGTAC\n>crow\nACGTGCGTAT\n"


def test_case_06_dots_stand_for_the_first_sequence(tmp_path):
    assert (read(tmp_path, DOTS).codes == read(tmp_path, LETTERS).codes).all()
    phylip = "4 10\n" + DOTS.replace(">", "").replace("\n", " ").replace(" ", "\n")
    assert (read(tmp_path, phylip).codes == read(tmp_path, LETTERS).codes).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("ACGTAC", "..GTAC", "ACGT..", "ACGTAC"), "dots at the ends of sequences alone"),
        (("..GTAC", "AC..AC", "ACGT..", "ACGTAC"), "dots in its first sequence"),
    ],
)
def test_dots_that_may_be_either_are_refused(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, "".join(f">{name}\n{row}\n" for name, row in zip("abcd", rows, strict=True)))


def test_dots_that_are_missing_data_are_counted(tmp_path):
    found = read(tmp_path, ">a\n..GTAC\n>b\n..GTAC\n>c\n.CGT..\n>d\nACGTAC\n")
    assert (
        found.codes[0].tolist() == [15, 15, 4, 8, 1, 2] and "7 dots are taken as missing" in found.describe()
    )


def test_case_07_hyphens_in_names(tmp_path):
    names = ("Wren-north", "Wren-south", "Owl-east", "Owl-west")
    text = nexus("datatype=dna", dict(zip(names, FOUR.values(), strict=True)))
    assert read(tmp_path, text).names == names


def test_charsets_sets_with_gaps_and_comments_before_the_first_word(tmp_path):
    rows = {**FOUR, "d": "A{ACGT-}GTRC-TAC"}
    text = "[made by hand]\n" + nexus("datatype=dna gap=-", rows)
    text += "begin assumptions;\ncharset 3rdpos=4-457\\3 662-.\\3;\nend;\n"
    assert read(tmp_path, text).codes[3, :3].tolist() == [1, 15, 4]
