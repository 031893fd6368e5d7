"""One list of reported numbers: an entry and a function of the running sums are in all tables and the report."""

import subprocess
import sys

import pytest

from miselbo.bounds.quantities import QUANTITIES, names

NEW = """
import sys
from miselbo.bounds import quantities
from miselbo.bounds.quantities import Quantity

entry = Quantity("spread", "Spread", "difference", "How far log p - log q_s is spread.", of="spread", monitored=True)
quantities.QUANTITIES = (*quantities.QUANTITIES, entry)
from miselbo.bounds import values

def spread(sums, n):
    variance = sums.elbo.variance_of_mean(n) * n
    average = sums.nested.average(variance[:, None])
    return average, average / n

values.spread = spread

import torch
from miselbo import evaluate_scores
from miselbo.training.callbacks import EnsembleMonitor

torch.manual_seed(0)
log_p, log_q = torch.randn(6, 2, 30, dtype=torch.float64), torch.randn(6, 2, 30, 2, dtype=torch.float64)
result = evaluate_scores(log_p, log_q, folder=sys.argv[1])
own = torch.stack([log_p[:, s] - log_q[:, s, :, s] for s in range(2)], 1)
expected = float(own.var(-1).mean(1).mean())
row = result.bounds.iloc[-1]
assert abs(row["spread"] - expected) < 1e-9, (row["spread"], expected)
assert {"spread_se", "spread_se_mc", "spread_se_mc_trusted"} <= set(row.index)
assert abs(result.examples["spread"].mean() - expected) < 1e-9
assert abs(result.summary["headline"]["spread"] - expected) < 1e-9
assert "spread" in EnsembleMonitor.NAMES
page = result.report(sys.argv[1]).read_text()
assert "q_s is spread." in page and page.count("Spread") >= 2
"""


def test_a_new_diagnostic_is_one_entry_and_one_function(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NEW, str(tmp_path / "run")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_list_needs_no_torch():
    code = "import sys, miselbo.bounds.quantities; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda quantity: quantity.name)
def test_entries_are_whole(quantity):
    assert quantity.label and quantity.meaning.format(size=3, most="1.099").endswith(".")
    assert set(quantity.trusted_with) <= set(names())
    assert quantity.tunes <= (quantity.kind == "bound")  # a difference does not say that an ensemble is good
    assert not (quantity.weights and quantity.trusted_with)
