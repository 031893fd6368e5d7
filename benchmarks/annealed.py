"""Annealed importance sampling of a trained VAE run beside its joint bound: starts, lengths, both sides.

    python benchmarks/annealed.py RUN_DIR --images 24 --temperatures 20 50 200

Prints one line per estimate: mean over the images in nats, Monte Carlo error, acceptance, decoder passes of an image.
"""

import argparse
import math
import time

import torch
from torch.distributions import Normal

from miselbo import Ensemble, load_run
from miselbo.bounds.jackknife import joint_jackknife
from miselbo.evaluation.annealed import Plan, anneal
from miselbo.models.hierarchical import Posterior
from miselbo.models.vae import Decoder, Encoder


class Prior(Encoder):
    """The prior as a member, a start that knows nothing of x."""

    def __init__(self, decoder: Decoder):
        super().__init__(decoder, num_channels=1)
        self.size = decoder.latent_shapes[0]

    def encode(self, x):
        """Nothing but the size of the batch."""
        return [x.new_zeros(len(x), *self.size)]

    def posterior(self, context, i, feature, prior_raw):
        """N(0, I)."""
        return Posterior(Normal(context, torch.ones_like(context), validate_args=False))


def line(name, values, variance, acceptance, passes, seconds):
    """One row of the table."""
    error = float(variance.sum().sqrt() / len(values))
    print(
        f"| {name} | {float(values.mean()):.3f} | {error:.3f} | {acceptance:.2f} | {passes:,} | {seconds:.0f} |",
        flush=True,
    )


def annealed(name, ensemble, x, plan, truth=None):
    """Anneal and print; returns the values."""
    start = time.process_time()
    found = anneal(ensemble, x, plan, truth=truth)
    spent = time.process_time() - start
    line(
        name,
        found["annealed"],
        found["annealed_var"],
        float(found["acceptance"].mean()),
        plan.passes(len(ensemble.members)),
        spent,
    )
    return found


def main():
    """Run all estimates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--temperatures", type=int, nargs="+", default=[20, 50])
    parser.add_argument(
        "--starts", type=int, default=20, help="temperatures at which starts are compared; 0: not"
    )
    parser.add_argument(
        "--simulated", type=int, default=0, help="images simulated from the model, both sides"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = load_run(args.run)
    ensemble = run.ensemble()
    size = len(ensemble.members)
    batch = next(iter(run.data().evaluation_batches("test", args.images)))
    x = batch["image"]
    print(
        "| estimate | nats | MC s.e. | acceptance | passes of an image | CPU s |\n|---|---|---|---|---|---|"
    )
    for samples in (100, 1024):
        start = time.process_time()
        log_p, log_q = ensemble.score(x, samples, samples_per_pass=8)
        value, variance, _ = joint_jackknife(log_p - log_q.logsumexp(-1) + math.log(size))
        line(f"joint bound, L = {samples}", value, variance, 0, size * samples, time.process_time() - start)
    for temperatures in args.temperatures:
        annealed(f"annealed from the mixture, T = {temperatures}", ensemble, x, Plan(temperatures, 2))
    if args.starts:
        one = Plan(args.starts, 2 * size)
        for s, member in enumerate(ensemble.members, 1):
            annealed(f"from q{s} alone, T = {args.starts}", Ensemble(ensemble.target, [member]), x, one)
        prior = Ensemble(ensemble.target, [Prior(ensemble.target)]).eval()
        annealed(f"from the prior, T = {args.starts}", prior, x, one)
        annealed(f"from the mixture, T = {args.starts}", ensemble, x, Plan(args.starts, 2))
    if args.simulated:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(args.simulated, *ensemble.target.latent_shapes[0], generator=generator)
        with torch.no_grad():
            chance = ensemble.target.sample_prior([z])
            pictures = (torch.rand(chance.shape, generator=generator) < chance).float()
        plan = Plan(args.temperatures[-1], 2)
        found = annealed(f"simulated, from below, T = {plan.temperatures}", ensemble, pictures, plan, [z])
        width = found["annealed_upper"] - found["annealed"]
        print(f"width {float(width.mean()):.3f} nats, from above {float(found['annealed_upper'].mean()):.3f}")


if __name__ == "__main__":
    main()
