"""The scoring pass: settings, batches and shards, against the bounds of one whole score."""

import numpy as np
import pandas as pd
import pytest
import runs
import small
import torch
from omegaconf import OmegaConf

from miselbo import bounds
from miselbo.bounds import subsets
from miselbo.data import ImageData, Images
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation import scoring as evaluation
from miselbo.evaluation.run import until_precise
from miselbo.evaluation.scoring import Fitting, NetworkSource
from miselbo.evaluation.settings import Settings, doublings, make_grid, make_settings
from miselbo.evaluation.shards import forget_other_shards, score_all, shard_key
from miselbo.protocols import fingerprint
from miselbo.runs.config import compose_config


def ramp() -> Images:
    grey = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Images(grey[:13], grey[13:], 1.0, "noise", "in order")


@pytest.fixture
def data():
    """11 test and 6 validation images."""
    return ImageData(ramp, name="noise", num_validation=6)


@pytest.fixture(scope="module")
def ensemble():
    return small.vae_ensemble(3, torch.float32)


def score_split(ensemble, data, settings, folder, stamp):
    """The scoring pass of a network in this process."""
    values = score_all(NetworkSource(ensemble, data, settings, "cpu"), settings, folder, stamp, show=False)
    forget_other_shards(folder, [shard_key(settings, stamp, len(ensemble.members))])
    return values


def settings(**changes) -> Settings:
    standard = {"split": "test", "num_samples": 6, "grid": (1, 2, 6), "batch_size": 4, "samples_per_pass": 6}
    return Settings(**{**standard, "num_examples": None, "seed": 3, **changes})


def group(**changes):
    return OmegaConf.merge(compose_config(["run_dir=x"]).evaluation, changes)


def test_equals_the_bounds_of_one_whole_score(tmp_path, ensemble, data):
    values = score_split(ensemble, data, settings(), tmp_path, "stamp")
    batch = next(data.evaluation_batches("test", 11))
    log_p, log_q = ensemble.score(batch["image"], 6, seed=3)
    assert values["index"].tolist() == list(range(11))
    for s in (1, 2, 3):
        for i, length in enumerate((1, 2, 6)):
            # blocks of that length, first: [L / length, 11, s, length (, s)]
            p = log_p[:, :s].unflatten(2, (-1, length)).movedim(2, 0)
            q = log_q[:, :s, :, :s].unflatten(2, (-1, length)).movedim(2, 0)
            for name in ("miselbo", "joint_bound", "average_iwelbo", "average_elbo"):
                expected = getattr(bounds, name)(p, q).mean(0)
                np.testing.assert_allclose(values[name][:, s - 1, i], expected, rtol=0, atol=1e-4)
            np.testing.assert_allclose(values["jsd"][:, s - 1, i], bounds.jsd(q).mean(0), rtol=0, atol=1e-4)
    assert values["seconds"].shape == (3,)


def test_subsets_and_first_samples_come_from_the_same_pass(tmp_path, ensemble, data):
    values = score_split(ensemble, data, settings(), tmp_path, "stamp")
    batch = next(data.evaluation_batches("test", 11))
    log_p, log_q = ensemble.score(batch["image"], 6, seed=3)
    np.testing.assert_allclose(values["kept_log_p"], log_p, rtol=0, atol=1e-4)
    np.testing.assert_allclose(values["kept_log_q"], log_q, rtol=0, atol=1e-4)
    for position, subset in enumerate(subsets.list_subsets(3)):
        for name, expected in subsets.subset_bounds(log_p, log_q, subset).items():
            np.testing.assert_allclose(values[f"subset_{name}"][:, position], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("size", "names"), [(1, set()), (9, {"kept_log_p", "kept_log_q"})])
def test_one_member_has_no_subsets_and_nine_have_too_many(tmp_path, data, size, names):
    several = small.vae_ensemble(size, torch.float32)
    values = score_split(several, data, settings(num_examples=2), tmp_path, "stamp")
    assert {name for name in values if name.startswith(("kept", "subset"))} == names


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 100}, {"samples_per_pass": 4}])
def test_no_cut_changes_the_values(tmp_path, ensemble, data, changes):
    one = score_split(ensemble, data, settings(), tmp_path / "one", "stamp")
    other = score_split(ensemble, data, settings(**changes), tmp_path / "other", "stamp")
    assert one["index"].tolist() == other["index"].tolist()
    for name in ("miselbo", "joint_bound", "average_iwelbo", "jsd", "slack"):
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (4, 4), (9, 9), (50, 11), (None, 11)])
def test_the_first_examples(tmp_path, ensemble, data, limit, count):
    values = score_split(ensemble, data, settings(num_examples=limit), tmp_path, "stamp")
    assert values["index"].tolist() == list(range(count))
    assert values["miselbo"].shape == (count, 3, 3)


def test_the_validation_split(tmp_path, ensemble, data):
    values = score_split(ensemble, data, settings(split="validation"), tmp_path, "stamp")
    assert values["index"].tolist() == list(range(6))


def count_batches(monkeypatch) -> list[int]:
    scored = []
    real = evaluation.score_batch
    monkeypatch.setattr(
        evaluation,
        "score_batch",
        lambda source, index, *rest: scored.append(len(index)) or real(source, index, *rest),
    )
    return scored


def test_finished_shards_are_not_scored_again(tmp_path, ensemble, data, monkeypatch):
    scored = count_batches(monkeypatch)
    whole = score_split(ensemble, data, settings(), tmp_path, "stamp")
    assert scored == [4, 4, 3]
    sorted(tmp_path.glob("*/*.npz"))[-1].unlink()
    again = score_split(ensemble, data, settings(), tmp_path, "stamp")
    assert scored == [4, 4, 3, 3]
    for name in whole.keys() - {"seconds"}:
        np.testing.assert_array_equal(whole[name], again[name])


@pytest.mark.parametrize(
    ("changes", "stamp"),
    [
        ({"seed": 4}, "stamp"),
        ({"num_samples": 7, "grid": (7,)}, "stamp"),
        ({"batch_size": 5}, "stamp"),
        ({}, "other"),
    ],
)
def test_shards_of_other_settings_are_not_used_nor_kept(
    tmp_path, ensemble, data, monkeypatch, changes, stamp
):
    score_split(ensemble, data, settings(), tmp_path, "stamp")
    (old,) = tmp_path.iterdir()
    scored = count_batches(monkeypatch)
    score_split(ensemble, data, settings(**changes), tmp_path, stamp)
    assert sum(scored) == 11
    assert not old.exists() and len(list(tmp_path.iterdir())) == 1


def test_scoring_changes_nothing_in_the_ensemble(tmp_path, data):
    ensemble = small.nvae_ensemble(2, torch.float32).train()
    before = fingerprint(ensemble)
    values = score_split(ensemble, data, settings(), tmp_path, "stamp")
    assert fingerprint(ensemble) == before and ensemble.training
    alone = score_split(ensemble.eval(), data, settings(batch_size=1), tmp_path, "stamp")
    np.testing.assert_allclose(values["miselbo"], alone["miselbo"], rtol=0, atol=1e-4)


def test_settings_fill_in_what_is_open():
    made = make_settings(group(num_samples=30), seed=5, num_dims=64)
    assert (made.seed, made.grid, made.num_samples) == (5, (1, 2, 5, 10, 20, 30), 30)
    assert 1 <= made.samples_per_pass <= 30
    assert make_settings(group(seed=0), seed=5, num_dims=64).seed == 0
    assert make_settings(group(samples_per_pass=1000), seed=5, num_dims=64).samples_per_pass == 100
    assert make_settings(group(), seed=5, num_dims=10**9).samples_per_pass == 1


@pytest.mark.parametrize("key", ["num_samples", "batch_size", "num_examples", "samples_per_pass"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "a"])
def test_settings_that_are_no_sizes(key, value):
    with pytest.raises(
        InputError, match=f"evaluation.{key} must be a whole number of at least 1.*got {value!r}"
    ):
        make_settings(group(**{key: value}), 0, 64)


def test_grids():
    assert make_grid(None, 1) == (1,)
    assert make_grid(None, 100) == (1, 2, 5, 10, 20, 50, 100)
    assert make_grid([10, 1, 10], 30) == (1, 10, 30)
    assert make_grid([30], 30) == (30,)


@pytest.mark.parametrize("grid", [[], [0], [1, 31], [2.0], ["a", 1], [True], 5, "1,2"])
def test_grids_that_cannot_be(grid):
    with pytest.raises(InputError, match="evaluation.grid must list whole numbers from 1 to .*=30, got"):
        make_grid(grid, 30)


def test_inference_form_is_used_and_changes_nothing(tmp_path, data):
    ensemble = small.nvae_ensemble(2, torch.float32)
    source = NetworkSource(ensemble, data, settings(), "cpu")
    assert source.scorer is not ensemble
    values = score_split(ensemble, data, settings(), tmp_path, "stamp")
    batch = next(data.evaluation_batches("test", 11))
    log_p, log_q = ensemble.score(batch["image"], 6, seed=3)
    np.testing.assert_allclose(values["miselbo"][:, -1, -1], bounds.miselbo(log_p, log_q), rtol=0, atol=1e-4)


def test_dtypes(tmp_path, data):
    ensemble = small.nvae_ensemble(2, torch.float32)
    one = score_split(ensemble, data, settings(), tmp_path / "one", "stamp")
    double = score_split(ensemble, data, settings(dtype="float64"), tmp_path / "two", "stamp")
    np.testing.assert_allclose(one["miselbo"], double["miselbo"], rtol=0, atol=1e-4)
    assert next(ensemble.parameters()).dtype == torch.float32
    with pytest.raises(InputError, match="NVAE with one decoder alone"):
        NetworkSource(small.vae_ensemble(2, torch.float32), data, settings(dtype="bfloat16"), "cpu")


def test_kept_scores_hold_everything(tmp_path, ensemble, data):
    folder = tmp_path / "results" / "shards"
    values = score_split(ensemble, data, settings(save_scores=True), folder, "stamp")
    log_p, log_q, index = (
        np.load(tmp_path / "results" / "scores" / f"{n}.npy") for n in ("log_p", "log_q", "index")
    )
    assert index.tolist() == list(range(11))
    np.testing.assert_allclose(
        bounds.miselbo(torch.tensor(log_p), torch.tensor(log_q)), values["miselbo"][:, -1, -1], rtol=1e-12
    )
    (tmp_path / "results" / "scores" / "key").unlink()  # scores of an unknown evaluation: everything again
    again = score_split(ensemble, data, settings(save_scores=True), folder, "stamp")
    np.testing.assert_array_equal(np.load(tmp_path / "results" / "scores" / "log_p.npy"), log_p)
    np.testing.assert_array_equal(again["miselbo"], values["miselbo"])


def test_processes_share_the_batches(tmp_path, ensemble, data):
    from miselbo.evaluation.shards import read_shards, write_shards
    from miselbo.runtime.progress import Meter

    source = NetworkSource(ensemble, data, settings(), "cpu")
    for rank in (1, 0):
        places = write_shards(source, settings(), tmp_path / "all", Meter("", 11, enabled=False), rank, 2)
    shared = read_shards(places)
    alone = score_split(ensemble, data, settings(), tmp_path / "one", "stamp")
    for name in alone.keys() - {"seconds"}:
        np.testing.assert_array_equal(shared[name], alone[name])


def test_doublings_end_at_all_samples():
    steps = list(doublings(settings(num_samples=40, grid=(1, 20, 40))))
    assert [(step.num_samples, step.grid) for step in steps] == [
        (16, (1, 16)),
        (32, (1, 20, 32)),
        (40, (1, 20, 40)),
    ]
    assert [step.num_samples for step in doublings(settings())] == [6]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "float16"),
        ("save_scores", 3),
        ("compile", "yes"),
        ("stop_at_se", 0),
        ("stop_at_se", -1.0),
        ("workers", 0),
        ("workers", "x"),
    ],
)
def test_settings_that_cannot_be(key, value):
    with pytest.raises(InputError, match=f"evaluation.{key} must be"):
        make_settings(group(**{key: value}), 0, 64)


def spoil(path, **changes):
    with np.load(path) as shard:
        content = {name: shard[name] for name in shard.files}
    np.savez(path, **{**content, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": np.array("0123456789abcdef")}, "another ensemble, seed or setting"),
        ({"index": np.arange(4) + 4}, "other examples"),
    ],
)
def test_a_shard_of_another_evaluation_is_refused_by_its_fingerprint(
    tmp_path, ensemble, data, changes, message
):
    score_split(ensemble, data, settings(), tmp_path, "stamp")
    (shard,) = tmp_path.glob("*/00000000.npz")
    spoil(shard, **changes)
    with pytest.raises(InputError, match=message):
        score_split(ensemble, data, settings(), tmp_path, "stamp")


def test_a_shard_from_another_seed_in_the_place_of_ours_is_refused(tmp_path, ensemble, data):
    score_split(ensemble, data, settings(), tmp_path / "ours", "stamp")
    score_split(ensemble, data, settings(seed=4), tmp_path / "theirs", "stamp")
    (ours,), (theirs,) = (tmp_path.glob(f"{side}/*/00000004.npz") for side in ("ours", "theirs"))
    theirs.replace(ours)
    with pytest.raises(InputError, match="00000004.npz holds scores with fingerprint"):
        score_split(ensemble, data, settings(), tmp_path / "ours", "stamp")


def test_a_damaged_shard_is_refused_with_its_name(tmp_path, ensemble, data):
    score_split(ensemble, data, settings(), tmp_path, "stamp")
    (shard,) = tmp_path.glob("*/00000008.npz")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match="00000008.npz cannot be read"):
        score_split(ensemble, data, settings(), tmp_path, "stamp")


def score_to(goal, ensemble, data, settings, folder):
    """An evaluation with a goal: L, values, and the samples that each batch was scored at."""
    keys, scored = [], []

    def score(step):
        source = NetworkSource(ensemble, data, step, "cpu")
        passes = source.passes
        source.passes = lambda index, batch, first=0: (
            scored.append((first, step.num_samples)) or passes(index, batch, first)
        )
        keys.append(shard_key(step, "stamp", len(ensemble.members)))
        return score_all(source, step, folder, "stamp", show=False)

    last, values = until_precise(goal, settings, score, keys)
    return last.num_samples, values, scored


@pytest.mark.parametrize(("per_pass", "largest"), [(4, 0.0), (3, 1e-5)])
def test_doublings_go_on_from_the_draws_at_hand_to_the_same_values(
    tmp_path, capsys, ensemble, data, per_pass, largest
):
    whole = settings(num_samples=40, grid=(1, 10, 40), samples_per_pass=per_pass)
    full = score_split(ensemble, data, whole, tmp_path / "full", "stamp")
    used, values, scored = score_to(1e-9, ensemble, data, whole, tmp_path / "steps")
    assert used == 40
    assert scored == [(0, 16)] * 3 + [(16, 32)] * 3 + [(32, 40)] * 3
    for name in full.keys() - {"seconds"}:
        np.testing.assert_allclose(values[name], full[name], rtol=largest, atol=largest, err_msg=name)
    again = score_to(1e-9, ensemble, data, whole, tmp_path / "steps")
    assert again[2] == []
    np.testing.assert_array_equal(again[1]["miselbo"], values["miselbo"])
    assert "L = 32: Monte Carlo standard error of MISELBO" in capsys.readouterr().out


def test_draws_at_hand_are_halved_with_their_batch(capsys, ensemble, data):
    whole = settings(samples_per_pass=3)
    source = NetworkSource(ensemble, data, whole, "cpu")
    index, batch = next(source.batches())
    expected = Fitting(source, whole, None).score(index, batch, slice(0, 4))
    draws, _ = source.passes(index, batch)
    passes = source.passes

    def limited(index, batch, first=0):
        if len(index) > 1:
            raise MemoryError
        assert first == 3
        return passes(index, batch, first)

    source.passes = limited
    values = Fitting(source, whole, None).score(index, batch, slice(0, 4), draws)
    for name in expected.keys() - {"seconds"}:
        np.testing.assert_allclose(values[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert "going on with 1 of 1" in capsys.readouterr().out


def test_a_goal_that_is_reached_ends_the_doublings_and_a_finer_one_goes_on(tmp_path, ensemble, data):
    whole = settings(num_samples=40, grid=(1, 40))
    used, values, _ = score_to(1e9, ensemble, data, whole, tmp_path)
    assert (used, values["miselbo"].shape[2]) == (16, 2)
    error = np.sqrt(values["miselbo_var"][:, -1, -1].sum()) / 11
    used, _, scored = score_to(0.999 * error, ensemble, data, whole, tmp_path)
    assert used > 16
    assert min(scored) == (16, 32)


def test_a_stop_between_two_doublings_is_gone_on_from(tmp_path, ensemble, data, monkeypatch):
    whole = settings(num_samples=32, grid=(1, 32))
    real, calls = evaluation.score_batch, []

    def stop_at_the_fifth(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(evaluation, "score_batch", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        score_to(1e-9, ensemble, data, whole, tmp_path / "stopped")
    _, values, scored = score_to(1e-9, ensemble, data, whole, tmp_path / "stopped")
    assert scored == [(16, 32)] * 2
    unstopped = score_to(1e-9, ensemble, data, whole, tmp_path / "unstopped")[1]
    for name in values.keys() - {"seconds"}:
        np.testing.assert_array_equal(values[name], unstopped[name], err_msg=name)


def test_compilation_is_for_nvae(data):
    with pytest.raises(InputError, match="evaluation.compile=true is there for NVAE with one decoder alone"):
        NetworkSource(small.vae_ensemble(2, torch.float32), data, settings(compile=True), "cpu")


@pytest.mark.parametrize("most", [12, 2, 1])
def test_what_does_not_fit_is_halved_and_changes_nothing(tmp_path, monkeypatch, capsys, most):
    """Memory for ``most`` (example, sample) pairs at once, of 5 examples and 4 samples."""
    folder = tmp_path / "run"
    runs.fit(folder, "ensemble.size=2", "report=false", "evaluation.num_pictures=0")
    before = pd.read_parquet(folder / "results" / "per_example.parquet")
    kept = folder / "results" / "scores"
    passes = Ensemble.passes

    def limited(self, x, num_samples, samples_per_pass=None, seed=0, index=None, first=0):
        for scores in passes(self, x, num_samples, samples_per_pass, seed, index, first):
            yield scores  # the first pass is scored before memory runs out
            if len(x) * samples_per_pass > most:
                raise torch.OutOfMemoryError("CUDA out of memory (made by a test)")

    monkeypatch.setattr(Ensemble, "passes", limited)
    capsys.readouterr()
    runs.from_folder("evaluate", folder, "evaluation.save_scores=true", "evaluation.samples_per_pass=4")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("out of memory")]
    assert lines[0] == "out of memory with 4 samples of 5 examples at once: going on with 2 of 5"
    assert len(lines) == {12: 1, 2: 3, 1: 4}[most]
    after = pd.read_parquet(folder / "results" / "per_example.parquet")
    pd.testing.assert_frame_equal(before, after, rtol=0, atol=1e-4)
    log_p, log_q = np.load(kept / "log_p.npy"), np.load(kept / "log_q.npy")
    assert np.isfinite(log_p).all() and (np.load(kept / "index.npy") == np.arange(12)).all()
    means = bounds.miselbo(torch.from_numpy(log_p), torch.from_numpy(log_q)).numpy()
    np.testing.assert_allclose(means, after["miselbo"], atol=1e-6)


def test_what_never_fits_is_an_error(tmp_path, monkeypatch):
    runs.fit(tmp_path / "run", "ensemble.size=1", "report=false", "evaluation.num_pictures=0")

    def never(self, *given):
        raise torch.OutOfMemoryError("CUDA out of memory (made by a test)")

    monkeypatch.setattr(Ensemble, "passes", never)
    with pytest.raises(torch.OutOfMemoryError):
        runs.from_folder("evaluate", tmp_path / "run", "evaluation.num_samples=3")
