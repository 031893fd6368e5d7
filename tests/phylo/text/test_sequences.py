import pytest

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
            "dots in its sequences",
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
        ("".join(f">Homo {name}\n{row}\n" for name, row in FOUR.items()), "Homo .*ends at the first blank"),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_other_encodings(tmp_path):
    (tmp_path / "file").write_bytes(
        "".join(f">{n}\u00e9\n{row}\n" for n, row in FOUR.items()).encode("latin-1")
    )
    with pytest.raises(InputError, match="no UTF-8 text"):
        Alignment.from_file(tmp_path / "file")
