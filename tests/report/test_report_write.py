"""The report as a whole: every section, nothing from outside, missing files, one member, same bytes twice."""

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import synthetic

from miselbo.errors import InputError
from miselbo.report import files, gallery, html, write

SMALL = {"num_data": 40, "grid": (1, 5, 20)}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = synthetic.make(tmp_path_factory.mktemp("runs") / "full", size=5, **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FORMATS", ("png", "svg", "pdf"))
        write(run_dir)
    return run_dir


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """One member, no curves: the fewest figures."""
    run_dir = synthetic.make(tmp_path / "one", size=1, **SMALL)
    (run_dir / "metrics.csv").unlink()
    return run_dir


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return synthetic.make(tmp_path / "run", size=2, **SMALL)


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.alts: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.links.append(value or "")
            if name == "id":
                self.anchors.append(value or "")
            if name == "alt":
                self.alts.append(value or "")


def test_all_sections_in_order(full: Path) -> None:
    text = (full / "report.html").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Bounds against the number of samples", "Bounds against the number of members",
        "Gain (Delta) against diversity (JSD)", "How different are the members?",
        "Which members", "The gain, example by example", "Best and worst examples",
        "Can the importance weights be trusted?", "Members one by one", "Images", "Training curves", "Cost",
        "All numbers", "Files", "Protocol",
    ]  # fmt: skip
    assert "Left out" not in text
    assert text.index("The importance weights are well behaved") < text.index("<h2>")
    markdown = (full / "report.md").read_text()
    assert all(f"## {title}" in markdown for title in titles if title != "Files")
    assert text.index('class="glance"') < text.index("<table") < text.index('class="protocol"')
    assert "3f9c2a71be04d6a8" in text[text.index('id="protocol"') :] and text.count("3f9c2a71be04d6a8") == 1
    captions = re.findall(r"<b>(Figure|Table) (\d+)\.</b> (.*?)<", text)
    for kind in ("Figure", "Table"):
        numbers = [int(number) for name, number, _ in captions if name == kind]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 4
    assert all("seed\u00a00" in words or "seed 0" in words for name, _, words in captions if name == "Figure")


SHOWN = [name for name in html.FIGURE_NAMES if name not in ("density", "consensus", "gallery")]  # of images


def test_self_contained(full: Path) -> None:
    text = (full / "report.html").read_text()
    page = Links(text)
    files = {link for link in page.links if not link.startswith(("data:", "#"))}
    assert all((full / link).is_file() for link in files)  # for those who want them; nothing is loaded
    assert {f"figures/{name}.{ending}" for name in SHOWN for ending in ("png", "svg", "pdf")} <= files
    assert {"results/bounds.csv", "results/per_example.parquet"} <= files
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.anchors)
    assert not {"iframe", "object"} & set(page.tags) and page.tags.count("script") == 1
    assert "fetch(" not in text and "import(" not in text and "src=" not in re.sub('src="data:', "", text)
    assert not re.search(r"@import|url\(|https?://", text)
    assert page.tags.count("img") == len(SHOWN) == len([alt for alt in page.alts if len(alt) > 10])


def test_figures_are_files_readable_and_not_empty(full: Path) -> None:
    assert {path.stem for path in (full / "figures").iterdir()} == set(SHOWN)
    for path in (full / "figures").glob("*.png"):
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] >= 800, path
        assert pixels[..., :3].std() > 0.02, path
        assert len(re.findall("<path|<image", path.with_suffix(".svg").read_text())) > 1
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    links = re.findall(r"\]\((figures/.*?)\)", (full / "report.md").read_text())
    assert links and all((full / link).is_file() for link in links)


def test_headline_numbers_are_those_of_the_summary(full: Path) -> None:
    headline = json.loads((full / "results/summary.json").read_text())["headline"]
    markdown = (full / "report.md").read_text()
    row = re.search(r"\| MISELBO \| (\S+) \| (\S+) \|", markdown)
    assert row and float(row[1]) == pytest.approx(headline["miselbo"], abs=0.006)
    assert float(row[2]) == pytest.approx(headline["miselbo_se"], rel=0.05)
    bits = re.search(r"\| Joint bound \|.*?\|.*?\|.*?\|  \| (.*?) \|", markdown)
    assert bits and float(bits[1]) == pytest.approx(-headline["joint_bound"] / 64 / math.log(2), abs=0.01)
    assert re.search(r"\| JSD \|[^|]*\|[^|]*\|[^|]*\|  \|  \|", markdown)  # no bits/dim for what is no bound


def test_protocol_next_to_the_numbers(full: Path) -> None:
    text = (full / "report.html").read_text()
    line = re.search(r'<p class="protocol">(.*?)</p>', text)
    assert line
    for word in ("digits test", "40 examples", "seed 777", "float32", "S\u00a0=\u00a05"):
        assert word in line[1]
    assert "torch 2.13.0+cpu" in text


def test_twice_the_same_bytes_and_no_leftovers(one: Path) -> None:
    path = write(one)
    before = {file: file.read_bytes() for file in one.rglob("*") if file.is_file()}
    assert write(str(one)) == path == one / "report.html"
    assert before == {file: file.read_bytes() for file in one.rglob("*") if file.is_file()}
    assert not list(one.rglob("*.tmp"))


@pytest.mark.parametrize(
    "name",
    ["results/summary.json", "results/bounds.csv", "results/per_member.csv", "results/per_example.parquet"],
)
def test_required_file_absent_or_damaged(run_dir: Path, name: str) -> None:
    (run_dir / "report.html").write_text("an older report")
    (run_dir / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{Path(name).name}.*task=evaluate"):
        write(run_dir)
    (run_dir / name).unlink()
    with pytest.raises(
        InputError, match=rf"{Path(name).name} is missing.*`python run.py task=evaluate run_dir="
    ):
        write(run_dir)
    assert (run_dir / "report.html").read_text() == "an older report"


def test_missing_column_and_headline_value_are_named(run_dir: Path) -> None:
    path = run_dir / "results/bounds.csv"
    good = pd.read_csv(path)
    good.drop(columns="jsd").to_csv(path, index=False)
    with pytest.raises(InputError, match=r"bounds.csv has no column jsd"):
        write(run_dir)
    good.head(0).to_csv(path, index=False)
    with pytest.raises(InputError, match="no rows"):
        write(run_dir)
    good.to_csv(path, index=False)
    (run_dir / "results/summary.json").write_text('{"headline": {"S": 2}}')
    with pytest.raises(InputError, match="no headline value for L, miselbo"):
        write(run_dir)


def test_optional_files_absent_or_damaged(run_dir: Path) -> None:
    optional = {
        "results/pairwise_jsd.csv": "pairwise_jsd",
        "results/subsets.csv": "subsets",
        "results/marginal.csv": "marginal",
        "results/images.npz": "images",
        "metrics.csv": "training",
    }
    stale = [run_dir / f"figures/{figure}.png" for figure in optional.values()]
    own = run_dir / "figures/mine.png"
    own.parent.mkdir()
    for path in (*stale, own):
        path.write_bytes(b"of an earlier report")
    for name in optional:
        (run_dir / name).write_bytes(b"not,what\nit,should,be,at,all\n")
    text = write(run_dir).read_text()
    assert all(f"Left out: {name} " in text for name in optional)
    assert text.count("<img") == len(SHOWN) - len(optional)
    assert own.exists() and not any(path.exists() for path in stale)
    for name in optional:
        (run_dir / name).unlink()
    text = write(run_dir).read_text()
    assert all(f"Left out: {name} is not in the run folder." in text for name in optional)


def test_one_member(one: Path) -> None:
    text = write(one).read_text()
    assert text.count("needs at least two members") == 5
    assert "One member scores" in text
    assert {path.stem for path in (one / "figures").iterdir()} == {"bounds_vs_L", "weights", "images"}


def test_many_members_and_one_sample(tmp_path: Path) -> None:
    run_dir = synthetic.make(tmp_path / "many", size=9, num_data=12, grid=(1,))
    text = write(run_dir).read_text()
    assert re.findall("Left out[^<]*", text) == ["Left out: results/subsets.csv is not in the run folder."]
    assert 'id="which"' in text


def test_more_members_than_can_be_had_in_all_subsets(tmp_path: Path) -> None:
    run_dir = synthetic.make(tmp_path / "many", size=9, num_data=12, grid=(1, 8))
    text = write(run_dir).read_text()
    assert "Left out" not in text
    assert "Not every subset of 9 members can be scored" in text
    assert "Greedy subset" in text and "Best subset" not in text


def test_which_members_and_their_weights(full: Path) -> None:
    text = (full / "report.html").read_text()
    part = text[text.index('id="which"') : text.index('id="delta"')]
    weights = json.loads((full / "results/summary.json").read_text())["mixture_weights"]["weights"]
    shown = re.findall(r'<th scope="row" class="l">fitted</th>(.*?)</tr>', part)
    assert [float(cell) for cell in re.findall(r">([\d.]+)</td>", shown[0])] == pytest.approx(
        weights, abs=6e-4
    )
    assert "which is optimistic" in part and "Best subset" in part
    assert (
        len(re.findall("q1 + q2 + q3 + q4 + q5".replace("+", r"\+"), part)) == 2
    )  # best and greedy of size 5
    markdown = (full / "report.md").read_text()
    table = pd.read_csv(full / "results/subsets.csv")
    best = table[(table["size"] == 3) & table["best_of_size"]]["members"].iloc[0]
    assert f"| 3 | {' + '.join('q' + member for member in best.split('+'))} |" in markdown


def test_an_older_run_without_subsets_weights_and_intervals(run_dir: Path) -> None:
    for name in ("subsets", "marginal"):
        (run_dir / f"results/{name}.csv").unlink()
    path = run_dir / "results/summary.json"
    summary = json.loads(path.read_text())
    del summary["mixture_weights"]
    new = ("joint_gain", "delta_low", "delta_high", "share_k", "k_unknown", "non_finite")
    summary["headline"] = {key: v for key, v in summary["headline"].items() if not key.startswith(new)}
    path.write_text(json.dumps(summary))
    bounds = pd.read_csv(run_dir / "results/bounds.csv")
    old = [name for name in bounds.columns if not name.startswith(new)]
    bounds[old].to_csv(run_dir / "results/bounds.csv", index=False)
    text = write(run_dir).read_text()
    assert text.count("Left out: results/subsets.csv is not in the run folder.") == 1
    assert "95% interval" not in text and "Joint gain" not in text and "k &gt; 0.7" not in text


def test_intervals_of_the_differences_in_the_headline(full: Path) -> None:
    row = json.loads((full / "results/summary.json").read_text())["headline"]
    markdown = (full / "report.md").read_text()
    for label, name in (("Delta", "delta"), ("Joint gain", "joint_gain")):
        shown = re.search(rf"\| {label} \|[^|]*\|[^|]*\|[^|]*\| (\S+) to (\S+) \|", markdown)
        assert shown, label
        assert float(shown[1]) == pytest.approx(row[f"{name}_low"], abs=0.006)
        assert float(shown[2]) == pytest.approx(row[f"{name}_high"], abs=0.006)
    assert re.search(r"\| MISELBO \|[^|]*\|[^|]*\|[^|]*\|  \|", markdown)


def test_values_that_are_not_there_or_not_finite(run_dir: Path) -> None:
    path = run_dir / "results/per_example.parquet"
    frame = pd.read_parquet(path)
    frame.loc[0, ["delta", "jsd", "ess"]] = np.nan
    frame.loc[1, ["delta", "miselbo", "pareto_k"]] = -np.inf
    frame.drop(columns="max_weight").to_parquet(path)
    bounds = pd.read_csv(run_dir / "results/bounds.csv")
    bounds.loc[0, ["slack", "slack_se"]] = np.nan
    bounds.drop(columns=["jsd_se", "miselbo_se_mc"]).to_csv(run_dir / "results/bounds.csv", index=False)
    summary_path = run_dir / "results/summary.json"
    summary = json.loads(summary_path.read_text())
    summary["headline"]["miselbo_se_mc"] = None
    summary["trust"] = {"non_finite": 2}
    del summary["num_dims"], summary["cost"]
    summary_path.write_text(json.dumps(summary))
    text = write(run_dir).read_text()
    assert "Not shown: 2 examples" in text
    assert "Values that are not finite: 2." in text
    assert "bits/dim" not in text
    assert "has no cost" in text
    visible = re.sub(r"base64,[^\"]*|<style>.*?</style>|<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"\bnan\b", visible, flags=re.I)
    assert not re.search(r"\bNone\b", visible)
    assert '<td class="r">–</td>' in visible  # noqa: RUF001


def test_text_of_the_run_is_escaped(one: Path) -> None:
    path = one / "results/summary.json"
    summary = json.loads(path.read_text())
    summary["trust"]["sentences"] = ["<script>alert(1)</script>"]
    summary["protocol"]["dataset"] = "a|b<c>"
    path.write_text(json.dumps(summary))
    text = write(one).read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert "a|b&lt;c&gt;" in text
    assert "a\\|b<c>" in (one / "report.md").read_text()


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder at"):
        write(tmp_path / "nothing")


def test_needs_no_torch_no_pyplot_and_the_package_needs_no_pandas(one: Path) -> None:
    code = (
        "import sys, miselbo\n"
        "bad = {'pandas', 'matplotlib', 'torch'} & set(sys.modules); assert not bad, bad\n"
        f"from miselbo.report import write; write({str(one)!r})\n"
        "bad = {'torch', 'matplotlib.pyplot'} & set(sys.modules); assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_latex_table_has_the_headline(full: Path) -> None:
    text = (full / "report.tex").read_text()
    assert (
        text.count(r"\midrule") == 2
        and r"\bottomrule" in text
        and r"\caption{nvae on digits test, 40 examples" in text
    )
    value = float(re.search(r"Joint bound & (\S+) &", text)[1])
    assert value == pytest.approx(
        json.loads((full / "results/summary.json").read_text())["headline"]["joint_bound"], abs=1e-3
    )


def test_gallery_shows_both_ends(full: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(full / "results/per_example.parquet")
    found = gallery.chosen(frame)
    assert found["most Delta"]["delta"].iloc[0] == frame["delta"].max()
    assert found["least Delta"]["delta"].tolist() == sorted(frame["delta"])[:8]
    shutil.copytree(full, tmp_path / "run")
    wanted = gallery.indices(frame)
    images = np.random.default_rng(0).random((len(wanted), 1, 8, 8))
    np.savez(tmp_path / "run/results/gallery.npz", index=wanted, images=images)
    write(tmp_path / "run")
    assert (tmp_path / "run/figures/gallery.png").is_file()
    (tmp_path / "run/results/gallery.npz").write_bytes(b"damaged")
    assert 'alt="Test images in rows' not in write(tmp_path / "run").read_text()


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_tables_are_sorted_in_a_browser(full: Path, tmp_path: Path) -> None:
    page = (full / "report.html").read_text()
    script = """<script>
    const table = document.querySelector("#grid table"), head = table.tHead.rows[0].cells[4];
    head.querySelector("button").click();
    document.title = [...table.tBodies[0].rows].map((row) => row.cells[4].textContent).join(" ");
    </script></body>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", script))
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        f"file://{tmp_path}/page.html",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    values = [float(word) for word in re.search("<title>(.*?)</title>", dom)[1].split()]
    assert len(values) == 15 and values == sorted(values, reverse=True)
