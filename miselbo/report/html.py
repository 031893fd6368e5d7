"""The report as files: figures, ``report.html`` with everything inside, ``report.md`` and ``report.tex`` beside it."""

import base64
import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2

from miselbo.report import files as figure_files
from miselbo.report.sections import Report, Section
from miselbo.report.tables import Table
from miselbo.runtime.files import atomic

FIGURE_NAMES = (
    "bounds_vs_L", "bounds_vs_S", "delta_vs_jsd", "pairwise_jsd", "subsets", "marginal", "delta_histogram",
    "gallery", "weights", "images", "density", "consensus", "training",
)  # fmt: skip


def write(run_dir: Path, report: Report) -> Path:
    """Write ``figures/`` (PNG, SVG, PDF), ``report.md``, ``.tex`` and, last, ``report.html``, whose path is returned.

    Nothing of an earlier report is replaced before all of this one is made and written. A figure of an earlier report
    whose section is now left out is removed; other files in ``figures/`` stay.
    """
    path = run_dir / "report.html"
    page, figures = to_page(report, run_dir)
    files = {path: page, run_dir / "report.md": to_markdown(report).encode()}
    if report.latex:
        files[run_dir / "report.tex"] = report.latex.encode()
    write_together(files | figures)
    shown = {figure.stem for figure in figures}
    for name in set(FIGURE_NAMES) - shown:
        for ending in figure_files.FORMATS:
            (run_dir / "figures" / f"{name}.{ending}").unlink(missing_ok=True)
    return path


def to_page(report: Report, folder: Path) -> tuple[bytes, dict[Path, bytes]]:
    """The page, and the files of its figures in every format below ``folder``."""
    pictures = {picture.name: picture for section in report.sections for picture in section.pictures}
    found = {name: figure_files.drawn(picture.figure) for name, picture in pictures.items()}
    page = to_html(report, {name: formats["png"] for name, formats in found.items()})
    files = {
        folder / "figures" / f"{name}.{ending}": content
        for name, formats in found.items()
        for ending, content in formats.items()
    }
    return page.encode(), files


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write all files beside their places first and put them there, the first one last, when every one is written."""
    with contextlib.ExitStack() as stack:
        for path, content in files.items():
            stack.enter_context(atomic(path)).write_bytes(content)


def to_html(report: Report, figures: Mapping[str, bytes]) -> str:
    """The report as one HTML document; ``figures`` holds the PNG bytes of every figure by name."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["tight"] = tight
    template = environment.from_string((folder / "template.html").read_text())
    encoded = {name: base64.b64encode(png).decode("ascii") for name, png in figures.items()}
    texts = {name: (folder / name).read_text() for name in ("style.css", "sort.js")}
    return template.render(
        report=report,
        style=texts["style.css"],
        script=texts["sort.js"],
        figures=encoded,
        formats=figure_files.FORMATS,
    )


def tight(text: str) -> str:
    """No line break inside ``a ± b``, ``L = 1``, ``log 5``, ``1 x 8 x 8`` and ``(Monte Carlo)``.

    >>> tight("L = 1") == "L\\u00a0=\\u00a01"
    True
    """
    text = re.sub(r" (±|=|x) ", "\u00a0\\1\u00a0", re.sub(r" x (?=\d+ x )", "\u00a0x\u00a0", text))
    return re.sub(r"\blog (?=[p\d])", "log\u00a0", text.replace("(Monte Carlo)", "(Monte\u00a0Carlo)"))


def to_markdown(report: Report) -> str:
    """The same report as Markdown, with the figures as files beside it."""
    parts = [f"# {report.title}", report.glance, markdown_table(report.headline), report.protocol_line]
    parts += ["\n".join(f"- {sentence}" for sentence in report.trust)] if report.trust else []
    for section in report.sections:
        parts += _markdown_section(section)
    if report.protocol.rows:
        parts += ["## Protocol", markdown_table(report.protocol)]
    return "\n\n".join(parts) + "\n"


def _markdown_section(section: Section) -> list[str]:
    parts = [f"## {section.title}", *section.text]
    parts += [f"_{section.note}_"] if section.note else []
    parts += [f"![{picture.alt}](figures/{picture.name}.png)" for picture in section.pictures]
    return [*parts, *(markdown_table(table) for table in section.tables)]


def markdown_table(table: Table) -> str:
    """A pipe table.

    >>> print(markdown_table(Table(["a", "b"], [["x|y", "1"]], "lr")))
    | a | b |
    | :-- | --: |
    | x\\|y | 1 |
    """
    rule = [{"l": ":--", "r": "--:"}[letter] for letter in table.align]
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [table.columns, rule, *rows])
