"""The sentences of the report, for a reader who does not know the paper; values go in at ``{...}``."""

AGAINST_SAMPLES = """
Right: each curve is a lower bound on log p(x), averaged over the examples; a higher curve is a tighter bound.
Left: what they have over the average ELBO of the same draws. With more samples L the average IWELBO and the joint
bound approach log p(x). MISELBO approaches log p(x) minus the slack, so for large L the average IWELBO may pass it.

Shaded on the right: one standard error over the examples. All curves use the same examples, so the shades move
together and differences are far more certain than the shades suggest. Bars: one Monte Carlo standard error.
"""

WORTH = """
At equal cost: all members with L samples each are compared with the best single member that has all S L samples. That
member is chosen on one half of the examples and compared on the other, both ways round; intervals are 95%, paired over
the examples. MISELBO averages logarithms over the members, so against one member with all the samples it mostly loses.
"""

SANDWICH = """
The model itself made these examples, with latents z* that are exact posterior samples. The joint bound lies below
log p(x) on average; with z* in place of one draw, of a member chosen by its share of the density at z*, the same mean
of weights lies above. The distance of the two is more than what the bound can be missing, on data like the model's own.
"""

AGAINST_SIZE = """
The first S members are scored as one ensemble, at L = {num_samples}. Left: what the ensemble has over member 1 alone,
on the same examples{bars}. Right: the bounds, shades and bars as above.
"""
PAIRED_BARS = "; the bars at the last point are one standard error of that paired difference"

DELTA_AND_JSD = """
Delta is what scoring the members as one mixture adds; JSD is how much the members differ. At L = 1 the two
are equal, so that point lies on the diagonal. JSD lies between 0 and log {size} up to Monte Carlo noise,
which is shown as it is and not cut off. Right: each line is one S, and its points are the values of L.

For L > 1 there is no such identity, and Delta may be negative: more samples repair each member on its own,
while MISELBO stays below log p(x) by the slack, which grows the less equally the members share the
posterior. In this run Delta is negative for {negative} of the examples at L = {num_samples}; the mean slack
is {slack} nats. The joint bound does not have this slack.
"""

PAIRWISE = """
The JSD of every two members, averaged over the examples: 0 means that both describe the same posterior,
log 2 = 0.693 that they never overlap. The colours reach from the smallest to the largest JSD of two members here. A
dark row is a member that resembles the others.
"""

WHICH_MEMBERS = """
Every dot is a subset of the members, scored as an ensemble of its own on the same draws (L = {num_samples} per
member). The solid line adds one member at a time, always the one that leaves the highest MISELBO (greedy path); the
dashed line joins the best subset of each size by MISELBO. The best of many is chosen on the draws that are shown,
so a lead over the next subset whose interval below (95%, paired over the examples) reaches 0 may be luck.
"""
GREEDY_ONLY = """
Every dot is a step of the greedy path, which adds one member at a time, always the one that leaves the highest
MISELBO. Not every subset of {size} members can be scored; the path was chosen on one half of the first draws of every
example, and the bounds shown are from the other half (L = {num_samples} per member).
"""
MARGINAL = """
Nats per added member: what the bounds gain when the named member joins those before it, averaged over the examples,
with its 95% interval (paired, over the examples). Members whose interval reaches down to 0 are not shown to help. A
gain in MISELBO may be negative where that in the joint bound is not: MISELBO also pays for a member that holds less
of the posterior than its equal weight.
"""
MIXTURE_WEIGHTS = """
Instead of equal weights, the members may have the weights that make the L = 1 MISELBO of the mixture highest. They
were fitted on the {fitted_on} of every example and are compared on the {measured_on}: the fitted weights change
MISELBO by {gain} nats (95% interval {interval}). {verdict} On the draws of the fit the change would be {optimistic},
which is optimistic.
"""

DELTA_HISTOGRAM = """
How many examples gain how much from scoring the members as one mixture. Right of 0 the mixture is the
tighter bound; left of 0 the average of the single members is.
"""
NOT_SHOWN = " Not shown: {count} examples without a finite value."

WEIGHTS = """
A bound can be trusted only if no handful of samples carries all the weight. Good signs: a large effective
sample size, a largest weight far below 1, and a Pareto k below 0.7 (dashed). Above 0.7 the weights have
such heavy tails that the Monte Carlo standard errors of those examples are too small.
"""

MEMBERS = """
Each member scored alone. A member far below the others was not trained well enough, and pulls every
average down.
"""
BEHIND = """
How far it lies behind the best one is a 95% interval of the difference, paired over the examples.
"""
RESPONSIBILITY = """
Responsibility is the mean share of the posterior that a member covers among all members; an equal share
would be {share}.
"""

IMAGES = """
Top: test images. Below: the same images encoded by each member and decoded by the shared decoder; the rows
should look alike, for all members describe the same model. Last: images drawn from the model's prior.
"""
ONLY_FIRST = "Only the first {count} members are shown."

DENSITY = """
The target density and the members; a member's contours hold 10, 50 and 90 % of its mass, a marker its mode. Below, the
Kullback-Leibler divergence of the mixture to the target, and the members' own on average: to the function as it is
given (c = 1), and to the normalised density (c = 1/Z). Normaliser: {rule}.
"""

TRAINING = """
One panel per quantity, one colour per member: lines with markers are validation, plain lines training
(long ones smoothed by a running median). q1 trains together with the decoder, the others against the
frozen decoder. The axes leave out the first tenth of each curve, where losses are still huge. A quantity
with one value per member was measured on the pair of q1 and that member.
"""

GALLERY = """
The examples at both ends: those that gain most and least by scoring the members as one mixture, those with the heaviest
weights, those the model finds hardest, and those that the members share least equally. Outliers in the data show here.
"""

COST = """
Time of every stage, and the number of decoder passes in it (one per sample); a dash means not counted.
"""

GRID = """
The first S members with L samples each, all from one pass over the data: means over the examples, in nats, to two
digits of their Monte Carlo error; then the share of examples (of those with a known k) whose Pareto k is above 0.7,
and the number of draws whose weights are not finite. Standard errors and all digits are in results/bounds.csv.
"""

SINGLE = "Left out: it needs at least two members, and this run has one (S = 1)."
ONE_MEMBER = """
One member scores {value} nats per example. For S = 1 MISELBO, joint bound and IWELBO are the same number.
"""
GLANCE = """
Scored as one mixture, the {size} members reach {value} nats per example: {gain} nats {side} the average of
the same members scored one by one (average IWELBO). Their mean JSD is {jsd} nats, of at most
log {size} = {most}.
"""


def paragraphs(text: str, **values: object) -> list[str]:
    """The paragraphs of a text, each on one line, with its values filled in.

    >>> paragraphs("one\\n{word}\\n\\nthree", word="two")
    ['one two', 'three']
    """
    return [" ".join(part.split()) for part in text.format(**values).strip().split("\n\n")]
