"""Damaged and foreign files of results/: a sentence that names the file, the report before it untouched."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import runs
import synthetic

from miselbo.errors import InputError
from miselbo.evaluation.result import Result
from miselbo.report import html, write
from miselbo.report.checked import read_summary, read_table
from miselbo.runtime.reading import check_archive, read_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return synthetic.make(tmp_path / "run", size=2, num_data=6, grid=(1, 2))


def changed(folder: Path, **values: object) -> Path:
    path = folder / "results" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("headline", {"S": 2}), ("headline", [1]), ("members", [[1]]), ("members", [{"iwelbo": "low"}]),
        ("protocol", "none"), ("trust", {"sentences": "fine"}), ("trust", {"sentences": [1]}), ("cost", {"stage": 1}),
        ("num_dims", "64"), ("words", {"a": 1}), ("sections", "images"), ("mixture_weights", 1),
    ],
)  # fmt: skip
def test_a_summary_with_another_shape(folder, key, value):
    before = runs.snapshot(folder)
    path = changed(folder, **{key: value})
    with pytest.raises(InputError, match=rf"summary\.json.*{key}"):
        write(folder)
    with pytest.raises(InputError, match=rf"summary\.json.*{key}"):
        Result.read(folder)
    after = runs.snapshot(folder)
    assert {name for name in after if after[name] != before.get(name)} == {str(path.relative_to(folder))}


@pytest.mark.parametrize("value", ["2", 2.0, True, 0, -1, 10**12, None])
def test_sizes_in_a_summary(folder, value):
    path = folder / "results" / "summary.json"
    headline = json.loads(path.read_text())["headline"]
    changed(folder, headline={**headline, "L": value})
    with pytest.raises(InputError, match="summary.json: (L must be|headline must hold)"):
        read_summary(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 10**6, b'{"a":' * 10**5, b"\xff\xfe", b"NULL", b'{"headline": 1e999}'],
    ids=range(6),
)
def test_json_that_is_none(tmp_path, content):
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="summary.json"):
        read_summary(path)


def test_json_beyond_its_size(tmp_path):
    path = tmp_path / "big.json"
    path.write_text(json.dumps(["x"] * 100))
    with pytest.raises(InputError, match="more than 200 bytes"):
        read_json(path, 200)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_json(tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["bounds.csv", "per_member.csv", "per_example.parquet"])
def test_words_where_numbers_belong(folder, name):
    path = folder / "results" / name
    frame = read_table(path)
    column = "iwelbo" if name == "per_member.csv" else "miselbo"
    frame[column] = ["low"] * len(frame)
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
    with pytest.raises(InputError, match=rf"{name}: column {column} must hold numbers, got \['low'\]"):
        write(folder)


def test_a_table_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("miselbo.report.checked.LARGEST", 10_000)
    path = tmp_path / "a.parquet"
    pd.DataFrame({"a": np.zeros(100_000)}).to_parquet(path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match="would take"):
        read_table(path)


def test_an_archive_that_unpacks_to_too_much(tmp_path):
    path = tmp_path / "images.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(10**6))
    assert path.stat().st_size < 2000
    check_archive(path)
    with pytest.raises(InputError, match="unpack to 1,000,000 bytes"):
        check_archive(path, 10**5)
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match="cannot be read"):
        check_archive(path)


def test_a_report_that_fails_halfway_replaces_nothing(folder, monkeypatch):
    write(folder)
    before = runs.snapshot(folder)

    def broken(report):
        raise RuntimeError("no words")

    monkeypatch.setattr(html, "to_markdown", broken)
    changed(folder, num_dims=3)
    with pytest.raises(RuntimeError, match="no words"):
        write(folder)
    after = runs.snapshot(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"results/summary.json"}


def test_files_are_put_in_place_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError):
        html.write_together({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert (tmp_path / "a").read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
