"""Alignments written as people and programs write them: a strategy of texts beside the names and rows they hold."""

import random

from hypothesis import strategies as st

LETTERS = "ACGTRYSWKMBDHVN-?"
SETS = {"R": "AG", "Y": "TC", "S": "CG", "W": "AT", "K": "GT", "M": "AC", "N": "ACGT", "B": "CGT"}
WORD = st.text("abcdefgXYZ0123456789_.-|#@+*", min_size=1, max_size=9).filter(lambda word: word[0].isalpha())
COMMENTS = ("[a comment]", "[one [in another]]", "[!printed; with 'a semicolon]", "[&R 1.5]")


@st.composite
def alignments(draw, names=WORD):
    """Names and rows of an alignment."""
    count, sites = draw(st.integers(4, 7)), draw(st.integers(1, 40))
    found = draw(
        st.lists(names, min_size=count, max_size=count, unique_by=lambda name: name.replace("_", " "))
    )
    rows = draw(st.lists(st.text(LETTERS, min_size=sites, max_size=sites), min_size=count, max_size=count))
    return dict(zip(found, rows, strict=True))


def pieces(row, chance, blank=" "):
    """The row with blanks in it."""
    return "".join(letter + (blank if chance.random() < 0.1 else "") for letter in row)


def cased(row, chance):
    return "".join(letter.lower() if chance.random() < 0.3 else letter for letter in row)


def chunks(rows, width):
    """The rows cut at the same places."""
    sites = len(next(iter(rows.values())))
    for start in range(0, sites, width):
        yield {name: row[start : start + width] for name, row in rows.items()}


def dotted(rows):
    """Dots where a row has the first one's letter."""
    first, *_ = rows.values()
    return {
        name: row if row is first else "".join("." if x == y else x for x, y in zip(row, first, strict=True))
        for name, row in rows.items()
    }


def fasta(rows, chance):
    title = chance.choice(["{}", " {}", "{} a remark", "{}\tand {}"])
    lines = [chance.choice(["", ";an old comment\n", "\n\n"])]
    for name, row in rows.items():
        lines.append(f">{title.replace('{}', name)}\n")
        width = chance.randint(1, 30)
        lines += [f"{cased(row[i : i + width], chance)}\n" for i in range(0, len(row), width)]
        lines.append(chance.choice(["", "\n"]))
    return "".join(lines)


def whole_titles(rows, chance):
    return "".join(f">Homo {name}\n{row}\n" for name, row in rows.items())


def phylip(rows, chance):
    sites = len(next(iter(rows.values())))
    start, between, end = (
        chance.choice(["", " "]),
        chance.choice([" ", "   "]),
        chance.choice(["", " I", "  "]),
    )
    head = f"{start}{len(rows)}{between}{sites}{end}\n"
    gap = chance.choice([" ", "   ", "\t"])
    if chance.random() < 0.5:
        return head + "".join(f"{name}{gap}{cased(row, chance)}\n" for name, row in rows.items())
    blocks = list(chunks(rows, chance.randint(5, 30)))
    again = chance.random() < 0.3
    text = "".join(f"{name}{gap}{row}\n" for name, row in blocks[0].items())
    for block in blocks[1:]:
        text += "\n" + "".join(f"{name + gap if again else '    '}{row}\n" for name, row in block.items())
    return head + text


def clustal(rows, chance):
    text = "CLUSTAL 2.1 multiple sequence alignment\n\n\n"
    for block in chunks(rows, 25):
        text += "".join(f"{name:12s} {row}{chance.choice(['', ' 25'])}\n" for name, row in block.items())
        text += f"{'':13s}{'*' * chance.randint(1, 5)}\n\n"
    return text


def nexus(rows, chance):
    """Any layout, marks, sets, comments and other blocks."""
    count, sites = len(rows), len(next(iter(rows.values())))
    missing, gap = chance.choice(["?", "*"]), chance.choice(["-", "!", "~"])
    match = chance.choice(["", "", "."])
    shown = dotted(rows) if match else dict(rows)

    def comment():
        return chance.choice(COMMENTS) if chance.random() < 0.2 else ""

    def letters(row):
        found = []
        for letter in cased(row, chance):
            states = SETS.get(letter, "")
            if states and chance.random() < 0.3:
                states = list(states)
                chance.shuffle(states)
                letter = chance.choice(["{%s}", "(%s)"]) % "".join(states)
            found.append({"?": missing, "-": gap}.get(letter, letter))
        return found

    def label(name):
        plain = not set(name) & set(" '[]();,")
        if plain and chance.random() < 0.7:
            return name
        return "'" + name.replace("'", "''") + "'"

    interleave = chance.random() < 0.5
    text = ""
    for block in chunks(shown, chance.randint(8, 50) if interleave else sites):
        for name, row in block.items():
            tokens = letters(row)
            cut = chance.randint(0, len(tokens)) if not interleave and chance.random() < 0.3 else len(tokens)
            text += f"{chance.choice(['', '  '])}{label(name)}{chance.choice([' ', '    '])}"
            text += f"{pieces(tokens[:cut], chance)}{comment()}\n"
            text += f"{''.join(tokens[cut:])}\n" if cut < len(tokens) else ""
        text += comment() + "\n"
    form = f"datatype={chance.choice(['dna', 'DNA', 'nucleotide'])} missing={missing} gap={gap}"
    form += f" matchchar={match}" if match else ""
    form += chance.choice([" interleave", " interleave=yes", " INTERLEAVE = yes"]) if interleave else ""
    dimensions = f"ntax={count} nchar = {sites}"
    labels = "\n".join(label(name) for name in rows)
    taxa = f"begin taxa;\ndimensions ntax={count};\ntaxlabels {labels};\nend;\n"
    block = chance.choice(["data", "DATA", "characters"])
    start = "" if block != "characters" else taxa
    tail = "begin sets;\ncharset third = 3-.\\3;\nend;\nbegin paup;\nset criterion=likelihood;\nend;\n"
    return (
        f"{comment()}#NEXUS\n{comment()}\n{start}Begin {block};\n"
        f"dimensions {dimensions if not start else f'nchar={sites}'};\n"
        f"format {form};\nmatrix\n{text};\nEND;\n{chance.choice(['', tail])}"
    )


FORMATS = {"fasta": fasta, "phylip": phylip, "clustal": clustal, "nexus": nexus}


@st.composite
def files(draw, kind):
    """Bytes of a file, and the rows in it."""
    names = WORD
    if kind == "nexus":
        names = st.one_of(
            WORD, st.text("abc xyz'()[];,-", min_size=1, max_size=9).map(str.strip).filter(bool)
        )
    rows = draw(alignments(names))
    chance = random.Random(draw(st.integers(0, 2**32)))
    text = FORMATS[kind](rows, chance)
    end = chance.choice(["\n", "\r\n", "\r"])
    return text.replace("\n", end).encode(chance.choice(["utf-8", "utf-8-sig", "utf-16"])), rows
