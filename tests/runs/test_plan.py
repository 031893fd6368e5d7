"""What is refused before any work: hyper-parameters nobody knows, a stored configuration of more than values."""

import pytest
import runs

from miselbo.errors import InputError
from miselbo.runs.plan import able, check_objective, rebuild


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "+model.objective.learning_rat=0.1",
            "unknown model.objective.learning_rat; did you mean 'learning_rate'",
        ),
        ("model.objective.learning_rate_min=1.0", "model.objective.learning_rate_min=1 is above"),
    ],
)
def test_hyper_parameters_are_refused_before_a_folder_is_claimed(tmp_path, override, said):
    with pytest.raises(InputError, match=said):
        runs.fit(tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_a_fit_function_of_ones_own_takes_its_own_hyper_parameters():
    check_objective(lambda: None, {"anything": 1})
    check_objective(able(apart=True)(lambda: None), {"anything": 1})


def test_a_rank_reads_values_alone(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("task: run\nmodel: {}\ndataset: {name: '${oc.env:HOME}'}\nensemble: {}\nevaluation: {}\n")
    with pytest.raises(InputError, match="dataset.name"):
        rebuild(path)
