"""Do value +- 1.96 printed errors hold the expected bound about 95 times in 100? Repetitions are the batch."""

import pytest
import torch

from miselbo.bounds.diagnostics import monte_carlo_error
from miselbo.bounds.running import RunningBounds

EXAMPLES, REPETITIONS, REFERENCE = 20, 500, 100_000


@pytest.mark.parametrize("samples", [10, 100])
@pytest.mark.parametrize("spread", [1.0, 4.0, 8.0])
def test_intervals_of_one_member_cover_the_expected_bound(spread, samples):
    """The delta method covers .91, .54 and .30 at L = 10, .94, .62 and .39 at L = 100."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.empty(REFERENCE, samples, dtype=torch.float64).normal_(0, spread, generator=generator)
    truth = draws.logsumexp(-1).mean() - torch.tensor(samples).log()
    log_p = torch.empty(EXAMPLES * REPETITIONS, 1, samples, dtype=torch.float64)
    running = RunningBounds(1, [samples])
    running.update(log_p.normal_(0, spread, generator=generator), torch.zeros_like(log_p)[..., None])
    values = running.result()
    bound = values["member_iwelbo"].reshape(EXAMPLES, REPETITIONS).mean(0)
    error = monte_carlo_error(values["member_iwelbo_var"].reshape(EXAMPLES, REPETITIONS))
    covered = ((bound - truth).abs() <= 1.96 * error).double().mean().item()
    print(f"sd {spread:g}, L = {samples}: {covered:.3f}")
    assert 0.90 <= covered <= 0.99
