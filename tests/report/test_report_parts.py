"""The parts of the report: digits, colours, what a figure draws."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

import miselbo.report
from miselbo.report import folder, heading, pictures, plots, style, tables

CSS = (Path(miselbo.report.__file__).parent / "style.css").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> folder.RunFolder:
    made = synthetic.make(tmp_path_factory.mktemp("parts") / "run", size=4, num_data=60, grid=(1, 10, 50))
    return folder.read(made)


def test_the_synthetic_numbers_obey_the_theory(run: folder.RunFolder) -> None:
    bounds = run.bounds
    assert (bounds["joint_bound"] >= bounds["miselbo"] - 1e-12).all()
    one = bounds[bounds["L"] == 1]
    np.testing.assert_allclose(one["delta"], one["jsd"], atol=1e-12)
    single = bounds[bounds["S"] == 1]
    np.testing.assert_allclose(single["miselbo"], single["average_iwelbo"])
    np.testing.assert_allclose(single[["jsd", "slack", "delta"]], 0.0, atol=1e-12)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 90.0))
def test_value_and_error_have_the_same_decimals_and_two_digits_of_the_error(
    value: float, error: float
) -> None:
    shown_value, shown_error = tables.plus_minus(value, error).split(" ± ")
    assert float(shown_error) == pytest.approx(error, rel=0.051)
    assert len(shown_value.partition(".")[2]) == len(shown_error.partition(".")[2])
    assert abs(float(shown_value) - value) <= 0.051 * error + 1e-9
    assert not re.fullmatch(r"-0\.?0*", shown_value)


def test_digits_at_the_edges() -> None:
    assert tables.plus_minus(-0.5, 0.0996) == "-0.50 ± 0.10"  # rounding the error moves its first digit
    assert tables.plus_minus(0.0, 0.0) == "0.000 ± 0"
    assert tables.plus_minus(-1e-17, 1e-17) == "0.0000 ± <0.0001"
    assert tables.plus_minus(-1234.5, 123.0) == "-1234 ± 123"
    assert tables.plus_minus(-math.inf, math.nan) == "-inf"
    assert tables.plus_minus(math.nan, 1.0) == tables.DASH


def test_cost_shares_add_up(run: folder.RunFolder) -> None:
    table = tables.cost(run)
    assert table is not None and table.total
    shares = [float(row[3].removesuffix(" %")) for row in table.rows]
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.3) and shares[-1] == 100
    assert table.rows[0][2] == tables.DASH
    assert table.rows[-1][2] == f"{60 * 4 * 50:,}"


def test_every_table_row_has_all_columns(run: folder.RunFolder) -> None:
    for table in (
        tables.headline(run),
        tables.per_member(run),
        tables.grid(run.bounds),
        tables.protocol(run),
    ):
        assert {len(row) for row in table.rows} == {len(table.columns)} == {len(table.align)}
    assert len(tables.grid(run.bounds).rows) == 4 * 3
    assert "Responsibility" in tables.per_member(run).columns


@pytest.mark.parametrize(("delta", "word"), [(0.3, "above"), (-0.3, "below")])
def test_the_result_in_a_sentence_follows_the_sign(run: folder.RunFolder, delta: float, word: str) -> None:
    changed = {**run.headline, "delta": delta, "delta_se": 0.01}
    sentence = heading.glance(
        folder.RunFolder(**{**vars(run), "summary": {**run.summary, "headline": changed}})
    )
    assert f"0.300 ± 0.010 nats {word} the average" in sentence


def test_text_colours_have_contrast() -> None:
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in re.findall(r":root {(.*?)}", CSS)]
    assert len(schemes) == 2 and style.contrast(schemes[1]["page"], "#000000") < 1.5  # light and dark
    for colours in schemes:
        for text in ("ink", "quiet", "accent"):
            for background in ("page", "soft"):
                assert style.contrast(colours[text], colours[background]) >= 4.5
    used = set(re.findall(r"(?<!-)color: ([^;]+);", CSS))
    assert used <= {"var(--ink)", "var(--quiet)", "var(--accent)"}
    assert style.contrast(style.GREY, "#FFFFFF") >= 4.5


def test_lines_have_contrast_and_differ_without_colour() -> None:
    looks = list(style.BOUND_STYLES.values())
    assert all(style.contrast(look["color"], "#FFFFFF") >= 3 for look in looks)
    assert len({look["marker"] for look in looks}) == len({look["linestyle"] for look in looks}) == len(looks)
    members = [style.member_style(position) for position in range(28)]
    assert len({(look["color"], look["linestyle"]) for look in members}) == 28
    assert len({look["marker"] for look in members[:7]}) == 7
    assert all(style.contrast(look["color"], "#FFFFFF") >= 3 for look in members)
    assert not {look["color"] for look in looks} & {
        look["color"] for look in members
    }  # a colour means one thing


def test_heatmap_shows_the_range_there_is_and_numbers_as_measured(run: folder.RunFolder) -> None:
    frame = pd.DataFrame(
        {"member_i": [1, 1, 1, 2], "member_j": [1, "q2", "q3", "q3"], "jsd": [0.0, 0.75, 0.1, 0.2]}
    )
    axis = plots.pairwise_jsd(frame).axes[0]
    assert axis.images[0].get_clim() == (0.1, 0.75)
    written = [text.get_text() for text in axis.texts]
    assert written == ["", "0.750", "0.100", "0.750", "", "0.200", "0.100", "0.200", ""]
    backgrounds = axis.images[0].to_rgba(axis.images[0].get_array())[..., :3].reshape(-1, 3)
    for text, colour in zip(axis.texts, backgrounds, strict=True):
        if not text.get_text():
            continue
        behind = "#" + "".join(f"{round(255 * float(channel)):02X}" for channel in colour)
        assert style.contrast(str(text.get_color()), behind) >= 4.5


def test_bounds_figures_draw_the_numbers(run: folder.RunFolder) -> None:
    gains, left = plots.bounds_against_samples(run.bounds, run.size).axes[:2]
    assert "Gain" in gains.get_title(loc="left")  # differences first: the shades hide them in the values
    frame = run.bounds[run.bounds["S"] == run.size]
    drawn = {container.get_label(): container.lines[0].get_ydata() for container in left.containers}
    for name, label in tables.NAMES.items():
        if name in folder.BOUNDS:
            np.testing.assert_allclose(drawn[label], frame[name])
    assert left.get_xscale() == "log"
    right = plots.bounds_against_size(run.bounds, run.per_example, run.num_samples).axes[0]
    full, alone = frame[frame["L"] == 50].iloc[0], run.bounds.query("S == 1 and L == 50").iloc[0]
    assert right.lines[0].get_ydata()[-1] == pytest.approx(full["joint_bound"] - alone["joint_bound"])


def test_paired_error_is_that_of_the_differences() -> None:
    frame = pd.DataFrame({"miselbo": [1.0, 2.0, 3.0, np.inf], "iwelbo_1": [0.0, 2.0, 2.0, 0.0]})
    assert plots.paired_error(frame, "miselbo") == pytest.approx(
        np.std([1.0, 0.0, 1.0], ddof=1) / math.sqrt(3)
    )
    assert math.isnan(plots.paired_error(frame[["miselbo"]], "miselbo"))


def test_delta_figure_has_diagonal_and_log_s(run: folder.RunFolder) -> None:
    left, right = plots.delta_against_jsd(run.per_example, run.bounds, run.size).axes
    for axis in (left, right):
        diagonal = next(line for line in axis.lines if line.get_label() == "Delta = JSD")
        np.testing.assert_allclose(diagonal.get_xdata(), diagonal.get_ydata())
    marks = [line.get_xdata()[0] for line in left.lines if str(line.get_label()).startswith("log 4")]
    assert marks == [pytest.approx(math.log(4))]
    assert len(left.collections[0].get_offsets()) == 60


def test_image_rows_labels_and_colour() -> None:
    rng = np.random.default_rng(0)
    images = {"originals": rng.random((3, 3, 6, 8)), "reconstructions": rng.random((2, 3, 3, 6, 8))}
    rows = pictures.image_rows({**images, "samples": rng.random((4, 3, 6, 8))})
    assert [name for name, _ in rows] == ["original", "through q1", "through q2", "prior sample", ""]
    assert [len(row) for _, row in rows] == [3, 3, 3, 3, 1]
    shown = pictures.strip(images["originals"], 3, 2)
    np.testing.assert_allclose(shown[:, 10:18], images["originals"][1].transpose(1, 2, 0))
    assert (shown[:, 8:10] == 1).all()
    assert len(pictures.image_grid({"samples": rng.random((4, 1, 6, 8))}).axes) == 1


def test_metrics_of_a_killed_and_resumed_run(tmp_path: Path) -> None:
    made = synthetic.make(tmp_path / "run", size=1, num_data=10, grid=(1,))
    text = "member,step,metric,value\n1,1,lr,0.5\n1,1,lr,0.25\n1,2,lr,nan\nq2,1,train/loss,3.0\n1,3,tr"
    (made / "metrics.csv").write_text(text)
    metrics = folder.read(made).metrics
    assert metrics is not None
    assert list(metrics.itertuples(index=False, name=None)) == [
        ("q1", 1, "lr", 0.25),
        ("q2", 1, "train/loss", 3.0),
    ]
    assert len(pictures.training_curves(metrics).axes) == 2


def test_one_panel_for_each_family_one_line_for_each_member(run: folder.RunFolder) -> None:
    assert run.metrics is not None
    axes = pictures.training_curves(run.metrics).axes
    titles = [axis.get_title(loc="left") for axis in axes if axis.get_visible()]
    assert titles == ["loss", "elbo", "miselbo", "average_elbo", "delta", "jsd", "lr"]
    curves = [line for line in axes[0].lines if len(line.get_xdata())]
    assert len(curves) == 4


def test_a_histogram_of_values_equal_up_to_round_off():
    frame = pd.DataFrame({"delta": 0.3 + np.array([0.0, 1e-16, 2e-16]), "index": range(3)})
    assert plots.delta_histogram(frame).axes[0].patches
